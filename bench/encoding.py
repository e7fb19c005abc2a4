"""How fast and how well clips are encoded: ComfyUI's save node against the worker's.

    python bench/encoding.py [--quick] [--json FILE]

Needs numpy and PyAV; with torch it also times the way from ComfyUI's float frames. Each row is a
content and a setting: seconds and CPU seconds from the frames to the file (medians), bytes, PSNR of
the colours and of luma in dB and SSIM, against the frames as they were before any rounding.
`comfyui` is what its SaveVideo does, from float RGB; the others start from 8-bit planes.
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from encoding_content import CONTENTS, FPS, SAMPLE_RATE, Pixels, Planes, chord, content, planes_of
from encoding_likeness import likeness

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docker" / "custom_nodes"))

from ltx_worker_nodes.encoding import ClipEncoder
from ltx_worker_nodes.encoding_segments import Plan, usable_cores
from ltx_worker_nodes.encoding_settings import encoding_for, qualities


@dataclass(frozen=True)
class Setting:
    """A way to encode: `options` over the quality's, and segments x threads where not planned."""

    name: str
    quality: str = "high"
    container: str = "mp4"
    options: Mapping[str, str] | None = None
    segments: int | None = None
    threads: int | None = None

    def write(self, path: Path, planes: list[Planes], sound: Pixels) -> None:
        height, width = planes[0].shape[0] * 2 // 3, planes[0].shape[1]
        encoding = encoding_for(self.container, self.quality, self.options)
        with ClipEncoder(
            path,
            width,
            height,
            len(planes),
            FPS,
            sound=(SAMPLE_RATE, len(sound)),
            encoding=encoding,
            plan=self._plan(len(planes)),
        ) as clip:
            clip.add_sound(sound)
            for frame in planes:
                clip.add(frame[None])
            clip.finish()

    def _plan(self, frames: int) -> Plan | None:
        if self.segments is None or self.threads is None:
            return None
        bounds = [frames * index // self.segments for index in range(self.segments + 1)]
        parts = tuple((a, b - a) for a, b in pairwise(bounds))
        return Plan(parts, self.segments, self.threads)


def write_as_comfyui(path: Path, pictures: list[Pixels], sound: Pixels) -> None:
    """What ComfyUI 0.27's SaveVideo does: 8 bit without rounding, swscale, x264's defaults."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", format="mp4") as output:
        video = output.add_stream("h264", rate=Fraction(FPS))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = output.add_stream("aac", rate=SAMPLE_RATE)
        for picture in pictures:
            pixels = (picture * np.float32(255)).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        block.sample_rate, block.pts = SAMPLE_RATE, 0
        output.mux([*audio.encode(block), *audio.encode(None)])


# ---- what is measured -------------------------------------------------------------------------


def settings(which: str) -> list[Setting]:
    """`quick`: the default and other divisions of its work; `full`: all qualities and presets."""
    cores = usable_cores()
    found = [Setting("default"), Setting("webm", container="webm")]
    # Nearly twice the work for a better likeness at the same size; and a seventh less work, of
    # which `nearing` shows the price.
    slower = {"crf": "23.2", "x264-params": "subme=6:trellis=1:ref=3:partitions=all"}
    faster = {"crf": "23.1", "x264-params": "subme=2"}
    found += [Setting("slower", options=slower), Setting("faster", options=faster)]
    found += [
        Setting(f"{segments} x {threads} threads", segments=segments, threads=threads)
        for segments, threads in ((1, cores), (1, cores * 3 // 2), (2, cores // 2), (4, cores // 4))
        if threads
    ]
    if which == "full":
        found += [Setting(quality, quality) for quality in qualities()]
        found += [
            Setting(f"{preset}, crf {crf}", options={"preset": preset, "crf": crf})
            for preset in ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium")
            for crf in ("20", "22", "24")
        ]
    return found


def measured(
    write: Callable[[Path], None], pictures: list[Pixels], rounds: int, every: int
) -> dict[str, Any]:
    """Median times of `write`, and what it has written."""
    walls: list[float] = []
    cpus: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip")
        for _ in range(rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            write(path)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        return {
            "seconds": round(statistics.median(walls), 3),
            "cpu_seconds": round(statistics.median(cpus), 2),
            "bytes": path.stat().st_size,
            **likeness(path, pictures, every),
        }


def bench(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    width, height = (int(side) for side in arguments.size.split("x"))
    rows: list[dict[str, Any]] = []
    for name in arguments.contents:
        pictures = content(name, arguments.frames, height, width)
        planes = [planes_of(picture) for picture in pictures]
        sound = chord(len(pictures))
        ways: dict[str, Callable[[Path], None]] = {
            "comfyui": partial(write_as_comfyui, pictures=pictures, sound=sound)
        }
        for setting in settings("quick" if arguments.quick else "full"):
            ways[setting.name] = partial(setting.write, planes=planes, sound=sound)
        ways |= from_tensors(pictures, sound)
        for way, write in ways.items():
            found = measured(write, pictures, arguments.rounds, 5 if arguments.quick else 1)
            rows.append({"content": name, "setting": way, **found})
            print(row_of(rows[-1]), flush=True)
    return rows


def from_tensors(pictures: list[Pixels], sound: Pixels) -> dict[str, Callable[[Path], None]]:
    """The whole way from ComfyUI's frames, on each device there is; nothing without torch."""
    if importlib.util.find_spec("torch") is None:
        return {}
    torch: Any = importlib.import_module("torch")
    frames: Any = importlib.import_module("ltx_worker_nodes.frames")
    images = torch.from_numpy(np.stack(pictures))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

    def write(path: Path, device: str) -> None:
        there = on[device]
        with ClipEncoder(
            path, there.shape[2], there.shape[1], len(there), FPS, sound=(SAMPLE_RATE, len(sound))
        ) as clip:
            clip.add_sound(sound)
            for batch in frames.plane_batches(there):
                clip.add(batch)
            clip.finish()

    on: dict[str, Any] = {device: images.to(device) for device in devices}
    return {f"default, frames on {device}": partial(write, device=device) for device in devices}


HEADINGS = (
    "content  setting                    seconds    cpu s      bytes  PSNR rgb    luma     SSIM"
)


def row_of(row: Mapping[str, Any]) -> str:
    """A line of the table."""
    return (
        f"{row['content']:8s} {row['setting']:25s} {row['seconds']:8.3f} {row['cpu_seconds']:8.2f} "
        f"{row['bytes']:10,d} {row['psnr_rgb']:9.3f} {row['psnr_luma']:7.3f} {row['ssim']:8.5f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer settings, every fifth frame")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--size", default="1280x704", help="WxH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contents", nargs="+", choices=CONTENTS, default=list(CONTENTS))
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    print(f"{arguments.frames} frames of {arguments.size} on {usable_cores()} cores\n{HEADINGS}")
    rows = bench(arguments)
    if arguments.json:
        about = {
            "frames": arguments.frames,
            "size": arguments.size,
            "cores": usable_cores(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "av": av.__version__,
            "load": os.getloadavg()[0],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
