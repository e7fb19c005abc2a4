"""One prompt's run: its nodes in ComfyUI's order, what they give, and what goes wrong."""

from __future__ import annotations

import os
import threading
import time
import traceback
from dataclasses import dataclass
from functools import partial
from typing import Any

from ltx_worker.sandbox.cache import Entry, NodeCache, signatures
from ltx_worker.sandbox.context import Context
from ltx_worker.sandbox.events import Events
from ltx_worker.sandbox.faults import OUT_OF_MEMORY_TIP
from ltx_worker.sandbox.folders import Folders
from ltx_worker.sandbox.nodes import evaluate, fingerprint, lazy_input
from ltx_worker.sandbox.order import Order
from ltx_worker.sandbox.prompts import QueuedPrompt
from ltx_worker.sandbox.sockets import Sockets
from ltx_worker.workflow.node_inputs import NodeInfo, link_of
from ltx_worker.workflow.validation import full_type_name

_STEP_S = 0.05
_OUT_OF_MEMORY = "torch.OutOfMemoryError"


class PromptInterruptedError(Exception):
    """Somebody asked for the prompt to stop."""


@dataclass(frozen=True)
class Workshop:
    """What every run uses; `speed` scales the time that a sampling step takes."""

    node_info: NodeInfo
    folders: Folders
    sockets: Sockets
    cache: NodeCache
    interrupt: threading.Event
    speed: float


class Execution:
    """One run. `current_node` is the node it is at, None outside of nodes."""

    def __init__(self, prompt: QueuedPrompt, workshop: Workshop) -> None:
        self.prompt = prompt
        self.current_node: str | None = None
        self.events = Events(prompt, workshop.sockets)
        self._workshop = workshop
        self._signatures: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._asked: set[str] = set()
        self._executed: list[str] = []
        self._reports: dict[str, Any] = {}
        self._steps = 0

    def run(self) -> dict[str, Any]:
        """Run the outputs and all that they need; what the history keeps.

        Raises KeyError when any node of the graph has no inputs, and so ends the engine's thread:
        ComfyUI 0.27 accepts such a prompt when the node is off the outputs' way, dies of it in the
        same place, and from then on runs nothing.
        """
        graph, folders = self.prompt.graph, self._workshop.folders
        self.events.message("execution_start")
        self._signatures = signatures(graph, partial(fingerprint, folders=folders))
        for node_id in graph:
            if entry := self._workshop.cache.get(self._signatures[node_id]):
                self._entries[node_id] = entry
        self.events.message("execution_cached", nodes=list(self._entries))
        self._strike_after_steps()
        outputs = self.prompt.outputs
        order = Order(graph, self._workshop.node_info, outputs, self._entries.__contains__)
        succeeded = self._run_nodes(order)
        self.current_node = None
        return {
            "outputs": {node_id: report["output"] for node_id, report in self._reports.items()},
            "status": {
                "status_str": "success" if succeeded else "error",
                "completed": succeeded,
                "messages": self.events.messages,
            },
            "meta": {node_id: report["meta"] for node_id, report in self._reports.items()},
        }

    def _run_nodes(self, order: Order) -> bool:
        failure: Exception | None = None
        node_id = None
        while failure is None and (node_id := order.next()) is not None:
            try:
                if self._asks_for_more(node_id, order):
                    continue
                self._visit(node_id)
            except Exception as exception:  # noqa: BLE001  a node may fail in any way
                failure = exception
            else:
                order.finish(node_id)
        if "lose_final" in self.prompt.faults:
            self._workshop.sockets.hushed = True
        if node_id is None:
            self.events.message("execution_success")
        elif isinstance(failure, PromptInterruptedError):
            self._report_interrupt(node_id)
        elif failure is not None:
            self._report_failure(node_id, failure)
        return failure is None

    def _asks_for_more(self, node_id: str, order: Order) -> bool:
        """Whether a node, the first time that it could run, wants what feeds a lazy input."""
        node = self.prompt.graph[node_id]
        wanted = lazy_input(node["class_type"], self._inputs(node_id))
        link = link_of(node["inputs"][wanted]) if wanted else None
        if link is None or node_id in self._entries or node_id in self._asked:
            return False
        self._asked.add(node_id)
        self.events.running(node_id)
        order.require(node_id, link[0])
        return True

    def _visit(self, node_id: str) -> None:
        signature = self._signatures[node_id]
        entry = self._workshop.cache.get(signature) or self._entries.get(node_id)
        if entry:
            self._entries[node_id] = entry
            self.events.executed(node_id, entry.ui["output"] if entry.ui else None)
        else:
            self.current_node = node_id
            self.events.running(node_id)
            entry = self._entries[node_id] = self._evaluate(node_id)
            if entry.ui:
                self.events.executed(node_id, entry.ui["output"])
            self._workshop.cache.set(signature, entry)
            self._executed.append(node_id)
        if entry.ui:
            self._reports[node_id] = entry.ui
        self.events.finished(node_id)

    def _evaluate(self, node_id: str) -> Entry:
        self._raise_if_interrupted()
        class_type = self.prompt.graph[node_id]["class_type"]
        self.prompt.faults.strike(class_type)
        folders = self._workshop.folders
        context = Context(folders, lambda value, total: self._step(node_id, value, total))
        entry = evaluate(class_type, self._inputs(node_id), context)
        if not entry.ui:
            return entry
        if "stale_cache" in self.prompt.faults:
            for saved in entry.ui.get("images", ()):
                (folders.output / saved["subfolder"] / saved["filename"]).unlink()
        ids = {"node_id": node_id, "display_node": node_id, "parent_node": None}
        meta = {**ids, "real_node_id": node_id}
        return Entry(entry.outputs, {"output": entry.ui, "meta": meta})

    def _inputs(self, node_id: str) -> dict[str, Any]:
        """A node's inputs, with what its links carry; a slot that is not there carries None, and so
        does one that was not asked for."""
        values: dict[str, Any] = dict(self.prompt.graph[node_id]["inputs"])
        for name, value in values.items():
            if link := link_of(value):
                source, slot = link
                entry = self._entries.get(source)
                values[name] = entry.outputs[slot] if entry and slot < len(entry.outputs) else None
        return values

    def _step(self, node_id: str, value: int, total: int) -> None:
        delay_s = _STEP_S * self._workshop.speed + self.prompt.faults.step_delay_s
        if delay_s:
            time.sleep(delay_s)
        self._raise_if_interrupted()
        self.events.step(node_id, value, total)
        self._steps += 1
        self._strike_after_steps()

    def _raise_if_interrupted(self) -> None:
        if self._workshop.interrupt.is_set():
            self._workshop.interrupt.clear()
            raise PromptInterruptedError

    def _strike_after_steps(self) -> None:
        faults = self.prompt.faults
        if faults.due("drop_socket", self._steps):
            self.events.drop_socket()
        if faults.due("half_open", self._steps):
            self.events.silence_socket()
        if crash := faults.due("crash", self._steps):
            os._exit(crash["exit_code"])

    def _report_interrupt(self, node_id: str) -> None:
        self.events.message(
            "execution_interrupted",
            to_all=True,
            node_id=node_id,
            node_type=self.prompt.graph[node_id]["class_type"],
            executed=list(self._executed),
        )

    def _report_failure(self, node_id: str, failure: Exception) -> None:
        kind = full_type_name(type(failure))
        tip = OUT_OF_MEMORY_TIP if kind == _OUT_OF_MEMORY else ""
        inputs = self._inputs(node_id)
        self.events.message(
            "execution_error",
            node_id=node_id,
            node_type=self.prompt.graph[node_id]["class_type"],
            executed=list(self._executed),
            exception_message=f"{failure}\n{tip}",
            exception_type=kind,
            traceback=traceback.format_tb(failure.__traceback__),
            current_inputs={name: [_printable(value)] for name, value in inputs.items()},
            current_outputs=list(self.prompt.graph),
        )


def _printable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else repr(value)
