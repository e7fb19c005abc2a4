"""What is read of a machine's GPUs, and what is decided for them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.image.fakes.nvidia_smi import nvidia_smi

from ltx_worker.gpu import (
    Decision,
    Gpu,
    GpuUnfit,
    SystemMemory,
    decide,
    decision_for,
    read_gpus,
    read_system_memory,
)
from ltx_worker.settings import Settings

GIB = 2**30
# Of one container on a large host.
ROOMY = SystemMemory(250 * GIB, is_limited=True)
DRIVER = "570.86.10"
T4 = f"Tesla T4, 15360, {DRIVER}, [N/A]"
L4 = f"NVIDIA L4, 23034, {DRIVER}, [N/A]"
RTX_4090 = f"NVIDIA GeForce RTX 4090, 24564, {DRIVER}, [N/A]"
RTX_5090 = f"NVIDIA GeForce RTX 5090, 32607, {DRIVER}, [N/A]"
A40 = f"NVIDIA A40, 46068, {DRIVER}, [N/A]"
L40S = f"NVIDIA L40S, 46068, {DRIVER}, [N/A]"
A100_40 = f"NVIDIA A100-SXM4-40GB, 40960, {DRIVER}, Disabled"
A100_80 = f"NVIDIA A100-SXM4-80GB, 81920, {DRIVER}, Disabled"
H100 = f"NVIDIA H100 80GB HBM3, 81559, {DRIVER}, Disabled"
H200 = f"NVIDIA H200, 143771, {DRIVER}, Disabled"
SPLIT = f"NVIDIA H100 80GB HBM3, 81559, {DRIVER}, Enabled"


def decided(folder: Path, *listing: str, memory: SystemMemory = ROOMY, **settings: Any) -> Decision:
    """The decision on a machine whose nvidia-smi lists this."""
    return decide(read_gpus(nvidia_smi(folder, *listing)), memory, Settings(**settings))


def reason(decision: Decision, part: str) -> str:
    return next(text for text in decision.reasons if part in text)


@pytest.mark.parametrize(
    ("listing", "variant", "flags"),
    [
        (RTX_4090, "fp8", ("--reserve-vram", "5")),
        (RTX_5090, "fp16", ()),
        (A40, "fp16", ()),
        (L40S, "fp16", ()),
        (A100_40, "fp16", ()),
        (A100_80, "fp16", ()),
        (H100, "fp16", ()),
        (H200, "fp16", ()),
    ],
)
def test_each_gpu_gets_its_variant(
    tmp_path: Path, listing: str, variant: str, flags: tuple[str, ...]
) -> None:
    """fp16 from 32000 MiB on, fp8 from 24000; every choice has its reason, and the GPU its name."""
    decision = decided(tmp_path, listing)
    assert decision.variant == variant
    assert decision.comfy_args[: len(flags)] == flags
    assert decision.comfy_args[len(flags)] in ("--cache-lru", "--cache-classic")
    assert decision.max_frames == Settings().max_frames
    name, memory = listing.split(", ")[:2]
    assert decision.reasons[0] == f"{name} ({memory} MiB, driver {DRIVER})"
    assert f"{variant}: from {32000 if variant == 'fp16' else 24000} MiB" in decision.reasons[1]
    assert len(decision.reasons) == 5


@pytest.mark.parametrize(
    ("listing", "installed_gb", "stays"),
    [(H200, 111, True), (H200, 203, False), (H100, 40, True), (H100, 68, False), (L40S, 40, False)],
    ids=[
        "H200, both checkpoints of a model",
        "H200, both of both models",
        "H100, quality fast in fp8",
        "H100, quality fast in fp16",
        "L40S, quality fast in fp8",
    ],
)
def test_models_stay_on_the_gpu_where_all_that_is_installed_fits(
    tmp_path: Path, listing: str, installed_gb: int, stays: bool
) -> None:
    gpus = read_gpus(nvidia_smi(tmp_path, listing))
    decision = decide(gpus, ROOMY, Settings(), installed_bytes=int(installed_gb * 1e9))
    assert ("--gpu-only" in decision.comfy_args) is stays
    # CUDA's allocator and CUDA graphs do not go together.
    assert ("--disable-cuda-malloc" in decision.comfy_args) is stays


def test_the_checkpoints_in_the_models_folders_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the catalogue, by their size on disk; a file beside them does not count."""
    checkpoints = tmp_path / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    smi = nvidia_smi(tmp_path, H200)
    monkeypatch.setenv("PATH", f"{Path(smi).parent}:/usr/bin:/bin")
    settings = Settings(comfyui_dir=tmp_path, vram_management=True)
    (checkpoints / "ltx-2-19b-distilled.safetensors").write_bytes(b"weights")
    sparse = checkpoints / "another.safetensors"
    with sparse.open("wb") as file:
        file.truncate(10**12)
    kept = decision_for(settings)
    sparse.rename(checkpoints / "ltx-2-19b-dev.safetensors")
    let_go = decision_for(settings)
    assert kept is not None
    assert let_go is not None
    assert "--gpu-only" in kept.comfy_args
    assert "--gpu-only" not in let_go.comfy_args


@pytest.mark.parametrize(("listing", "memory"), [(T4, 15360), (L4, 23034)])
def test_a_gpu_that_is_too_small_is_refused(tmp_path: Path, listing: str, memory: int) -> None:
    """The GPU, the need and the way out are named; LTX2_VARIANT does not make it larger."""
    with pytest.raises(GpuUnfit) as refused:
        decided(tmp_path, listing, variant="fp8")
    name = listing.partition(",")[0]
    assert refused.value.message == (
        f"{name} has {memory} MiB of memory; LTX-2 needs 24000 MiB (fp8)"
    )
    assert refused.value.hint is not None
    assert "LTX2_ALLOW_LOW_VRAM=true" in refused.value.hint


@pytest.mark.parametrize(
    ("listing", "frames", "flags"),
    [
        (f"NVIDIA GeForce RTX 3060, 12288, {DRIVER}, [N/A]", 57, ("--novram",)),
        (T4, 89, ("--reserve-vram", "5")),
        (L4, 161, ("--reserve-vram", "5")),
    ],
)
def test_a_small_gpu_may_serve_short_clips(
    tmp_path: Path, listing: str, frames: int, flags: tuple[str, ...]
) -> None:
    """LTX2_ALLOW_LOW_VRAM: fp8, offload, and no clip longer than fits."""
    decision = decided(tmp_path, listing, allow_low_vram=True)
    assert (decision.variant, decision.max_frames) == ("fp8", frames)
    assert decision.comfy_args[: len(flags)] == flags
    assert "LTX2_ALLOW_LOW_VRAM" in reason(decision, "frames")
    assert decided(tmp_path, listing, allow_low_vram=True, max_frames=33).max_frames == 33


def test_the_variant_may_be_chosen_by_hand(tmp_path: Path) -> None:
    """LTX2_VARIANT goes before the GPU, both ways."""
    assert decided(tmp_path, H100, variant="fp8").variant == "fp8"
    decision = decided(tmp_path, RTX_4090, variant="fp16")
    assert (decision.variant, decision.reasons[1]) == ("fp16", "fp16: LTX2_VARIANT")


def test_the_smallest_of_several_gpus_decides(tmp_path: Path) -> None:
    """ComfyUI may take any of them."""
    decision = decided(tmp_path, H100, RTX_4090)
    assert decision.variant == "fp8"
    assert decision.reasons[0].startswith("the smallest of 2 GPUs decides: NVIDIA GeForce RTX 4090")


def test_fp16_needs_system_memory_to_stage_it(tmp_path: Path) -> None:
    """An A40 in a container of 50 GiB gets fp8, and the reason."""
    decision = decided(tmp_path, A40, memory=SystemMemory(50 * GIB, is_limited=True))
    assert decision.variant == "fp8"
    assert "system memory, not the 50 GiB here" in reason(decision, "fp8: ")


@pytest.mark.parametrize(
    ("memory", "flags"),
    [
        (SystemMemory(64 * GIB), ("--cache-ram", "2", "8")),
        (SystemMemory(62 * GIB, is_limited=True), ("--cache-classic",)),
        (SystemMemory(94 * GIB, is_limited=True), ("--cache-lru", "320")),
    ],
)
def test_the_cache_keeps_what_the_memory_takes(
    tmp_path: Path, memory: SystemMemory, flags: tuple[str, ...]
) -> None:
    """ComfyUI sees the host's memory only: in a container, results are counted instead."""
    decision = decided(tmp_path, RTX_4090, memory=memory)
    assert decision.comfy_args == ("--reserve-vram", "5", *flags)


def test_flags_may_be_left_to_the_user(tmp_path: Path) -> None:
    """Switched off there are none of ours; one of LTX2_COMFY_ARGS replaces ours of its group."""
    decision = decided(tmp_path, RTX_4090, vram_management=False)
    assert decision.comfy_args == ()
    assert "ENABLE_LTX2_VRAM_MANAGEMENT" in reason(decision, "no flags")
    decision = decided(tmp_path, RTX_4090, comfy_args="--cache-none --port 1")
    assert decision.comfy_args == ("--reserve-vram", "5")
    assert "LTX2_COMFY_ARGS has --cache-none" in reason(decision, "no cache flags")
    decision = decided(tmp_path, RTX_4090, comfy_args="--novram")
    assert "--reserve-vram" not in decision.comfy_args


def test_a_slice_counts_for_a_split_gpu(tmp_path: Path) -> None:
    """In MIG mode nvidia-smi reports the whole GPU's memory; the slice's is in its name."""
    gpu = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-4404041a)"
    slices = (gpu, "  MIG 3g.40gb     Device  0: (UUID: MIG-c6d4f1ef)")
    executable = nvidia_smi(tmp_path, SPLIT, slices=slices)
    assert read_gpus(executable) == (Gpu("MIG slice 3g.40gb", 40000, DRIVER),)
    with pytest.raises(GpuUnfit, match="is in MIG mode and has no slice"):
        read_gpus(nvidia_smi(tmp_path, SPLIT, slices=(gpu,)))


def test_memory_that_is_not_told_asks_for_the_variant(tmp_path: Path) -> None:
    """[N/A], as for memory that is shared with the CPU: LTX2_VARIANT decides."""
    listing = f"NVIDIA GB10, [N/A], {DRIVER}, [N/A]"
    with pytest.raises(GpuUnfit, match="does not tell how much memory NVIDIA GB10 has"):
        decided(tmp_path, listing)
    decision = decided(tmp_path, listing, variant="fp16")
    assert (decision.variant, decision.megapixel_frames) == ("fp16", None)


@pytest.mark.parametrize(
    ("listing", "status", "told"),
    [
        ("No devices were found", 6, "nvidia-smi failed: No devices were found"),
        ("No devices were found", 0, "nvidia-smi failed: No devices were found"),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
            9,
            "couldn't communicate with the NVIDIA driver",
        ),
        ("Failed to initialize NVML: Driver/library version mismatch", 18, "version mismatch"),
        ("", 0, "nvidia-smi lists no GPU"),
        ("", 15, "nvidia-smi failed: exit status 15"),
        ("what, is, this, then", 0, "something else than a list of GPUs"),
        ("<html>", 0, "something else than a list of GPUs"),
    ],
)
def test_an_nvidia_smi_that_fails_is_quoted(
    tmp_path: Path, listing: str, status: int, told: str
) -> None:
    """No GPU, no driver, a mismatch, garbage: one sentence, and what to do."""
    with pytest.raises(GpuUnfit) as unfit:
        read_gpus(nvidia_smi(tmp_path, listing, status=status))
    assert told in unfit.value.message
    assert unfit.value.hint


def test_a_machine_without_nvidia_smi_is_told_so(tmp_path: Path) -> None:
    """The hint says how a container gets its GPU."""
    with pytest.raises(GpuUnfit, match="No NVIDIA GPU is here") as unfit:
        read_gpus(str(tmp_path / "nvidia-smi"))
    assert unfit.value.hint is not None
    assert "--gpus all" in unfit.value.hint


def test_an_nvidia_smi_that_hangs_is_given_up(tmp_path: Path) -> None:
    """A driver that hangs does not hang the worker."""
    path = tmp_path / "nvidia-smi"
    path.write_text("#!/usr/bin/env bash\nexec sleep 60\n")
    path.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(GpuUnfit, match=r"did not answer in 0\.3 s"):
        read_gpus(str(path), timeout_s=0.3)
    assert time.monotonic() - started < 5


def test_the_containers_limit_counts(tmp_path: Path) -> None:
    """The limit of either version of control groups, where it is less than the machine has."""
    machine = read_system_memory(tmp_path)
    assert not machine.is_limited
    (tmp_path / "memory.max").write_text("max\n")
    assert read_system_memory(tmp_path) == machine
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    assert read_system_memory(tmp_path) == SystemMemory(GIB, is_limited=True)
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    assert read_system_memory(tmp_path) == SystemMemory(2 * GIB, is_limited=True)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert read_system_memory(tmp_path) == machine
