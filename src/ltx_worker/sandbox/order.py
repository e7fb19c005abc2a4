"""The order in which the nodes of a graph run: the one that ComfyUI would choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ltx_worker.workflow.node_inputs import NodeInfo, link_of


class Order:
    """The nodes still to run, and which is next.

    Only what the outputs need is in it. Results that are cached are not run for, but an output
    itself is always visited, so that it reports its files again. What feeds a lazy input is not
    run for either, until the node asks for it.
    """

    def __init__(
        self,
        graph: Mapping[str, Any],
        node_info: NodeInfo,
        outputs: Iterable[str],
        is_cached: Callable[[str], bool],
    ) -> None:
        self._graph = graph
        self._node_info = node_info
        self._is_cached = is_cached
        self._waits_for: dict[str, set[str]] = {}
        self._feeds: dict[str, list[str]] = {}
        for output in outputs:
            self._add(output)

    def _add(self, output: str) -> None:
        # Depth first, the last input first: the order in which equals are picked follows from it.
        stack = [output]
        while stack:
            node_id = stack.pop()
            if node_id in self._waits_for:
                continue
            self._waits_for[node_id] = set()
            sources = [source for source in self._sources(node_id) if not self._is_cached(source)]
            for source in sources:
                self._link(source, node_id)
            stack += sources

    def _sources(self, node_id: str) -> Iterator[str]:
        """The nodes that feed a node's inputs, but for lazy ones."""
        node = self._graph[node_id]
        kinds: Mapping[str, Mapping[str, Any]] = self._node_info[node["class_type"]]["input"]
        for name, value in node["inputs"].items():
            spec = next((kinds[kind][name] for kind in kinds if name in kinds[kind]), ())
            lazy = len(spec) > 1 and spec[1].get("lazy")
            if (link := link_of(value)) and not lazy:
                yield link[0]

    def _link(self, source: str, node_id: str) -> None:
        self._waits_for[node_id].add(source)
        feeds = self._feeds.setdefault(source, [])
        if node_id not in feeds:
            feeds.append(node_id)

    def require(self, node_id: str, source: str) -> None:
        """Have a node wait for one more, which feeds a lazy input of it."""
        if not self._is_cached(source):
            self._add(source)
            self._link(source, node_id)

    def next(self) -> str | None:
        """The node to run now; None when all have run.

        Preferred are outputs, then what feeds an output, then what feeds that.
        """
        ready = [node_id for node_id, sources in self._waits_for.items() if not sources]
        for distance in range(3):
            for node_id in ready:
                if self._leads_to_output(node_id, distance):
                    return node_id
        return ready[0] if ready else None

    def _leads_to_output(self, node_id: str, distance: int) -> bool:
        if distance == 0:
            return self._node_info[self._graph[node_id]["class_type"]]["output_node"]
        following = self._feeds.get(node_id, ())
        return any(self._leads_to_output(other, distance - 1) for other in following)

    def finish(self, node_id: str) -> None:
        """Take a node that has run out of the others' way."""
        del self._waits_for[node_id]
        for other in self._feeds.pop(node_id, ()):
            self._waits_for[other].discard(node_id)
