"""ComfyUI's HTTP surface: one method a route, no policy.

Every request has a timeout, and no proxy of the environment is used: ComfyUI is on this machine
or in this network. A fault of the connection is `ComfyUnavailable`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import requests
from requests.adapters import HTTPAdapter

from ltx_worker.errors import ComfyRejected, ComfyUnavailable
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.nodes import explain

# Loopback answers at once unless ComfyUI's event loop is blocked by a model load.
_TIMEOUT_S = 30.0
_CHUNK = 1 << 20


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

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount("http://", HTTPAdapter(pool_maxsize=8))

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def socket_url(self, client_id: str) -> str:
        """The WebSocket's address for `client_id`."""
        return f"ws{self.base_url.removeprefix('http')}/ws?clientId={client_id}"

    def system_stats(self, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """Versions, memory and devices."""
        return self._get("/system_stats", timeout_s)

    def node_info(self) -> dict[str, Any]:
        """Every node class with its inputs and outputs."""
        return self._get("/object_info")

    def submit(self, graph: Graph, prompt_id: str, client_id: str) -> None:
        """Queue a graph under our own `prompt_id`; raises `ComfyRejected` when it is refused.

        ComfyUI accepts a graph of which one output is invalid and then reports success without
        it, so node errors under status 200 are refused here as well.
        """
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
        response = self._request("POST", "/prompt", json=body)
        if response.status_code not in (200, 400):
            raise ComfyUnavailable(f"ComfyUI answered {response.status_code} to the graph")
        answer = response.json()
        node_errors: dict[str, Any] = answer["node_errors"]
        if response.status_code == 400 or node_errors:
            reasons = explain(answer.get("error"), node_errors, graph)
            raise ComfyRejected("ComfyUI refused the workflow: " + "; ".join(reasons))

    def queue_state(self, prompt_id: str) -> str | None:
        """ "running", "pending" or None for a prompt that is not in the queue."""
        queue = self._get("/queue")
        for state in ("running", "pending"):
            if any(item[1] == prompt_id for item in queue[f"queue_{state}"]):
                return state
        return None

    def history(self, prompt_id: str) -> History | None:
        """What became of a prompt; None while it is not over."""
        entry = self._get(f"/history/{prompt_id}").get(prompt_id)
        return None if entry is None else _history(entry)

    def interrupt(self, prompt_id: str) -> None:
        """Stop a prompt after its current step if it runs, and take it out of the queue."""
        self._post("/queue", {"delete": [prompt_id]})
        self._post("/interrupt", {"prompt_id": prompt_id})

    def forget(self, prompt_id: str) -> None:
        """Remove a prompt from the history."""
        self._post("/history", {"delete": [prompt_id]})

    def upload(self, path: Path, subfolder: str) -> None:
        """Put a file into the input folder under its own name."""
        with path.open("rb") as file:
            response = self._request(
                "POST",
                "/upload/image",
                files={"image": (path.name, file)},
                data={"type": "input", "subfolder": subfolder, "overwrite": "true"},
            )
        if response.status_code != 200:
            raise ComfyUnavailable(f"ComfyUI answered {response.status_code} to an input file")

    def download(self, file: OutputFile, target: BinaryIO) -> bool:
        """Write an output file to `target`; False when ComfyUI does not have it any more."""
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        with self._request("GET", "/view", params=query, stream=True) as response:
            if response.status_code != 200:
                return False
            with _as_unavailable("/view"):
                target.writelines(response.iter_content(_CHUNK))
        return True

    def _get(self, path: str, timeout_s: float = _TIMEOUT_S) -> Any:
        response = self._request("GET", path, timeout=timeout_s)
        if response.status_code != 200:
            raise ComfyUnavailable(f"ComfyUI answered {response.status_code} to {path}")
        return response.json()

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        response = self._request("POST", path, json=body)
        if response.status_code != 200:
            raise ComfyUnavailable(f"ComfyUI answered {response.status_code} to {path}")

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", _TIMEOUT_S)
        with _as_unavailable(path):
            return self._session.request(method, self.base_url + path, **options)


@contextmanager
def _as_unavailable(path: str) -> Generator[None]:
    """Turn a fault of the connection into the contract's error."""
    try:
        yield
    except requests.RequestException as error:
        raise ComfyUnavailable(f"ComfyUI does not answer {path}") from error


def _history(entry: Mapping[str, Any]) -> History:
    files: list[OutputFile] = []
    texts: dict[str, tuple[str, ...]] = {}
    outputs: Mapping[str, Mapping[str, list[Any]] | None] = entry["outputs"]
    for node_id, kinds in outputs.items():
        for kind, values in (kinds or {}).items():
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
