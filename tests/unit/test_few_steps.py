"""How a recipe is cut down for the clip that only warms the worker up."""

from __future__ import annotations

import pytest

from ltx_worker.boot import boot_data
from ltx_worker.recipes import load_recipe
from ltx_worker.warm_up import few_steps


def sigmas(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


@pytest.mark.parametrize("family", ["ltx-2", "ltx-2.3"])
def test_each_pass_keeps_its_first_step_and_its_end(family: str) -> None:
    """A pass begins at the noise that it is made for, and ends without any."""
    recipe = load_recipe(family, "fast")
    few = few_steps(recipe, boot_data()["warm_up"]["steps"])
    assert few.keys() == {"sigmas", "second_pass_sigmas"}
    for name, text in few.items():
        whole = sigmas(recipe.values[name])
        assert sigmas(text) == [whole[0], 0.0]


def test_several_steps_are_the_first_ones() -> None:
    """Of nine sigmas three steps keep the first three and the last."""
    few = few_steps(load_recipe("ltx-2", "fast"), 3)
    assert sigmas(few["sigmas"]) == [1.0, 0.99375, 0.9875, 0.0]


def test_a_schedule_that_is_counted_gets_the_count() -> None:
    """Where ComfyUI makes the first pass's sigmas itself, it is told how many."""
    few = few_steps(load_recipe("ltx-2", "pro"), 2)
    assert few["steps"] == 2
    assert few_steps(load_recipe("ltx-2", "pro"), 99)["steps"] == 20


def test_no_more_steps_than_the_recipe_has() -> None:
    """More than there are leave the recipe as it is."""
    recipe = load_recipe("ltx-2", "fast")
    few = few_steps(recipe, 99)
    assert sigmas(few["sigmas"]) == sigmas(recipe.values["sigmas"])
