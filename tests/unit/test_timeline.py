"""Windows and extensions on the grid of latents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_worker.timeline import Window, extend, window


@pytest.mark.parametrize(
    ("start_s", "end_s", "frames"),
    [
        (0.5, 1.4, (9, 41)),  # frames 12 to 33
        (0.7, 0.9, (17, 25)),  # inside one latent: ComfyUI alone would free nothing
        (0.0, 0.04, (0, 1)),
        (0.0, 99.0, (0, 49)),
        (2.0, 99.0, (41, 49)),
    ],
)
def test_a_window_covers_the_seconds_with_whole_latents(
    start_s: float, end_s: float, frames: tuple[int, int]
) -> None:
    """At 24 frames a second, in a clip of 49 frames."""
    assert window(start_s, end_s, 24, 49) == Window(*frames, num_frames=49)


@given(st.floats(0, 3), st.floats(0.05, 3), st.sampled_from([24.0, 25.0, 29.97, 30.0]))
def test_every_window_is_whole_latents_around_what_was_asked(
    start_s: float, length_s: float, fps: float
) -> None:
    """The window starts and ends on the edges of latents and leaves out nothing asked for."""
    found = window(start_s, start_s + length_s, fps, 121)
    if found is None:
        assert round(start_s * fps) >= 121 or round((start_s + length_s) * fps) <= round(
            start_s * fps
        )
        return
    assert found.start == 0 or found.start % 8 == 1
    assert found.end % 8 == 1
    assert found.start <= round(start_s * fps)
    assert found.end >= min(round((start_s + length_s) * fps), 121)
    assert found.end <= 121


@pytest.mark.parametrize(("start_s", "end_s"), [(2.1, 3.0), (1.0, 1.0), (9.0, 10.0)])
def test_a_window_outside_the_clip_is_none(start_s: float, end_s: float) -> None:
    """A window after the end, or without length, is not made into another one."""
    assert window(start_s, end_s, 24, 49) is None


@given(st.integers(9, 500), st.floats(1, 300), st.booleans())
def test_an_extension_samples_8k_plus_1_frames(source: int, new: float, forward: bool) -> None:
    """What is sampled is on the grid, sees part of the source, and adds about what was asked."""
    extension = extend(source, new, forward=forward)
    assert extension is not None
    assert extension.num_frames % 8 == 1
    assert 0 < extension.context <= min(25, source)
    assert abs(extension.new - max(8, new)) <= 9
    assert extension.total == source + extension.new


@pytest.mark.parametrize(("source", "forward"), [(8, True), (7, False), (0, True)])
def test_too_short_a_source_cannot_be_extended(source: int, forward: bool) -> None:
    """A source of less than one latent beyond its first frame gives no context."""
    assert extend(source, 24, forward=forward) is None
