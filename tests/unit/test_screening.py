"""What a caller's graph may read and write, judged against the recorded node classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ltx_worker.errors import ModelMissing
from ltx_worker.workflow.nodes import load_node_schema
from ltx_worker.workflow.screening import Screened, screen

OWN = "ltx2/0123456789abcdef"
OFFERED = {"photo.png": f"{OWN}/input-1.png", "sub/clip.mp4": f"{OWN}/input-2.mp4"}
HOSTILE: list[Any] = [
    "/etc/passwd",
    "../photo.png",
    "sub/../../photo.png",
    "..\\photo.png",
    "C:\\photo.png",
    "photo.png [output]",
    "photo.png [temp]",
    "../x [input]",
    "other.png",
    "ltx2/ffffffffffffffff/input-1.png",
    {"__value__": "/etc/passwd"},
    ["2", 0],
    ["/etc/passwd"],
    5,
]


def node(class_type: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    """A node of a graph in API format."""
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


def screened(*nodes: dict[str, Any]) -> Screened:
    """The graph of these nodes, numbered from 1, as it was judged."""
    graph = {str(number): one for number, one in enumerate(nodes, 1)}
    return screen(graph, load_node_schema(), OFFERED, OWN)


def inputs_of(*nodes: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the first node gets, where nothing is wrong."""
    result = screened(*nodes)
    assert not result.problems
    return result.graph["1"]["inputs"]


@pytest.mark.parametrize(
    ("class_type", "name"),
    [
        *[("LoadImage", "image"), ("LoadImageMask", "image"), ("LoadImageOutput", "image")],
        *[("LoadAudio", "audio"), ("LoadVideo", "file"), ("LoadLatent", "latent")],
        *[("Load3D", "model_file"), ("Load3D", "image"), ("Painter", "mask")],
        *[("WebcamCapture", "image"), ("RecordAudio", "audio")],
    ],
)
def test_a_loader_gets_only_the_jobs_own_files(class_type: str, name: str) -> None:
    """An uploaded name becomes the job's file; everything else is a problem of that input."""
    for value in ("photo.png", "photo.png [input]"):
        assert inputs_of(node(class_type, **{name: value}))[name] == OFFERED["photo.png"]
    for value in HOSTILE:
        (problem,) = screened(node(class_type, "My loader", **{name: value})).problems
        assert problem.field == f"workflow.1.inputs.{name}"
        assert f"'My loader' ({class_type})" in problem.message
        assert "passwd" not in problem.message


def test_a_loader_of_a_foreign_pack_is_judged_by_its_input() -> None:
    """A text that a loader takes as a path is a file name like any other."""
    foreign = {
        "input": {"required": {"video": ["STRING", {}], "frames": ["INT", {}]}},
        "output": ["IMAGE"],
        "output_node": False,
    }
    info = {**load_node_schema(), "VHS_LoadVideoPath": foreign}
    graph = {"1": node("VHS_LoadVideoPath", video="/etc/passwd", frames=1)}
    assert screen(graph, info, OFFERED, OWN).problems
    graph = {"1": node("VHS_LoadVideoPath", video="sub/clip.mp4", frames=1)}
    assert screen(graph, info, OFFERED, OWN).graph["1"]["inputs"]["video"].endswith("input-2.mp4")


def test_a_node_that_no_output_needs_is_screened_too() -> None:
    """ComfyUI reads the file of every loader, connected or not."""
    result = screened(node("PreviewAny", source="text"), node("LoadImage", image="/dev/zero"))
    assert [problem.field for problem in result.problems] == ["workflow.2.inputs.image"]


@pytest.mark.parametrize(
    ("prefix", "saved"),
    [
        ("ComfyUI", "ComfyUI"),
        ("video/LTX-2 final", "LTX-2 final"),
        ("../../etc/cron.d/x", "x"),
        ("/abs/%year%", "_year_"),
        ("..", "output"),
        ("a\\b", "b"),
        ("", "output"),
        (["2", 0], "output"),
        ({"__value__": "/x/y"}, "output"),
        ("x" * 300, "x" * 64),
    ],
)
def test_a_save_node_writes_into_the_jobs_own_folder(prefix: Any, saved: str) -> None:
    """Whatever the prefix, its last part is kept in a form that is a plain name."""
    for class_type in ("SaveImage", "SaveVideo", "SaveAudioMP3", "CheckpointSave"):
        inputs = inputs_of(node(class_type, filename_prefix=prefix))
        assert inputs["filename_prefix"] == f"{OWN}/{saved}"


def test_a_save_node_without_a_prefix_gets_one() -> None:
    """The default of an optional prefix would lead out of the job's folder."""
    assert inputs_of(node("SaveLoRA"))["prefix"] == f"{OWN}/output"


def test_a_save_node_with_a_folder_of_its_own_keeps_it_within_the_jobs() -> None:
    """Its prefix is then the beginning of a name in that folder."""
    dataset = inputs_of(
        node("SaveImageDataSetToFolder", folder_name="a/set", filename_prefix="b/c")
    )
    assert dataset == {"folder_name": f"{OWN}/set", "filename_prefix": "c"}
    frames = inputs_of(node("LTXVHDRDecodePostprocess", image=["2", 0]))
    assert frames["output_dir"] == f"{OWN}/output"
    assert frames["filename_prefix"] == "output"


@pytest.mark.parametrize(
    ("class_type", "name"),
    [
        ("LTXVHDRDecodePostprocess", "output_dir"),
        ("SaveTrainingDataset", "folder_name"),
        ("LoadTrainingDataset", "folder_name"),
    ],
)
@pytest.mark.parametrize("value", ["/etc", "a/../../b", "~/x", "C:\\x", ["2", 0], 5])
def test_a_folder_that_leads_elsewhere_is_a_problem(class_type: str, name: str, value: Any) -> None:
    """Absolute names, traversal and links are named with node, class and input."""
    (problem,) = screened(node(class_type, **{name: value})).problems
    assert problem.field == f"workflow.1.inputs.{name}"
    assert class_type in problem.message


def test_words_that_are_no_place_are_left_alone() -> None:
    """Prompts, prefixes of texts and ordinary values pass unchanged."""
    graph = [
        node("CLIPTextEncode", text="/imagine ../a cat", clip=["2", 0]),
        node("AddTextPrefix", prefix="../", texts=["1", 0]),
        node("ImageScale", image=["1", 0], width=5, crop="center"),
        node("Preview3D", model_file=["1", 0]),
    ]
    result = screened(*graph)
    assert not result.problems
    assert [one["inputs"] for one in result.graph.values()] == [one["inputs"] for one in graph]


def test_the_graph_that_was_given_is_not_changed() -> None:
    """Screening copies what it rewrites."""
    graph = {"1": node("SaveImage", filename_prefix="a")}
    before = copy.deepcopy(graph)
    screen(graph, load_node_schema(), OFFERED, OWN)
    assert graph == before


def test_unknown_classes_are_all_named() -> None:
    """One refusal lists every class that is missing, beside other problems."""
    result = screened(
        node("FancyUpscale"), node("OtherPack"), node("LoadImage", image="/etc/passwd")
    )
    assert len(result.problems) == 3
    assert "FancyUpscale" in result.problems[0].message
    assert "OtherPack" in result.problems[1].message


@pytest.mark.parametrize("class_type", ["LTXVPromptEnhancerLoader", "LTXVSaveConditioning"])
def test_a_class_that_cannot_be_made_safe_is_refused(class_type: str) -> None:
    """Code from elsewhere is not run, and nothing is left among the models."""
    assert "not run here" in screened(node(class_type)).problems[0].message


def test_missing_models_come_back_in_one_error_with_their_folders() -> None:
    """Each file is named once, with what the catalogue knows of it."""
    checkpoint = "ltx-2-19b-distilled-fp8.safetensors"
    result = screened(
        node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        node("LoraLoaderModelOnly", model=["1", 0], lora_name="mine.safetensors", strength_model=1),
        node("UNETLoader", unet_name="other.gguf", weight_dtype="fp99"),
        node("LTXVAudioVAELoader", ckpt_name=checkpoint),
        *[node("PreviewAny", source=[source, 0]) for source in ("2", "3", "4")],
    )
    assert not result.problems
    with pytest.raises(ModelMissing) as failure:
        result.check_models()
    assert failure.value.message.count(checkpoint) == 1
    assert "GB" in failure.value.message
    assert "mine.safetensors (folder loras)" in failure.value.message
    assert "other.gguf" in failure.value.message
    assert "fp99" not in failure.value.message
    assert {problem.field for problem in failure.value.details} == {
        "workflow.1.inputs.ckpt_name",
        "workflow.2.inputs.lora_name",
        "workflow.3.inputs.unet_name",
        "workflow.4.inputs.ckpt_name",
    }
