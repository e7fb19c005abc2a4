"""What to ask for instead, after a job that the GPU's memory did not suffice for.

Pure: the request, the GPU and the place of the failure in, words out. What is named is on the
model's grid and less than was asked for; how much fits which GPU is data (`memory_limits.toml`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ltx_worker.geometry import MIN_FRAMES, MIN_SIDE, Size, snap_frames_down
from ltx_worker.pace import work_of
from ltx_worker.request import GenerateRequest

_LIMITS = Path(__file__).with_name("memory_limits.toml")
# At most so much of the job that failed is advised: a smaller step may fail again.
_STEP_DOWN = 0.75
# Beyond this, frames or size alone would give up too much: both go down.
_BOTH_FROM = 3.0
# Options that take memory of their own, in the order in which they are named.
_HEAVY = ("spatial_upscale", "temporal_upscale", "detailer")
# What shortens a clip in the modes whose frame count follows from the source.
_SHORTER = {"extend": "ask for fewer frames", "retake": "give a shorter source"}
# ComfyUI's name of a device: "cuda:0 NVIDIA L40S : cudaMallocAsync".
_DEVICE_NAME = re.compile(r"(?:cuda:\d+ )?([\w .-]{1,60}?)(?: : .*)?")


@dataclass(frozen=True)
class Gpu:
    """A GPU as ComfyUI names it, without the allocator's name, and the bytes of its memory."""

    name: str
    total_bytes: int

    def __str__(self) -> str:
        return f"{self.name}, {self.total_bytes / 2**30:.0f} GiB"


@dataclass(frozen=True)
class Advice:
    """What was too much, to add to the error's message, and the error's hint."""

    message: str
    hint: str


def gpu_of(system_stats: Mapping[str, Any]) -> Gpu | None:
    """The GPU in ComfyUI's `/system_stats`; None where there is none."""
    try:
        device = system_stats["devices"][0]
        name = _DEVICE_NAME.fullmatch(device["name"])
        total_bytes = int(device["vram_total"])
        is_gpu = device["type"] != "cpu" and total_bytes > 0
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return Gpu(name[1] if name else "unnamed", total_bytes) if is_gpu else None


def advise(
    request: GenerateRequest, where: str, gpu: Gpu | None, precision: str, finished: float
) -> Advice:
    """What to change about `request` so that it fits; without `gpu`, the machine's memory.

    `where` is the error's stage, which ends in the node's class in parentheses; `precision` that
    of the checkpoint (fp8 or fp16); `finished` the megapixel-frames of the largest job of this
    kind that this worker has finished, 0 for none.
    """
    if _is_at(where, "sizeless"):
        return Advice(
            f"whatever the clip's size, the models need more memory than {_owner(gpu)} has",
            _less_beside_the_clip(request, precision),
        )
    made = replace(request, expected=None).made
    too_much = f"{made.num_frames} frames at {made.size} were too much for {_owner(gpu)}"
    most = _target(work_of(request), gpu, finished)
    steps = _steps(request, most, frames_first=_is_at(where, "by_frames"))
    first = ". Also ".join(steps) or "use a worker with more memory"
    return Advice(too_much, " ".join([_sentence(first), *_lighter(request)]))


def _less_beside_the_clip(request: GenerateRequest, precision: str) -> str:
    steps = ["use a worker with more memory"]
    if precision == "fp16":
        steps.insert(0, "install the fp8 model files and set LTX2_VARIANT=fp8")
    if "enhance_prompt" in request.options:
        steps.insert(0, "turn enhance_prompt off")
    return _sentence(", or ".join(steps))


def _target(asked: float, gpu: Gpu | None, finished: float) -> float:
    """The megapixel-frames to advise: less than `asked`, more where more is known to fit."""
    target = min(_STEP_DOWN * asked, fitting_megapixel_frames(gpu.total_bytes) if gpu else asked)
    return max(target, finished) if finished < asked else target


def _steps(request: GenerateRequest, most: float, *, frames_first: bool) -> list[str]:
    """What to do, all of it, to come down to `most` megapixel-frames."""
    heavy = [name for name in _HEAVY if name in request.options]
    plain = replace(request, options=request.options - set(heavy), expected=None)
    steps = [f"turn {' and '.join(heavy)} off"] if heavy else []
    if work_of(plain) > most:
        smaller = _smaller(plain, most, frames_first=frames_first)
        steps += [smaller] if smaller else []
    return steps


def _smaller(request: GenerateRequest, most: float, *, frames_first: bool) -> str | None:
    """Fewer frames, a smaller size, or both; None where nothing smaller is on the grid."""
    ratio = work_of(request) / most
    if ratio > _BOTH_FROM:
        between = _size_within(request, most * ratio**0.5 / request.num_frames)
        fewer = between and _frames_within(request, between, most)
        if fewer:
            asked = f"{request.num_frames} at {request.size}"
            return f"ask for {fewer} frames at {between} instead of {asked}"
    frames = _frames_within(request, request.size, most)
    size = _size_within(request, most / request.num_frames)
    ways = [_SHORTER[request.mode]] if request.mode in _SHORTER else []
    if frames:
        ways.append(f"ask for {frames} frames instead of {request.num_frames}")
    if size and not (frames and frames_first):
        ways.append(f"ask for {size} instead of {request.size}")
    return ", or ".join(ways) or None


def _frames_within(request: GenerateRequest, size: Size, most: float) -> int | None:
    """The most frames of `size` within `most` megapixel-frames, if the caller can ask for them."""
    if request.mode in _SHORTER:
        return None
    frames = snap_frames_down(int(most * 1e6 / (size.width * size.height)))
    # Pictures stay at their frames; the last one moves with the end of the clip.
    fixed = [use.frame for use in request.keyframes if use.field != "last_image"]
    least = max([MIN_FRAMES, *(frame + 1 for frame in fixed)])
    return frames if least <= frames < request.num_frames else None


def _size_within(request: GenerateRequest, most: float) -> Size | None:
    """The largest size of about the same shape and at most `most` megapixels, on the grid."""
    asked, grid = request.size, request.grid
    least = -(-MIN_SIDE // grid) * grid
    for width in range(asked.width // grid * grid, least - 1, -grid):
        height = max(least, round(width / asked.ratio / grid) * grid)
        if width * height <= most * 1e6:
            return Size(width, height)
    return None


def _lighter(request: GenerateRequest) -> list[str]:
    """What else takes less: the qualities with guidance run the model more than once a step."""
    if request.quality == "fast":
        return []
    return [f"Quality fast needs less memory than {request.quality}."]


def _owner(gpu: Gpu | None) -> str:
    return f"the GPU ({gpu})" if gpu else "this worker"


def _sentence(steps: str) -> str:
    return f"{steps[0].upper()}{steps[1:]}."


def _is_at(where: str, kind: str) -> bool:
    return any(f"({name})" in where for name in _data()["nodes"][kind])


def fitting_megapixel_frames(total_bytes: int) -> float:
    """The largest job, in megapixel-frames, that is known to fit a GPU with so much memory."""
    rows = [row for row in _data()["limits"] if row["from_gib"] * 2**30 <= total_bytes]
    return float(rows[-1]["megapixel_frames"])


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(_LIMITS.read_text(encoding="utf-8"))
