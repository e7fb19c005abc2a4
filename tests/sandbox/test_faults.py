"""Each misbehaviour that the sandbox can be told to show."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket
from tests.sandbox.probe import (
    Probe,
    outline,
    receive,
    sandbox,
    small_graph,
    until_idle,
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with sandbox(tmp_path_factory.mktemp("faults"), "--speed", "0") as probe:
        yield probe


@pytest.fixture
def probe(running: Probe) -> Iterator[Probe]:
    yield running
    running.disarm()


@pytest.fixture
def graph() -> dict[str, Any]:
    """A graph of which nothing but its loaders is cached."""
    return small_graph(text=uuid.uuid4().hex)


def until_closed(socket: websocket.WebSocket) -> list[str]:
    kinds: list[str] = []
    with suppress(websocket.WebSocketConnectionClosedException, ConnectionError):
        while text := socket.recv():
            kinds.append(text)
    return kinds


def silent(socket: websocket.WebSocket, seconds: float = 0.2) -> bool:
    """Whether nothing comes for so long."""
    socket.settimeout(seconds)
    try:
        socket.recv()
    except websocket.WebSocketTimeoutException:
        return True
    return False


def last_message(entry: dict[str, Any]) -> tuple[str, dict[str, str]]:
    kind, data = entry["status"]["messages"][-1]
    return kind, data


def test_drop_socket_closes_it_and_the_prompt_runs_on(probe: Probe, graph: dict[str, Any]) -> None:
    """The client sees the step it was told and then a closed socket; the history has the file."""
    probe.arm("drop_socket", after_steps=2)
    with probe.listen("dropped") as socket:
        prompt_id = probe.submit(graph, client_id="dropped")
        seen = until_closed(socket)
    assert sum('"progress"' in text for text in seen) == 2
    assert not any("execution_success" in text for text in seen)
    assert probe.file(probe.wait(prompt_id)).is_file()


def test_a_half_open_socket_neither_speaks_nor_closes(probe: Probe, graph: dict[str, Any]) -> None:
    """After the step there is no event, no close and no answer to a ping; a new socket works."""
    probe.arm("half_open", after_steps=1)
    with probe.listen("half") as socket:
        prompt_id = probe.submit(graph, client_id="half")
        while receive(socket)["type"] != "progress":
            pass
        probe.wait(prompt_id)
        socket.ping()
        assert silent(socket)
        with probe.listen("half") as again:
            probe.submit(graph, client_id="half")
            assert until_idle(again)
        assert silent(socket)


def test_lose_final_sends_nothing_after_the_last_node(probe: Probe, graph: dict[str, Any]) -> None:
    """The last event is the save node's; the history says success."""
    probe.arm("lose_final")
    with probe.listen("lost") as socket:
        prompt_id = probe.submit(graph, client_id="lost")
        while receive(socket)["data"].get("output") is None:
            pass
        assert receive(socket)["type"] == "progress_state"
        assert probe.wait(prompt_id)["status"]["status_str"] == "success"
        assert silent(socket)
        probe.submit(graph, client_id="lost")
        socket.settimeout(10)
        assert outline(until_idle(socket))[-3][0] == "execution_success"


@pytest.mark.parametrize("queued", [True, False])
def test_prompt_500_answers_so_once(probe: Probe, graph: dict[str, Any], queued: bool) -> None:
    """With `queued` the prompt runs all the same; without, it was never there."""
    probe.arm("prompt_500", queued=queued)
    prompt_id = str(uuid.uuid4())
    body = {"prompt": graph, "prompt_id": prompt_id}
    assert probe.post("/prompt", body).status_code == 500
    if queued:
        assert probe.file(probe.wait(prompt_id)).is_file()
    else:
        assert probe.get("/prompt").json()["exec_info"]["queue_remaining"] == 0
        assert probe.get(f"/history/{prompt_id}").json() == {}
    assert probe.post("/prompt", {"prompt": graph}).status_code == 200


def test_hang_never_answers_the_post(probe: Probe, graph: dict[str, Any]) -> None:
    """The prompt runs, other requests are answered, and the next post is."""
    probe.arm("hang")
    prompt_id = str(uuid.uuid4())
    body = {"prompt": graph, "prompt_id": prompt_id}
    with pytest.raises(requests.Timeout):
        probe.session.post(f"{probe.url}/prompt", json=body, timeout=0.3)
    assert probe.wait(prompt_id)["status"]["completed"]
    assert probe.post("/prompt", body | {"prompt_id": str(uuid.uuid4())}).status_code == 200


def test_hang_can_take_every_request(probe: Probe) -> None:
    """Nothing is answered from then on, until it is disarmed."""
    probe.arm("hang", everything=True)
    with pytest.raises(requests.Timeout):
        probe.session.get(f"{probe.url}/queue", timeout=0.3)
    probe.disarm()
    assert probe.get("/queue").status_code == 200


def test_crash_ends_the_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the middle of the prompt, with the status asked for."""
    with sandbox(tmp_path_factory.mktemp("crash"), "--speed", "0") as probe:
        probe.arm("crash", after_steps=3, exit_code=7)
        with probe.listen("victim") as socket:
            with suppress(requests.ConnectionError):  # it may be gone before it has answered
                probe.submit(small_graph(), client_id="victim")
            assert not any("execution_success" in text for text in until_closed(socket))
        assert probe.child.wait(timeout=5) == 7


def test_out_of_memory_is_told_as_torch_tells_it(probe: Probe, graph: dict[str, Any]) -> None:
    """ComfyUI's tip follows torch's text; the next prompt finds the nodes before it cached."""
    probe.arm("out_of_memory")
    kind, data = last_message(probe.run(graph))
    assert (kind, data["node_type"]) == ("execution_error", "SamplerCustomAdvanced")
    assert data["exception_type"] == "torch.OutOfMemoryError"
    assert data["exception_message"].startswith("CUDA out of memory. Tried to allocate")
    assert data["exception_message"].endswith(
        "\nThis error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked "
        "before you might have accidentally set the batch_size to a large number."
    )
    again = probe.run(graph)
    assert again["status"]["completed"]
    assert len(again["status"]["messages"][1][1]["nodes"]) >= 10


def test_a_cuda_fault_stays(probe: Probe) -> None:
    """Every prompt fails with it, without the tip, until it is disarmed."""
    probe.arm("cuda_fault")
    for _ in range(2):
        kind, data = last_message(probe.run(small_graph(text=uuid.uuid4().hex)))
        assert (kind, data["exception_type"]) == ("execution_error", "torch.AcceleratorError")
        assert data["exception_message"].startswith("CUDA error: an illegal memory access")
        assert data["exception_message"].endswith("incorrect.\n")
    probe.disarm()
    assert probe.run(small_graph(text=uuid.uuid4().hex))["status"]["completed"]


def test_any_node_can_fail_in_any_way(probe: Probe, graph: dict[str, Any]) -> None:
    """The class, the exception's name and its message are as asked for."""
    probe.arm(
        "execution_error", node_class="VAEDecodeTiled", exception_type="a.B", message="no luck"
    )
    kind, data = last_message(probe.run(graph))
    assert (kind, data["node_type"]) == ("execution_error", "VAEDecodeTiled")
    assert (data["exception_type"], data["exception_message"]) == ("a.B", "no luck\n")
    assert data["traceback"]


def test_stale_cache_reports_a_file_that_is_not_there(probe: Probe, graph: dict[str, Any]) -> None:
    """Success, a name, and 404 for it; the same prompt again says the same."""
    probe.arm("stale_cache")
    for _ in range(2):
        entry = probe.run(graph)
        assert entry["status"]["status_str"] == "success"
        file = probe.file(entry)
        view = {"filename": file.name, "subfolder": file.parent.name}
        assert probe.get("/view", **view).status_code == 404


def test_slow_takes_its_time_for_every_step(probe: Probe, graph: dict[str, Any]) -> None:
    """Eleven steps of a two-pass workflow take eleven times the delay."""
    probe.arm("slow", delay_s=0.02)
    started = time.monotonic()
    probe.run(graph)
    assert time.monotonic() - started >= 11 * 0.02


def test_faults_strike_as_many_prompts_as_told(probe: Probe) -> None:
    """They are listed with what they have left, and those after are left alone."""
    probe.arm("execution_error", count=2)
    ends = []
    for _ in range(3):
        ends.append(last_message(probe.run(small_graph(text=uuid.uuid4().hex)))[0])
        armed = probe.get("/sandbox/faults").json()["armed"]
        assert [fault["remaining"] for fault in armed] == ([1] if len(ends) == 1 else [])
    assert ends == ["execution_error", "execution_error", "execution_success"]


def test_an_unknown_fault_is_refused(probe: Probe) -> None:
    """The answer names the faults that there are, or the options that a fault has."""
    answer = probe.post("/sandbox/faults", {"fault": "earthquake"})
    assert (answer.status_code, "out_of_memory" in answer.json()["error"]) == (400, True)
    answer = probe.post("/sandbox/faults", {"fault": "slow", "after": 1})
    assert (answer.status_code, "delay_s" in answer.json()["error"]) == (400, True)


def test_a_node_without_inputs_ends_the_worker(tmp_path: Path) -> None:
    """As ComfyUI 0.27: the prompt is accepted, and from then on nothing runs."""
    with sandbox(tmp_path, "--speed", "0") as probe:
        poisoned = small_graph() | {"loose": {"class_type": "RandomNoise"}}
        prompt_id = probe.submit(poisoned)
        probe.until_running(prompt_id)
        after = probe.submit(small_graph())
        assert probe.get("/prompt").json() == {"exec_info": {"queue_remaining": 2}}
        assert [probe.get(f"/history/{key}").json() for key in (prompt_id, after)] == [{}, {}]
