"""One prompt on ComfyUI, from submission to its history.

Invariants 2 and 4: the socket opens before the prompt is queued and is for progress only;
`/history` decides. Silence or a closed socket leads to asking `/queue` and `/history`, never to
waiting on. However this ends, ComfyUI is not left computing for nobody.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import websocket

from ltx_worker.comfy.client import ComfyClient, History
from ltx_worker.comfy.events import Ended, Event, parse
from ltx_worker.errors import ComfyFailed, ComfyUnavailable, JobError, OutOfMemory
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.template import title_of

_log = logging.getLogger(__name__)

# How long one wait for a frame lasts: the stop signal is checked this often.
_RECEIVE_TIMEOUT_S = 1.0
# After so long without a frame the truth is asked for: two cheap requests.
_SILENCE_S = 3.0
# A ComfyUI that refuses connections for so long is taken for gone. One that accepts and does not
# answer, as while it loads a model, gets at least one request's timeout more.
_UNREACHABLE_S = 5.0
# An interrupt takes effect after the current sampling step.
_IDLE_WAIT_S = 15.0
_IDLE_POLL_S = 0.05

OnEvent = Callable[[Event], None]


def execute(
    client: ComfyClient, graph: Graph, prompt_id: str, stop: StopSignal, on_event: OnEvent
) -> History:
    """Run `graph` as `prompt_id` and return its history once it has succeeded.

    A prompt that is already known under this id is followed, not queued again. Raises
    `ComfyRejected`, `ComfyFailed`, `OutOfMemory`, `ComfyUnavailable`, or what `stop` raises; then
    the prompt has been interrupted and ComfyUI is idle again as far as it answers.
    """
    try:
        client_id = uuid.uuid4().hex
        with _Socket(client.socket_url(client_id)) as socket:
            is_ours = _submit_once(client, graph, prompt_id, client_id)
            history = _follow(client, socket, prompt_id, stop, on_event, expect_events=is_ours)
    except BaseException:
        # Also when the graph was refused: of a graph with one bad output ComfyUI runs the rest.
        _abandon(client, prompt_id)
        raise
    if not history.completed:
        raise _failure(history, graph)
    return history


class _Socket:
    """ComfyUI's WebSocket; opens on entry, and again after a loss when asked to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: websocket.WebSocket | None = None

    def __enter__(self) -> _Socket:
        if not self.open():
            raise ComfyUnavailable("ComfyUI does not accept a WebSocket")
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def open(self) -> bool:
        """Connect; whether that worked."""
        try:
            self._connection = websocket.create_connection(
                self._url,
                timeout=_RECEIVE_TIMEOUT_S,
                http_no_proxy=["*"],
                skip_utf8_validation=True,
            )
        except (OSError, websocket.WebSocketException):
            self._connection = None
        return self.is_open

    def receive(self) -> str | bytes | None:
        """The next frame; None after a second without one, or when the socket is lost."""
        if self._connection is None:
            return None
        try:
            return self._connection.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (OSError, websocket.WebSocketException):
            self._drop()
            return None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close(timeout=0)
            # A connection that is lost already is not closed by `close`.
            self._connection.shutdown()
            self._connection = None


def _submit_once(client: ComfyClient, graph: Graph, prompt_id: str, client_id: str) -> bool:
    """Queue the prompt unless ComfyUI already has it; whether its events come to `client_id`.

    A lost answer is not a reason to send the graph again: the prompt may be running.
    """
    if _is_known(client, prompt_id):
        return False
    try:
        client.submit(graph, prompt_id, client_id)
    except ComfyUnavailable:
        if not _is_known(client, prompt_id):
            raise
    return True


def _is_known(client: ComfyClient, prompt_id: str) -> bool:
    return client.queue_state(prompt_id) is not None or client.history(prompt_id) is not None


def _follow(
    client: ComfyClient,
    socket: _Socket,
    prompt_id: str,
    stop: StopSignal,
    on_event: OnEvent,
    *,
    expect_events: bool,
) -> History:
    """Pass events on until the prompt is over; returns its history."""
    silence_s = _SILENCE_S if expect_events else 0.0
    last_frame = last_answer = time.monotonic()
    while True:
        stop.check()
        frame = socket.receive()
        now = time.monotonic()
        if frame:
            last_frame = now
            event = parse(frame)
            if event is None or event.prompt_id != prompt_id:
                continue
            on_event(event)
            if not isinstance(event, Ended):
                continue
        elif socket.is_open and now - last_frame < silence_s:
            continue
        try:
            history = _reconcile(client, prompt_id)
            last_answer = now
        except ComfyUnavailable:
            if now - last_answer > _UNREACHABLE_S:
                raise
            stop.sleep(_RECEIVE_TIMEOUT_S)
            continue
        if history is not None:
            return history
        last_frame = now
        if not socket.is_open and not socket.open():
            stop.sleep(_RECEIVE_TIMEOUT_S)


def _reconcile(client: ComfyClient, prompt_id: str) -> History | None:
    """The history of a prompt that is over, None while it is queued or runs.

    The queue is asked first: a prompt leaves it and enters the history in one step, so one that
    is in neither is lost.
    """
    if client.queue_state(prompt_id) is not None:
        return None
    history = client.history(prompt_id)
    if history is None:
        raise ComfyFailed("ComfyUI lost the job: it was restarted, or its queue was cleared")
    return history


def _abandon(client: ComfyClient, prompt_id: str) -> None:
    """Stop the prompt and wait until it is out of the queue, as far as ComfyUI answers."""
    give_up = time.monotonic() + _IDLE_WAIT_S
    try:
        client.interrupt(prompt_id)
        while client.queue_state(prompt_id) is not None:
            if time.monotonic() > give_up:
                _log.warning("comfy.not_idle prompt=%s after=%gs", prompt_id, _IDLE_WAIT_S)
                return
            time.sleep(_IDLE_POLL_S)
    except ComfyUnavailable:
        _log.warning("comfy.not_interrupted prompt=%s", prompt_id)


def _failure(history: History, graph: Graph) -> JobError:
    """The error for a prompt that ended without success."""
    error = history.message("execution_error")
    if error is None:
        return ComfyFailed("The job was interrupted in ComfyUI, not by this worker")
    where = _where(error, graph)
    if _is_out_of_memory(error):
        return OutOfMemory(
            f"The GPU ran out of memory at {where}",
            stage=where,
            hint="Ask for a lower resolution or fewer frames.",
        )
    kind = str(error.get("exception_type", "error")).rpartition(".")[2]
    return ComfyFailed(f"{where} failed: {kind}: {_summary(error)}", stage=where)


def _where(error: Any, graph: Graph) -> str:
    node = graph.get(str(error.get("node_id")))
    return f"node '{title_of(node)}' ({node['class_type']})" if node else "a node"


def _is_out_of_memory(error: Any) -> bool:
    """Whether a node's error says that memory ran out, in any of torch's spellings."""
    text = f"{error.get('exception_type', '')} {error.get('exception_message', '')}".lower()
    return any(
        sign in text for sign in ("outofmemory", "out of memory", "memoryerror", "allocate memory")
    )


def _summary(error: Any) -> str:
    """The first line of a node's message, without the folders of this machine."""
    lines = str(error.get("exception_message", "")).strip().splitlines()
    return re.sub(r"(?:/[^\s/'\":]+)+/", "…/", lines[0])[:300] if lines else "no message"
