"""Changes of a graph's shape, by node ids and nothing else: pass through, repeat, insert, prune.

Each function changes the graph it is given. Links are `[node id, output slot]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ltx_worker.errors import WorkflowMismatch
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.node_inputs import link_of

LORA_LOADER = "LoraLoaderModelOnly"


def copied(graph: Graph) -> Graph:
    """A copy whose nodes and inputs can be set; values are shared, since nothing changes them."""
    return {node_id: _copied(node) for node_id, node in graph.items()}


def _copied(node: Mapping[str, Any]) -> dict[str, Any]:
    return {**node, "inputs": dict(node["inputs"])}


def pass_through(graph: Graph, node_id: str, through: Sequence[str]) -> None:
    """Remove a node; what took output i gets what the node's input `through[i]` held."""
    inputs = graph.pop(node_id)["inputs"]
    for other in graph.values():
        for name, value in list(other["inputs"].items()):
            # Most values are no links: only what may lead here is looked at closely.
            link = link_of(value) if type(value) is list else None
            if link is None or link[0] != node_id:
                continue
            slot = link[1]
            if slot < len(through) and through[slot]:
                other["inputs"][name] = inputs[through[slot]]
            else:
                del other["inputs"][name]


def drop_input(graph: Graph, node_id: str, name: str) -> None:
    """Remove an input, if its node is still there."""
    if node_id in graph:
        graph[node_id]["inputs"].pop(name, None)


def clone_id(node_id: str, index: int) -> str:
    """The id of a node's copy; the first copy is the node itself."""
    return node_id if index == 0 else f"{node_id}_{index}"


def original_id(node_id: str) -> str:
    """The id of the workflow's node that a copy was made from."""
    return node_id.partition("_")[0]


def repeat(
    graph: Graph, nodes: Iterable[str], chain: Mapping[str, Sequence[str]], count: int
) -> None:
    """Make `count` copies of a group of nodes.

    A copy's links within the group lead to the same copy. Each node of `chain` takes what its
    `through` inputs held from the copy before, and whatever took its outputs takes the last copy's.
    """
    group = list(nodes)
    if count == 0:
        for node_id in group:
            pass_through(graph, node_id, chain.get(node_id, ()))
        return
    originals = {node_id: _copied(graph[node_id]) for node_id in group}
    _lead_outside_to_copy(graph, group, chain, count - 1)
    for index in range(1, count):
        for node_id, node in originals.items():
            clone = _copied(node)
            for name, value in clone["inputs"].items():
                if link_of(value) and value[0] in originals:
                    clone["inputs"][name] = [clone_id(value[0], index), value[1]]
            for slot, name in enumerate(chain.get(node_id, ())):
                clone["inputs"][name] = [clone_id(node_id, index - 1), slot]
            graph[clone_id(node_id, index)] = clone


def _lead_outside_to_copy(
    graph: Graph, group: list[str], chain: Mapping[str, Sequence[str]], last: int
) -> None:
    """Links from outside the group to a chained node lead to its last copy."""
    for node_id, node in graph.items():
        if node_id in group:
            continue
        for name, value in node["inputs"].items():
            if link_of(value) and value[0] in chain:
                node["inputs"][name] = [clone_id(value[0], last), value[1]]


def insert_loras(
    graph: Graph, targets: Iterable[tuple[str, str]], loras: Sequence[tuple[str, float]]
) -> None:
    """Put a chain of LoRA loaders, in order, before each target input (node id, input).

    A target whose node is gone is left out. Targets fed by the same output share one chain.
    """
    chains: dict[tuple[str, int], list[Any]] = {}
    for node_id, name in targets:
        if node_id not in graph:
            continue
        source = graph[node_id]["inputs"][name]
        if not link_of(source):
            raise WorkflowMismatch(
                f"Input {name} of node {node_id} is not linked: no place for LoRAs"
            )
        key = (source[0], source[1])
        if key not in chains:
            chains[key] = _chain(graph, source, loras, len(chains))
        graph[node_id]["inputs"][name] = chains[key]


def _chain(
    graph: Graph, source: list[Any], loras: Sequence[tuple[str, float]], number: int
) -> list[Any]:
    for index, (name, strength) in enumerate(loras):
        node_id = f"lora{number}-{index}"
        graph[node_id] = {
            "class_type": LORA_LOADER,
            "inputs": {"model": source, "lora_name": name, "strength_model": strength},
            "_meta": {"title": f"LoRA {index + 1}"},
        }
        source = [node_id, 0]
    return source


def prune(graph: Graph, roots: Iterable[str]) -> None:
    """Remove every node that no root needs."""
    needed: set[str] = set()
    waiting = [node_id for node_id in roots if node_id in graph]
    while waiting:
        node_id = waiting.pop()
        if node_id in needed:
            continue
        needed.add(node_id)
        values = graph[node_id]["inputs"].values()
        waiting += [value[0] for value in values if link_of(value) and value[0] in graph]
    for node_id in set(graph) - needed:
        del graph[node_id]
