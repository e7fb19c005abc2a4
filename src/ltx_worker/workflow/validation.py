"""The answer ComfyUI would give to a graph, computed without a ComfyUI.

`validate` keeps one invariant: for the same node classes, a graph gets the same error types,
messages, details and shapes as from `POST /prompt` of ComfyUI 0.27. It reads no file, opens no
connection and leaves the graph it is given as it was.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ltx_worker.workflow.node_inputs import (
    DeclaredInput,
    NodeInfo,
    declared_inputs,
    fits,
    is_list,
    is_object,
    link_of,
)

# A prompt in API format: node id -> class_type, inputs, _meta.
Graph = Mapping[str, Any]

# A class's own check, as ComfyUI's VALIDATE_INPUTS: its parameters name the inputs it judges in
# place of the built-in bounds and lists; it returns True, False or what is wrong.
Check = Callable[..., bool | str]

Problem = dict[str, Any]

# Above this many options ComfyUI does not repeat a list in its answer.
_LONGEST_LIST = 20

_CONVERSIONS: Mapping[Any, Callable[[Any], Any]] = {
    "INT": int,
    "FLOAT": float,
    "STRING": str,
    "BOOLEAN": bool,
}


@dataclass(frozen=True)
class Validation:
    """What ComfyUI answers to a graph.

    `error` is None when at least one output can run; `node_errors` may be non-empty even then.
    `graph` is a copy with the values as the nodes would get them ("5" for an INT is 5).
    """

    good_outputs: tuple[str, ...]
    error: Problem | None
    node_errors: dict[str, Any]
    graph: dict[str, Any]


def validate(
    graph: Graph,
    node_info: NodeInfo,
    *,
    checks: Mapping[str, Check] | None = None,
    targets: Collection[str] | None = None,
) -> Validation:
    """Answer a graph as ComfyUI does before it queues it.

    `checks` maps node classes to their own checks. `targets` limits the run to these output
    nodes. Raises TypeError where ComfyUI answers 500: the graph or one of its nodes is no object.
    """
    if not is_object(graph):
        raise TypeError(f"a graph is an object of nodes, not {type(graph).__name__}")
    _require_objects(graph)
    prompt = copy.deepcopy(graph)
    for node_id, node in prompt.items():
        if not is_object(node):
            raise TypeError(f"node {node_id} is not an object")
        if problem := _class_problem(node_id, node, node_info):
            return Validation((), problem, {}, prompt)
    outputs = [
        node_id
        for node_id, node in prompt.items()
        if node_info[node["class_type"]]["output_node"] and (targets is None or node_id in targets)
    ]
    if not outputs:
        problem = _problem("prompt_no_outputs", "Prompt has no outputs", "")
        return Validation((), problem, {}, prompt)
    return _Walk(prompt, node_info, checks or {}).judge(outputs)


def _require_objects(graph: Graph) -> None:
    """Refuse what ComfyUI trips over before it looks at any class.

    It meets a text or a list in a node's place only later, when it comes to that node.
    """
    for node_id, node in graph.items():
        if not is_object(node) and not isinstance(node, str | list):
            raise TypeError(f"node {node_id} is not an object")
        if is_object(node) and "class_type" in node and not is_object(node.get("inputs", {})):
            raise TypeError(f"the inputs of node {node_id} are not an object")


def _problem(kind: str, message: str, details: str, **extra_info: Any) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _class_problem(node_id: str, node: Mapping[str, Any], node_info: NodeInfo) -> Problem | None:
    class_type = node.get("class_type")
    if class_type in node_info:
        return None
    title = node.get("_meta", {}).get("title", class_type)
    if "class_type" in node:
        message = f"Node '{title}' not found. The custom node may not be installed."
    else:
        message = (
            f"Node '{title or f'ID #{node_id}'}' has no class_type. "
            "The workflow may be corrupted or a custom node is missing."
        )
    extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
    return _problem("missing_node_type", message, f"Node ID '#{node_id}'", **extra)


def _exception_problem(kind: str, message: str, exception: Exception, **extra_info: Any) -> Problem:
    extra_info["exception_type"] = full_type_name(type(exception))
    extra_info["traceback"] = traceback.format_tb(exception.__traceback__)
    return _problem(kind, message, str(exception), **extra_info)


def full_type_name(kind: type) -> str:
    """An exception's name as ComfyUI reports it: with its module unless built in."""
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


@dataclass
class _Verdict:
    """Whether a node can run, and its own problems (none when only a node above it fails)."""

    valid: bool = True
    problems: list[Problem] = field(default_factory=list[Problem])


class _Walk:
    """One walk over a graph, from its outputs upwards; each node is judged once."""

    def __init__(
        self, graph: dict[str, Any], node_info: NodeInfo, checks: Mapping[str, Check]
    ) -> None:
        self.graph = graph
        self.node_info = node_info
        self.checks = checks
        self.verdicts: dict[str, _Verdict] = {}
        self.path: list[str] = []

    def judge(self, outputs: list[str]) -> Validation:
        """Walk up from each output, in this order."""
        good: list[str] = []
        failed: list[Problem] = []
        node_errors: dict[str, Any] = {}
        for node_id in outputs:
            verdict = self._output(node_id)
            if verdict.valid:
                good.append(node_id)
            else:
                failed += verdict.problems
                self._report(node_id, node_errors)
        error = None
        if not good:
            kind, message = "prompt_outputs_failed_validation", "Prompt outputs failed validation"
            details = "\n".join(f"{problem['message']}: {problem['details']}" for problem in failed)
            error = _problem(kind, message, details)
        return Validation(tuple(good), error, node_errors, self.graph)

    def _output(self, node_id: str) -> _Verdict:
        try:
            return self._node(node_id)
        except Exception as exception:  # noqa: BLE001  ComfyUI reports whatever went wrong
            kind, message = "exception_during_validation", "Exception when validating node"
            problem = _exception_problem(kind, message, exception)
            verdict = self.verdicts[node_id] = _Verdict(False, [problem])
            return verdict

    def _report(self, output: str, node_errors: dict[str, Any]) -> None:
        """Add every bad node seen so far; like ComfyUI, also those of an earlier output."""
        for node_id, verdict in self.verdicts.items():
            if verdict.valid or not verdict.problems:
                continue
            class_type = self.graph[node_id]["class_type"]
            new = {"errors": verdict.problems, "dependent_outputs": [], "class_type": class_type}
            node_errors.setdefault(node_id, new)["dependent_outputs"].append(output)

    def _node(self, node_id: str) -> _Verdict:
        if node_id in self.verdicts:
            return self.verdicts[node_id]
        if node_id in self.path:
            return self._cycle(node_id)
        self.path.append(node_id)
        try:
            problems, sources_valid = self._inputs(self.graph[node_id])
        finally:
            self.path.pop()
        # A cycle found further up has judged this node already: its problem stays.
        verdict = self.verdicts.setdefault(node_id, _Verdict())
        verdict.valid = verdict.valid and sources_valid and not problems
        verdict.problems += problems
        return verdict

    def _inputs(self, node: Mapping[str, Any]) -> tuple[list[Problem], bool]:
        """A node's own problems, and whether all nodes it takes from are valid."""
        given: dict[str, Any] = node["inputs"]
        check = self.checks.get(node["class_type"])
        own = tuple(inspect.signature(check).parameters) if check else ()
        problems: list[Problem | None] = []
        sources_valid = True
        for item in declared_inputs(self.node_info[node["class_type"]]["input"], given):
            if item.name not in given:
                problems.append(_missing(item))
            elif is_list(given[item.name]):
                problem, source_valid = self._link(item, given[item.name])
                problems.append(problem)
                sources_valid = sources_valid and source_valid
            else:
                problems.append(_value_problem(item, given, judged_by_class=item.name in own))
        if check:
            problems += _class_check(check, own, given)
        return [problem for problem in problems if problem], sources_valid

    def _link(self, item: DeclaredInput, link: list[Any]) -> tuple[Problem | None, bool]:
        """The problem of a link itself, and whether the node it comes from is valid."""
        extra: dict[str, Any] = {"input_name": item.name, "input_config": item.config}
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return _problem(
                "bad_linked_input", message, item.name, **extra, received_value=link
            ), True
        source, slot = link
        received = self.node_info[self.graph[source]["class_type"]]["output"][slot]
        if not fits(received, item.kind):
            mismatch = f"received_type({received}) mismatch input_type({item.kind})"
            extra |= {"received_type": received, "linked_node": link}
            message = "Return type mismatch between linked nodes"
            details = f"{item.name}, {mismatch}"
            return _problem("return_type_mismatch", message, details, **extra), True
        try:
            return None, self._node(source).valid
        except Exception as exception:  # noqa: BLE001  ComfyUI reports whatever went wrong
            message = "Exception when validating inner node"
            extra |= {"exception_message": str(exception), "linked_node": link}
            kind = "exception_during_inner_validation"
            problem = _exception_problem(kind, message, exception, **extra)
            self.verdicts[source] = _Verdict(False, [problem])
            return None, False

    def _cycle(self, node_id: str) -> _Verdict:
        path = [*self.path[self.path.index(node_id) :], node_id]
        nodes = list(dict.fromkeys(path))
        details = " -> ".join(f"{node} ({self.graph[node]['class_type']})" for node in path)
        for node in nodes:
            extra: dict[str, Any] = {"node_id": node, "cycle_nodes": nodes}
            problem = _problem("dependency_cycle", "Dependency cycle detected", details, **extra)
            self.verdicts[node] = _Verdict(False, [problem])
        return self.verdicts[node_id]


def _missing(item: DeclaredInput) -> Problem | None:
    if not item.required:
        return None
    message = "Required input is missing"
    # Of a dotted input ComfyUI names the last part in the details, and all of it below.
    details = item.name.rpartition(".")[2]
    return _problem("required_input_missing", message, details, input_name=item.name)


def _value_problem(
    item: DeclaredInput, given: dict[str, Any], *, judged_by_class: bool
) -> Problem | None:
    """Convert a constant in place; what is wrong with it, if anything."""
    value = given[item.name]
    if is_object(value) and "__value__" in value:
        value = given[item.name] = value["__value__"]  # how a list is passed as a constant
    extra: dict[str, Any] = {"input_name": item.name, "input_config": item.config}
    if not is_list(item.kind) and item.kind in _CONVERSIONS:
        try:
            value = given[item.name] = _CONVERSIONS[item.kind](value)
        except (TypeError, ValueError, OverflowError) as exception:
            message = f"Failed to convert an input value to a {item.kind} value"
            extra |= {"received_value": value, "exception_message": str(exception)}
            details = f"{item.name}, {value}, {exception}"
            return _problem("invalid_input_type", message, details, **extra)
    extra["received_value"] = value
    least, most = item.options.get("min"), item.options.get("max")
    if judged_by_class:
        return None
    if least is not None and value < least:
        message = f"Value {value} smaller than min of {least}"
        return _problem("value_smaller_than_min", message, item.name, **extra)
    if most is not None and value > most:
        message = f"Value {value} bigger than max of {most}"
        return _problem("value_bigger_than_max", message, item.name, **extra)
    return _choice_problem(item, value, extra)


def _choice_problem(item: DeclaredInput, value: Any, extra: dict[str, Any]) -> Problem | None:
    choices = item.choices
    if choices is None:
        return None
    several = is_list(value) and item.options.get("multiselect")
    values: list[Any] = value if several else [value]
    unknown = [one for one in values if one not in choices]
    if not unknown:
        return None
    offered = str(choices)
    if len(choices) > _LONGEST_LIST:
        offered = f"(list of length {len(choices)})"
        extra["input_config"] = None
    details = f"{item.name}: {', '.join(map(repr, unknown))} not in {offered}"
    return _problem("value_not_in_list", "Value not in list", details, **extra)


def _class_check(check: Check, own: tuple[str, ...], given: Mapping[str, Any]) -> Iterator[Problem]:
    # A check cannot see what a link will carry: ComfyUI passes None for it.
    values = {name: None if link_of(given[name]) else given[name] for name in given if name in own}
    answer = check(**values)
    if answer is True:
        return
    for name in values:
        details = name if answer is False else f"{name} - {answer}"
        message = "Custom validation failed for node"
        yield _problem("custom_validation_failed", message, details, input_name=name)
