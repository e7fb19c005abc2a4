"""The sandbox against what a real ComfyUI 0.27 was seen to answer, send and keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.probe import (
    RECORDED,
    Graph,
    Probe,
    outline,
    recorded_graph,
    recorded_sandbox,
    sandbox,
    small_graph,
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with sandbox(tmp_path_factory.mktemp("sandbox"), "--speed", "0") as running:
        yield running


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with recorded_sandbox(tmp_path_factory.mktemp("recorded")) as running:
        yield running


def without_help(value: Any) -> Any:
    """A body without what differs by machine or is only shown: help texts and tracebacks."""
    if isinstance(value, dict):
        shown = {"tooltip", "traceback"}
        return {key: without_help(item) for key, item in value.items() if key not in shown}
    return [without_help(item) for item in value] if isinstance(value, list) else value


MISTAKES: dict[str, Callable[[Graph], Any]] = {
    "bad_type": lambda graph: graph["10"]["inputs"].update(width="abc"),
    "dangling_link": lambda graph: graph["17"]["inputs"].update(noise=["999", 0]),
    "empty": lambda graph: graph.clear(),
    "missing_input": lambda graph: graph["10"]["inputs"].pop("width"),
    "no_class_type": lambda graph: graph["10"].pop("class_type"),
    "no_outputs": lambda graph: graph.pop("33"),
    "range_and_combo": lambda graph: (
        graph["10"]["inputs"].update(width=16),
        graph["33"]["inputs"].update(format="avi"),
    ),
    "type_mismatch": lambda graph: graph["17"]["inputs"].update(noise=["1", 0]),
    "unknown_class": lambda graph: graph["10"].update(class_type="NoSuchNode"),
    "value_not_in_list": lambda graph: graph["1"]["inputs"].update(ckpt_name="nope.safetensors"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_graph_gets_the_recorded_answer(recorded: Probe, name: str) -> None:
    """Status 400 and, but for help texts and tracebacks, the body that ComfyUI gave."""
    graph = recorded_graph()
    MISTAKES[name](graph)
    answer = recorded.post("/prompt", {"prompt": graph})
    expected = json.loads((RECORDED / "http-400" / f"{name}.json").read_text())
    assert answer.status_code == 400
    assert without_help(answer.json()) == without_help(expected)


def test_a_body_without_a_prompt_gets_the_recorded_answer(recorded: Probe) -> None:
    """Status 400 and ComfyUI's body."""
    answer = recorded.post("/prompt", {})
    assert answer.status_code == 400
    assert answer.json() == json.loads((RECORDED / "http-400" / "no_prompt.json").read_text())


@pytest.mark.parametrize(
    ("name", "body"), [("bad_json", "{not json"), ("prompt_is_string", '{"prompt": "a cat"}')]
)
def test_what_is_no_graph_gets_the_recorded_500(recorded: Probe, name: str, body: str) -> None:
    """ComfyUI fails on these, and so does the sandbox, in aiohttp's words."""
    answer = recorded.session.post(f"{recorded.url}/prompt", data=body, timeout=10)
    assert answer.status_code == 500
    assert answer.text == (RECORDED / "http-400" / f"{name}.txt").read_text()


def test_every_recorded_mistake_is_tried() -> None:
    """No recorded body is left out of the tests above."""
    others = {"no_prompt", "bad_json", "prompt_is_string"}
    assert {file.stem for file in (RECORDED / "http-400").iterdir()} == {*MISTAKES, *others}


def test_events_come_in_the_recorded_order(tmp_path: Path) -> None:
    """Cold, identical and with a new seed: the events, nodes and cached lists of a real run."""
    reseeded = recorded_graph()
    for node_id in ("13", "23"):
        reseeded[node_id]["inputs"]["noise_seed"] = 7
    expected = json.loads((RECORDED / "events.json").read_text())
    with recorded_sandbox(tmp_path) as fresh:
        for run, graph in (
            ("success_cold", recorded_graph()),
            ("success_identical_resubmit", recorded_graph()),
            ("success_new_seed", reseeded),
        ):
            assert outline(fresh.follow(graph)) == expected[run], run


def shape(value: Any) -> Any:
    """The keys and types of a JSON value; of a list those of its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_history_has_the_recorded_shape(recorded: Probe) -> None:
    """Each part of an entry has the keys and types that ComfyUI's has."""
    expected = json.loads((RECORDED / "history.json").read_text())["success"]
    graph = recorded_graph()
    entry = recorded.run(graph, client_id="me")
    assert entry["prompt"][2] == graph
    entry["prompt"][2] = {}
    assert shape(entry) == shape(expected)
    messages = entry["status"]["messages"]
    assert [kind for kind, _ in messages] == [k for k, _ in expected["status"]["messages"]]


def test_a_failure_has_the_recorded_shape(probe: Probe) -> None:
    """The history of a prompt that failed tells the node, the exception and what ran before."""
    recording = json.loads((RECORDED / "history.json").read_text())["runtime_error_broken_ckpt"]
    (probe.input_dir / "broken.png").write_bytes(b"no picture")
    entry = probe.run(small_graph("i2v_fast", image="broken.png"), client_id="me")
    kind, data = entry["status"]["messages"][-1]
    expected_kind, expected = recording["status"]["messages"][-1]
    assert (kind, data.keys()) == (expected_kind, expected.keys())
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    assert data["node_type"] == "LoadImage"
    assert data["exception_type"] == "PIL.UnidentifiedImageError"
    assert data["exception_message"].endswith("\n")
    assert data["current_inputs"] == {"image": ["broken.png"]}
