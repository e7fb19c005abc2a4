"""Whether the LoRAs of a graph fit its checkpoint, where the worker can read the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ltx_worker.errors import InvalidRequest, Problem
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.lora_files import (
    SafetensorsHeader,
    check_lora,
    describe_misfit,
    read_header,
)
from ltx_worker.workflow.splice import LORA_LOADER

_CHECKPOINT_LOADER = "CheckpointLoaderSimple"


def require_fitting_loras(graph: Graph, family: str, models_dirs: Sequence[Path]) -> None:
    """Raise `InvalidRequest` naming every LoRA of the graph that does not fit `family`.

    ComfyUI would report success with such a file. Files in none of `models_dirs` are not judged;
    a damaged one raises `ModelMissing`.
    """
    checkpoint = _find(models_dirs, "checkpoints", _names(graph, _CHECKPOINT_LOADER, "ckpt_name"))
    loras = _find(models_dirs, "loras", _names(graph, LORA_LOADER, "lora_name"))
    if not checkpoint or not loras:
        return
    model = _header(*next(iter(checkpoint.values())))
    misfits = {
        name: describe_misfit(name, family, fit)
        for name, file in loras.items()
        if not (fit := check_lora(_header(*file), model)).fits
    }
    if misfits:
        raise InvalidRequest.listing([Problem("loras", text) for text in misfits.values()])


def _names(graph: Graph, node_class: str, name: str) -> list[str]:
    values = [n["inputs"].get(name) for n in graph.values() if n["class_type"] == node_class]
    return [value for value in dict.fromkeys(values) if isinstance(value, str)]


def _find(
    models_dirs: Sequence[Path], folder: str, names: list[str]
) -> Mapping[str, tuple[Path, int, int]]:
    """Where each file lies, with its size and time of change: what its header is kept by."""
    found: dict[str, tuple[Path, int, int]] = {}
    for name in names:
        paths = (root / folder / name for root in models_dirs)
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            status = path.stat()
            found[name] = (path, status.st_size, status.st_mtime_ns)
    return found


@cache
def _header(path: Path, _size: int, _changed_ns: int) -> SafetensorsHeader:
    return read_header(path)
