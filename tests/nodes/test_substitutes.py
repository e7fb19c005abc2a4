"""The worker's save node in place of ComfyUI's, where ComfyUI has it."""

from __future__ import annotations

from typing import Any

import pytest
from ltx_worker_nodes.encoding_settings import default_quality, formats, qualities

from ltx_worker.catalog import load_catalog
from ltx_worker.errors import WorkflowMismatch
from ltx_worker.repertoire import Repertoire
from ltx_worker.request_fields import ClipQuality
from ltx_worker.settings import Settings
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.nodes import explain, load_node_schema, validate
from ltx_worker.workflow.values import Placed

CATALOG = load_catalog()
STOCK = CATALOG.offer(load_node_schema(), CATALOG.names())
# As ComfyUI tells it; tests/comfyui holds it against the running one.
NODE = {
    "input": {
        "required": {
            "video": ["VIDEO", {}],
            "filename_prefix": ["STRING", {"default": "video/ComfyUI"}],
            "format": ["COMBO", {"default": "mp4", "options": list(formats())}],
            "quality": ["COMBO", {"default": default_quality(), "options": list(qualities())}],
        }
    },
    "output": ["VIDEO"],
    "output_node": True,
}
OURS = {**STOCK, "LTXWorkerSaveVideo": NODE}


def repertoire(node_info: dict[str, Any], **settings: Any) -> Repertoire:
    made = Repertoire(Settings(**settings))
    made.learn(node_info)
    return made


def saved(node_info: dict[str, Any], output: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The node that saves the clip, in the graph of a job with this `output`."""
    return graph_of(node_info, output, **settings)["save"]


def graph_of(node_info: dict[str, Any], output: dict[str, Any], **settings: Any) -> Graph:
    """A job's graph, with what saves its clip under `save`."""
    made = repertoire(node_info, **settings)
    request = made.parse({"prompt": "a cat", "output": output}, 0)
    template, graph = made.render(request, Placed(), "ltx2/clip", ())
    checked = validate(graph, node_info)
    assert explain(checked.error, checked.node_errors, graph) == []
    return {**graph, "save": graph[template.output_id]}


def test_every_workflow_fits_with_it() -> None:
    """`learn` refuses a workflow that misuses a node."""
    assert set(repertoire(OURS).workflow_names) == set(repertoire(STOCK).workflow_names)


def test_it_takes_the_place_of_comfyuis_own() -> None:
    node = saved(OURS, {})
    assert node["class_type"] == "LTXWorkerSaveVideo"
    assert node["_meta"] == {"title": "Save video"}
    assert node["inputs"].pop("video")[1] == 0
    assert node["inputs"] == {
        "filename_prefix": "ltx2/clip",
        "format": "mp4",
        "quality": default_quality(),
    }


def test_nothing_changes_where_comfyui_lacks_it() -> None:
    node = saved(STOCK, {"format": "webm", "quality": "low"})
    assert node["class_type"] == "SaveVideo"
    assert (node["inputs"]["format"], node["inputs"]["codec"]) == ("mp4", "h264")


@pytest.mark.parametrize("quality", ClipQuality.__args__)
def test_a_job_chooses_quality_and_container(quality: str) -> None:
    node = saved(OURS, {"format": "webm", "quality": quality.upper()})
    assert (node["inputs"]["format"], node["inputs"]["quality"]) == ("webm", quality)


def test_the_workers_own_container_is_used_where_a_job_names_none() -> None:
    assert saved(OURS, {}, video_format="webm")["inputs"]["format"] == "webm"


def test_the_workflow_keeps_comfyuis_own_node() -> None:
    """A rendered graph with the substitute does not change what the next one starts from."""
    made = repertoire(OURS)
    request = made.parse({"prompt": "a cat"}, 0)
    template, _ = made.render(request, Placed(), "ltx2/clip", ())
    assert template.graph[template.output_id]["class_type"] == "SaveVideo"


@pytest.mark.parametrize(
    ("node_info", "output", "warned"),
    [
        (STOCK, {"quality": "low"}, True),
        (STOCK, {"format": "webm"}, False),
        (OURS, {"quality": "low"}, False),
    ],
    ids=["no effect", "not asked for", "heeded"],
)
def test_a_quality_without_effect_is_warned_of(
    node_info: dict[str, Any], output: dict[str, Any], warned: bool
) -> None:
    request = repertoire(node_info).parse({"prompt": "a cat", "output": output}, 0)
    assert [w.startswith("output.quality has no effect") for w in request.warnings] == (
        [True] if warned else []
    )


def test_a_node_of_other_inputs_refuses_the_start() -> None:
    """A pack of another version must not fail every job in turn."""
    required = {**NODE["input"]["required"], "bitrate": ["INT", {"min": 1, "max": 9}]}
    with pytest.raises(WorkflowMismatch, match="input 'bitrate' is missing"):
        repertoire({**OURS, "LTXWorkerSaveVideo": {**NODE, "input": {"required": required}}})


def test_the_packs_qualities_are_those_of_a_request() -> None:
    assert qualities() == ClipQuality.__args__
