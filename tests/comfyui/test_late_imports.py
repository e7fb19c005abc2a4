"""What LTX-2 does not need is not loaded as ComfyUI starts, nor by a job, and works when used."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.comfyui.comfyui_script import printed_by
from tests.comfyui.test_save_video import placed
from tests.comfyui.tiny_engine import tiny_comfyui, tiny_options
from tests.conftest import SMALL, executor_at, settings_for

from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker

pytestmark = pytest.mark.timeout(300)

USED_FIRST = "is used first: loaded in"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> dict[str, Any]:
    """What the script found, in ComfyUI's Python."""
    options = tiny_options(tmp_path_factory.mktemp("late"))
    here = ("--cpu", "--database-url", "sqlite:///:memory:")
    return printed_by("late_imports_check.py", *here, *options, interpreted=False)


def test_comfyui_imports_all_of_the_list_and_loads_none(report: dict[str, Any]) -> None:
    """A module that it does not import has no business in the list."""
    assert report["loaded"] == []
    assert len(report["imported"]) > 20
    assert report["absent"] == []


def test_operators_work_without_torch_dynamo_and_compile_with_it(report: dict[str, Any]) -> None:
    compiled = report["compiled"]
    assert compiled["close"]
    assert not compiled["loaded before"]
    assert compiled["same"]
    assert compiled["loaded after"]
    assert compiled["graphs"] == 2


def test_what_was_imported_early_works_when_it_is_used(report: dict[str, Any]) -> None:
    assert len(report["used"]) == 6
    assert all(report["used"].values()), report["used"]
    assert report["still stand-ins"] == []


def test_a_job_loads_nothing_of_the_list(tmp_path: Path, clean_environment: None) -> None:
    """And a node of another kind loads what it uses."""
    with tiny_comfyui(tmp_path) as engine:
        worker = Worker(settings_for(engine))
        worker.start()
        for family in ("ltx-2", "ltx-2.3"):
            job = {"id": family, "input": SMALL | {"model": family}}
            assert worker.run(job, StopSignal(120), lambda _: None).video
        assert USED_FIRST not in "\n".join(engine.process.log_tail)
        image = placed(engine, 64, 64)
        edges = {"image": ["load", 0], "low_threshold": 0.1, "high_threshold": 0.3}
        graph = {
            "load": {"class_type": "LoadImage", "inputs": {"image": image}},
            "edges": {"class_type": "Canny", "inputs": edges},
            "save": {"class_type": "PreviewImage", "inputs": {"images": ["edges", 0]}},
        }
        executor = executor_at(engine.url)
        executor.execute(graph, str(uuid.uuid4()), StopSignal(120), lambda _: None)
        worker.close()
        assert f"kornia.filters {USED_FIRST}" in "\n".join(engine.process.log_tail)
