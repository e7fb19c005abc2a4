"""The order in which the nodes of a graph run: the one that ComfyUI would choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ltx_worker.workflow.node_inputs import NodeInfo, link_of


class Order:
    """The nodes still to run, and which is next.

    Only what the outputs need is in it. Results that are cached are not run for, but an output
    itself is always visited, so that it reports its files again.
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
        self._waits_for: dict[str, set[str]] = {}
        self._feeds: dict[str, list[str]] = {}
        for output in outputs:
            self._add(output, is_cached)

    def _add(self, output: str, is_cached: Callable[[str], bool]) -> None:
        # Depth first, the last input first: the order in which equals are picked follows from it.
        stack = [output]
        while stack:
            node_id = stack.pop()
            if node_id in self._waits_for:
                continue
            links = [link_of(value) for value in self._graph[node_id]["inputs"].values()]
            sources = [link[0] for link in links if link and not is_cached(link[0])]
            self._waits_for[node_id] = set(sources)
            for source in sources:
                feeds = self._feeds.setdefault(source, [])
                if node_id not in feeds:
                    feeds.append(node_id)
            stack += sources

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
