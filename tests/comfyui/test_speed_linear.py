"""Layers called directly give what ComfyUI gives, and only where nothing is in the way."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tests.comfyui.comfyui_script import printed_by

READY = {"plain", "cast if need be", "fp8", "fp8 without an input scale"}


@cache
def compared() -> dict[str, Any]:
    result = printed_by("linear_equality.py", interpreted=True)
    if not result["triton"]:
        pytest.skip("ComfyUI's Python cannot import Triton")
    return result


def test_a_layer_called_directly_gives_what_comfyui_gives() -> None:
    cases = compared()["cases"]
    assert {name: case["error"] for name, case in cases.items() if case["error"] > 1e-2} == {}
    assert {tuple(case["shape"]) for case in cases.values()} == {(2, 48, 32)}


def test_a_layer_is_comfyuis_where_its_weight_is_not_used_as_it_lies() -> None:
    cases = compared()["cases"]
    assert {name for name, case in cases.items() if not case["is_stock"]} == READY


def test_gelu_between_fp8_layers_differs_by_fp8_rounding() -> None:
    """The interpreter rounds ties to fp8 upwards, by 6 % of a value at most."""
    assert compared()["feed_forward"] < 0.1
