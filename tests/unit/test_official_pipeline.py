"""How the official pipeline's parts are timed, and which files and rows it is run with."""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from official_inputs import ModelFiles, embedding_widths, instead, transformer_config
from official_packages import check_stated_value
from official_pipeline import Row, Size, rows_of, table
from official_timing import Stopwatch, Timed, TimedStages, timed_frames


class Device:
    """A device whose work takes the seconds that it is given, on a clock of its own.

    Work is queued; the clock moves when the device is waited for.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._queued = 0.0
        self.watch = Stopwatch(self.wait, lambda: self._now)

    def work(self, seconds: float) -> None:
        self._queued += seconds

    def wait(self) -> None:
        self._now += self._queued
        self._queued = 0.0


class Denoiser:
    """A part like theirs: works before the loop that it is given, and in it."""

    name = "denoiser"

    def __init__(self, device: Device) -> None:
        self._device = device

    def __call__(self, steps: int, *, loop: Callable[[int], int]) -> int:
        self._device.work(20)
        return loop(steps)


@pytest.fixture
def device() -> Device:
    return Device()


def test_a_timed_part_gives_what_the_part_gives_and_its_seconds(device: Device) -> None:
    def upsample(latent: str, *, scale: int) -> str:
        device.work(3)
        return latent * scale

    part = Timed(upsample, "upsample", device.watch)
    assert part("x", scale=2) == "xx"
    assert device.watch.take()["upsample"] == 3


def test_a_timed_part_still_shows_what_the_part_has(device: Device) -> None:
    assert Timed(Denoiser(device), "stage", device.watch).name == "denoiser"


def test_the_two_stages_of_each_clip_are_told_apart_and_their_loops_from_the_rest(
    device: Device,
) -> None:
    def denoise(steps: int) -> int:
        device.work(steps)
        return steps

    def denoise_in_one_step(steps: int) -> int:
        device.work(1)
        return -steps

    stages = TimedStages(Denoiser(device), device.watch, denoise)
    for _clip in range(2):
        assert stages(8) == 8
        assert stages(3, loop=denoise_in_one_step) == -3
        assert device.watch.take() == {
            "stage_1": 28,
            "stage_1_loop": 8,
            "stage_2": 21,
            "stage_2_loop": 1,
            "decode_video": 0,
        }


def test_work_that_was_queued_before_a_part_is_not_its_own(device: Device) -> None:
    device.work(5)
    with device.watch.span("upsample"):
        device.work(2)
    assert device.watch.take()["upsample"] == 2


def test_waiting_for_frames_is_decoding_and_not_encoding(device: Device) -> None:
    def decode() -> Iterator[int]:
        for number in range(3):
            device.work(4)
            yield number

    with device.watch.span("total"):
        with device.watch.span("decode_video"):
            device.work(10)
        with device.watch.span("encode"):
            for _ in timed_frames(decode(), device.watch):
                device.work(1)
    assert device.watch.take() == {"decode_video": 22, "encode": 3, "total": 25, "between": 0}


def test_what_no_part_took_lies_between_them(device: Device) -> None:
    with device.watch.span("total"):
        device.work(3)
        with device.watch.span("upsample"):
            device.work(2)
    assert device.watch.take()["between"] == 3


def test_a_call_starts_with_an_empty_watch(device: Device) -> None:
    with device.watch.span("upsample"):
        device.work(2)
    device.watch.take()
    assert "upsample" not in device.watch.take()


def test_frames_put_in_the_decoded_ones_place_keep_their_order_and_number() -> None:
    class Frames(list[int]):
        dtype = "bf16"

        def __getitem__(self, key: object) -> Frames:
            return Frames(super().__getitem__(key))  # type: ignore[index]

        def to(self, dtype: str) -> tuple[str, list[int]]:
            return dtype, list(self)

    decoded = [Frames([0] * 5), Frames([0] * 3)]
    clip = Frames(range(100, 108))
    assert list(instead(decoded, clip)) == [
        ("bf16", [100, 101, 102, 103, 104]),
        ("bf16", [105, 106, 107]),
    ]


@pytest.mark.parametrize(
    ("family", "role", "variant", "name"),
    [
        ("ltx-2", "distilled_checkpoint", "fp16", "ltx-2-19b-distilled.safetensors"),
        ("ltx-2", "distilled_checkpoint", "fp8", "ltx-2-19b-distilled-fp8.safetensors"),
        ("ltx-2.3", "spatial_upscaler", None, "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"),
    ],
)
def test_files_are_found_under_the_catalogues_names(
    tmp_path: Path, family: str, role: str, variant: str | None, name: str
) -> None:
    folder = "latent_upscale_models" if role == "spatial_upscaler" else "checkpoints"
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).touch()
    assert ModelFiles(tmp_path, family).path(role, variant) == tmp_path / folder / name


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ltx-2-19b-distilled\.safetensors"):
        ModelFiles(tmp_path, "ltx-2").path("distilled_checkpoint", "fp16")


def test_the_prompts_widths_are_read_from_the_checkpoint(tmp_path: Path) -> None:
    sizes = {"connector_num_attention_heads": 32, "audio_connector_attention_head_dim": 64}
    metadata = {"__metadata__": {"config": json.dumps({"transformer": sizes})}}
    header = json.dumps(metadata).encode()
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(struct.pack("<Q", len(header)) + header)
    assert embedding_widths(transformer_config(checkpoint)) == (32 * 128, 32 * 64)


def test_the_first_family_has_both_prompts_of_one_width() -> None:
    assert embedding_widths({}) == (3840, 3840)


def test_a_checkpoint_may_leave_a_fixed_value_out_but_not_change_it() -> None:
    check_stated_value({}, "dropout", 0.0)
    check_stated_value({"dropout": 0.0}, "dropout", 0.0)
    with pytest.raises(ValueError, match=r"dropout is 0\.1"):
        check_stated_value({"dropout": 0.1}, "dropout", 0.0)


def test_each_precision_and_strategy_runs_eager_then_compiled() -> None:
    asked = argparse.Namespace(
        quantization=["none", "fp8-cast"], trim=["defer"], compile=True, only_compiled=False
    )
    assert [str(row) for row in rows_of(asked)] == [
        "bf16, eager, memory kept",
        "bf16, compiled, memory kept",
        "fp8-cast, eager, memory kept",
        "fp8-cast, compiled, memory kept",
    ]


def test_a_plain_run_is_their_default() -> None:
    asked = argparse.Namespace(quantization=None, trim=None, compile=False, only_compiled=False)
    assert list(rows_of(asked)) == [Row("none", compiled=False, trim="trim")]


@pytest.mark.parametrize("text", ["1280x720x121", "1280x704x120"])
def test_a_size_that_two_stages_cannot_make_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        Size.parse(text)


def test_the_table_has_a_line_for_each_size_and_each_error() -> None:
    figures = {"size": "64x64x9", "peak_reserved_gb": 1.25, "median_s": {"total": 2.0}}
    lines = table(
        [{"name": "bf16", "sizes": [figures], "error": "ValueError: no\nmore"}]
    ).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("| bf16 | 64x64x9 |")
    assert lines[1].endswith("| 2.000 | 1.2 |")
    assert lines[2] == "| bf16 | ValueError: no |"
