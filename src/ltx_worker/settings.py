"""The environment, read once into one frozen value.

Every variable is documented here and nowhere parsed a second time.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

_PREFIX = "LTX2_"
_REPOSITORY = Path(__file__).parents[2]

LogFormat = Literal["auto", "json", "text"]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """What the worker takes from its environment. Field `x` is the variable `LTX2_X`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, populate_by_name=True
    )

    comfy_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("comfy_url", "COMFY_URL"),
        description="Address of a ComfyUI that already runs; unset, the worker starts its own.",
    )
    engine: Literal["comfyui", "sandbox"] = Field(
        default="comfyui",
        description="What the worker starts: ComfyUI, or the sandbox that needs no GPU.",
    )
    comfyui_dir: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("comfyui_dir", "COMFYUI_DIR"),
        description="Folder of the ComfyUI that the worker starts.",
    )
    comfyui_python: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("comfyui_python", "COMFYUI_PYTHON"),
        description="Interpreter of that ComfyUI; default its .venv or venv.",
    )
    comfy_args: str = Field(
        default="", description="Further options for its main.py, quoted as in a shell."
    )
    comfy_port: int = Field(
        default=8188, ge=1, le=65535, description="Port of the ComfyUI that the worker starts."
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
    allow_low_vram: bool = Field(
        default=False,
        description="Whether a GPU with too little memory may serve: slow, and short clips only.",
    )
    vram_management: bool = Field(
        default=True,
        validation_alias=AliasChoices("vram_management", "ENABLE_LTX2_VRAM_MANAGEMENT"),
        description="Whether ComfyUI's memory and cache flags are chosen from the GPU.",
    )
    models: str = Field(
        default="ltx2",
        description="Which model files start.sh fetches: what download_models.sh takes, such as "
        "ltx2.3 pro.",
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
    concurrency: int = Field(
        default=1,
        ge=1,
        le=4,
        description="Jobs taken at a time. With 2 a clip is read and uploaded while the next job "
        "is generated; the GPU still runs one job at a time.",
    )
    comfy_start_timeout_s: Seconds = Field(
        default=300.0, description="Seconds to wait for ComfyUI to answer when the worker starts."
    )
    read_ahead: bool = Field(
        default=True,
        description="Whether the weights are read into memory while the worker's own ComfyUI "
        "starts.",
    )
    speed_off: str = Field(
        default="",
        description="Speed-ups of the worker's own nodes to leave out, by commas: imports, "
        "text, transformer, graphs, attention, upsampler, decoder, weights.",
    )
    warm_up: Literal["auto", "true", "false"] = Field(
        default="auto",
        description="Whether a clip that nobody gets is made before the first job, which then is "
        "as fast as any other; auto does where the worker starts its own ComfyUI on a GPU.",
    )
    warm_up_timeout_s: Seconds = Field(
        default=300.0, description="Seconds that clip may take before the worker starts without."
    )
    comfy_unresponsive_s: Seconds = Field(
        default=30.0,
        description="Seconds ComfyUI may owe an answer while a job runs; loading a model may take "
        "it ten. Then the job fails, and the worker's own ComfyUI is started again.",
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
    allow_http_inputs: bool = Field(
        default=False, description="Whether inputs may be fetched by http as well as https."
    )
    fetch_timeout_s: Seconds = Field(
        default=60.0, description="Seconds one input may take to be fetched."
    )
    r2_account_id: str | None = Field(
        default=None,
        validation_alias=AliasChoices("r2_account_id", "R2_ACCOUNT_ID"),
        description="Cloudflare account; gives the endpoint where none is set.",
    )
    r2_endpoint_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("r2_endpoint_url", "R2_ENDPOINT_URL", "BUCKET_ENDPOINT_URL"),
        description="Endpoint of R2 or of any other S3 service.",
    )
    r2_access_key_id: str | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "r2_access_key_id", "R2_ACCESS_KEY_ID", "BUCKET_ACCESS_KEY_ID"
        ),
        description="Access key.",
    )
    r2_secret_access_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "r2_secret_access_key", "R2_SECRET_ACCESS_KEY", "BUCKET_SECRET_ACCESS_KEY"
        ),
        description="Its secret.",
    )
    r2_bucket: str | None = Field(
        default=None,
        validation_alias=AliasChoices("r2_bucket", "R2_BUCKET", "R2_BUCKET_NAME", "BUCKET_NAME"),
        description="Bucket for the clips.",
    )
    r2_region: str = Field(
        default="auto",
        validation_alias=AliasChoices("r2_region", "R2_REGION"),
        description="Region; R2 takes auto.",
    )
    r2_public_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("r2_public_url", "R2_PUBLIC_URL"),
        description="Address under which the bucket is public; unset, links are presigned.",
    )
    link_expiry_s: int = Field(
        default=604_800,
        ge=1,
        le=604_800,
        description="Seconds a presigned link is valid; S3 allows a week at most.",
    )
    output_key: str = Field(
        default="outputs/ltx2/{date}/{job_id}.{ext}",
        pattern=r"^([A-Za-z0-9._/-]|\{date\}|\{ext\})*\{job_id\}([A-Za-z0-9._/-]|\{date\}|\{ext\})*$",
        description="Object key of a clip, from {date} (UTC, YYYY-MM-DD), {job_id} and {ext}.",
    )
    keep_failed_s: float = Field(
        default=3600.0,
        ge=0,
        description="Seconds a clip is kept on disk whose upload failed for good.",
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
    log_format: LogFormat = Field(
        default="auto", description="auto writes text to a terminal and JSON lines elsewhere."
    )


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The `LTX2_` variables that are no setting, each with the setting it may have meant."""
    known = {
        _PREFIX + name.upper()
        for name, field in Settings.model_fields.items()
        if field.validation_alias is None
    }
    return {
        name: next(iter(difflib.get_close_matches(name, known, 1)), None)
        for name in environment
        if name.startswith(_PREFIX) and name not in known
    }


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
    return _PREFIX + name.upper() if name in Settings.model_fields else name
