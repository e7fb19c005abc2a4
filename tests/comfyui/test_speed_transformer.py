"""The transformer with its speed-ups gives what ComfyUI's own does, but for rounding.

Kernels run in Triton's interpreter. ComfyUI's CPU environment has no Triton: where none can be
imported (put it on PYTHONPATH), the positions are tested alone, which must not differ at all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tests.comfyui.comfyui_script import printed_by

pytestmark = pytest.mark.timeout(900)
# A CPU has no GELU that a product applies as it writes: torch takes the exact one there, and not
# the approximation by tanh. bfloat16 has 8 bits.
TOLERANCE = {"torch.float32": 2e-4, "torch.bfloat16": 2e-2}


@cache
def compared(*, interpreted: bool) -> dict[str, Any]:
    """What the comparison prints, run by ComfyUI's own Python."""
    return printed_by("transformer_equality.py", interpreted=interpreted)


def test_without_kernels_every_step_is_comfyuis_to_the_bit() -> None:
    """Positions are computed once for the pass; those of one size at a time are kept on a CPU."""
    cases = compared(interpreted=False)["cases"]
    assert len(cases) == 16
    assert {name: case for name, case in cases.items() if case["errors"] != [0.0, 0.0]} == {}
    assert {case["kept_positions"] for case in cases.values()} == {1}


def test_with_kernels_the_steps_differ_by_rounding() -> None:
    result = compared(interpreted=True)
    if not result["triton"]:
        pytest.skip("ComfyUI's Python cannot import Triton: only the positions were tested")
    wrong = {
        name: case["errors"]
        for name, case in result["cases"].items()
        if not max(case["errors"]) <= TOLERANCE[name.split(", ")[1]]
    }
    assert wrong == {}
