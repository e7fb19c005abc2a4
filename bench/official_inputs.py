"""What the official pipeline is given: model files, random prompts, camera-like frames."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

CATALOG = Path(__file__).parents[1] / "src" / "ltx_worker" / "catalog.toml"
# Their tokenizer pads every prompt to this many tokens.
PROMPT_TOKENS = 1024
# The connectors' sizes where a checkpoint does not state them, as their configurator has them.
CONNECTOR_HEADS, CONNECTOR_HEAD_WIDTH = 30, 128
# Where the camera-like frames come from, and the module of ComfyUI's that it names.
CONTENT = Path(__file__).parent / "custom_nodes" / "ltx_bench" / "content.py"
HOOKED = ("comfy", "ldm", "lightricks", "vae", "causal_video_autoencoder")
# Such frames made at a time.
BATCH = 16


class ModelFiles:
    """The files of one family in a models folder, by role, named as in the catalogue."""

    def __init__(self, models: Path, family: str) -> None:
        files = tomllib.loads(CATALOG.read_text())["files"]
        self._models = models
        self._files = [file for file in files if file.get("family") == family]

    def path(self, role: str, variant: str | None = None) -> Path:
        """The file of a role, in its variant where it has several; FileNotFoundError without."""
        for file in self._files:
            if file["role"] == role and file.get("variant") == variant:
                path = self._models / file["folder"] / Path(file["path"]).name
                if path.is_file():
                    return path
                raise FileNotFoundError(path)
        raise FileNotFoundError(f"the catalogue has no {role} {variant or ''}")


def transformer_config(checkpoint: Path) -> dict[str, Any]:
    """The transformer's sizes, from the metadata of a safetensors file."""
    with checkpoint.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(length)).get("__metadata__", {})
    return json.loads(metadata.get("config", "{}")).get("transformer", {})


def embedding_widths(config: dict[str, Any]) -> tuple[int, int]:
    """Widths of the video's and the audio's prompt embeddings: the outputs of the connectors."""
    heads = config.get("connector_num_attention_heads", CONNECTOR_HEADS)
    width = config.get("connector_attention_head_dim", CONNECTOR_HEAD_WIDTH)
    audio_heads = config.get("audio_connector_num_attention_heads", heads)
    audio_width = config.get("audio_connector_attention_head_dim", width)
    return heads * width, audio_heads * audio_width


class RandomPrompts:
    """In the text encoder's place: the same random embeddings for every prompt."""

    def __init__(self, torch: Any, widths: tuple[int, int], dtype: Any, device: Any) -> None:
        generator = torch.Generator(device=device).manual_seed(1)
        self._video, self._audio = (
            torch.randn(1, PROMPT_TOKENS, width, generator=generator, device=device).to(dtype)
            for width in widths
        )

    def __call__(self, prompts: list[str], **_: Any) -> list[SimpleNamespace]:
        """For each prompt, embeddings of (1, tokens, width) for video and for audio."""
        return [
            SimpleNamespace(video_encoding=self._video, audio_encoding=self._audio) for _ in prompts
        ]


def prompts_of(torch: Any, widths: tuple[int, int]) -> Callable[..., RandomPrompts]:
    """What their pipeline calls to make its text encoder: model paths, number type, device."""

    def make(_paths: Any, dtype: Any, device: Any, **_: Any) -> RandomPrompts:
        return RandomPrompts(torch, widths, dtype, device)

    return make


def natural_like(torch: Any, width: int, height: int, frames: int, device: Any) -> Any:
    """The frames that our own measurements hand the encoder, (frames, height, width, 3), bf16.

    Values are in [0, 1]; made before anything is timed.
    """
    content = natural_content()
    generator = torch.Generator(device=device).manual_seed(1)
    latent = torch.randn(128, 64, generator=generator, device=device)
    clip = torch.empty(frames, height, width, 3, dtype=torch.bfloat16, device=device)
    numbers = content.numbers_of(latent)
    for start in range(0, frames, BATCH):
        count = min(BATCH, frames - start)
        made = content.natural_frames(numbers, start, count, (height, width), clip.dtype)
        clip[start : start + count] = made.permute(1, 2, 3, 0)
    return clip


def natural_content() -> Any:
    """The module that makes these frames; the class of ComfyUI's that it can hook is left out."""
    placeholders = [".".join(HOOKED[:end]) for end in range(1, len(HOOKED) + 1)]
    absent = [name for name in placeholders if name not in sys.modules]
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        spec = importlib.util.spec_from_file_location("natural_content", CONTENT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name in absent:
            del sys.modules[name]
    return module


def instead(chunks: Iterable[Any], clip: Any) -> Iterator[Any]:
    """Each chunk's frames of `clip` in its place, in its number type, once it is there."""
    start = 0
    for chunk in chunks:
        end = start + len(chunk)
        yield clip[start:end].to(chunk.dtype)
        start = end
