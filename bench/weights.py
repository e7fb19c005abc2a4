"""How fast weights get onto the GPU: the pack's reader against safetensors' own.

    python bench/weights.py --files A.safetensors B.safetensors [--json FILE]

Run with ComfyUI's Python; needs torch and safetensors, and takes the CPU where there is no GPU. The
files are read into the page cache first (`--cold` leaves that). Each row is a way to read: seconds
for all files (best and median of `--runs`) and GB/s. `busy` rows are read while another thread runs
Python, as ComfyUI's imports do. What our reader gives is compared with safetensors' before.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docker" / "custom_nodes"))

from ltx_worker_nodes.speed.weights_file import open_weights
from ltx_worker_nodes.speed.weights_preload import SWITCH_INTERVAL_S
from ltx_worker_nodes.speed.weights_reader import BLOCK_BYTES, THREADS, read_tensors

Tensors = dict[str, torch.Tensor]
Read = Callable[[Path], Tensors]

_MIB = 2**20


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not options.cold:
        for path in options.files:
            _warm(path)
    if not options.unchecked:
        for path in options.files:
            _check(path, device)
    size = sum(path.stat().st_size for path in options.files)
    rows = [
        {"way": name, **_timed(read, options.files, options.runs, size)}
        for name, read in _ways(options, device)
    ]
    for name, interval in (("busy", None), ("busy, as read ahead", SWITCH_INTERVAL_S)):
        with _busy(interval):
            read = partial(_ours, device=device, threads=THREADS, block_bytes=BLOCK_BYTES)
            rows.append({"way": name, **_timed(read, options.files, options.runs, size)})
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "gigabytes": round(size / 1e9, 2),
        "rows": rows,
    }
    for row in rows:
        print(f"{row['way']:32} {row['median_s']:8.3f} s {row['gigabytes_per_s']:8.2f} GB/s")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the reading of weights onto the GPU.")
    parser.add_argument("--files", type=Path, nargs="+", required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--block-mib", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="do not read the files beforehand")
    parser.add_argument("--unchecked", action="store_true", help="do not compare the tensors")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _ways(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Read]]:
    yield "safetensors", partial(load_file, device=str(device))
    for threads, mib in itertools.product(options.threads, options.block_mib):
        read = partial(_ours, device=device, threads=threads, block_bytes=mib * _MIB)
        yield f"ours, {threads} threads, {mib} MiB", read


def _ours(path: Path, *, device: torch.device, threads: int, block_bytes: int) -> Tensors:
    entries = list(open_weights(path).entries.values())
    return read_tensors(path, entries, device, threads=threads, block_bytes=block_bytes)


def _timed(read: Read, files: list[Path], runs: int, size: int) -> dict[str, Any]:
    """Seconds for all files. The first run, which allocates, is not counted but told."""
    seconds: list[float] = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        held = [read(path) for path in files]
        _finish()
        seconds.append(time.perf_counter() - started)
        del held
        gc.collect()
    median = statistics.median(seconds[1:])
    return {
        "first_s": round(seconds[0], 4),
        "best_s": round(min(seconds[1:]), 4),
        "median_s": round(median, 4),
        "gigabytes_per_s": round(size / 1e9 / median, 2),
    }


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _check(path: Path, device: torch.device) -> None:
    """Raises ValueError when a tensor is not what safetensors reads."""
    expected = load_file(path, device=str(device))
    found = _ours(path, device=device, threads=THREADS, block_bytes=BLOCK_BYTES)
    names = expected.keys() ^ found.keys()
    names |= {name for name in expected if not _is_same(found[name], expected[name])}
    if names:
        raise ValueError(f"{path.name}: {len(names)} tensors differ, first {min(names)}")


def _is_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    if not found.numel():
        return True
    raw = [one.contiguous().flatten().view(torch.uint8) for one in (found, expected)]
    return torch.equal(raw[0], raw[1])


def _warm(path: Path) -> None:
    buffer = bytearray(64 * _MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


@contextmanager
def _busy(interval_s: float | None) -> Iterator[None]:
    """Another thread runs Python the while, switching after so long where it is given."""
    usual, is_over = sys.getswitchinterval(), threading.Event()

    def run() -> None:
        while not is_over.is_set():
            sum(range(10_000))

    thread = threading.Thread(target=run)
    if interval_s is not None:
        sys.setswitchinterval(interval_s)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(usual)


if __name__ == "__main__":
    main()
