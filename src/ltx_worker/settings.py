"""The environment, read once into one frozen value.

Every variable is documented here and nowhere parsed a second time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

_REPOSITORY = Path(__file__).parents[2]

Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """What the worker takes from its environment. Field `x` is the variable `LTX2_X`."""

    model_config = SettingsConfigDict(
        env_prefix="LTX2_", env_ignore_empty=True, frozen=True, populate_by_name=True
    )

    comfy_url: str = Field(
        default="http://127.0.0.1:8188",
        validation_alias=AliasChoices("comfy_url", "COMFY_URL"),
        description="Address of the ComfyUI that runs the graphs.",
    )
    comfy_input_dir: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("comfy_input_dir", "COMFY_INPUT_DIR"),
        description="ComfyUI's input folder, where it is shared with the worker; "
        "otherwise files are sent over HTTP and stay there.",
    )
    comfy_output_dir: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("comfy_output_dir", "COMFY_OUTPUT_DIR"),
        description="ComfyUI's output folder, where it is shared with the worker; "
        "otherwise results are fetched over HTTP and stay there.",
    )
    comfy_models_dirs: tuple[Path, ...] = Field(
        default=(),
        validation_alias=AliasChoices("comfy_models_dirs", "COMFY_MODELS_DIRS"),
        description="ComfyUI's model folders, as a JSON list of paths, where the worker shares "
        "them: LoRA files are then read before they are used.",
    )
    variant: Literal["fp8", "fp16"] | None = Field(
        default=None,
        description="Use only the model files of this precision; unset takes what is there.",
    )
    max_frames: int = Field(
        default=505,
        ge=9,
        le=993,
        description="Longest clip in frames. 505 covers the hosted service's longest clips; 993 "
        "is ComfyUI's limit for an audio latent on the 8k+1 grid.",
    )
    job_timeout_s: Seconds = Field(
        default=900.0, description="Seconds a job may take before it is stopped."
    )
    comfy_start_timeout_s: Seconds = Field(
        default=300.0, description="Seconds to wait for ComfyUI to answer when the worker starts."
    )
    max_response_bytes: int = Field(
        default=10_000_000,
        gt=0,
        description="Largest answer in bytes; RunPod refuses more than 10 MB on /run.",
    )
    max_image_bytes: int = Field(
        default=15_000_000,
        gt=0,
        description="Largest input picture in bytes, as fetched or decoded.",
    )
    max_media_bytes: int = Field(
        default=32_000_000, gt=0, description="Largest input sound or clip in bytes."
    )
    max_media_s: Seconds = Field(
        default=120.0, description="Longest input sound or clip in seconds."
    )
    video_format: Literal["mp4", "webm"] = Field(
        default="mp4", description="Container of a clip whose request names none."
    )
    output_dir: str = Field(
        default="ltx2",
        pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$",
        description="Folder of the jobs' files, inside ComfyUI's input and output folders.",
    )
    workflows_dir: Path = Field(
        default=_REPOSITORY / "workflows",
        description="Folder of the workflow files and their bindings.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severity that is logged."
    )


class InvalidSettings(Exception):
    """Variables of the environment that make no sense, each named with the reason."""


def load_settings() -> Settings:
    """Read the environment; raises `InvalidSettings`."""
    try:
        return Settings()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        wrong = [f"{_variable(str(e['loc'][0]))}: {e['msg']}" for e in found]
        raise InvalidSettings("; ".join(wrong)) from error


def _variable(name: str) -> str:
    """The variable of a field; pydantic names it where the field has an alias of its own."""
    return f"LTX2_{name.upper()}" if name in Settings.model_fields else name
