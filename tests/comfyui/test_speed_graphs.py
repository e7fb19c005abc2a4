"""A pass whose steps are repeated gives what a pass gives whose steps are run, to the bit."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tests.comfyui.comfyui_script import printed_by

pytestmark = pytest.mark.timeout(600)


@cache
def passes() -> list[dict[str, Any]]:
    result = printed_by("graphs_equality.py", interpreted=True)
    if not result["triton"]:
        pytest.skip("ComfyUI's Python cannot import Triton")
    return result["passes"]


def test_every_pass_gives_what_its_steps_give_one_by_one() -> None:
    assert [row["pass"] for row in passes() if not row["is_equal"]] == []


def test_a_step_is_captured_once_for_a_size_and_again_when_weights_have_moved() -> None:
    """Not where the GPU does not wait, and not where a weight is changed as it is used."""
    captures = {row["pass"]: row["captures"] for row in passes()}
    assert {name for name, count in captures.items() if count} == {
        "the GPU waits",
        "another size",
        "a weight has moved",
    }


def test_steps_are_repeated_only_where_nothing_else_is_asked_for() -> None:
    """Two steps of the four where the graph is new, three where it is there."""
    repeats = {row["pass"]: row["repeats"] for row in passes()}
    assert repeats == {
        "the GPU is slower": 0,
        "the GPU waits": 2,
        "another text": 3,
        "another size": 2,
        "back at the first size": 3,
        "guided by a node's own means": 0,
        "a weight has moved": 3,
        "a weight changes as it is used": 0,
    }
