"""A prompt's embeddings are ComfyUI's own, with less of what leads to them moved about."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.comfyui.comfyui_script import printed_by
from tests.comfyui.tiny_engine import TINY_MODELS, tiny_options

pytestmark = pytest.mark.timeout(300)


@cache
def compared() -> dict[str, Any]:
    """What the comparison prints for a checkpoint of each family."""
    with TemporaryDirectory() as folder:
        tiny_options(Path(folder))  # makes the weights where they are missing
    return printed_by("text_equality.py", str(TINY_MODELS), interpreted=False)


def test_embeddings_are_equal_to_the_bit_where_there_is_no_tf32() -> None:
    assert [case["is_equal"] for case in compared().values()] == [True, True]


def test_only_the_tokens_of_the_prompt_leave_the_encoder() -> None:
    for case in compared().values():
        assert case["stock"]["tokens"] == 1024
        assert 1 < case["ours"]["tokens"] < 100


def test_products_are_tf32_for_the_prompt_alone() -> None:
    """Whatever else ComfyUI runs in float32 stays so."""
    for case in compared().values():
        assert (case["stock"]["tf32"], case["stock"]["tf32_after"]) == (False, False)
        assert (case["ours"]["tf32"], case["ours"]["tf32_after"]) == (True, False)
