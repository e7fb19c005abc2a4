"""`ltx demo --all`: every mode from samples, in a file of its own because it takes a while."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from tests.e2e.test_cli import ltx


def test_demo_of_every_mode_leaves_clips_and_a_contact_sheet(tmp_path: Path) -> None:
    """--all makes one clip for each mode from samples, and one picture of them all."""
    run = ltx("demo", "--all", "--resolution", "128x128", "--fps", "8", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    modes = {"t2v", "i2v", "a2v", "lipsync", "keyframes", "v2v", "extend", "retake"}
    assert {path.stem for path in tmp_path.glob("*.mp4")} == modes
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.height > 1000
