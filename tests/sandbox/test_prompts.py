"""How the sandbox runs prompts: its cache, its queue, interrupts, and who is told."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sandbox.probe import (
    RECORDED,
    Probe,
    node_of,
    outline,
    receive,
    sandbox,
    small_graph,
    until_idle,
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with sandbox(tmp_path_factory.mktemp("sandbox"), "--speed", "0") as running:
        yield running


def cached_nodes(entry: dict[str, Any]) -> set[str]:
    return set(entry["status"]["messages"][1][1]["nodes"])


def test_an_identical_graph_repeats_the_old_file(probe: Probe) -> None:
    """Other node ids and titles change nothing; the old name comes back even without its file."""
    graph = small_graph(noise_seed=100)
    first = probe.run(graph)
    probe.file(first).unlink()
    text = json.dumps(graph)
    for node_id in sorted(graph, key=int, reverse=True):
        text = text.replace(f'"{node_id}": {{', f'"9{node_id}": {{')
        text = text.replace(f'["{node_id}", ', f'["9{node_id}", ')
    renumbered = {key: node | {"_meta": {}} for key, node in json.loads(text).items()}
    second = probe.run(renumbered)
    assert cached_nodes(second) == set(renumbered)
    assert probe.file(second) == probe.file(first)
    assert not probe.file(second).exists()


def test_a_new_prefix_runs_only_the_save_node(probe: Probe) -> None:
    """What leads to the save node is taken from the cache, and the new file is written."""
    probe.run(small_graph(noise_seed=101))
    graph = small_graph(noise_seed=101, filename_prefix="other/clip")
    entry = probe.run(graph)
    assert set(graph) - cached_nodes(entry) == {node_of(graph, "SaveVideo")}
    assert probe.file(entry) == probe.output_dir / "other" / "clip_00001_.mp4"
    assert probe.file(entry).is_file()


def test_another_picture_of_the_same_name_is_seen(probe: Probe) -> None:
    """A picture that was overwritten makes its node and what follows run again."""
    from PIL import Image

    graph = small_graph("i2v_fast", image="same.png", noise_seed=102)
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 32), colour).save(probe.input_dir / "same.png")
        entry = probe.run(graph)
        assert node_of(graph, "LoadImage") not in cached_nodes(entry)


def test_freeing_memory_empties_the_cache(probe: Probe) -> None:
    """`unload_models` keeps what nodes gave, `free_memory` forgets it."""
    graph = small_graph(noise_seed=103)
    probe.run(graph)
    assert probe.post("/free", {"unload_models": True}).content == b""
    assert cached_nodes(probe.run(graph)) == set(graph)
    probe.post("/free", {"free_memory": True})
    assert cached_nodes(probe.run(graph)) == set()


def test_one_bad_output_does_not_stop_the_others(probe: Probe) -> None:
    """Status 200 with node_errors; the run succeeds without the bad output's file."""
    graph = small_graph(noise_seed=104)
    graph["pictures"] = copy.deepcopy(graph[node_of(graph, "SaveVideo")])
    decoded = [node_of(graph, "VAEDecodeTiled"), 0]
    graph["pictures"] |= {
        "class_type": "SaveImage",
        "inputs": {"images": decoded, "filename_prefix": "picture"},
    }
    graph[node_of(graph, "CreateVideo")]["inputs"]["fps"] = 500.0
    answer = probe.post("/prompt", {"prompt": graph})
    assert answer.status_code == 200
    assert list(answer.json()["node_errors"]) == [node_of(graph, "CreateVideo")]
    entry = probe.wait(answer.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success"
    assert list(entry["outputs"]) == ["pictures"]
    assert len(entry["outputs"]["pictures"]["images"]) == 9


@pytest.mark.parametrize("targeted", [True, False])
def test_an_interrupt_stops_the_running_prompt(probe: Probe, targeted: bool) -> None:
    """The history says error, and only its last message that somebody stopped it."""
    probe.arm("slow", delay_s=0.05)
    with probe.listen("stopper") as socket:
        prompt_id = probe.submit(small_graph(noise_seed=105), client_id="stopper")
        while receive(socket)["type"] != "progress":
            pass
        assert probe.post("/interrupt", {"prompt_id": str(uuid.uuid4())}).status_code == 200
        probe.post("/interrupt", {"prompt_id": prompt_id} if targeted else {})
        assert outline(until_idle(socket))[-3:] == [
            ["execution_interrupted", None],
            ["status", 0],
            ["executing", None],
        ]
    recording = json.loads((RECORDED / "history.json").read_text())["interrupted"]
    entry = probe.wait(prompt_id)
    kind, data = entry["status"]["messages"][-1]
    expected_kind, expected = recording["status"]["messages"][-1]
    assert (kind, data.keys()) == (expected_kind, expected.keys())
    assert entry["status"]["status_str"] == "error"
    assert entry["outputs"] == {}


def test_an_interrupt_for_others_has_no_effect(probe: Probe) -> None:
    """Neither a waiting prompt's id nor an interrupt while idle stops what runs later."""
    probe.post("/interrupt", {})
    probe.arm("slow", delay_s=0.05)
    running = probe.submit(small_graph(noise_seed=106))
    waiting = probe.submit(small_graph(noise_seed=107))
    probe.post("/interrupt", {"prompt_id": waiting})
    for prompt_id in (running, waiting):
        assert probe.wait(prompt_id)["status"]["status_str"] == "success"


def test_a_waiting_prompt_can_be_deleted(probe: Probe) -> None:
    """It leaves the queue, never runs and has no history; `clear` does so to all that wait."""
    probe.arm("slow", delay_s=0.1)
    running = probe.submit(small_graph(noise_seed=108))
    probe.until_running(running)
    waiting = [probe.submit(small_graph(noise_seed=seed)) for seed in (109, 110, 111)]
    rows = probe.get("/queue").json()
    assert [row[1] for row in rows["queue_pending"]] == waiting
    assert len(rows["queue_running"][0]) == 5
    probe.post("/queue", {"delete": waiting[:1]})
    assert [row[1] for row in probe.get("/queue").json()["queue_pending"]] == waiting[1:]
    probe.post("/queue", {"clear": True})
    probe.post("/interrupt", {})
    probe.wait(running)
    assert probe.get("/prompt").json() == {"exec_info": {"queue_remaining": 0}}
    assert [probe.get(f"/history/{prompt_id}").json() for prompt_id in waiting] == [{}, {}, {}]


def test_events_go_to_the_client_that_asked(probe: Probe) -> None:
    """Another client sees how long the queue is and nothing else."""
    with probe.listen("mine") as mine, probe.listen("other") as other:
        probe.submit(small_graph(noise_seed=112), client_id="mine")
        until_idle(mine)
        assert [receive(other)["type"] for _ in range(3)] == ["status"] * 3
        probe.submit(small_graph(noise_seed=112), client_id="other")
        assert {message["type"] for message in until_idle(other)} > {"execution_cached"}


def test_a_client_that_comes_back_gets_only_the_current_node(probe: Probe) -> None:
    """After a reconnect the first events are the status and the node that is running."""
    probe.arm("slow", delay_s=0.05)
    graph = small_graph(noise_seed=113)
    with probe.listen("back") as socket:
        probe.submit(graph, client_id="back")
        while receive(socket)["type"] != "progress":
            pass
    with probe.listen("back") as socket:
        message = receive(socket)
        assert message == {
            "type": "executing",
            "data": {"node": node_of(graph, "SamplerCustomAdvanced")},
        }
        assert until_idle(socket)[-1]["type"] == "executing"
