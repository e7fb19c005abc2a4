# pyright: basic, reportMissingImports=false
"""How fast the video decoder is: ComfyUI's own against the one of our nodes.

    COMFYUI_DIR=... python bench/decoder.py [--json FILE] [--profile]

Run it with ComfyUI's own Python. Weights are random, in the sizes of the released decoders, in
bfloat16; pixels stay on the GPU. The two decoders take turns; times are medians in milliseconds,
memory is what a decode takes beside the weights at its peak. `first piece` is how long the stream
of pieces that the save node reads takes to give the first. `--chunk-mib` says how large a block of
frames ComfyUI lets a decoder make, for ours only, in place of what it finds right for the GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_COMFYUI = os.environ.get("COMFYUI_DIR") or Path.home() / ".cache" / "ltx-worker" / "ComfyUI"
sys.path[:0] = [str(_COMFYUI), str(ROOT / "docker" / "custom_nodes" / "ltx_worker_nodes")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--sizes", nargs="+", default=["1280x704x121", "1920x1088x121"], metavar="WxHxF")
    add("--families", nargs="+", default=["ltx-2", "ltx-2.3"], choices=["ltx-2", "ltx-2.3"])
    add("--rounds", type=int, default=7)
    add("--chunk-mib", type=int, nargs="+", default=[])
    add("--base-channels", type=int, default=128, help="fewer, to try this where there is no GPU")
    add("--profile", action="store_true", help="print where the GPU's time goes")
    add("--json", type=Path)
    return parser.parse_args()


OPTIONS = parse()
# ruff: noqa: E402 - ComfyUI reads the command line as it is imported
import torch

GPU = torch.cuda.is_available()
sys.argv = [sys.argv[0], *([] if GPU else ["--cpu"])]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.ldm.lightricks.vae.causal_video_autoencoder as autoencoder
import full_size_sizes as sizes
import speed

speed.install()
from speed import decoder

CONFIGS = {"ltx-2": sizes.VIDEO_VAE, "ltx-2.3": sizes.VIDEO_VAE_23}
DEVICE = torch.device("cuda" if GPU else "cpu")


def make(family: str) -> Any:
    """A VAE of a released size; the scale of activations stays from layer to layer."""
    config = CONFIGS[family] | {
        "encoder_base_channels": 8,
        "decoder_base_channels": OPTIONS.base_channels,
    }
    with torch.device(DEVICE):
        vae = autoencoder.VideoVAE(config=config).to(torch.bfloat16).eval()
    torch.manual_seed(0)
    for name, values in [*vae.named_parameters(), *vae.named_buffers()]:
        if "std-of-means" in name:
            values.data.fill_(1.0)
        elif values.dim() > 1:
            values.data = torch.randn_like(values).mul_(values[0].numel() ** -0.5)
        else:
            values.data = torch.randn_like(values).mul_(0.1)
    return vae


def synchronise() -> None:
    if GPU:
        torch.cuda.synchronize()


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds and the peak of memory that one call takes."""
    synchronise()
    before = 0
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    work()
    synchronise()
    result = {"ms": (time.perf_counter() - start) * 1000}
    if GPU:
        result["peak_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    return result


class Clip:
    """One decoder, one size: decodes into a buffer that is there, by whichever way."""

    def __init__(self, vae: Any, size: str) -> None:
        width, height, frames = map(int, size.split("x"))
        shape = (1, 128, (frames - 1) // 8 + 1, height // 32, width // 32)
        self.vae = vae
        self.latents = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
        shape = vae.decode_output_shape(shape)
        self.pixels = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16)

    def decode(self, fused: bool, chunk_mib: int = 0) -> None:
        speed.switches.decoder = fused
        own = autoencoder.get_max_chunk_size
        if chunk_mib:
            autoencoder.get_max_chunk_size = lambda device: chunk_mib * 2**20
        self.vae.decode(self.latents, output_buffer=self.pixels)
        autoencoder.get_max_chunk_size = own

    def first_piece(self) -> None:
        """As far as the first piece; the rest is not decoded."""
        speed.switches.decoder = True
        next(decoder.decode_stream(self.vae, self.latents))

    def stream(self) -> list[int]:
        """Frames of each piece."""
        speed.switches.decoder = True
        return [piece.shape[2] for piece in decoder.decode_stream(self.vae, self.latents)]


def compare(vae: Any, size: str) -> dict[str, Any]:
    """Every way in turn, as often as asked for."""
    clip = Clip(vae, size)
    ways: dict[str, Callable[[], Any]] = {
        "stock": lambda: clip.decode(False),
        "ours": lambda: clip.decode(True),
        "first piece": clip.first_piece,
        "stream": clip.stream,
    }
    for mib in OPTIONS.chunk_mib:
        ways[f"ours, {mib} MiB"] = lambda mib=mib: clip.decode(True, mib)
    errors = compare_pixels(clip)
    for work in ways.values():
        work()
    rounds = [{name: measured(work) for name, work in ways.items()} for _ in range(OPTIONS.rounds)]
    figures = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in ways
    }
    return {
        "fits": decoder.fits(vae.decoder, clip.latents),
        "errors": errors,
        "pieces": clip.stream(),
        "ways": figures,
        "ratio": figures["stock"]["ms"] / figures["ours"]["ms"],
    }


def compare_pixels(clip: Clip) -> dict[str, float]:
    """Of ours against ComfyUI's, and of both against ComfyUI's in float32, relative to it."""
    clip.decode(False)
    stock = clip.pixels.clone()
    clip.decode(True)
    speed.switches.decoder = False
    exact = torch.empty_like(stock, dtype=torch.float32)
    copy.deepcopy(clip.vae).float().decode(clip.latents.float(), output_buffer=exact)
    size = exact.norm()
    return {
        "ours_to_stock": ((clip.pixels.float() - stock.float()).norm() / size).item(),
        "ours_to_exact": ((clip.pixels.float() - exact).norm() / size).item(),
        "stock_to_exact": ((stock.float() - exact).norm() / size).item(),
    }


def profile(vae: Any, size: str) -> None:
    """Where the time of one decode goes, by kernel."""
    clip = Clip(vae, size)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if GPU:
        kinds = [torch.profiler.ProfilerActivity.CUDA]
    for fused in (False, True):
        clip.decode(fused)
        synchronise()
        with torch.profiler.profile(activities=kinds) as profiler:
            clip.decode(fused)
            synchronise()
        key = "self_cuda_time_total" if GPU else "self_cpu_time_total"
        print("ours" if fused else "stock", size)
        print(profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=90))


def main() -> None:
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "rounds": OPTIONS.rounds,
        "base_channels": OPTIONS.base_channels,
        "rows": [],
    }
    with torch.inference_mode():
        for family in OPTIONS.families:
            vae = make(family)
            for size in OPTIONS.sizes:
                row = {"family": family, "size": size} | compare(vae, size)
                result["rows"].append(row)
                show(row)
                if OPTIONS.profile:
                    profile(vae, size)
            del vae
    if OPTIONS.json:
        OPTIONS.json.write_text(json.dumps(result, indent=2) + "\n")


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['family']} {row['size']}: {row['ratio']:.2f} times as fast,"
        f" {', '.join(f'{name} {error:.2e}' for name, error in row['errors'].items())},"
        f" {'fits' if row['fits'] else 'DOES NOT FIT'}, pieces {row['pieces']}"
    )
    for name, figures in row["ways"].items():
        memory = f"{figures['peak_gb']:8.2f} GB" if "peak_gb" in figures else ""
        print(f"  {name:16}{figures['ms']:10.1f} ms{memory}", flush=True)


if __name__ == "__main__":
    main()
