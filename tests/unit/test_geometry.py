"""The model's grid of frames, sizes and audio latents."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_worker.geometry import (
    AUDIO_LATENTS_PER_SECOND,
    MAX_SIDE,
    MIN_SIDE,
    RESOLUTIONS,
    Size,
    audio_clock,
    size_for,
    snap_frames,
    snap_frames_down,
    snap_size,
)


@pytest.mark.parametrize(
    ("frames", "snapped"), [(1, 9), (9, 9), (12, 9), (13, 17), (120, 121), (121, 121), (125, 129)]
)
def test_frames_go_to_the_nearest_8k_plus_1(frames: int, snapped: int) -> None:
    """Ties go up, and nothing is shorter than 9 frames."""
    assert snap_frames(frames) == snapped


@given(st.integers(9, 2000))
def test_snapped_frames_are_on_the_grid_and_near(frames: int) -> None:
    """A snapped count is 8k+1 and at most 4 frames away."""
    assert snap_frames(frames) % 8 == 1
    assert abs(snap_frames(frames) - frames) <= 4
    assert frames - 7 <= snap_frames_down(frames) <= frames


@given(
    st.integers(MIN_SIDE, MAX_SIDE), st.integers(MIN_SIDE, MAX_SIDE), st.sampled_from([32, 64, 128])
)
def test_snapped_sizes_are_on_the_grid_and_near(width: int, height: int, grid: int) -> None:
    """Sides are multiples of the grid, at most half a step away."""
    size = snap_size(Size(width, height), grid)
    for before, after in ((width, size.width), (height, size.height)):
        assert after % grid == 0
        assert abs(after - before) <= grid / 2


@given(st.sampled_from(list(RESOLUTIONS)), st.floats(0.25, 4))
def test_every_ratio_gets_about_as_many_pixels(resolution: str, ratio: float) -> None:
    """A named resolution means the same work in every aspect ratio."""
    size = size_for(resolution, ratio, grid=64)
    width, height = RESOLUTIONS[resolution]
    assert size.width * size.height == pytest.approx(width * height, rel=0.15)


@given(st.integers(1, 62).map(lambda k: 8 * k + 1), st.floats(1, 60))
def test_sound_lasts_as_long_as_the_picture(frames: int, fps: float) -> None:
    """The audio latent covers the clip and is at most two latents (80 ms) longer."""
    audio_frames, rate = audio_clock(frames, fps)
    # How ComfyUI counts audio latents from a frame count and an integer rate; its floats may
    # round a whole number up to the next one (55 / 25 * 25 > 55).
    latents = math.ceil(audio_frames / rate * AUDIO_LATENTS_PER_SECOND)
    exact = frames / fps * AUDIO_LATENTS_PER_SECOND
    assert exact - 1e-6 <= latents < exact + 2


def test_a_whole_rate_is_passed_on_as_it_is() -> None:
    """At whole rates both latents get the same two numbers, as in the official workflows."""
    assert audio_clock(121, 24.0) == (121, 24)
