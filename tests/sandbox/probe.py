"""A sandbox in its own process, and a plain client to look at what it answers and sends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import websocket
from tests.sandbox.graphs import Graph, two_passes

from ltx_worker.catalog import load_catalog
from ltx_worker.workflow.nodes import load_node_schema

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "recorded"
TIMEOUT_S = 15

# The model files of the ComfyUI that was recorded.
RECORDED_MODELS = {
    "checkpoints": ["ltx-2-19b-tiny.safetensors", "ltx-2.3-22b-tiny.safetensors"],
    "text_encoders": ["gemma_3_tiny_core.safetensors"],
    "latent_upscale_models": ["ltx-2-spatial-upscaler-x2-tiny.safetensors"],
    "loras": ["ltx-2-tiny-lora.safetensors"],
}

Message = dict[str, Any]


@dataclass
class Probe:
    """A running sandbox, its folders and its process."""

    url: str
    input_dir: Path
    output_dir: Path
    child: subprocess.Popen[str]
    session: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str, **params: Any) -> requests.Response:
        return self.session.get(self.url + path, params=params, timeout=TIMEOUT_S)

    def post(self, path: str, body: Any) -> requests.Response:
        return self.session.post(self.url + path, json=body, timeout=TIMEOUT_S)

    def arm(self, fault: str, **options: Any) -> None:
        self.post("/sandbox/faults", {"fault": fault, **options}).raise_for_status()

    def disarm(self) -> None:
        self.session.delete(f"{self.url}/sandbox/faults", timeout=TIMEOUT_S)

    def submit(self, graph: Graph, **fields: Any) -> str:
        answer = self.post("/prompt", {"prompt": graph, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()["prompt_id"]

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """The history of a prompt, once it has one."""
        give_up = time.monotonic() + TIMEOUT_S
        while time.monotonic() < give_up:
            if found := self.get(f"/history/{prompt_id}").json():
                return found[prompt_id]
            time.sleep(0.005)
        raise AssertionError(f"prompt {prompt_id} did not end")

    def run(self, graph: Graph, **fields: Any) -> dict[str, Any]:
        return self.wait(self.submit(graph, **fields))

    def until_running(self, prompt_id: str) -> None:
        give_up = time.monotonic() + TIMEOUT_S
        while time.monotonic() < give_up:
            if prompt_id in [row[1] for row in self.get("/queue").json()["queue_running"]]:
                return
            time.sleep(0.005)
        raise AssertionError(f"prompt {prompt_id} did not start")

    @contextmanager
    def listen(self, client_id: str) -> Iterator[websocket.WebSocket]:
        """A socket whose first event, the queue's status, has come.

        It is closed with a handshake: the server has forgotten it when this returns.
        """
        url = f"{self.url.replace('http', 'ws')}/ws?clientId={client_id}"
        socket = websocket.create_connection(url, timeout=TIMEOUT_S)
        try:
            assert receive(socket)["type"] == "status"
            yield socket
        finally:
            with suppress(OSError, websocket.WebSocketException):
                socket.close(timeout=1)
            socket.shutdown()

    def follow(self, graph: Graph) -> list[Message]:
        """All events of a prompt, up to the one that says that nothing runs any more."""
        client_id = uuid.uuid4().hex
        with self.listen(client_id) as socket:
            self.submit(graph, client_id=client_id)
            return until_idle(socket)

    def file(self, entry: dict[str, Any]) -> Path:
        """The one file that a prompt reported."""
        (saved,) = [file for found in entry["outputs"].values() for file in found.get("images", ())]
        return self.output_dir / saved["subfolder"] / saved["filename"]


@contextmanager
def sandbox(folder: Path, *options: str) -> Iterator[Probe]:
    """A sandbox on a free port, found from the line that it prints."""
    input_dir, output_dir = folder / "input", folder / "output"
    command = [sys.executable, "-m", "ltx_worker.sandbox", "--port", "0", *options]
    command += ["--input-directory", str(input_dir), "--output-directory", str(output_dir)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.fullmatch(r"sandbox listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        probe = Probe(found[1], input_dir, output_dir, child)
        with probe.session:
            try:
                yield probe
            finally:
                child.terminate()


@contextmanager
def recorded_sandbox(folder: Path) -> Iterator[Probe]:
    """A sandbox that offers the model files of the ComfyUI that was recorded."""
    node_info = load_catalog().offer(load_node_schema(), RECORDED_MODELS)
    file = folder / "node_info.json"
    file.write_text(json.dumps(node_info))
    with sandbox(folder, "--speed", "0", "--node-info", str(file)) as probe:
        yield probe


def receive(socket: websocket.WebSocket) -> Message:
    return json.loads(socket.recv())


def until_idle(socket: websocket.WebSocket) -> list[Message]:
    messages = [receive(socket)]
    while messages[-1]["type"] != "executing" or messages[-1]["data"]["node"] is not None:
        messages.append(receive(socket))
    return messages


def recorded_graph() -> Graph:
    return json.loads((RECORDED / "base_graph.json").read_text())


def small_graph(kind: str = "t2v_fast", **changes: Any) -> Graph:
    """A graph of two passes at 256x128 and 9 frames; `changes` are inputs by name."""
    graph = two_passes(kind)
    for name, value in changes.items():
        for node in graph.values():
            if name in node["inputs"] and not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
    return graph


def node_of(graph: Graph, class_type: str) -> str:
    """The first node of a class."""
    return next(key for key, node in graph.items() if node["class_type"] == class_type)


def outline(messages: list[Message]) -> list[Any]:
    """What events say, without times and names of files."""
    lines: list[Any] = []
    for message in messages:
        kind, data = message["type"], message["data"]
        line: list[Any] = [kind, data.get("node")]
        if kind == "progress_state":
            state = list(data["nodes"].values())[-1]
            line = [kind, state["node_id"], state["state"], state["value"], state["max"]]
        elif kind == "status":
            line = [kind, data["status"]["exec_info"]["queue_remaining"]]
        elif kind == "executed":
            line += [data["output"] is not None]
        elif kind == "progress":
            line += [data["value"], data["max"]]
        elif kind == "execution_cached":
            line = [kind, *data["nodes"]]
        lines.append(line)
    return lines
