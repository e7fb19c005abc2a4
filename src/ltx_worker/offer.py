"""What this worker can make: the part of its state that a request is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Mode, quality, variant: what a workflow is chosen by.
WorkflowKey = tuple[str, str, str]


@dataclass(frozen=True)
class WorkflowOffer:
    """What one workflow takes.

    `takes` are the names it binds, `requires` the media it cannot do without, `passes` its
    sampling passes of which each doubles the size, `grid` what sides are multiples of, in pixels.
    """

    takes: frozenset[str]
    passes: int = 2
    grid: int = 64
    requires: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Offer:
    """Workflows, model families, LoRA files, frames.

    `roles` are what files are published for each family, `loras` the LoRA files installed,
    `video_format` is the container where a request names none, `has_bucket` whether files can be
    uploaded.
    """

    workflows: Mapping[WorkflowKey, WorkflowOffer]
    families: tuple[str, ...]
    installed: tuple[str, ...]
    max_frames: int
    roles: Mapping[str, frozenset[str]]
    loras: tuple[str, ...] = ()
    video_format: str = "mp4"
    has_bucket: bool = False

    def qualities(self, mode: str, variant: str) -> list[str]:
        """The qualities that `mode` has a workflow for."""
        return [q for m, q, v in self.workflows if (m, v) == (mode, variant)]

    @property
    def modes(self) -> list[str]:
        """The modes that have a workflow, once each."""
        return list(dict.fromkeys(mode for mode, _, _ in self.workflows))
