"""The GPU bench's data, its medians and the file of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.gpu_plan import load_plan
from bench.gpu_report import Results, medians
from tests.unit.test_request import OFFER

from ltx_worker.request_reader import parse_request

PLAN = load_plan()
KNOWN = {"transformer": True, "upsampler": True, "decoder": True}
MACHINE = {"gpu": "NVIDIA H200"}


def run_of(scenario: str, configuration: str, *seconds: float) -> dict[str, Any]:
    return {
        "scenario": scenario,
        "configuration": configuration,
        "jobs": [{"job_s": one, "stages": {"Decoding": one / 2}, "note": "x"} for one in seconds],
    }


@pytest.mark.parametrize("name", sorted(PLAN.scenarios))
def test_every_scenario_is_a_request_that_the_worker_takes(name: str) -> None:
    fields = {"prompt": PLAN.prompts[0], **PLAN.scenarios[name].request}
    request = parse_request(fields, OFFER)
    assert request.num_frames == fields["num_frames"]
    assert str(request.size) == fields["resolution"]


def test_switches_are_added_to_a_configuration_by_their_names() -> None:
    changed = PLAN.configuration("default,-transformer")
    assert changed.launch == PLAN.configuration("default").launch
    assert changed.switched(KNOWN) == KNOWN | {"transformer": False}


def test_all_switches_can_be_off_but_one() -> None:
    changed = PLAN.configuration("default,-all,+decoder")
    assert changed.switched(KNOWN) == dict.fromkeys(KNOWN, False) | {"decoder": True}


def test_a_switch_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no switch magic; there are \['decoder'"):
        PLAN.configuration("default,-magic").switched(KNOWN)


@pytest.mark.parametrize("text", ["fastest", "default,transformer"])
def test_what_names_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no configuration|neither"):
        PLAN.configuration(text)


def test_a_size_takes_the_place_of_the_scenarios_own() -> None:
    scenario = PLAN.scenario("warm-720p-5s", "256x128x9")
    assert scenario.request == {"resolution": "256x128", "num_frames": 9}
    assert scenario.name == "warm-256x128x9"


def test_medians_are_taken_of_every_number_that_all_jobs_have() -> None:
    jobs = run_of("s", "c", 3.0, 1.0, 2.0)["jobs"]
    jobs[1]["boot_s"] = 4.0
    assert medians(jobs) == {"job_s": 2.0, "stages": {"Decoding": 1.0}}


def test_a_days_file_keeps_other_runs_and_replaces_its_own(tmp_path: Path) -> None:
    path = tmp_path / "day.json"
    Results(path, MACHINE).put(run_of("warm", "default", 5.0))
    Results(path, MACHINE).put(run_of("warm", "stock", 9.0))
    Results(path, MACHINE).put(run_of("warm", "default", 4.0, 6.0, 4.0))
    runs = {run["configuration"]: run for run in json.loads(path.read_text())["runs"]}
    assert {name: run["medians"]["job_s"] for name, run in runs.items()} == {
        "default": 4.0,
        "stock": 9.0,
    }
