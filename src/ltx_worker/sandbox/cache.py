"""The node cache: what a node gave before, found by its class and all that leads to it.

As in ComfyUI, neither node ids nor titles count, so the same graph with other numbers, or two equal
nodes of one graph, share their results.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ltx_worker.workflow.node_inputs import link_of

# Enough for several workflows at once, as ComfyUI with --cache-lru.
_MOST_ENTRIES = 300

Fingerprint = Callable[[str, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Entry:
    """What a node gave: the values of its slots and, for an output node, its report."""

    outputs: tuple[Any, ...]
    ui: Mapping[str, Any] | None = None


class NodeCache:
    """Entries by signature; the least recently used one goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def get(self, signature: str) -> Entry | None:
        """The entry for a signature, if there is one."""
        entry = self._entries.get(signature)
        if entry:
            self._entries.move_to_end(signature)
        return entry

    def set(self, signature: str, entry: Entry) -> None:
        """Keep an entry."""
        self._entries[signature] = entry
        if len(self._entries) > _MOST_ENTRIES:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def signatures(graph: Mapping[str, Any], fingerprint: Fingerprint) -> dict[str, str]:
    """Each node's signature.

    `fingerprint` tells of a node what its inputs do not: the content of a file that it names.
    Raises KeyError for a node without inputs, even one that no output needs.
    """
    known: dict[str, str] = {}
    for node_id in graph:
        _sign(node_id, graph, fingerprint, known)
    return known


def _sign(
    node_id: str, graph: Mapping[str, Any], fingerprint: Fingerprint, known: dict[str, str]
) -> str:
    if node_id in known:
        return known[node_id]
    # A part of the graph that cannot run may be circular or incomplete: it equals nothing.
    known[node_id] = uuid.uuid4().hex
    if node_id not in graph:
        return known.pop(node_id)
    inputs: Mapping[str, Any] = graph[node_id]["inputs"]
    signed: list[Any] = []
    for name in sorted(inputs):
        link = link_of(inputs[name])
        value = [_sign(link[0], graph, fingerprint, known), link[1]] if link else [inputs[name]]
        signed.append([name, value])
    class_type = graph[node_id]["class_type"]
    content = json.dumps([class_type, fingerprint(class_type, inputs), signed])
    known[node_id] = hashlib.sha256(content.encode()).hexdigest()
    return known[node_id]
