"""ComfyUI's WebSocket frames as values. Pure: no sockets, no clocks.

Frames that are not of interest (previews, feature flags, unknown types, broken ones) are None:
the socket is for progress, and `/history` is the truth (invariant 2).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Started:
    """The prompt left the queue."""

    prompt_id: str


@dataclass(frozen=True)
class Cached:
    """These nodes will not run: their results are kept from an earlier prompt."""

    prompt_id: str
    node_ids: frozenset[str]


@dataclass(frozen=True)
class Executing:
    """A node started."""

    prompt_id: str
    node_id: str


@dataclass(frozen=True)
class Progress:
    """A node is at step `value` of `maximum`."""

    prompt_id: str
    node_id: str
    value: int
    maximum: int


@dataclass(frozen=True)
class Executed:
    """A node finished."""

    prompt_id: str
    node_id: str


@dataclass(frozen=True)
class Ended:
    """The prompt is over, well or badly: its history is written and tells."""

    prompt_id: str


Event = Started | Cached | Executing | Progress | Executed | Ended


def parse(frame: str | bytes) -> Event | None:
    """The event in a frame, or None."""
    if isinstance(frame, bytes):
        return None
    try:
        message = json.loads(frame)
        return _event(message["type"], message["data"])
    except (ValueError, KeyError, TypeError):
        return None


def _event(kind: str, data: dict[str, Any]) -> Event | None:
    match kind:
        case "execution_start":
            return Started(data["prompt_id"])
        case "execution_cached":
            return Cached(data["prompt_id"], frozenset(data["nodes"]))
        case "executing":
            # Without a node this is the last frame of a prompt, sent after its history is written
            # (`execution_success` and `execution_error` come before). After a reconnect ComfyUI
            # names the node but not the prompt: a KeyError, so not attributed to anybody.
            if data["node"] is None:
                return Ended(data["prompt_id"])
            return Executing(data["prompt_id"], data["node"])
        case "progress":
            return Progress(data["prompt_id"], data["node"], int(data["value"]), int(data["max"]))
        case "executed":
            return Executed(data["prompt_id"], data["node"])
        case _:
            return None
