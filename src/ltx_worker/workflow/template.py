"""A workflow file and its bindings: load, check, render.

A binding names nodes by title, class and input, never by id, so a workflow can be exported from
ComfyUI again and keep working. Each target must be exactly one node; otherwise loading fails and
names it (invariant 5). Rendering copies the graph and writes values; it never changes its shape.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltx_worker.errors import WorkflowMismatch

Graph = dict[str, dict[str, Any]]


class NodeRef(BaseModel):
    """A node by its title and class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    node_class: str = Field(alias="class")


class InputRef(NodeRef):
    """One input of a node."""

    input: str


class StageRef(BaseModel):
    """A stage of progress: the nodes in it, and its share of a warm job's time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    share: float = Field(gt=0)
    nodes: list[str]


class BindingFile(BaseModel):
    """The content of a workflow's TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str
    mode: str
    quality: str
    passes: int = Field(ge=1, le=2)
    output: NodeRef
    bind: dict[str, list[InputRef]]
    stages: list[StageRef]


@dataclass(frozen=True)
class Stage:
    """A stage of progress: `node_ids` are the nodes of the graph that belong to it."""

    name: str
    share: float
    node_ids: frozenset[str]


@dataclass(frozen=True)
class Template:
    """A workflow ready to render.

    `targets` maps a binding's name to the (node id, input) pairs it writes; `output_id` is the
    node whose file is the job's clip.
    """

    name: str
    summary: str
    mode: str
    quality: str
    passes: int
    graph: Graph
    targets: Mapping[str, tuple[tuple[str, str], ...]]
    output_id: str
    stages: tuple[Stage, ...]

    @property
    def takes(self) -> frozenset[str]:
        """The names that can be given to `render`."""
        return frozenset(self.targets)

    def render(self, values: Mapping[str, Any]) -> Graph:
        """A copy of the graph with `values` written; raises `WorkflowMismatch` for a name that
        the workflow does not bind."""
        unknown = sorted(set(values) - self.takes)
        if unknown:
            raise WorkflowMismatch(f"Workflow {self.name} has no binding {', '.join(unknown)}")
        graph = copy.deepcopy(self.graph)
        for name, value in values.items():
            for node_id, input_name in self.targets[name]:
                graph[node_id]["inputs"][input_name] = value
        return graph


def load_templates(folder: Path) -> dict[tuple[str, str], Template]:
    """Every workflow of `folder`, by mode and quality; raises `WorkflowMismatch`."""
    templates: dict[tuple[str, str], Template] = {}
    for path in sorted(folder.glob("*.toml")):
        template = load_template(path)
        key = (template.mode, template.quality)
        if key in templates:
            raise WorkflowMismatch(
                f"Workflows {templates[key].name} and {template.name} are both "
                f"{template.mode} at {template.quality}"
            )
        templates[key] = template
    if not templates:
        raise WorkflowMismatch(f"There are no workflows in the folder {folder.name}")
    return templates


def load_template(path: Path) -> Template:
    """One workflow from its TOML file and the JSON file beside it."""
    name = path.stem
    try:
        bindings = BindingFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        graph: Graph = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorkflowMismatch(f"Workflow {name} has no {name}.json beside {name}.toml") from error
    except (ValueError, ValidationError) as error:
        raise WorkflowMismatch(f"Workflow {name} cannot be read: {error}") from error
    if not _is_api_format(graph):
        raise WorkflowMismatch(
            f"Workflow {name}.json is not in API format; export it with 'Export (API)' in ComfyUI"
        )
    return Template(
        name=name,
        summary=bindings.summary,
        mode=bindings.mode,
        quality=bindings.quality,
        passes=bindings.passes,
        graph=graph,
        targets={
            key: tuple(_resolve_input(name, key, graph, ref) for ref in refs)
            for key, refs in bindings.bind.items()
        },
        output_id=_resolve(name, "output", graph, bindings.output),
        stages=tuple(_resolve_stage(name, graph, stage) for stage in bindings.stages),
    )


def _is_api_format(graph: Any) -> bool:
    return isinstance(graph, dict) and all(
        isinstance(node, dict) and "class_type" in node and "inputs" in node
        for node in graph.values()  # pyright: ignore[reportUnknownVariableType]
    )


def title_of(node: Mapping[str, Any]) -> str:
    """A node's title as ComfyUI shows it; its class where it has none."""
    return node.get("_meta", {}).get("title", node["class_type"])


def _resolve(workflow: str, binding: str, graph: Graph, ref: NodeRef) -> str:
    """The id of the one node that `ref` names."""
    found = [
        node_id
        for node_id, node in graph.items()
        if title_of(node) == ref.node and node["class_type"] == ref.node_class
    ]
    if len(found) != 1:
        count = "no node" if not found else f"{len(found)} nodes (ids {', '.join(found)})"
        raise WorkflowMismatch(
            f"Workflow {workflow}: binding {binding} must match exactly one node titled "
            f"'{ref.node}' of class {ref.node_class}, but {count} match"
        )
    return found[0]


def _resolve_input(workflow: str, binding: str, graph: Graph, ref: InputRef) -> tuple[str, str]:
    node_id = _resolve(workflow, binding, graph, ref)
    value = graph[node_id]["inputs"].get(ref.input, [])
    if isinstance(value, list):
        what = "is linked to another node" if value else "does not exist"
        raise WorkflowMismatch(
            f"Workflow {workflow}: binding {binding} writes input {ref.input} of node "
            f"'{ref.node}' ({ref.node_class}), which {what}"
        )
    return node_id, ref.input


def _resolve_stage(workflow: str, graph: Graph, stage: StageRef) -> Stage:
    ids: set[str] = set()
    for title in stage.nodes:
        found = [node_id for node_id, node in graph.items() if title_of(node) == title]
        if not found:
            raise WorkflowMismatch(
                f"Workflow {workflow}: stage '{stage.name}' names node '{title}', "
                "which the workflow does not have"
            )
        ids.update(found)
    return Stage(stage.name, stage.share, frozenset(ids))
