"""Nodes that a rendered graph has in place of ComfyUI's own, where ComfyUI has them.

Which, and how their inputs go over, is `substitutes.toml`'s subject.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from ltx_worker.workflow.bindings import Graph

_FILE = Path(__file__).with_suffix(".toml")


class Substitute(BaseModel):
    """A class, the one that takes its place, and the nodes before it whose work that one does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node_class: str = Field(alias="class")
    replacement: str = Field(alias="with")
    absorb: dict[str, str] = {}
    keep: list[str]
    asked: dict[str, str] = {}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    substitute: list[Substitute]


@dataclass(frozen=True)
class Substitutes:
    """The substitutes that a ComfyUI has, in the order in which they are tried; none by default.

    `defaults` are the values that each replacement has for its inputs.
    """

    found: tuple[Substitute, ...] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    @classmethod
    def of(cls, node_info: Mapping[str, Any]) -> Substitutes:
        """Those whose class is in ComfyUI's `node_info`."""
        found = tuple(one for one in _known() if one.replacement in node_info)
        return cls(found, {one.replacement: _defaults(node_info[one.replacement]) for one in found})

    @property
    def options(self) -> frozenset[str]:
        """What of a job's `output` they heed."""
        return frozenset(name for one in self.found for name in one.asked.values())

    def in_graph(self, graph: Graph, asked: Mapping[str, str | None] | None = None) -> Graph:
        """The graph with substitutes in it, under the same ids and titles."""
        result = dict(graph)
        for node_id in graph:
            if fitting := self._fitting(graph, node_id):
                substitute, absorbed = fitting
                for gone in absorbed:
                    del result[gone]
                result[node_id] = self._in_place_of(graph, absorbed, substitute, asked or {})
        return result

    def _fitting(self, graph: Graph, node_id: str) -> tuple[Substitute, list[str]] | None:
        """The first substitute for a node, and the ids that it takes in, the node's own first."""
        for substitute in self.found:
            if graph[node_id]["class_type"] == substitute.node_class:
                absorbed = _absorbed(graph, node_id, substitute)
                if absorbed is not None:
                    return substitute, absorbed
        return None

    def _in_place_of(
        self,
        graph: Graph,
        node_ids: list[str],
        substitute: Substitute,
        asked: Mapping[str, str | None],
    ) -> dict[str, Any]:
        defaults = self.defaults[substitute.replacement]
        inputs = {
            name: value
            for node_id in node_ids
            for name, value in graph[node_id]["inputs"].items()
            if name in substitute.keep
        }
        for name, option in substitute.asked.items():
            inputs[name] = asked.get(option) or defaults.get(name)
        return {**graph[node_ids[0]], "class_type": substitute.replacement, "inputs": inputs}


def _absorbed(graph: Graph, node_id: str, substitute: Substitute) -> list[str] | None:
    """The node and those that go with it; None where one is another or serves others too."""
    node_ids = [node_id]
    for name, node_class in substitute.absorb.items():
        source = _source(graph[node_ids[-1]]["inputs"].get(name))
        if source is None or graph[source]["class_type"] != node_class:
            return None
        if (
            sum(source == _source(v) for node in graph.values() for v in node["inputs"].values())
            > 1
        ):
            return None
        node_ids.append(source)
    return node_ids


def _source(value: Any) -> str | None:
    """The id of the node that an input is linked to."""
    return str(cast("list[Any]", value)[0]) if isinstance(value, list) else None


@cache
def _known() -> list[Substitute]:
    return _File.model_validate(tomllib.loads(_FILE.read_text(encoding="utf-8"))).substitute


def _defaults(info: Mapping[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        **info["input"].get("required", {}),
        **info["input"].get("optional", {}),
    }
    return {
        name: declared[1]["default"]
        for name, declared in inputs.items()
        if len(declared) > 1 and "default" in declared[1]
    }
