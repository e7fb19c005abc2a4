"""ComfyUI's HTTP surface: one method a route, no policy.

Every request has a timeout, and no proxy of the environment is used: ComfyUI is on this machine
or in this network. A fault of the connection is `ComfyUnavailable`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlencode

import urllib3

from ltx_worker.errors import ComfyRejected, ComfyUnavailable
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.nodes import explain

# Loopback answers at once unless ComfyUI's event loop is blocked by a model load.
_TIMEOUT_S = 30.0
_CHUNK = 1 << 20


class ComfyFault(ComfyUnavailable):
    """ComfyUI answers, with a status that tells of a fault of its own."""


@dataclass(frozen=True)
class OutputFile:
    """A file that a node reported: `kind` is the output's key, `type` ComfyUI's folder."""

    node_id: str
    kind: str
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class History:
    """What `/history` says of a prompt that is over.

    `texts` are outputs that are not files. `messages` are (event, data) pairs in order.
    """

    completed: bool
    files: tuple[OutputFile, ...]
    texts: Mapping[str, tuple[str, ...]]
    messages: tuple[tuple[str, Mapping[str, Any]], ...]

    def message(self, kind: str) -> Mapping[str, Any] | None:
        """The data of the first message of `kind`."""
        return next((data for name, data in self.messages if name == kind), None)

    @property
    def execution_s(self) -> float | None:
        """Seconds from ComfyUI's start of the prompt to its end, by ComfyUI's own clock."""
        stamps = [data["timestamp"] for _, data in self.messages if "timestamp" in data]
        return (max(stamps) - min(stamps)) / 1000 if stamps else None


class ComfyClient:
    """Talks to the ComfyUI at `base_url`."""

    def __init__(self, base_url: str, timeout_s: float = _TIMEOUT_S) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        # urllib3 and not requests, which takes a third of a millisecond more for every request.
        self._pool = urllib3.connection_from_url(self.base_url, maxsize=8, retries=False)

    def close(self) -> None:
        """Close the kept connections."""
        self._pool.close()

    def socket_url(self, client_id: str) -> str:
        """The WebSocket's address for `client_id`."""
        return f"ws{self.base_url.removeprefix('http')}/ws?clientId={client_id}"

    def system_stats(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Versions, memory and devices."""
        return self._get("/system_stats", timeout_s)

    def free_vram_bytes(self, timeout_s: float) -> int | None:
        """Free memory of the first device; None where there is none."""
        devices: list[dict[str, Any]] = self.system_stats(timeout_s).get("devices") or []
        return devices[0].get("vram_free") if devices else None

    def node_info(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Every node class with its inputs and outputs."""
        return self._get("/object_info", timeout_s)

    def submit(self, graph: Graph, prompt_id: str, client_id: str) -> None:
        """Queue a graph under our own `prompt_id`; raises `ComfyRejected` when it is refused.

        ComfyUI accepts a graph of which one output is invalid and then reports success without
        it, so node errors under status 200 are refused here as well.
        """
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
        response = self._request("POST", "/prompt", json=body)
        if response.status not in (200, 400):
            raise ComfyFault(f"ComfyUI answered {response.status} to the graph")
        answer = _json_of(response, "/prompt")
        node_errors: dict[str, Any] = answer["node_errors"]
        if response.status == 400 or node_errors:
            reasons = explain(answer.get("error"), node_errors, graph)
            raise ComfyRejected("ComfyUI refused the workflow: " + "; ".join(reasons))

    def queue_state(self, prompt_id: str, timeout_s: float | None = None) -> str | None:
        """ "running", "pending" or None for a prompt that is not in the queue."""
        queue = self._get("/queue", timeout_s)
        for state in ("running", "pending"):
            if any(item[1] == prompt_id for item in queue[f"queue_{state}"]):
                return state
        return None

    def history(self, prompt_id: str, timeout_s: float | None = None) -> History | None:
        """What became of a prompt; None while it is not over."""
        entry = self._get(f"/history/{prompt_id}", timeout_s).get(prompt_id)
        return None if entry is None else _history(entry)

    def interrupt(self, prompt_id: str, timeout_s: float | None = None) -> None:
        """Stop a prompt after its current step if it runs, and take it out of the queue."""
        self._post("/queue", {"delete": [prompt_id]}, timeout_s)
        self._post("/interrupt", {"prompt_id": prompt_id}, timeout_s)

    def interrupt_all(self, timeout_s: float) -> None:
        """Stop whatever runs, and empty the queue."""
        self._post("/queue", {"clear": True}, timeout_s)
        self._post("/interrupt", {}, timeout_s)

    def free_memory(self, timeout_s: float) -> None:
        """Have models and kept results unloaded as soon as nothing runs."""
        self._post("/free", {"unload_models": True, "free_memory": True}, timeout_s)

    def forget(self, prompt_id: str, timeout_s: float | None = None) -> None:
        """Remove a prompt from the history."""
        self._post("/history", {"delete": [prompt_id]}, timeout_s)

    def upload(self, path: Path, subfolder: str) -> None:
        """Put a file into the input folder under its own name."""
        fields = {
            "image": (path.name, path.read_bytes()),
            "type": "input",
            "subfolder": subfolder,
            "overwrite": "true",
        }
        response = self._request("POST", "/upload/image", fields=fields)
        if response.status != 200:
            raise ComfyFault(f"ComfyUI answered {response.status} to an input file")

    def download(self, file: OutputFile, target: BinaryIO) -> bool:
        """Write an output file to `target`; False when ComfyUI does not have it any more."""
        with self._view(file) as response:
            if response.status != 200:
                return False
            with _as_unavailable("/view"):
                target.writelines(response.stream(_CHUNK))
        return True

    def has(self, file: OutputFile) -> bool:
        """Whether ComfyUI still has an output file."""
        with self._view(file) as response:
            return response.status == 200

    @contextmanager
    def _view(self, file: OutputFile) -> Generator[urllib3.BaseHTTPResponse]:
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        path = f"/view?{urlencode(query)}"
        response = self._request("GET", path, preload_content=False)
        try:
            yield response
        finally:
            # What was not read would stand before the next answer on this connection.
            response.close()

    def _get(self, path: str, timeout_s: float | None = None) -> Any:
        response = self._request("GET", path, timeout=timeout_s)
        if response.status != 200:
            raise ComfyFault(f"ComfyUI answered {response.status} to {path}")
        return _json_of(response, path)

    def _post(self, path: str, body: Mapping[str, Any], timeout_s: float | None) -> None:
        response = self._request("POST", path, json=body, timeout=timeout_s)
        if response.status != 200:
            raise ComfyFault(f"ComfyUI answered {response.status} to {path}")

    def _request(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        options["timeout"] = options.get("timeout") or self._timeout_s
        with _as_unavailable(path):
            return self._pool.request(method, path, redirect=False, **options)


@contextmanager
def _as_unavailable(path: str) -> Generator[None]:
    """Turn a fault of the connection into the contract's error."""
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise ComfyUnavailable(f"ComfyUI does not answer {path.partition('?')[0]}") from error


def _json_of(response: urllib3.BaseHTTPResponse, path: str) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise ComfyUnavailable(f"ComfyUI does not answer {path} with JSON") from error


def _history(entry: Mapping[str, Any]) -> History:
    files: list[OutputFile] = []
    texts: dict[str, tuple[str, ...]] = {}
    outputs: Mapping[str, Mapping[str, object] | None] = entry["outputs"]
    for node_id, kinds in outputs.items():
        for kind, reported in (kinds or {}).items():
            # Node packs report single numbers and texts as well as lists.
            values = cast("list[Any]", reported if isinstance(reported, list) else [reported])
            files += [_output_file(node_id, kind, v) for v in values if _is_file(v)]
            strings = tuple(v for v in values if isinstance(v, str))
            if strings:
                texts[node_id] = strings
    status: Mapping[str, Any] = entry["status"]
    messages: list[tuple[str, Mapping[str, Any]]] = status["messages"]
    return History(
        completed=status["status_str"] == "success",
        files=tuple(files),
        texts=texts,
        messages=tuple((name, data) for name, data in messages),
    )


def _is_file(value: object) -> bool:
    return isinstance(value, dict) and "filename" in value


def _output_file(node_id: str, kind: str, value: Mapping[str, str]) -> OutputFile:
    return OutputFile(
        node_id, kind, value["filename"], value.get("subfolder", ""), value.get("type", "output")
    )
