"""The worker behind the sandbox's server: it runs queued prompts one after another in a thread."""

from __future__ import annotations

import threading

from ltx_worker.sandbox.cache import NodeCache
from ltx_worker.sandbox.execution import Execution, Workshop
from ltx_worker.sandbox.folders import Folders
from ltx_worker.sandbox.prompts import Prompts
from ltx_worker.sandbox.sockets import Sockets
from ltx_worker.workflow.node_inputs import NodeInfo


class Engine:
    """Owns the queue, the cache and the one thread that executes."""

    def __init__(
        self, node_info: NodeInfo, folders: Folders, sockets: Sockets, speed: float
    ) -> None:
        self.node_info = node_info
        self.folders = folders
        self.prompts = Prompts(self._announce_queue)
        self._sockets = sockets
        self._interrupt = threading.Event()
        self._cache = NodeCache()
        self._workshop = Workshop(node_info, folders, sockets, self._cache, self._interrupt, speed)
        self._execution: Execution | None = None

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        threading.Thread(target=self._run_prompts, name="prompts", daemon=True).start()

    def status(self) -> dict[str, object]:
        """How many prompts wait or run, as ComfyUI says it."""
        return {"exec_info": {"queue_remaining": self.prompts.remaining}}

    def interrupt(self, prompt_id: str | None) -> None:
        """Stop the running prompt at its next step; with an id, only when it is that one."""
        if prompt_id is None or self.prompts.is_running(prompt_id):
            self._interrupt.set()

    def current_node(self, client_id: str | None) -> str | None:
        """The node that is running, when the running prompt is this client's."""
        execution = self._execution
        if execution is None or client_id is None or execution.prompt.client_id != client_id:
            return None
        return execution.current_node

    def _announce_queue(self) -> None:
        self._sockets.send("status", {"status": self.status()})

    def _run_prompts(self) -> None:
        while True:
            if prompt := self.prompts.take():
                # A request to stop that came while nothing ran does not hit this prompt.
                self._interrupt.clear()
                self._execution = execution = Execution(prompt, self._workshop)
                self.prompts.finish(prompt, execution.run())
                execution.events.ended()
                self._sockets.hushed = False
            elif "free_memory" in self.prompts.take_flags():
                self._cache.clear()
