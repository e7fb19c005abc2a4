"""Weights read straight onto the GPU, where ComfyUI is to keep them there.

`load_torch_file` hands ComfyUI's loaders a state dict whose tensors are in the file, as ever; those
that are built on the GPU are read onto it when a loader takes them, each group whole and by several
threads, or were read ahead while ComfyUI started (`weights_preload`). A loader that looks at a
tensor gets the file's, one that pops it gets the GPU's: the bytes are the same, so what cannot be
read so is served as ComfyUI would.

What is held: a group that was read belongs to the state dict that its loader asked for, and goes
with it, when ComfyUI has copied it into the model. Quantised weights are not copied: the model then
holds the very memory that they were read into.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management as management
import comfy.utils
import torch

from . import weights_preload
from .switches import switches
from .weights_file import Entry, WeightsFile, open_weights
from .weights_groups import WHOLE, bytes_of, groups_of, on_host, placement
from .weights_preload import MARGIN_BYTES, Preload, log_reading
from .weights_reader import read_tensors

Tensors = dict[str, torch.Tensor]

_log = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".sft")


def install() -> None:
    """Replace ComfyUI's loading of files; the original serves what does not belong on the GPU."""
    begun = sys.modules.get("ltx_worker_speed.weights_preload", weights_preload)
    preload: Preload | None = begun.begin() if switches.weights else None
    comfy.utils.load_torch_file = _or_stock(comfy.utils.load_torch_file, preload)
    if preload is not None:
        _release_in_time(preload)


def device_of_weights() -> torch.device | None:
    """Where weights are read to; None where ComfyUI keeps or streams them itself."""
    if on_host():
        return torch.device("cpu")
    if comfy.memory_management.aimdo_enabled:
        return None
    device = management.get_torch_device()
    return device if device.type == "cuda" else None


def _or_stock(stock: Callable[..., Any], preload: Preload | None) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load_torch_file(
        ckpt: str, safe_load: bool = False, device: Any = None, return_metadata: bool = False
    ) -> Any:
        places = placement()
        is_ours = switches.weights and places and ckpt.lower().endswith(_SUFFIXES)
        target = device_of_weights() if is_ours and _is_host(device) else None
        try:
            found = _state_dict(Path(ckpt), target, places, preload) if target else None
        except (OSError, ValueError) as error:
            # ComfyUI's own error, if it is one for it too, says what it always said.
            _log.warning("ltx_worker_nodes: %s: %s", Path(ckpt).name, error)
            found = None
        if found is None:
            return stock(ckpt, safe_load, device, return_metadata)
        return found if return_metadata else found[0]

    return load_torch_file


def _is_host(device: Any) -> bool:
    return device is None or torch.device(device).type == "cpu"


def _state_dict(
    path: Path, device: torch.device, places: frozenset[str], preload: Preload | None
) -> tuple[Tensors, Any] | None:
    """The tensors and the metadata of a file that holds a model for the GPU; None for others."""
    file = open_weights(path)
    groups = groups_of(file, places)
    if not groups:
        return None
    source = _Source(file, groups, device, preload)
    mapped = file.mapped()
    if WHOLE in groups:
        # While the model is built, its tensors are there twice.
        return mapped | source.group(WHOLE, spare_bytes=file.length), file.metadata
    return _Weights(mapped, source), file.metadata


class _Source:
    """Groups of a file's tensors, each read when it is first asked for."""

    def __init__(
        self,
        file: WeightsFile,
        groups: dict[str, list[Entry]],
        device: torch.device,
        preload: Preload | None,
    ) -> None:
        self._file = file
        self._groups = groups
        self._names = {one.name: group for group, entries in groups.items() for one in entries}
        self._device = device
        self._preload = preload

    def group_of(self, name: str) -> str | None:
        """The group of a tensor; None for one that stays in the file."""
        return self._names.get(name)

    def group(self, name: str, spare_bytes: int = 0) -> Tensors:
        """Its tensors on the device; none where they cannot be read, or leave too little memory.

        Every call gives memory of its own.
        """
        held = self._preload and self._preload.take(self._file.identity, name)
        if held is not None:
            return held
        entries = self._groups[name]
        if not self._fits(bytes_of(entries) + spare_bytes):
            _log.info("ltx_worker_nodes: no memory to read %s at once", self._file.path.name)
            return {}
        try:
            started = time.perf_counter()
            tensors = read_tensors(self._file.path, entries, self._device)
        except (OSError, ValueError, RuntimeError) as error:
            _log.warning("ltx_worker_nodes: %s: %s", self._file.path.name, error)
            return {}
        log_reading(self._file.path, entries, started)
        return tensors

    def _fits(self, length: int) -> bool:
        if self._device.type == "cpu":
            return True
        return length + MARGIN_BYTES <= management.get_free_memory(self._device)


class _Weights(dict[str, torch.Tensor]):
    """A checkpoint's tensors, in the file; `pop` gives those on the device where there are some."""

    def __init__(self, mapped: Tensors, source: _Source) -> None:
        super().__init__(mapped)
        self._mapped = mapped
        self._source = source
        self._groups: dict[str, Tensors] = {}

    def pop(self, key: str, *default: Any) -> Any:
        """As dict's. The first of a group has all of it read."""
        value = super().pop(key, *default)
        group = self._source.group_of(key)
        if group is None or value is not self._mapped.get(key):
            return value
        if group not in self._groups:
            self._groups[group] = self._source.group(group)
        return self._groups[group].pop(key, value)


def _release_in_time(preload: Preload) -> None:
    """Have what nobody took given back: after the first prompt, or when ComfyUI needs memory."""
    import execution  # noqa: PLC0415

    executor = execution.PromptExecutor
    execute, free = executor.execute, management.free_memory

    @functools.wraps(execute)
    def execute_and_release(*arguments: Any, **options: Any) -> Any:
        try:
            return execute(*arguments, **options)
        finally:
            preload.release()

    @functools.wraps(free)
    def release_and_free(memory_required: float, device: Any, *rest: Any, **options: Any) -> Any:
        is_theirs = device is not None and device == device_of_weights()
        if is_theirs and memory_required > management.get_free_memory(device):
            preload.release()
        return free(memory_required, device, *rest, **options)

    executor.execute = execute_and_release
    management.free_memory = release_and_free
