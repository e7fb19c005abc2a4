"""The frame parser, on the frames that a real ComfyUI sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_worker.comfy.events import Cached, Ended, Executed, Executing, Progress, Started, parse

RECORDING = Path(__file__).parents[1] / "recorded" / "ws_trace.jsonl"


def recorded(run: str) -> list[str]:
    """The text frames of one recorded run, as they came."""
    rows = (json.loads(line) for line in RECORDING.read_text().splitlines())
    return [json.dumps(row["msg"]) for row in rows if row["run"] == run and row["kind"] == "text"]


@pytest.mark.parametrize(
    "run",
    [
        "success_cold",
        "success_new_seed",
        "success_identical_resubmit",
        "partial_invalid_output",
        "runtime_error_sampling",
        "runtime_error_broken_ckpt",
        "interrupt_global",
        "interrupt_targeted",
        "previews_auto",
    ],
)
def test_every_recorded_run_starts_and_ends_once(run: str) -> None:
    """Whatever became of a prompt, its first event is its start and its last its end."""
    events = [event for frame in recorded(run) if (event := parse(frame)) is not None]
    assert isinstance(events[0], Started)
    assert [i for i, e in enumerate(events) if isinstance(e, Ended)] == [len(events) - 1]
    assert len({event.prompt_id for event in events}) == 1


def test_a_cold_run_names_every_node_and_step() -> None:
    """Nothing is cached; each of both samplers' steps is seen, up to its maximum."""
    events = [event for frame in recorded("success_cold") if (event := parse(frame)) is not None]
    assert [e.node_ids for e in events if isinstance(e, Cached)] == [frozenset()]
    nodes = [e.node_id for e in events if isinstance(e, Executing)]
    assert len(nodes) == len(set(nodes)) > 20
    steps = [e for e in events if isinstance(e, Progress)]
    assert steps
    assert all(0 <= step.value <= step.maximum for step in steps)
    assert any(isinstance(e, Executed) for e in events)


def test_an_identical_prompt_runs_no_node() -> None:
    """A graph that ComfyUI has the results of is all cached."""
    events = [parse(frame) for frame in recorded("success_identical_resubmit")]
    assert not any(isinstance(event, Executing) for event in events)
    (cached,) = [event for event in events if isinstance(event, Cached)]
    assert len(cached.node_ids) > 20


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x01binary preview",
        "",
        "not json",
        "[]",
        "5",
        "{}",
        '{"type": "executing"}',
        '{"type": "executing", "data": {"node": "4"}}',
        '{"type": "progress", "data": {"prompt_id": "p", "node": "4", "value": "x", "max": 2}}',
        '{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}}',
        '{"type": "something new", "data": {"prompt_id": "p"}}',
    ],
)
def test_what_is_not_ours_is_nothing(frame: str | bytes) -> None:
    """Previews, broken frames, unknown types and frames of no known prompt are ignored."""
    assert parse(frame) is None


@given(st.text() | st.binary() | st.dictionaries(st.text(), st.text()).map(json.dumps))
def test_no_frame_breaks_the_parser(frame: str | bytes) -> None:
    """Any frame gives an event or nothing."""
    assert parse(frame) is None
