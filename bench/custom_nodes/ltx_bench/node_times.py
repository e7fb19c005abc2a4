# pyright: basic, reportMissingImports=false
"""Seconds of each node that a prompt ran, one JSON line each. A node of the cache has no line."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import execution
import torch


def install(path: str, *, is_synchronised: bool) -> None:
    """Time what ComfyUI's executor runs for a node, into the file `path`."""
    execute = execution.execute

    @functools.wraps(execute)
    async def timed(
        server: Any, prompt: Any, caches: Any, node_id: str, extra: Any, executed: Any, *rest: Any
    ) -> Any:
        if await caches.outputs.get(node_id) is not None:
            return await execute(server, prompt, caches, node_id, extra, executed, *rest)
        started = _now(is_synchronised)
        result = await execute(server, prompt, caches, node_id, extra, executed, *rest)
        seconds = _now(is_synchronised) - started
        node = prompt.get_node(node_id)
        line = {
            "prompt_id": rest[0],
            "node": node_id,
            "class": node["class_type"],
            "title": node.get("_meta", {}).get("title", ""),
            "seconds": round(seconds, 5),
        }
        _append(path, line)
        return result

    execution.execute = timed


def _append(path: str, line: dict[str, Any]) -> None:
    with Path(path).open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def _now(is_synchronised: bool) -> float:
    if is_synchronised and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
