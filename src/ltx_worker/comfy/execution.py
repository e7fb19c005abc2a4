"""One prompt on ComfyUI, from submission to its history.

Invariants 2 and 4: the socket opens before the prompt is queued and is for progress only;
`/history` decides. Silence or a closed socket leads to asking the process, `/queue` and `/history`,
never to waiting on. However this ends, ComfyUI is not left computing for nobody.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from ltx_worker.comfy.asking import Asking, Unresponsive
from ltx_worker.comfy.client import ComfyClient, History
from ltx_worker.comfy.diagnosis import Fault, fault_of
from ltx_worker.comfy.events import Ended, Event, parse
from ltx_worker.comfy.server import ComfyServer
from ltx_worker.comfy.socket import ComfySocket
from ltx_worker.errors import (
    ComfyFailed,
    ComfyUnavailable,
    JobError,
    OutOfMemory,
    SystemOutOfMemory,
)
from ltx_worker.logs import get_logger
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.template import title_of

_log = get_logger(__name__)

# After so long without a frame the truth is asked for: two cheap requests.
_SILENCE_S = 3.0
_RETRY_S = 0.2
# What a job that is over may still spend on stopping its prompt: together with what stops it, less
# than the two seconds within which a deadline is kept.
_STOP_S = 1.0
# An interrupt takes effect after the current sampling step. The next job waits so long for it.
_SETTLE_S = 60.0
_SETTLE_POLL_S = 0.05

OnEvent = Callable[[Event], None]


class Executor:
    """Runs prompts on `server`, one at a time; `forget` and questions come from any thread."""

    def __init__(self, server: ComfyServer) -> None:
        self._server = server
        # Prompts that were interrupted and had not stopped when their job ended.
        self._unsettled: set[str] = set()
        # Prompts that ComfyUI may know.
        self._sent: set[str] = set()
        # Prompts whose job is over and that are in the history yet.
        self._to_forget: set[str] = set()

    def execute(
        self,
        graph: Graph,
        prompt_id: str,
        stop: StopSignal,
        on_event: OnEvent,
        is_whole: Callable[[History], bool] = lambda _: True,
    ) -> History:
        """Run `graph` as `prompt_id` and return its history once it has succeeded.

        A prompt that is already known under this id is followed, not queued again, unless it is
        over and `is_whole` finds that its result is gone. Raises `ComfyRejected`, `ComfyFailed`,
        `OutOfMemory`, `ComfyUnavailable`, or what `stop` raises; the prompt is then interrupted.
        """
        client = self._server.client
        client_id = uuid.uuid4().hex
        self._to_forget.discard(prompt_id)
        try:
            with ComfySocket(client.socket_url(client_id), stop) as socket:
                asking = self._connect(socket, stop)
                self._settle(asking, stop)
                found = asking.ask(lambda: self._submit(graph, prompt_id, client_id, is_whole))
                if isinstance(found, History):
                    return found
                history = self._follow(socket, asking, prompt_id, stop, on_event, is_ours=found)
        except Unresponsive as error:
            is_replaced = self._server.replace(str(error))
            ending = " and is being started again" if is_replaced else ""
            self._unsettled = set() if is_replaced else {*self._unsettled, prompt_id}
            raise ComfyUnavailable(f"{error}{ending}") from error
        except BaseException:
            # Also when the graph was refused: of a graph with one bad output ComfyUI runs the rest.
            self._abandon(prompt_id)
            raise
        if not history.completed:
            raise self._failure(history, graph)
        return history

    def forget(self, prompt_id: str, timeout_s: float) -> None:
        """Take a prompt out of ComfyUI's history; raises `ComfyUnavailable`.

        One that cannot be taken out now, such as while ComfyUI is busy with the next job's prompt,
        goes with a later one.
        """
        self._to_forget.add(prompt_id)
        for one in [prompt_id, *(self._to_forget - {prompt_id})]:
            self._server.client.forget(one, timeout_s)
            self._to_forget.discard(one)
            self._sent.discard(one)

    def disown(self, prompt_id: str) -> None:
        """Stop a prompt that was not executed here but may have been sent for an earlier delivery.

        Raises nothing: one that has not stopped soon is waited for by the next job.
        """
        if not self._server.is_own or prompt_id in self._sent:
            self._abandon(prompt_id)

    def is_unsettled(self, prompt_id: str) -> bool:
        """Whether ComfyUI may still work on a prompt whose job is over."""
        return prompt_id in self._unsettled

    def knows(self, prompt_id: str) -> bool:
        """Whether ComfyUI has the prompt, in its queue or in its history."""
        client = self._server.client
        in_queue = client.queue_state(prompt_id) is not None
        return in_queue or client.history(prompt_id) is not None

    def _connect(self, socket: ComfySocket, stop: StopSignal) -> Asking:
        """Open the socket to a ComfyUI that may be on its way up."""
        incarnation = self._server.wait_ready(stop)
        give_up = time.monotonic() + self._server.unresponsive_s
        while not socket.open():
            if time.monotonic() > give_up:
                raise Unresponsive("ComfyUI does not accept a WebSocket")
            stop.sleep(_RETRY_S)
            incarnation = self._server.wait_ready(stop, has_refused=True)
        return Asking(self._server, incarnation, stop)

    def _submit(
        self, graph: Graph, prompt_id: str, client_id: str, is_whole: Callable[[History], bool]
    ) -> History | bool:
        """Queue the prompt unless ComfyUI already has it; whether its events come to `client_id`.

        Returns the history of one that is over with a whole result. A lost answer is not a reason
        to send the graph again: the prompt may be running.
        """
        client = self._server.client
        if not self._server.is_own or prompt_id in self._sent:
            if client.queue_state(prompt_id) is not None:
                return False
            known = client.history(prompt_id)
            if known is not None and known.completed and is_whole(known):
                return known
            if known is not None:
                client.forget(prompt_id)
        self._sent.add(prompt_id)
        client.submit(graph, prompt_id, client_id)
        return True

    def _settle(self, asking: Asking, stop: StopSignal) -> None:
        """Wait until ComfyUI has let go of the prompts of jobs that are over."""
        client = self._server.client
        give_up = time.monotonic() + _SETTLE_S
        for prompt_id in list(self._unsettled):
            asking.ask(lambda settled=prompt_id: client.interrupt(settled))
            while asking.ask(lambda settled=prompt_id: client.queue_state(settled)) is not None:
                if time.monotonic() > give_up:
                    raise Unresponsive(f"ComfyUI did not stop an earlier job for {_SETTLE_S:g} s")
                stop.sleep(_SETTLE_POLL_S)
            asking.ask(lambda settled=prompt_id: client.forget(settled))
            self._unsettled.discard(prompt_id)

    def _follow(
        self,
        socket: ComfySocket,
        asking: Asking,
        prompt_id: str,
        stop: StopSignal,
        on_event: OnEvent,
        *,
        is_ours: bool,
    ) -> History:
        """Pass events on until the prompt is over; returns its history.

        The events of a prompt that was queued before (not `is_ours`) go to another socket.
        """
        client = self._server.client
        silence_s = _SILENCE_S if is_ours else 0.0
        last_frame = time.monotonic()
        while True:
            asking.check()
            frame = socket.receive()
            if frame:
                last_frame = time.monotonic()
                event = parse(frame)
                if event is None or event.prompt_id != prompt_id:
                    continue
                on_event(event)
                if not isinstance(event, Ended):
                    continue
                # The last event comes when the history is written.
                history = asking.ask(lambda: client.history(prompt_id))
                if history is not None:
                    return history
            elif socket.is_open and time.monotonic() - last_frame < silence_s:
                continue
            history = asking.ask(lambda: _reconcile(client, prompt_id))
            if history is not None:
                return history
            last_frame = time.monotonic()
            if not socket.is_open and not socket.open():
                stop.sleep(_RETRY_S)

    def _abandon(self, prompt_id: str) -> None:
        """Stop the prompt; one that has not stopped soon is waited for by the next job."""
        client = self._server.client
        give_up = time.monotonic() + _STOP_S
        self._unsettled.add(prompt_id)
        try:
            client.interrupt(prompt_id, _STOP_S / 2)
            while (left_s := give_up - time.monotonic()) > 0:
                if client.queue_state(prompt_id, left_s) is None:
                    self._unsettled.discard(prompt_id)
                    return
                time.sleep(_SETTLE_POLL_S)
            _log.info("comfy.not_idle", seconds=_STOP_S)
        except ComfyUnavailable:
            _log.warning("comfy.not_interrupted")

    def _failure(self, history: History, graph: Graph) -> JobError:
        """The error for a prompt that ended without success."""
        error = history.message("execution_error")
        if error is None:
            return ComfyFailed(
                "The job was interrupted in ComfyUI, not by this worker", retryable=True
            )
        where = _where(error, graph)
        match fault_of(error):
            case Fault.GPU_MEMORY:
                self._free_memory()
                return OutOfMemory(f"The GPU ran out of memory at {where}", stage=where)
            case Fault.SYSTEM_MEMORY:
                self._free_memory()
                return SystemOutOfMemory(f"The machine ran out of memory at {where}", stage=where)
            case Fault.GPU_FAULT:
                return ComfyFailed(
                    f"The GPU reported a fault at {where}; this worker is replaced",
                    stage=where,
                    retryable=True,
                    replace_worker=True,
                )
            case Fault.OTHER:
                kind = str(error.get("exception_type", "error")).rpartition(".")[2]
                return ComfyFailed(f"{where} failed: {kind}: {_summary(error)}", stage=where)

    def _free_memory(self) -> None:
        """Have everything unloaded, and see that ComfyUI still answers."""
        client = self._server.client
        try:
            before = client.free_vram_bytes(_STOP_S)
            client.free_memory(_STOP_S)
            _log.warning("comfy.memory_freed", free_before=before)
        except ComfyUnavailable:
            self._server.replace("ComfyUI did not answer after it ran out of memory")


def _reconcile(client: ComfyClient, prompt_id: str) -> History | None:
    """The history of a prompt that is over, None while it is queued or runs.

    The queue is asked first: a prompt leaves it and enters the history in one step, so one that
    is in neither is lost.
    """
    if client.queue_state(prompt_id) is not None:
        return None
    history = client.history(prompt_id)
    if history is None:
        raise ComfyFailed(
            "ComfyUI lost the job: it was restarted, or its queue was cleared", retryable=True
        )
    return history


def _where(error: Any, graph: Graph) -> str:
    node = graph.get(str(error.get("node_id")))
    return f"node '{title_of(node)}' ({node['class_type']})" if node else "a node"


def _summary(error: Any) -> str:
    """The first line of a node's message, without the folders of this machine."""
    lines = str(error.get("exception_message", "")).strip().splitlines()
    return re.sub(r"(?:/[^\s/'\":]+)+/", "…/", lines[0])[:300] if lines else "no message"
