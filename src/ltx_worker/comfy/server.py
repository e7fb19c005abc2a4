"""The ComfyUI that runs the graphs, as the worker sees it: one that it owns, or one elsewhere.

A ComfyUI that is started anew is another incarnation: what the last one ran is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ltx_worker.comfy.client import ComfyClient
from ltx_worker.comfy.launch import EngineFolders
from ltx_worker.errors import ComfyUnavailable
from ltx_worker.stop import StopSignal

_POLL_S = 0.1
_ASK_TIMEOUT_S = 2.0
_LIST_TIMEOUT_S = 30.0


class ComfyServer(Protocol):
    """A ComfyUI. `unresponsive_s` is how long it may owe an answer before it is given up."""

    client: ComfyClient
    folders: EngineFolders
    unresponsive_s: float
    # Whether nobody but this worker, since it started, can have sent it a job of the worker's.
    is_own: bool

    def start(self) -> Mapping[str, Any]:
        """Have it answer; returns its nodes. Raises `ComfyUnavailable`."""
        ...

    def stop(self) -> None:
        """Let go of it."""
        ...

    def wait_ready(self, stop: StopSignal, *, has_refused: bool = False) -> int:
        """Wait until it can take a job; returns its incarnation.

        `has_refused` says that it has just not taken a connection. Raises `ComfyUnavailable`, or
        what `stop` raises.
        """
        ...

    def check(self, incarnation: int) -> None:
        """Raise `ComfyFailed` with the cause when that incarnation has ended."""
        ...

    def replace(self, reason: str) -> bool:
        """End a ComfyUI that does not answer, so that another one starts; whether that is ours."""
        ...


class RemoteComfy:
    """A ComfyUI that somebody else runs (`COMFY_URL`): it is asked, never started or ended."""

    def __init__(
        self, url: str, folders: EngineFolders, start_timeout_s: float, unresponsive_s: float
    ) -> None:
        self.client = ComfyClient(url, unresponsive_s)
        self.folders = folders
        self.unresponsive_s = unresponsive_s
        self.is_own = False
        self._start_timeout_s = start_timeout_s

    def start(self) -> Mapping[str, Any]:
        """Wait for it, as long as the setting says."""
        return wait_until_ready(self.client, self._start_timeout_s)

    def stop(self) -> None:
        """Close the connections to it."""
        self.client.close()

    def wait_ready(self, stop: StopSignal, *, has_refused: bool = False) -> int:
        """Return at once, unless it has refused: then when it answers."""
        if has_refused:
            stop.call(
                lambda: wait_until_ready(self.client, self._start_timeout_s, check=stop.check)
            )
        return 0

    def check(self, incarnation: int) -> None:
        """Nothing is known of its process."""

    def replace(self, reason: str) -> bool:
        """It is not ours to end."""
        return False


def wait_until_ready(
    client: ComfyClient, timeout_s: float, *, check: Callable[[], None] = lambda: None
) -> Mapping[str, Any]:
    """Wait until ComfyUI answers and lists its nodes, and return these.

    `check` is called in between and may raise. Raises `ComfyUnavailable` after `timeout_s`.
    """
    give_up = time.monotonic() + timeout_s
    while True:
        check()
        try:
            client.system_stats(_ASK_TIMEOUT_S)
            if nodes := client.node_info(_LIST_TIMEOUT_S):
                return nodes
        except ComfyUnavailable:
            pass
        if time.monotonic() > give_up:
            raise ComfyUnavailable(
                f"ComfyUI at {client.base_url} did not answer within {timeout_s:g} s"
            )
        time.sleep(_POLL_S)
