"""The node schema: which node classes there are, and whether a graph fits them.

`validate` answers a graph as ComfyUI 0.27 would, `explain` turns that answer into sentences, and
`load_node_schema` gives the recorded classes to check against when no ComfyUI is at hand.

`python -m ltx_worker.workflow.nodes OBJECT_INFO.json` prints a recorded `/object_info` in the
compact form of `node_schema.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ltx_worker.workflow.node_inputs import UPLOADS, NodeInfo, is_list
from ltx_worker.workflow.validation import Check, Graph, Problem, Validation, validate

__all__ = [
    "Check",
    "Graph",
    "NodeInfo",
    "Validation",
    "compact",
    "explain",
    "load_node_schema",
    "validate",
]

_SCHEMA = Path(__file__).with_name("node_schema.json")
_LEFT_OUT = frozenset({"custom_nodes.ComfyUI-VideoHelperSuite"})
_KEPT_OPTIONS = UPLOADS | {
    *("default", "min", "max", "step", "options", "multiselect", "lazy", "rawLink"),
    *("template", "slotType", "inputs"),
}
_LONGEST_DEFAULT = 200
_LONGEST_VALUE = 60
_MOST_CHOICES = 8


@cache
def load_node_schema() -> NodeInfo:
    """The recorded classes of ComfyUI 0.27 and ComfyUI-LTXVideo; lists of files are empty."""
    return json.loads(_SCHEMA.read_text(encoding="utf-8"))


def compact(object_info: NodeInfo) -> str:
    """A recorded `/object_info` as the text of `node_schema.json`: one class to a line."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(_compact_class(info), ensure_ascii=False)}"
        for name, info in sorted(object_info.items())
        if info["python_module"] not in _LEFT_OUT
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact_class(info: Mapping[str, Any]) -> dict[str, Any]:
    order: Mapping[str, list[str]] = info["input_order"]
    inputs = {
        category: {name: _compact_input(info["input"][category][name]) for name in order[category]}
        for category in ("required", "optional")
        if category in order
    }
    return {"input": inputs, "output": info["output"], "output_node": info["output_node"]}


def _compact_input(spec: list[Any]) -> list[Any]:
    """A type and its options, without what only a page shows and what differs by machine."""
    kind, *rest = spec
    if not rest:
        return [kind]
    options = {key: value for key, value in rest[0].items() if key in _KEPT_OPTIONS}
    default = options.get("default")
    if isinstance(default, str) and len(default) > _LONGEST_DEFAULT:
        del options["default"]
    if UPLOADS & options.keys():
        kind = list[str]() if is_list(kind) else kind
        options.pop("options", None)
    if "template" in options:
        options["template"] = _compact_nested(options["template"], "input")
    if kind == "COMFY_DYNAMICCOMBO_V3":
        options["options"] = [_compact_nested(choice, "inputs") for choice in options["options"]]
    return [kind, _compact_nested(options, "inputs")]


def _compact_nested(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The options with the inputs declared under `key`, if any, made compact."""
    if key not in options:
        return dict(options)
    nested = {
        category: {name: _compact_input(spec) for name, spec in inputs.items()}
        for category, inputs in options[key].items()
    }
    return {**options, key: nested}


def explain(error: Problem | None, node_errors: Mapping[str, Any], graph: Graph) -> list[str]:
    """What is wrong with a graph, one short sentence a problem.

    Takes ComfyUI's answer to the graph. Long values are not repeated: they may be somebody's text.
    """
    sentences = [
        f"{_name(graph, node_id)}: {sentence}."
        for node_id, found in node_errors.items()
        for problem in found["errors"]
        for sentence in _sentences(problem, node_id, graph)
    ]
    if error and not sentences:
        sentences.append(_general_sentence(error))
    return sentences


def _name(graph: Graph, node_id: str) -> str:
    node = graph.get(node_id, {})
    title, class_type = node.get("_meta", {}).get("title"), node.get("class_type")
    return f"'{title}' ({class_type})" if title else f"node {node_id} ({class_type})"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"a value of {len(text)} characters"


def _general_sentence(error: Problem) -> str:
    extra: Mapping[str, Any] = error["extra_info"]
    if error["type"] == "prompt_no_outputs":
        return "The graph has no output node."
    if error["type"] == "missing_node_type":
        title, node_id, class_type = extra["node_title"], extra["node_id"], extra["class_type"]
        name = f"'{title}' (node {node_id})" if title else f"Node {node_id}"
        if class_type is None:
            return f"{name} names no class."
        return f"{name} is a {class_type}, a class that this ComfyUI does not have."
    return f"{error['message']}."


def _sentences(problem: Problem, node_id: str, graph: Graph) -> Iterator[str]:
    extra: Mapping[str, Any] = problem["extra_info"]
    if problem["type"] in _INPUT_SENTENCES:
        yield f"input '{extra['input_name']}' {_INPUT_SENTENCES[problem['type']](extra, graph)}"
    elif problem["type"] == "custom_validation_failed":
        _, _, reason = problem["details"].partition(" - ")
        yield f"input '{extra['input_name']}' was refused" + (f" ({reason})" if reason else "")
    elif problem["type"] == "dependency_cycle":
        circle = [*extra["cycle_nodes"], extra["cycle_nodes"][0]]
        yield "it depends on itself: " + " -> ".join(_name(graph, node) for node in circle)
    elif broken := list(_broken_links(graph, node_id)):
        yield from broken
    else:
        reason = f"{extra.get('exception_type', problem['type'])}: {problem['details']}"
        yield f"it could not be checked ({reason})"


def _broken_links(graph: Graph, node_id: str) -> Iterator[str]:
    inputs: Mapping[str, Any] = graph.get(node_id, {}).get("inputs", {})
    for name, value in inputs.items():
        if is_list(value) and len(value) == 2 and str(value[0]) not in graph:
            yield f"input '{name}' is linked to node {value[0]}, which does not exist"


def _unfit_link(extra: Mapping[str, Any], graph: Graph) -> str:
    source, slot = extra["linked_node"]
    received = f"output {slot} of {_name(graph, source)} is {extra['received_type']}"
    return f"takes {extra['input_config'][0]}, but {received}"


def _unlisted_value(extra: Mapping[str, Any], _graph: Graph) -> str:
    sentence = f"is {_show(extra['received_value'])}, which is not offered"
    if extra["input_config"] is None:
        return sentence
    kind, options = extra["input_config"]
    choices: list[Any] = kind if is_list(kind) else options.get("options", [])
    shown = ", ".join(str(choice) for choice in choices[:_MOST_CHOICES]) or "nothing"
    more = f" and {len(choices) - _MOST_CHOICES} more" if len(choices) > _MOST_CHOICES else ""
    return f"{sentence} (offered: {shown}{more})"


_INPUT_SENTENCES: Mapping[str, Callable[[Mapping[str, Any], Graph], str]] = {
    "required_input_missing": lambda _extra, _graph: "is missing",
    "bad_linked_input": lambda _extra, _graph: "must be a value or a link [node id, output]",
    "return_type_mismatch": _unfit_link,
    "invalid_input_type": lambda extra, _graph: (
        f"takes {extra['input_config'][0]}, not {_show(extra['received_value'])}"
    ),
    "value_smaller_than_min": lambda extra, _graph: (
        f"is {extra['received_value']}, below its minimum of {extra['input_config'][1]['min']}"
    ),
    "value_bigger_than_max": lambda extra, _graph: (
        f"is {extra['received_value']}, above its maximum of {extra['input_config'][1]['max']}"
    ),
    "value_not_in_list": _unlisted_value,
}


if __name__ == "__main__":
    sys.stdout.write(compact(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
