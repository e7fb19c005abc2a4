"""The events of one prompt, as ComfyUI 0.27 words them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ltx_worker.sandbox.prompts import QueuedPrompt
from ltx_worker.sandbox.sockets import Sockets


class Events:
    """Sends a prompt's events and keeps those that its history repeats.

    A prompt without a client sends its progress to everybody and most other events to nobody.
    """

    def __init__(self, prompt: QueuedPrompt, sockets: Sockets) -> None:
        self._prompt_id = prompt.prompt_id
        self._client = prompt.client_id
        self._sockets = sockets
        self._progress: dict[str, dict[str, Any]] = {}
        self.messages: list[tuple[str, dict[str, Any]]] = []

    def message(self, event: str, *, to_all: bool = False, **data: Any) -> None:
        """Send a milestone, and keep it for the history."""
        stamped = {"prompt_id": self._prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self.messages.append((event, stamped))
        if self._client is not None or to_all:
            self._sockets.send(event, stamped, self._client)

    def running(self, node_id: str) -> None:
        """A node begins."""
        self._set_progress(node_id, "running", 0.0, 1.0)
        self._send_own("executing", {"node": node_id, "display_node": node_id})

    def step(self, node_id: str, value: int, total: int) -> None:
        """A node has taken step `value` of `total`."""
        self._set_progress(node_id, "running", value, total)
        event = {"value": value, "max": total, "prompt_id": self._prompt_id, "node": node_id}
        self._sockets.send("progress", event, self._client)

    def executed(self, node_id: str, output: Mapping[str, Any] | None) -> None:
        """A node reports its files; None when it has none to report."""
        event = {"node": node_id, "display_node": node_id, "output": output}
        self._send_own("executed", event)

    def finished(self, node_id: str) -> None:
        """A node is done, or its result was known."""
        total = self._progress.get(node_id, {"max": 1})["max"]
        self._set_progress(node_id, "finished", total, total)

    def ended(self) -> None:
        """The prompt is in the history."""
        self._send_own("executing", {"node": None})

    def drop_socket(self) -> None:
        """Close the client's socket."""
        if self._client is not None:
            self._sockets.drop(self._client)

    def silence_socket(self) -> None:
        """Leave the client's socket open and dead."""
        if self._client is not None:
            self._sockets.silence(self._client)

    def _send_own(self, event: str, data: Mapping[str, Any]) -> None:
        if self._client is not None:
            self._sockets.send(event, {**data, "prompt_id": self._prompt_id}, self._client)

    def _set_progress(self, node_id: str, state: str, value: float, total: float) -> None:
        ids = {"node_id": node_id, "prompt_id": self._prompt_id, "display_node_id": node_id}
        ids |= {"parent_node_id": None, "real_node_id": node_id}
        # Replaced, never changed: the event loop may still be writing the previous state.
        new = {node_id: {"value": value, "max": total, "state": state, **ids}}
        self._progress = {**self._progress, **new}
        event = {"prompt_id": self._prompt_id, "nodes": self._progress}
        self._sockets.send("progress_state", event, self._client)
