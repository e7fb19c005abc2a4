"""The queue of prompts and the history of those that ran, as ComfyUI's HTTP API shows them.

Shared by the event loop and the worker thread; every method is atomic. `changed` is called
whenever the number of prompts that wait or run changes.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ltx_worker.sandbox.faults import PromptFaults


@dataclass(frozen=True, order=True)
class QueuedPrompt:
    """A valid prompt; the lowest `number` runs first. `outputs` are the output nodes to run."""

    number: float
    prompt_id: str
    graph: Mapping[str, Any] = field(compare=False)
    extra_data: Mapping[str, Any] = field(compare=False)
    outputs: tuple[str, ...] = field(compare=False)
    faults: PromptFaults = field(compare=False)

    @property
    def client_id(self) -> str | None:
        """The client that gets the prompt's events; None sends some of them to everybody."""
        return self.extra_data.get("client_id")

    def row(self) -> list[Any]:
        """The prompt as /queue and /history show it."""
        return [self.number, self.prompt_id, self.graph, self.extra_data, list(self.outputs)]


class Prompts:
    """What waits, what runs, what has run, and the flags that POST /free sets."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._news = threading.Condition()
        self._waiting: list[QueuedPrompt] = []
        self._running: QueuedPrompt | None = None
        self._history: dict[str, dict[str, Any]] = {}
        self._flags: set[str] = set()

    @property
    def remaining(self) -> int:
        """How many prompts wait or run."""
        with self._news:
            return len(self._waiting) + (self._running is not None)

    def put(self, prompt: QueuedPrompt) -> None:
        """Queue a prompt."""
        with self._news:
            heapq.heappush(self._waiting, prompt)
            self._news.notify()
        self._changed()

    def take(self) -> QueuedPrompt | None:
        """Wait for the next prompt and make it the running one; None when a flag is to be taken."""
        with self._news:
            while not self._waiting and not self._flags:
                self._news.wait()
            if self._flags:
                return None
            self._running = heapq.heappop(self._waiting)
            prompt = self._running
        self._changed()
        return prompt

    def finish(self, prompt: QueuedPrompt, result: Mapping[str, Any]) -> None:
        """Put the running prompt into the history."""
        with self._news:
            self._running = None
            self._history[prompt.prompt_id] = {"prompt": prompt.row(), **result}
        self._changed()

    def is_running(self, prompt_id: str) -> bool:
        """Whether this prompt is the running one."""
        with self._news:
            return self._running is not None and self._running.prompt_id == prompt_id

    def delete(self, prompt_id: str) -> None:
        """Drop a waiting prompt; it leaves no history."""
        with self._news:
            kept = [prompt for prompt in self._waiting if prompt.prompt_id != prompt_id]
            if len(kept) == len(self._waiting):
                return
            heapq.heapify(kept)
            self._waiting = kept
        self._changed()

    def clear(self) -> None:
        """Drop all waiting prompts."""
        with self._news:
            self._waiting = []
        self._changed()

    def queue(self) -> dict[str, Any]:
        """What GET /queue answers."""
        with self._news:
            running = [self._running.row()] if self._running else []
            pending = [prompt.row() for prompt in self._waiting]
        return {"queue_running": running, "queue_pending": pending}

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What GET /history/{prompt_id} answers: empty for a prompt that has not ended."""
        with self._news:
            return {key: self._history[key] for key in (prompt_id,) if key in self._history}

    def histories(self, max_items: int | None, offset: int) -> dict[str, Any]:
        """What GET /history answers; a negative offset takes the last `max_items`."""
        with self._news:
            entries = dict(self._history)
        if offset < 0 and max_items is not None:
            offset = len(entries) - max_items
        start = max(0, offset)
        stop = None if max_items is None else start + max_items
        return dict(islice(entries.items(), start, stop))

    def forget(self, prompt_id: str | None = None) -> None:
        """Drop one history entry, or all of them."""
        with self._news:
            if prompt_id is None:
                self._history.clear()
            else:
                self._history.pop(prompt_id, None)

    def set_flag(self, name: str) -> None:
        """Ask the worker for something to be done when it is next idle."""
        with self._news:
            self._flags.add(name)
            self._news.notify()

    def take_flags(self) -> frozenset[str]:
        """The flags set since the last call."""
        with self._news:
            flags = frozenset(self._flags)
            self._flags.clear()
        return flags
