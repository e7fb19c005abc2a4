"""Reads tensors of a safetensors file into a device's memory, as fast as the link to it goes.

Several threads read blocks of the file into pinned host memory, and each copies one block while it
reads its next. A thread works outside of the interpreter but for a few steps per block, so that it
hardly waits where another thread imports modules.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from .weights_file import Entry, Layout, Piece, blocks_of, layouts_of

# Host memory of THREADS * 2 * BLOCK_BYTES is pinned; torch keeps it for what is read next.
BLOCK_BYTES = 32 * 2**20
THREADS = max(1, min(8, os.cpu_count() or 1))
# So many buffers one system call fills.
_MOST_VIEWS = 1024

Block = tuple[torch.Tensor, list[Piece]]


def read_tensors(
    path: Path,
    entries: Sequence[Entry],
    device: torch.device,
    *,
    threads: int = THREADS,
    block_bytes: int = BLOCK_BYTES,
    stop: threading.Event | None = None,
) -> dict[str, torch.Tensor]:
    """These tensors of the file, by name, on the device; they are there when this returns.

    They are views into buffers of about 1 GiB, whose memory goes when the last view does. Raises
    OSError, ValueError for a file that ends early, RuntimeError for want of device memory, and
    InterruptedError once `stop` is set.
    """
    layouts = layouts_of(entries)
    # ComfyUI's nodes run in inference mode, whose tensors the threads could not write to.
    with torch.inference_mode(mode=False):
        buffers = [torch.empty(one.length, dtype=torch.uint8, device=device) for one in layouts]
        pairs = list(zip(buffers, layouts, strict=True))
        blocks = [
            (buffer, block) for buffer, layout in pairs for block in blocks_of(layout, block_bytes)
        ]
        _Reading(path, blocks, block_bytes, stop).run(min(threads, len(blocks)))
        return {name: tensor for pair in pairs for name, tensor in _views(*pair)}


def _views(buffer: torch.Tensor, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    for entry, start in layout.places:
        flat = buffer[start : start + entry.length].view(entry.dtype)
        yield entry.name, flat.view(entry.shape)


class _Reading:
    """Blocks of one file on their way into the buffers."""

    def __init__(
        self, path: Path, blocks: list[Block], block_bytes: int, stop: threading.Event | None
    ) -> None:
        self._path = path
        self._blocks = iter(blocks)
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._stop = stop or threading.Event()
        self._error: Exception | None = None
        self._allocated: torch.cuda.Event | None = None
        self._device = blocks[0][0].device if blocks else torch.device("cpu")
        self._is_on_gpu = self._device.type == "cuda"

    def run(self, threads: int) -> None:
        """Read all blocks in so many threads; raises what one of them met."""
        if self._is_on_gpu:
            # What used the buffers' memory before may still be under way.
            self._allocated = torch.cuda.Event()
            self._allocated.record(torch.cuda.current_stream(self._device))
        workers = [
            threading.Thread(target=self._work, daemon=True, name=f"weights-{number}")
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise InterruptedError("the reading was stopped")

    def _work(self) -> None:
        try:
            with self._path.open("rb", buffering=0) as file:
                if self._is_on_gpu:
                    self._to_gpu(file.fileno())
                else:
                    self._to_host(file.fileno())
        except Exception as error:  # noqa: BLE001
            # Of several threads' errors the first is raised by `run`.
            self._error = self._error or error

    def _next(self) -> Block | None:
        with self._lock:
            if self._error is not None or self._stop.is_set():
                return None
            return next(self._blocks, None)

    def _to_host(self, descriptor: int) -> None:
        for buffer, block in iter(self._next, None):
            _read_block(descriptor, block, memoryview(buffer.numpy())[block[0].start :])

    def _to_gpu(self, descriptor: int) -> None:
        assert self._allocated is not None
        stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            stream.wait_event(self._allocated)
            try:
                self._copy_blocks(descriptor, stream)
            finally:
                # Until then the buffers must not go.
                stream.synchronize()

    def _copy_blocks(self, descriptor: int, stream: torch.cuda.Stream) -> None:
        stages = [_Stage(self._block_bytes), _Stage(self._block_bytes)]
        for buffer, block in iter(self._next, None):
            stage = stages[0]
            stage.is_free.synchronize()
            _read_block(descriptor, block, stage.bytes)
            first, end = block[0].start, block[-1].start + block[-1].length
            buffer[first:end].copy_(stage.memory[: end - first], non_blocking=True)
            stage.is_free.record(stream)
            stages.reverse()


class _Stage:
    """Pinned host memory for a block. `is_free` happens when the block has been copied."""

    def __init__(self, length: int) -> None:
        self.memory = torch.empty(length, dtype=torch.uint8, pin_memory=True)
        self.bytes = memoryview(self.memory.numpy())
        # To wait for it takes no processor time: those are for the imports.
        self.is_free = torch.cuda.Event(blocking=True)


def _read_block(descriptor: int, block: list[Piece], memory: memoryview) -> None:
    """Read a block's pieces; `memory` begins where the first one goes."""
    first = block[0].start
    index = 0
    while index < len(block):
        run = list(islice(_run(block, index), _MOST_VIEWS))
        views = [memory[one.start - first : one.start - first + one.length] for one in run]
        _read_views(descriptor, run[0].offset, views)
        index += len(run)


def _run(block: list[Piece], index: int) -> Iterator[Piece]:
    """The pieces from this one on that follow each other in the file without a gap."""
    end = block[index].offset
    for piece in block[index:]:
        if piece.offset != end:
            return
        end = piece.offset + piece.length
        yield piece


def _read_views(descriptor: int, position: int, views: list[memoryview]) -> None:
    while views:
        got = os.preadv(descriptor, views, position)
        if not got:
            raise ValueError("the file ends early")
        position += got
        while views and got >= len(views[0]):
            got -= len(views.pop(0))
        if got:
            views[0] = views[0][got:]
