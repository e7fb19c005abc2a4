"""Sampling recipes per family and quality, as data (`recipes.toml` names the sources)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_RECIPES = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True)
class Recipe:
    """What a family and a quality give to a workflow's bindings.

    `values` maps binding names to node values, `models` maps binding names to catalogue roles.
    The second pass draws its noise from the caller's seed plus `second_pass_seed_offset`.
    """

    values: Mapping[str, Any]
    models: Mapping[str, str]
    second_pass_seed_offset: int


@cache
def load_recipe(family: str, quality: str) -> Recipe:
    """The recipe of `family` at `quality`; KeyError for a pair that has none."""
    data = _load()
    quality_values = dict(data["quality"][quality])
    models = quality_values.pop("models")
    special = data["family_quality"].get(family, {}).get(quality, {})
    values = data["defaults"] | data["family"][family] | quality_values | special
    return Recipe(values, models, data["second_pass_seed_offset"])


@cache
def _load() -> dict[str, Any]:
    return tomllib.loads(_RECIPES.read_text(encoding="utf-8"))
