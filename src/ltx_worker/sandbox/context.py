"""What a node of the sandbox gets: its inputs, and what it may use beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ltx_worker.sandbox.folders import Folders

T = TypeVar("T")

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What a node may use beside its inputs: the folders, and `step(value, total)` to call after
    each sampling step, which raises when the prompt was interrupted."""

    folders: Folders
    step: Callable[[int, int], None]


def get(inputs: Inputs, name: str, kind: type[T]) -> T:
    """An input of this type. Raises TypeError naming it when it is of another, or absent."""
    value = inputs.get(name)
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value
