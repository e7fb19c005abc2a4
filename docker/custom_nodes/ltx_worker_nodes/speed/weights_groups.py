"""Which tensors of a file go onto the GPU, and with which others: what one loader takes at once.

ComfyUI reads a checkpoint of LTX-2 once for the transformer and the video autoencoder, once for the
sound's and once for the text encoder's projection. Each takes some groups of it. Autoencoders and
upscalers are built in host memory, whatever the flags: their tensors stay in the file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .weights_file import Entry, WeightsFile

_TRANSFORMER = "model.diffusion_model."
_PROJECTION = "text_embedding_projection."
_LANGUAGE_MODEL = "model.layers."
# The group of a text encoder's file: all of it.
WHOLE = ""


def placement() -> frozenset[str]:
    """What ComfyUI, with its options, builds on the GPU: of `transformer` and `text_encoder`.

    `LTX2_WEIGHTS_DEVICE=cpu` reads both into host memory in the same way: tests need no GPU.
    """
    from comfy.cli_args import args  # noqa: PLC0415

    if args.disable_mmap:
        return frozenset()
    if args.gpu_only or on_host():
        return frozenset(("transformer", "text_encoder"))
    return frozenset(("transformer",) if args.highvram else ())


def on_host() -> bool:
    """Whether the tests' setting asks for host memory."""
    return os.environ.get("LTX2_WEIGHTS_DEVICE") == "cpu"


def groups_of(file: WeightsFile, places: frozenset[str]) -> dict[str, list[Entry]]:
    """The groups of a file that go onto the GPU, by name; empty for a file of another kind."""
    groups: dict[str, list[Entry]] = {}
    is_checkpoint = any(name.startswith(_TRANSFORMER) for name in file.entries)
    is_text_encoder = not is_checkpoint and any(
        name.startswith(_LANGUAGE_MODEL) for name in file.entries
    )
    for entry in file.entries.values():
        group = _group_of(entry.name, places) if is_checkpoint else None
        if is_text_encoder and "text_encoder" in places:
            group = WHOLE
        if group is not None and not _is_text(entry):
            groups.setdefault(group, []).append(entry)
    return groups


def identity_of(path: Path) -> tuple[int, ...]:
    """What tells a file from another, and from its own earlier content; raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def bytes_of(entries: Iterable[Entry]) -> int:
    """Bytes of these tensors in the file."""
    return sum(entry.length for entry in entries)


def _group_of(name: str, places: frozenset[str]) -> str | None:
    if "transformer" in places and name.startswith(_TRANSFORMER):
        # Connectors are taken by some text encoders, too: each part of the model is a group.
        return _TRANSFORMER + name.removeprefix(_TRANSFORMER).partition(".")[0]
    if "text_encoder" in places and name.startswith(_PROJECTION):
        return _PROJECTION
    return None


def _is_text(entry: Any) -> bool:
    """Bytes that ComfyUI reads as text: quantisation settings, a tokenizer."""
    return str(entry.dtype) == "torch.uint8" and len(entry.shape) < 2
