# pyright: basic, reportMissingImports=false
"""Write a ComfyUI models folder of random weights in the sizes of the released models.

Weights decide hardly any timing, and the published ones are tens of gigabytes to fetch. Run it
with ComfyUI's own Python:

    python bench/full_size_weights.py --comfyui DIR --models DEST \
        --family ltx-2 --variant fp16 --only distilled text upscaler

File names are the catalogue's. Values are normal numbers scaled so that activations stay finite,
drawn on the GPU where there is one and written through a mapping of the file: beside the file
itself, a few hundred megabytes of memory are used. `--list` shows sizes and writes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import full_size_sizes as sizes  # first: it says where the tiny ones are
import tiny_weights as tiny
import torch
from full_size_plan import FP8, FP8_MAX, File, Planned, files

log = logging.getLogger("full_size_weights")

ROLES = {
    "distilled": "distilled_checkpoint",
    "dev": "dev_checkpoint",
    "text": "text_encoder",
    "upscaler": "spatial_upscaler",
    "temporal": "temporal_upscaler",
}
# Values drawn, moved and written at a time.
CHUNK = 2**26


class Writer:
    """Draws and writes files one after the other, through one pinned buffer."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        size = CHUNK * torch.bfloat16.itemsize
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu) if on_gpu else None

    def write(self, file: File, path: Path) -> None:
        """Put one file in place whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        header = file.header()
        with partial.open("wb") as output:
            output.write(header)
            output.truncate(file.bytes)
        mapped = torch.from_file(str(partial), shared=True, size=file.bytes, dtype=torch.uint8)
        seed = int.from_bytes(hashlib.sha256(file.path.encode()).digest()[:7], "big")
        generator = torch.Generator(self._device).manual_seed(seed)
        offset = len(header)
        for _, tensor in file.ordered():
            for values in self._values(tensor, generator):
                self._put(values, mapped[offset : offset + values.numel()])
                offset += values.numel()
        assert offset == file.bytes
        partial.replace(path)

    def _values(self, tensor: Planned, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """The bytes of one tensor, at most a chunk's values at a time."""
        if tensor.exact is not None:
            yield tensor.exact.detach().to(tensor.dtype).contiguous().reshape(-1).view(torch.uint8)
            return
        left = math.prod(tensor.shape)
        while left > 0:
            count = min(left, CHUNK)
            drawn = torch.randn(count, device=self._device, generator=generator)
            drawn *= tensor.sigma
            if tensor.dtype == FP8:
                drawn.clamp_(-FP8_MAX, FP8_MAX)
            yield drawn.to(tensor.dtype).view(torch.uint8)
            left -= count

    def _put(self, values: torch.Tensor, target: torch.Tensor) -> None:
        if self._buffer is None or not values.is_cuda:
            target.copy_(values)
            return
        staged = self._buffer[: values.numel()]
        staged.copy_(values)
        target.copy_(staged)


def run(options: argparse.Namespace) -> None:
    """List or write the chosen files; one that is there in its size is left alone."""
    families = options.family or list(sizes.FAMILIES)
    variants = [variant.replace("bf16", "fp16") for variant in options.variant or ("fp8", "fp16")]
    roles = [ROLES[name] for name in options.only or ROLES]
    writer = None if options.list else Writer(options.device)
    listed: list[dict[str, Any]] = []
    for file in files(families, variants, roles):
        size = file.bytes
        quantised_layers = sum(tensor.dtype == FP8 for tensor in file.tensors.values())
        listed.append(
            {
                "path": file.path,
                "bytes": size,
                "published_bytes": file.published_bytes,
                "parameters": _parameters(file),
                "quantised_layers": quantised_layers,
            }
        )
        path = options.models / file.path
        if writer is None or (path.is_file() and path.stat().st_size == size):
            continue
        _require_space(options.models, size)
        started = time.monotonic()
        writer.write(file, path)
        taken_s = time.monotonic() - started
        rate = size / taken_s / 1e9
        log.info("wrote %s: %.2f GB in %.1f s (%.1f GB/s)", path, size / 1e9, taken_s, rate)
    if options.list:
        print(json.dumps(listed, indent=2))


def _parameters(file: File) -> int:
    """The number of weights of the transformer in a checkpoint, with its connectors."""
    return sum(
        math.prod(tensor.shape)
        for name, tensor in file.tensors.items()
        if name.startswith("model.diffusion_model.") and not name.endswith("_scale")
    )


def _require_space(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB are needed")


def main() -> None:
    """Write, or list, what the options choose."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's checkout")
    parser.add_argument("--models", type=Path, help="models folder to write")
    parser.add_argument("--list", action="store_true", help="show sizes as JSON, write nothing")
    parser.add_argument("--family", nargs="+", choices=tuple(sizes.FAMILIES), help="default: all")
    parser.add_argument("--variant", nargs="+", choices=("fp8", "fp16", "bf16"))
    parser.add_argument("--only", nargs="+", choices=tuple(ROLES), help="default: all")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="where values are drawn")
    options = parser.parse_args()
    if options.models is None and not options.list:
        parser.error("--models or --list is needed")
    options.models = options.models or Path()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    sys.path.insert(0, str(options.comfyui.resolve()))
    # ComfyUI reads the command line as it is imported, and is only asked for classes here.
    tiny.comfy("cli_args").args.cpu = True
    run(options)


if __name__ == "__main__":
    main()
