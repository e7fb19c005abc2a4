"""What this machine's GPU decides: variant, ComfyUI's flags and the clips' limits, with reasons.

`nvidia-smi` and the system's memory are read first, then `decide` is pure. Thresholds and flags are
data (`gpu.toml`). A machine that cannot serve is refused in one sentence that says what would help.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ltx_worker.catalog import Variant, load_catalog
from ltx_worker.errors import InternalError
from ltx_worker.geometry import MIN_FRAMES, RESOLUTIONS, Size, snap_frames_down
from ltx_worker.settings import Settings

_FIELDS = ("name", "memory.total", "driver_version", "mig.mode.current")
# The folders of the models that take tens of gigabytes.
_LARGE = ("checkpoints", "text_encoders")
# What nvidia-smi writes for what it cannot tell: [N/A], [Not Supported], [Unknown Error].
_UNTOLD = re.compile(r"\[[^\]]*\]|N/A")
_SLICE = re.compile(r"\s+MIG (\S*?(\d+)gb\S*)\s", re.ASCII)
_LOST = "Look at nvidia-smi on the machine, or rent another one."
_MIB = 2**20
_GIB = 2**30
# A decoded clip is kept as float32, three channels.
_BYTES_PER_PIXEL = 12


class GpuUnfit(InternalError):
    """This machine's GPU cannot serve the model, or does not answer."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG slice of one, with its memory in MiB; None where the driver does not tell."""

    name: str
    memory_mib: int | None
    driver: str

    def __str__(self) -> str:
        memory = f"{self.memory_mib} MiB" if self.memory_mib is not None else "unknown memory"
        return f"{self.name} ({memory}, driver {self.driver})"


@dataclass(frozen=True)
class SystemMemory:
    """The bytes of memory that may be used; `is_limited` where the machine has more."""

    bytes: int
    is_limited: bool = False


@dataclass(frozen=True)
class Decision:
    """How to serve on these GPUs, and why: one sentence for each choice.

    `comfy_args` are options for ComfyUI's main.py. `max_frames` is a limit; `megapixel_frames`
    (width x height x frames / 1,000,000) is what is known to fit, None where nothing is known.
    """

    variant: Variant
    comfy_args: tuple[str, ...]
    max_frames: int
    megapixel_frames: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Flags:
    """Options for ComfyUI's main.py, and why."""

    words: tuple[str, ...]
    reason: str


def read_gpus(executable: str = "nvidia-smi", timeout_s: float = 30.0) -> tuple[Gpu, ...]:
    """The GPUs of this machine, at least one; raises `GpuUnfit`."""
    listing = _ask(
        executable, timeout_s, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"
    )
    rows = [_fields(line) for line in listing.splitlines() if line.strip()]
    if not rows:
        raise GpuUnfit("nvidia-smi lists no GPU", hint=_LOST)
    whole = [
        Gpu(name, _mib(memory), driver) for name, memory, driver, mig in rows if mig != "Enabled"
    ]
    if len(whole) == len(rows):
        return tuple(whole)
    # A split GPU reports the memory of all its slices; a slice's own is in its name.
    driver = rows[0][2]
    slices = [
        Gpu(f"MIG slice {found[1]}", int(found[2]) * 1000, driver)
        for line in _ask(executable, timeout_s, "-L").splitlines()
        if (found := _SLICE.match(line))
    ]
    if not slices:
        raise GpuUnfit(f"{rows[0][0]} is in MIG mode and has no slice", hint=_LOST)
    return (*whole, *slices)


def read_system_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> SystemMemory:
    """The machine's memory, or the container's limit where that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            # "max" where there is no limit.
            limit = int((cgroup / name).read_text(encoding="ascii"))
            if limit < machine:
                return SystemMemory(limit, is_limited=True)
    return SystemMemory(machine)


def room_for_weights(memory: SystemMemory) -> int:
    """The bytes of system memory that are left to weights beside everything else."""
    return memory.bytes - int(_data()["system"]["beside_weights_gib"] * _GIB)


def decide(
    gpus: Sequence[Gpu], memory: SystemMemory, settings: Settings, installed_bytes: int = 0
) -> Decision:
    """What to run on these GPUs, of which the smallest decides; raises `GpuUnfit`.

    `installed_bytes` are those of the checkpoints and text encoders that jobs can ask for; 0 where
    none is there yet.
    """
    gpu = min(gpus, key=lambda gpu: gpu.memory_mib or 0)
    reasons = [f"the smallest of {len(gpus)} GPUs decides: {gpu}" if len(gpus) > 1 else str(gpu)]
    variant, why = _variant(gpu, memory, settings)
    reasons.append(f"{variant}: {why}")
    fitting = _megapixel_frames(gpu)
    max_frames, why = _max_frames(gpu, fitting, settings)
    reasons.append(f"up to {max_frames} frames: {why}")
    if settings.vram_management:
        chosen = (
            _unless_own("memory_flags", settings, _memory_flags(gpu, installed_bytes)),
            _unless_own("cache_flags", settings, _cache_flags(variant, memory, fitting)),
        )
    else:
        chosen = (_Flags((), "no flags for ComfyUI: ENABLE_LTX2_VRAM_MANAGEMENT is off"),)
    reasons += [flags.reason for flags in chosen]
    comfy_args = tuple(word for flags in chosen for word in flags.words)
    return Decision(variant, comfy_args, max_frames, fitting, tuple(reasons))


def decision_for(settings: Settings) -> Decision | None:
    """What this machine's GPU decides for the worker's own ComfyUI; None where nothing does.

    Raises `GpuUnfit`.
    """
    is_own = settings.comfy_url is None and settings.engine == "comfyui"
    if not is_own or shutil.which("nvidia-smi") is None:
        return None
    return decide(read_gpus(), read_system_memory(), settings, _installed_bytes(settings))


def _installed_bytes(settings: Settings) -> int:
    own = (settings.comfyui_dir / "models",) if settings.comfyui_dir else ()
    paths = {
        path
        for file in load_catalog().files
        if file.folder in _LARGE
        for folder in settings.comfy_models_dirs or own
        if (path := folder / file.folder / file.name).is_file()
    }
    return sum(path.stat().st_size for path in paths)


def _ask(executable: str, timeout_s: float, *arguments: str) -> str:
    """What nvidia-smi writes. One that hangs in the driver cannot even be killed: it is left."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own arguments
                (executable, *arguments), stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise GpuUnfit(
                "No NVIDIA GPU is here: nvidia-smi cannot be started",
                hint="Start the container with a GPU (docker run --gpus all), or use the sandbox "
                "(LTX2_ENGINE=sandbox).",
            ) from error
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            raise GpuUnfit(f"nvidia-smi did not answer in {timeout_s:g} s", hint=_LOST) from error
        output.seek(0)
        text = output.read(100_000).decode("utf-8", "replace")
    if status != 0 or "No devices were found" in text:
        first = text.strip().partition("\n")[0][:200] or f"exit status {status}"
        raise GpuUnfit(f"nvidia-smi failed: {first}", hint=_LOST)
    return text


def _fields(line: str) -> tuple[str, str, str, str]:
    name, *rest = (field.strip() for field in line.rsplit(",", len(_FIELDS) - 1))
    if len(rest) != len(_FIELDS) - 1 or not (rest[0].isdecimal() or _UNTOLD.fullmatch(rest[0])):
        raise GpuUnfit("nvidia-smi answered with something else than a list of GPUs", hint=_LOST)
    return name, rest[0], rest[1], rest[2]


def _mib(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _variant(gpu: Gpu, memory: SystemMemory, settings: Settings) -> tuple[Variant, str]:
    """The model files to use; what LTX2_VARIANT says is taken on any GPU that may serve at all."""
    wanted = settings.variant
    if gpu.memory_mib is None:
        if wanted:
            return wanted, "LTX2_VARIANT, and the driver does not tell the GPU's memory"
        raise GpuUnfit(
            f"The driver does not tell how much memory {gpu.name} has",
            hint="Set LTX2_VARIANT to fp8 or fp16.",
        )
    rows: list[dict[str, Any]] = _data()["variants"]
    row = _row(rows, gpu.memory_mib)
    if row is None:
        _require_low_vram_allowed(gpu, settings)
        return wanted or rows[0]["variant"], "with offload, since LTX2_ALLOW_LOW_VRAM is set"
    if wanted:
        return wanted, "LTX2_VARIANT"
    least = row["from_mib"]
    if row["variant"] == "fp16" and memory.bytes < (needed := _needed_bytes("fp16")):
        return "fp8", (
            f"fp16 takes {needed / _GIB:.0f} GiB of system memory, not the "
            f"{memory.bytes / _GIB:.0f} GiB here; the GPU alone would do"
        )
    return row["variant"], f"from {least} MiB of GPU memory on"


def _require_low_vram_allowed(gpu: Gpu, settings: Settings) -> None:
    if not settings.allow_low_vram:
        first = _data()["variants"][0]
        raise GpuUnfit(
            f"{gpu.name} has {gpu.memory_mib} MiB of memory; LTX-2 needs {first['from_mib']} MiB "
            f"({first['variant']})",
            hint="Rent a larger GPU, or set LTX2_ALLOW_LOW_VRAM=true: slow, and short clips only.",
        )


def _megapixel_frames(gpu: Gpu) -> float | None:
    if gpu.memory_mib is None:
        return None
    # What chooses the files to download does without it.
    from ltx_worker.memory_advice import fitting_megapixel_frames  # noqa: PLC0415

    return fitting_megapixel_frames(gpu.memory_mib * _MIB)


def _max_frames(gpu: Gpu, fitting: float | None, settings: Settings) -> tuple[int, str]:
    """The longest clip: on a GPU below the least, what is known to fit at the smallest size."""
    if fitting is None:
        return settings.max_frames, "LTX2_MAX_FRAMES"
    name, sides = min(RESOLUTIONS.items(), key=lambda item: item[1])
    known = _frames_at(Size(*sides), fitting)
    if _row(_data()["variants"], gpu.memory_mib or 0) is None and known < settings.max_frames:
        return known, f"what fits at {name} where LTX2_ALLOW_LOW_VRAM is needed"
    sizes = ", ".join(
        f"{_frames_at(Size(*sides), fitting)} at {name}" for name, sides in RESOLUTIONS.items()
    )
    return settings.max_frames, f"LTX2_MAX_FRAMES; known to fit are {sizes}"


def _frames_at(size: Size, megapixel_frames: float) -> int:
    frames = int(megapixel_frames * 1e6 / (size.width * size.height))
    return max(MIN_FRAMES, snap_frames_down(frames))


def _memory_flags(gpu: Gpu, installed_bytes: int) -> _Flags:
    if gpu.memory_mib is None:
        return _Flags((), "no memory flags: the GPU's memory is not known")
    spare_gib = (gpu.memory_mib * _MIB - installed_bytes) / _GIB
    rows = [
        row
        for row in _data()["memory_flags"]
        if "beside_gib" not in row or (installed_bytes and row["beside_gib"] <= spare_gib)
    ]
    row = _row(rows, gpu.memory_mib)
    assert row is not None
    name = " ".join(row["flags"]) or "no memory flags"
    reason = f"{name}: {row['basis']} for GPUs from {row['from_mib']} MiB on"
    return _Flags(tuple(row["flags"]), reason)


def _cache_flags(variant: Variant, memory: SystemMemory, fitting: float | None) -> _Flags:
    """What keeps as much of earlier jobs as the memory takes, and the loaders in any case."""
    rule = _data()["cache"]
    if not memory.is_limited:
        active, inactive = str(rule["active_gib"]), str(rule["inactive_gib"])
        reason = f"--cache-ram {active} {inactive}: loaders stay while {inactive} GiB are free"
        return _Flags(("--cache-ram", active, inactive), reason)
    # Kept loaders of another quality hold the weights of a second checkpoint.
    spare = memory.bytes - _needed_bytes(variant) - _largest(variant, "checkpoint")
    clip = (fitting or 0) * 1e6 * _BYTES_PER_PIXEL
    jobs = min(rule["most_jobs"], 1 + int(spare / clip)) if spare > 0 and clip else 1
    where = f"the container's {memory.bytes / _GIB:.0f} GiB"
    if jobs == 1:
        reason = f"--cache-classic: {where} hold the current workflow's loaders only"
        return _Flags(("--cache-classic",), reason)
    results = str(jobs * rule["nodes_per_job"])
    reason = (
        f"--cache-lru {results}: {where} hold the loaders of all and the results of {jobs} jobs"
    )
    return _Flags(("--cache-lru", results), reason)


def _unless_own(group: str, settings: Settings, flags: _Flags) -> _Flags:
    """`flags`, or none where LTX2_COMFY_ARGS has one of this group: ComfyUI refuses two."""
    own = [w for w in shlex.split(settings.comfy_args) if w in _data()["groups"][group]]
    if not own:
        return flags
    return _Flags((), f"no {group.replace('_', ' ')}: LTX2_COMFY_ARGS has {own[0]}")


def _needed_bytes(variant: Variant) -> int:
    """System memory for one checkpoint, the text encoder and what stands beside them."""
    weights = _largest(variant, "checkpoint") + _largest(variant, "text_encoder")
    return weights + int(_data()["system"]["beside_weights_gib"] * _GIB)


def _largest(variant: Variant, kind: str) -> int:
    files = load_catalog().files
    return max(f.bytes for f in files if f.role.endswith(kind) and f.fits(variant))


def _row(rows: Sequence[dict[str, Any]], memory_mib: int) -> dict[str, Any] | None:
    return next((row for row in reversed(rows) if row["from_mib"] <= memory_mib), None)


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("gpu.toml").read_text(encoding="utf-8"))
