"""Hostile inputs take little memory, however much they claim to hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_MOST_MB = 300


@pytest.mark.timeout(180)
def test_all_hostile_inputs_together_take_little_memory(
    hostile_files: Path, tmp_path: Path, record_property: Any
) -> None:
    """One process reads them all; its peak is compared with what it had before."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.memory", hostile_files, tmp_path / "world"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    result = json.loads(done.stdout)
    record_property("hostile inputs, extra memory", f"{result['extra_mb']} MB ({result['worst']})")
    assert result["extra_mb"] < _MOST_MB
