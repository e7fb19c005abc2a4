"""Reads the first job's weights onto the GPU while ComfyUI is still importing.

`LTX2_PRELOAD` names the files, in the order of their use. The thread is begun by the pack's
`prestartup_script.py`, before torch is imported, and starts to read as soon as that is there: this
module must be importable without torch.

What is held: each file's groups of tensors, from when they are read until a loader takes them
(`take`), and whatever nobody took until the first prompt has ended or ComfyUI wants the memory
(`release`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .weights_groups import bytes_of, groups_of, identity_of, on_host, placement

if TYPE_CHECKING:
    import torch

    from .weights_file import Entry

    Tensors = dict[str, torch.Tensor]

_log = logging.getLogger(__name__)

# GPU memory that is left free beside what is read: CUDA's own, and the other models.
MARGIN_BYTES = 6 * 2**30
# A thread that reads gets the interpreter after so long: with the usual 5 ms for each of its few
# steps per block it would wait for the imports most of the time.
SWITCH_INTERVAL_S = 0.0005
_POLL_S = 0.01


@dataclass
class _File:
    path: Path
    is_read: threading.Event = field(default_factory=threading.Event)
    groups: dict[str, Tensors] = field(default_factory=dict[str, "Tensors"])


class Preload:
    """Files on their way onto the GPU. `places` as of `placement`."""

    def __init__(self, paths: Sequence[Path], places: frozenset[str]) -> None:
        self._paths = paths
        self._places = places
        self._lock = threading.Lock()
        self._is_listed = threading.Event()
        self._stop = threading.Event()
        self._files: dict[tuple[int, ...], _File] = {}

    def start(self) -> None:
        """Begin, and return at once."""
        threading.Thread(target=self._work, daemon=True, name="weights-preload").start()

    def take(self, identity: tuple[int, ...], group: str) -> Tensors | None:
        """A group of a file, which is then the caller's alone; waits for its reading.

        None where it was not read, or has been taken.
        """
        self._is_listed.wait()
        file = self._files.get(identity)
        if file is None:
            return None
        file.is_read.wait()
        with self._lock:
            return file.groups.pop(group, None)

    def release(self) -> None:
        """Read no more, and give back what nobody took."""
        self._stop.set()
        with self._lock:
            for file in self._files.values():
                file.groups.clear()

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors that wait to be taken."""
        with self._lock:
            return sum(
                tensor.nbytes
                for file in self._files.values()
                for tensors in file.groups.values()
                for tensor in tensors.values()
            )

    def _work(self) -> None:
        interval = sys.getswitchinterval()
        try:
            self._list()
            _wait_for_torch()
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            self._read()
            if not on_host():
                _load_libraries()
        except InterruptedError:
            pass
        except Exception as error:  # noqa: BLE001
            # What was not read ahead is read by its loader.
            _log.warning("ltx_worker_nodes: weights are not read ahead any more: %s", error)
        finally:
            sys.setswitchinterval(interval)
            self._is_listed.set()
            for file in self._files.values():
                file.is_read.set()

    def _list(self) -> None:
        for path in self._paths:
            self._files[identity_of(path)] = _File(path)
        self._is_listed.set()

    def _read(self) -> None:
        import torch  # noqa: PLC0415

        from .weights_file import open_weights  # noqa: PLC0415

        device, free = torch.device("cpu"), sys.maxsize
        if not on_host():
            device = torch.device("cuda", torch.cuda.current_device())
            free = torch.cuda.mem_get_info(device)[0] - MARGIN_BYTES
        read, largest = 0, 0
        for file in self._files.values():
            groups = groups_of(open_weights(file.path), self._places)
            length = sum(bytes_of(entries) for entries in groups.values())
            read, largest = read + length, max(largest, length)
            # While a model is built, its tensors are there twice.
            if read + largest > free:
                _log.info("ltx_worker_nodes: no memory to read %s ahead", file.path.name)
                return
            self._read_file(file, groups, device)

    def _read_file(self, file: _File, groups: dict[str, list[Entry]], device: torch.device) -> None:
        from .weights_reader import read_tensors  # noqa: PLC0415

        started = time.perf_counter()
        # The largest first: the small ones then find its staging memory.
        found: dict[str, Tensors] = {
            name: read_tensors(file.path, groups[name], device, stop=self._stop)
            for name in sorted(groups, key=lambda name: -bytes_of(groups[name]))
        }
        with self._lock:
            if not self._stop.is_set():
                file.groups = found
        file.is_read.set()
        log_reading(file.path, [entry for group in groups.values() for entry in group], started)


def _load_libraries() -> None:
    """Use what the first job will use: on first use the GPU's libraries take a second to load."""
    import torch  # noqa: PLC0415

    functional = torch.nn.functional
    with torch.inference_mode():
        rows = torch.ones(1, 256, 256, device="cuda", dtype=torch.bfloat16)
        functional.linear(rows, rows[0], rows[0, 0])
        heads = rows.view(1, 2, 256, 128)
        functional.scaled_dot_product_attention(heads, heads, heads)
        frames = rows.view(1, 32, 2, 32, 32)
        functional.conv3d(frames, frames.new_ones(32, 32, 1, 3, 3), padding=(0, 1, 1))
        torch.cuda.synchronize()


def log_reading(path: Path, entries: Sequence[Entry], started: float) -> None:
    """One line: how much of a file was read, and how fast. `started` is of `perf_counter`."""
    seconds = time.perf_counter() - started
    size = bytes_of(entries) / 1e9
    _log.info(
        "ltx_worker_nodes: %s: %.2f GB read in %.2f s, %.1f GB/s",
        path.name,
        size,
        seconds,
        size / max(seconds, 1e-9),
    )


def _wait_for_torch() -> None:
    """Return when another thread has imported torch: to import it here could upset that."""
    while True:
        module = sys.modules.get("torch")
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            return
        time.sleep(_POLL_S)


_begun: list[Preload] = []


def begin() -> Preload | None:
    """Begin to read what `LTX2_PRELOAD` names, once; None where there is nothing to do."""
    paths = [Path(name) for name in os.environ.get("LTX2_PRELOAD", "").split(os.pathsep) if name]
    places = placement()
    if not _begun and paths and places:
        _begun.append(Preload(paths, places))
        _begun[0].start()
    return _begun[0] if _begun else None
