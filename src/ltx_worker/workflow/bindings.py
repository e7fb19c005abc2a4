"""What a workflow's TOML file says: which nodes take what, and what a job may leave out.

Nodes are named by title and class. A node may be passed through: `through` names, for each of its
outputs in order, the input that takes that output's place when the node goes ("" for none).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# A workflow in ComfyUI's API format: node id -> class_type, inputs, _meta.
Graph = dict[str, dict[str, Any]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeRef(_Part):
    """A node by its title and class."""

    node: str
    node_class: str = Field(alias="class")


class InputRef(NodeRef):
    """One input of a node."""

    input: str


class PassRef(NodeRef):
    """A node that can be passed through."""

    through: list[str]


class OptionRef(_Part):
    """A part of the workflow that goes when a job does not ask for it."""

    bypass: list[PassRef] = []
    drop: list[InputRef] = []
    remove: list[NodeRef] = []


class RepeatRef(_Part):
    """Nodes that are there once for each item of a list; `chain` links each to the one before."""

    nodes: list[NodeRef]
    chain: list[PassRef]
    bind: dict[str, list[InputRef]]


class StageRef(_Part):
    """A stage of progress: the titles of its nodes, and its share of a warm job's time."""

    name: str
    share: float = Field(gt=0)
    nodes: list[str]


class BindingFile(_Part):
    """The content of a workflow's TOML file."""

    summary: str
    mode: str
    quality: str
    variant: str = ""
    passes: int = Field(ge=1, le=2)
    grid: int | None = Field(default=None, ge=32)
    requires: list[str] = []
    output: NodeRef
    texts: dict[str, NodeRef] = {}
    bind: dict[str, list[InputRef]]
    options: dict[str, OptionRef] = {}
    repeat: dict[str, RepeatRef] = {}
    loras: list[InputRef] = []
    stages: list[StageRef]
