"""The worker's encoder writes all of a clip or nothing, and says what went wrong."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ltx_worker_nodes.encoding import ClipEncoder
from ltx_worker_nodes.encoding_settings import encoding_for
from tests.nodes.clips import (
    FRAMES,
    HEIGHT,
    IN_THREE,
    RATE,
    WIDTH,
    clip_encoder,
    numbered,
    tone,
    write,
)


def test_encoding_begins_before_the_last_frames_are_there(tmp_path: Path) -> None:
    """Time passes in other threads while this one waits with half of the frames."""
    planes = np.random.default_rng(0).integers(0, 255, (FRAMES, 384, 512), np.uint8)
    with ClipEncoder(tmp_path / "clip", 512, 256, FRAMES, 24, plan=IN_THREE) as clip:
        before = time.process_time() - time.thread_time()
        clip.add(planes[:30])
        deadline = time.monotonic() + 20
        while time.process_time() - time.thread_time() - before < 0.1:
            assert time.monotonic() < deadline, "no encoder works"
            time.sleep(0.01)
        clip.add(planes[30:])
        clip.finish()


@pytest.mark.parametrize("ends", ["left early", "interrupted", "raised"])
def test_a_clip_that_is_given_up_leaves_nothing(tmp_path: Path, ends: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with (
        contextlib.suppress(KeyboardInterrupt),
        clip_encoder(tmp_path / "clip", plan=IN_THREE) as clip,
    ):
        clip.add(numbered()[: FRAMES if ends == "interrupted" else 30])
        if ends == "interrupted":
            clip.finish(interrupt)
        elif ends == "raised":
            interrupt()
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_an_encoder_that_fails_in_its_thread_is_heard_of(tmp_path: Path) -> None:
    encoding = encoding_for("mp4", "high", {"preset": "no such preset"})
    with pytest.raises(av.error.FFmpegError):
        write(tmp_path / "clip", numbered(), encoding=encoding)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end: a write fails half way."""
    script = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
import numpy as np
from pathlib import Path
from ltx_worker_nodes.encoding import ClipEncoder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
planes = np.random.default_rng(0).integers(0, 255, (24, 384, 512), np.uint8)
try:
    with ClipEncoder(Path({str(tmp_path / "clip")!r}), 512, 256, 24, 24) as clip:
        clip.add(planes)
        clip.finish()
except OSError as error:
    print("failed")
"""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert ran.stdout == "failed\n", ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        clip_encoder(tmp_path / "none" / "clip")


def test_too_few_frames_are_an_error(tmp_path: Path) -> None:
    with clip_encoder(tmp_path / "clip") as clip:
        clip.add(numbered(FRAMES - 1))
        with pytest.raises(ValueError, match="59 of the clip's 60"):
            clip.finish()
    assert list(tmp_path.iterdir()) == []


def test_too_many_frames_are_an_error(tmp_path: Path) -> None:
    with (
        clip_encoder(tmp_path / "clip") as clip,
        pytest.raises(ValueError, match="more were added"),
    ):
        clip.add(numbered(FRAMES + 1))
    assert list(tmp_path.iterdir()) == []


def test_announced_sound_must_come(tmp_path: Path) -> None:
    with clip_encoder(tmp_path / "clip", sound=(RATE, 2)) as clip:
        clip.add(numbered())
        with pytest.raises(ValueError, match="was not added"):
            clip.finish()
    assert list(tmp_path.iterdir()) == []


def test_sound_must_fit_and_come_once(tmp_path: Path) -> None:
    with clip_encoder(tmp_path / "clip", sound=(RATE, 2)) as clip:
        with pytest.raises(ValueError, match="must be"):
            clip.add_sound(tone(1, channels=1))
        clip.add_sound(tone(1))
        with pytest.raises(ValueError, match="has it already"):
            clip.add_sound(tone(1))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 127},
        {"height": 63},
        {"num_frames": 0},
        {"container": "avi"},
        {"quality": "best"},
        {"sound": (RATE, 4)},
    ],
    ids=str,
)
def test_what_cannot_be_encoded_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    fields = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES, "frame_rate": 24} | change
    with pytest.raises(ValueError, match=r"must be|must have"):
        ClipEncoder(tmp_path / "clip", **fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "planes",
    [np.zeros((1, HEIGHT, WIDTH), np.uint8), np.zeros((1, HEIGHT * 3 // 2, WIDTH), np.float32)],
    ids=["no chroma", "not bytes"],
)
def test_frames_of_another_kind_are_refused(tmp_path: Path, planes: np.ndarray) -> None:
    with (
        clip_encoder(tmp_path / "clip") as clip,
        pytest.raises(ValueError, match="must be uint8"),
    ):
        clip.add(planes)
