"""Safetensors files: what they hold, and how it is laid out in memory.

A file is eight bytes (the header's length, little-endian), the header (JSON: name → dtype, shape,
data_offsets) and the tensors' bytes, to which the offsets are relative.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .weights_groups import identity_of

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
# Matrix products take operands that begin at such addresses; in a file they may begin anywhere.
_ALIGNMENT = 256
# Memory is given back by buffers: one is given back when none of its tensors is used any more.
_BUFFER_BYTES = 2**30
_MOST_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Entry:
    """A tensor of a file; `offset` and `length` are bytes of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class WeightsFile:
    """A file's tensors in the order of its header; `identity` changes when the file does."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] | None
    identity: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.length for entry in self.entries.values())

    def mapped(self) -> dict[str, torch.Tensor]:
        """All tensors, in host memory, read when they are used. Writing to them leaves the file."""
        with self.path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return {name: _in_memory(entry, memory) for name, entry in self.entries.items()}


@dataclass(frozen=True)
class Piece:
    """Bytes that are contiguous both in the file (`offset`) and in a buffer (`start`)."""

    offset: int
    start: int
    length: int


@dataclass
class Layout:
    """Where the tensors of one buffer lie in it: (entry, first byte), and the bytes in all."""

    places: list[tuple[Entry, int]] = field(default_factory=list[tuple[Entry, int]])
    length: int = 0


def open_weights(path: Path) -> WeightsFile:
    """Read a file's header; raises OSError, and ValueError for what is not a whole such file."""
    identity = identity_of(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError("the header is cut off")
        header = dict(json.loads(file.read(header_bytes)))
    metadata = header.pop("__metadata__", None)
    data = 8 + header_bytes
    entries = {name: _entry(name, row, data, size) for name, row in header.items()}
    return WeightsFile(path, entries, metadata, identity)


def _entry(name: str, row: Any, data: int, size: int) -> Entry:
    try:
        dtype, shape = _DTYPES[row["dtype"]], tuple(int(extent) for extent in row["shape"])
        first, end = row["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is of a kind that is not known: {error}") from error
    if not 0 <= first <= end <= size - data:
        raise ValueError(f"{name} lies outside the file")
    if end - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has other bytes than its shape")
    return Entry(name, dtype, shape, data + first, end - first)


def _in_memory(entry: Entry, memory: mmap.mmap) -> torch.Tensor:
    if not entry.length:
        return torch.empty(entry.shape, dtype=entry.dtype)
    count = entry.length // entry.dtype.itemsize
    flat = torch.frombuffer(memory, dtype=entry.dtype, count=count, offset=entry.offset)
    return flat.view(entry.shape)


def layouts_of(entries: Sequence[Entry]) -> list[Layout]:
    """Buffers for these tensors, in the order of the file, each tensor at an aligned address."""
    layouts: list[Layout] = []
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if not layouts or (
            layouts[-1].places and layouts[-1].length + entry.length > _BUFFER_BYTES
        ):
            layouts.append(Layout())
        layout = layouts[-1]
        layout.places.append((entry, layout.length))
        layout.length += -(-entry.length // _ALIGNMENT) * _ALIGNMENT
    return layouts


def blocks_of(layout: Layout, block_bytes: int) -> Iterator[list[Piece]]:
    """A buffer's pieces by blocks: each spans at most `block_bytes` of the buffer."""
    block: list[Piece] = []
    for entry, start in layout.places:
        done = 0
        while done < entry.length:
            first = block[0].start if block else start + done
            room = first + block_bytes - (start + done)
            if room <= 0:
                yield block
                block = []
                continue
            length = min(room, entry.length - done)
            _append(block, Piece(entry.offset + done, start + done, length))
            done += length
    if block:
        yield block


def _append(block: list[Piece], piece: Piece) -> None:
    """Add to a block, to its last piece where it goes on in file and buffer."""
    last = block[-1] if block else None
    ends = last and (last.offset + last.length, last.start + last.length)
    if last is not None and ends == (piece.offset, piece.start):
        block[-1] = Piece(last.offset, last.start, last.length + piece.length)
    else:
        block.append(piece)
