"""The fused video decoder gives what ComfyUI's own does, and leaves to it what does not fit.

Kernels run in Triton's interpreter. ComfyUI's CPU environment has no Triton: where none can be
imported (put it on PYTHONPATH), what is left to test is that everything falls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from tests.comfyui.comfyui_script import printed_by

pytestmark = pytest.mark.timeout(900)
FALLING_BACK = ("in blocks", "two clips", "bfloat16, mirrored", "widening", "timestep")
MISFITS = {"widening", "circular", "timestep", "layer norm"}
# Triton's interpreter cuts to bfloat16 where a GPU rounds to the nearest.
TOLERANCE = {"torch.float32": 1e-5, "torch.bfloat16": 3e-2}
PIECE_FRAMES = 16

Case = dict[str, Any]


@cache
def compared(*names: str, interpreted: bool) -> dict[str, Any]:
    """What the comparison prints, run by ComfyUI's own Python."""
    return printed_by("decoder_equality.py", *names, interpreted=interpreted)


def interpreted_cases() -> Iterator[tuple[str, Case]]:
    """Every case with its result, or a skip that says why there is none."""
    result = compared(interpreted=True)
    if not result["triton"]:
        reason = "ComfyUI's Python cannot import Triton: only the way back to ComfyUI was tested"
        pytest.skip(reason)
    return iter(result["cases"].items())


def test_where_kernels_cannot_run_comfyuis_decoder_serves() -> None:
    cases = compared(*FALLING_BACK, interpreted=False)["cases"]
    assert set(cases) == set(FALLING_BACK)
    for name, case in cases.items():
        assert not case["fits"], name
        assert case["error"] == case["stream_error"] == 0, name
        assert case["pieces"] is None or len(case["pieces"]) == 1, name


def test_every_decoder_that_fits_is_served_by_the_kernels() -> None:
    fit = {name for name, case in interpreted_cases() if case["fits"]}
    assert fit == {name for name, _ in interpreted_cases()} - MISFITS
    assert len(fit) == 18


def test_pixels_are_those_of_comfyuis_decoder_however_a_clip_is_cut() -> None:
    wrong = {
        name: case
        for name, case in interpreted_cases()
        if len(set(map(tuple, case["shapes"]))) > 1
        or len(set(case["types"])) > 1
        or not case["error"] <= TOLERANCE[case["precision"]]
    }
    assert not wrong


def test_the_stream_gives_the_same_pixels_in_short_pieces() -> None:
    streamed = {name: case for name, case in interpreted_cases() if case["pieces"]}
    assert len(streamed) == 6
    for name, case in streamed.items():
        assert case["stream_error"] <= TOLERANCE[case["precision"]], name
        assert sum(case["pieces"]) == case["shapes"][0][2], name
        if name not in MISFITS:
            assert max(case["pieces"]) <= PIECE_FRAMES, name
            assert case["shapes"][0][2] <= PIECE_FRAMES or len(case["pieces"]) > 1, name


def test_a_decode_leaves_nothing_behind() -> None:
    assert not {name: case for name, case in interpreted_cases() if case["caches_left"]}
