"""A workflow file and its bindings: load, check, render.

A binding names nodes by title, class and input, never by id, so a workflow can be exported from
ComfyUI again and keep working. Each target must be exactly one node; otherwise loading fails and
names it (invariant 5). A workflow holds everything its mode can do; rendering copies it, writes
values and takes out what the job does not ask for.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ltx_worker.errors import WorkflowMismatch
from ltx_worker.offer import WorkflowKey, WorkflowOffer
from ltx_worker.workflow import splice
from ltx_worker.workflow.bindings import (
    BindingFile,
    Graph,
    InputRef,
    NodeRef,
    OptionRef,
    PassRef,
    RepeatRef,
    StageRef,
)

Target = tuple[str, str]


@dataclass(frozen=True)
class Stage:
    """A stage of progress: `node_ids` are the nodes of the graph that belong to it."""

    name: str
    share: float
    node_ids: frozenset[str]


@dataclass(frozen=True)
class Option:
    """What goes when a job does not ask for an option."""

    bypass: Mapping[str, Sequence[str]]
    drop: tuple[Target, ...]
    remove: tuple[str, ...]


@dataclass(frozen=True)
class Repeat:
    """A group of nodes with one copy for each item of a list."""

    nodes: tuple[str, ...]
    chain: Mapping[str, Sequence[str]]
    targets: Mapping[str, tuple[Target, ...]]


@dataclass(frozen=True)
class Choices:
    """What a job asks of a workflow beside values.

    `options` are the options that stay; `repeats` gives each group the values of its items;
    `loras` are (file name, strength) in the order in which they are applied.
    """

    options: frozenset[str] = frozenset()
    repeats: Mapping[str, Sequence[Mapping[str, Any]]] = field(
        default_factory=dict[str, Sequence[Mapping[str, Any]]]
    )
    loras: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Template:
    """A workflow ready to render.

    `targets` maps a binding's name to the (node id, input) pairs it writes; `output_id` is the
    node whose file is the job's clip; `texts` are nodes whose text the result carries. `grid` is
    what sides must be a multiple of, in pixels; `unavailable` are options that this ComfyUI has no
    nodes for.
    """

    name: str
    summary: str
    mode: str
    quality: str
    variant: str
    passes: int
    grid: int
    requires: frozenset[str]
    graph: Graph
    targets: Mapping[str, tuple[Target, ...]]
    options: Mapping[str, Option]
    repeats: Mapping[str, Repeat]
    lora_targets: tuple[Target, ...]
    output_id: str
    texts: Mapping[str, str]
    stages: tuple[Stage, ...]
    unavailable: frozenset[str] = frozenset()

    @property
    def takes(self) -> frozenset[str]:
        """The names of all that a job can give: values, options, lists, LoRAs."""
        names = {*self.targets, *self.options, *self.repeats} - self.unavailable
        return frozenset(names | {"loras"} if self.lora_targets else names)

    def available_with(self, node_classes: Collection[str]) -> Template | None:
        """This workflow without the options whose node classes are missing.

        None when the rest of it cannot run either.
        """
        if self._missing(frozenset(), node_classes):
            return None
        # One after the other: some nodes are there only where two options meet.
        available: frozenset[str] = frozenset()
        for name in self.options:
            if not self._missing(available | {name}, node_classes):
                available |= {name}
        return replace(self, unavailable=frozenset(self.options) - available)

    def everything(self) -> Graph:
        """The graph of a job that asks for all that is available, with one item in each list."""
        return self._sample(frozenset(self.options) - self.unavailable)

    def _sample(self, options: frozenset[str]) -> Graph:
        return self.render({}, Choices(options, {name: [{}] for name in self.repeats}))

    def _missing(self, options: frozenset[str], node_classes: Collection[str]) -> bool:
        graph = self._sample(options)
        return any(node["class_type"] not in node_classes for node in graph.values())

    @property
    def offer(self) -> WorkflowOffer:
        """What a request can ask of this workflow."""
        return WorkflowOffer(self.takes, self.passes, self.grid, self.requires)

    def render(self, values: Mapping[str, Any], choices: Choices | None = None) -> Graph:
        """A copy of the graph with `values` written and shaped by `choices`.

        Raises `WorkflowMismatch` for a name that the workflow does not bind.
        """
        choices = choices or Choices()
        unknown = sorted(set(values) - set(self.targets))
        if unknown:
            raise WorkflowMismatch(f"Workflow {self.name} has no binding {', '.join(unknown)}")
        graph = splice.copied(self.graph)
        for name, value in values.items():
            _write(graph, self.targets[name], value)
        for name, group in self.repeats.items():
            self._repeat(graph, group, choices.repeats.get(name, ()))
        for name, option in self.options.items():
            if name not in choices.options or name in self.unavailable:
                _leave_out(graph, option)
        splice.insert_loras(graph, self.lora_targets, choices.loras)
        splice.prune(graph, [self.output_id, *self.texts.values()])
        return graph

    def stages_in(self, graph: Graph) -> tuple[Stage, ...]:
        """The stages that a rendered graph has nodes of, with these nodes."""
        stages = (replace(stage, node_ids=stage.node_ids & graph.keys()) for stage in self.stages)
        return tuple(stage for stage in stages if stage.node_ids)

    def _repeat(self, graph: Graph, group: Repeat, items: Sequence[Mapping[str, Any]]) -> None:
        splice.repeat(graph, group.nodes, group.chain, len(items))
        for index, item in enumerate(items):
            for name, value in item.items():
                targets = [(splice.clone_id(i, index), key) for i, key in group.targets[name]]
                _write(graph, targets, value)


def _write(graph: Graph, targets: Iterable[Target], value: Any) -> None:
    for node_id, name in targets:
        graph[node_id]["inputs"][name] = value


def _leave_out(graph: Graph, option: Option) -> None:
    for node_id in option.remove:
        graph.pop(node_id, None)
    for node_id, name in option.drop:
        splice.drop_input(graph, node_id, name)
    for node_id, through in option.bypass.items():
        if node_id in graph:
            splice.pass_through(graph, node_id, through)


def load_templates(folder: Path) -> dict[WorkflowKey, Template]:
    """Every workflow of `folder`, by mode, quality and variant; raises `WorkflowMismatch`."""
    templates: dict[WorkflowKey, Template] = {}
    for path in sorted(folder.glob("*.toml")):
        template = load_template(path)
        key = (template.mode, template.quality, template.variant)
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
    return _Resolver(name, graph).template(bindings)


def _is_api_format(graph: Any) -> bool:
    return isinstance(graph, dict) and all(
        isinstance(node, dict) and "class_type" in node and "inputs" in node
        for node in graph.values()  # pyright: ignore[reportUnknownVariableType]
    )


def title_of(node: Mapping[str, Any]) -> str:
    """A node's title as ComfyUI shows it; its class where it has none."""
    return node.get("_meta", {}).get("title", node["class_type"])


@dataclass(frozen=True)
class _Resolver:
    """Turns a workflow's references into node ids, and refuses those that are not exactly one."""

    name: str
    graph: Graph

    def template(self, bindings: BindingFile) -> Template:
        return Template(
            name=self.name,
            summary=bindings.summary,
            mode=bindings.mode,
            quality=bindings.quality,
            variant=bindings.variant,
            passes=bindings.passes,
            grid=bindings.grid or 32 * bindings.passes,
            requires=frozenset(bindings.requires),
            graph=self.graph,
            targets={key: self._inputs(key, refs) for key, refs in bindings.bind.items()},
            options={key: self._option(key, ref) for key, ref in bindings.options.items()},
            repeats={key: self._repeat(key, ref) for key, ref in bindings.repeat.items()},
            lora_targets=tuple((self._node("loras", r), r.input) for r in bindings.loras),
            output_id=self._node("output", bindings.output),
            texts={key: self._node(key, ref) for key, ref in bindings.texts.items()},
            stages=tuple(self._stage(stage) for stage in bindings.stages),
        )

    def _node(self, binding: str, ref: NodeRef) -> str:
        """The id of the one node that `ref` names."""
        found = [
            node_id
            for node_id, node in self.graph.items()
            if title_of(node) == ref.node and node["class_type"] == ref.node_class
        ]
        if len(found) != 1:
            count = "no node" if not found else f"{len(found)} nodes (ids {', '.join(found)})"
            raise WorkflowMismatch(
                f"Workflow {self.name}: binding {binding} must match exactly one node titled "
                f"'{ref.node}' of class {ref.node_class}, but {count} match"
            )
        return found[0]

    def _inputs(self, binding: str, refs: Iterable[InputRef]) -> tuple[Target, ...]:
        return tuple(self._input(binding, ref) for ref in refs)

    def _input(self, binding: str, ref: InputRef) -> Target:
        """A target that can be written: an input that is there and holds a value."""
        node_id = self._node(binding, ref)
        value = self.graph[node_id]["inputs"].get(ref.input, [])
        if isinstance(value, list):
            what = "is linked to another node" if value else "does not exist"
            raise WorkflowMismatch(
                f"Workflow {self.name}: binding {binding} writes input {ref.input} of node "
                f"'{ref.node}' ({ref.node_class}), which {what}"
            )
        return node_id, ref.input

    def _passes(self, binding: str, refs: Iterable[PassRef]) -> dict[str, list[str]]:
        found = {self._node(binding, ref): ref for ref in refs}
        for node_id, ref in found.items():
            missing = [n for n in ref.through if n and n not in self.graph[node_id]["inputs"]]
            if missing:
                raise WorkflowMismatch(
                    f"Workflow {self.name}: {binding} passes through input {missing[0]} of node "
                    f"'{ref.node}' ({ref.node_class}), which does not exist"
                )
        return {node_id: ref.through for node_id, ref in found.items()}

    def _option(self, name: str, ref: OptionRef) -> Option:
        return Option(
            bypass=self._passes(name, ref.bypass),
            drop=tuple((self._node(name, r), r.input) for r in ref.drop),
            remove=tuple(self._node(name, r) for r in ref.remove),
        )

    def _repeat(self, name: str, ref: RepeatRef) -> Repeat:
        return Repeat(
            nodes=tuple(self._node(name, r) for r in ref.nodes),
            chain=self._passes(name, ref.chain),
            targets={key: self._inputs(f"{name}.{key}", refs) for key, refs in ref.bind.items()},
        )

    def _stage(self, stage: StageRef) -> Stage:
        ids: set[str] = set()
        for title in stage.nodes:
            found = [node_id for node_id, node in self.graph.items() if title_of(node) == title]
            if not found:
                raise WorkflowMismatch(
                    f"Workflow {self.name}: stage '{stage.name}' names node '{title}', "
                    "which the workflow does not have"
                )
            ids.update(found)
        return Stage(stage.name, stage.share, frozenset(ids))
