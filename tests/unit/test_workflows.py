"""The workflow files: their bindings, and the graphs that come out of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ltx_worker.catalog import Inventory, load_catalog
from ltx_worker.errors import ModelMissing, WorkflowMismatch
from ltx_worker.geometry import AUDIO_LATENTS_PER_SECOND, Size
from ltx_worker.offer import Offer
from ltx_worker.recipes import load_recipe
from ltx_worker.request import GenerateRequest
from ltx_worker.request_reader import parse_request
from ltx_worker.settings import Settings
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.nodes import explain, load_node_schema, validate
from ltx_worker.workflow.template import Choices, Template, load_template, load_templates
from ltx_worker.workflow.values import Placed, render

WORKFLOWS = Settings().workflows_dir
TEMPLATES = load_templates(WORKFLOWS)
CATALOG = load_catalog()
EVERYTHING = Inventory(CATALOG, frozenset((f.folder, f.name) for f in CATALOG.files))
FAMILIES = CATALOG.families
OFFER = Offer(
    workflows={key: template.offer for key, template in TEMPLATES.items()},
    families=FAMILIES,
    installed=FAMILIES,
    max_frames=505,
    roles={family: CATALOG.roles(family) for family in FAMILIES},
    loras=EVERYTHING.loras,
)
MEDIA = "https://example.com/a"
LORA = EVERYTHING.loras[0]
VALUES: list[dict[str, Any]] = [
    {},
    {"num_frames": 9, "resolution": "128x128"},
    {"num_frames": 505, "resolution": "1440p", "fps": 60},
    {"fps": 23.976, "num_frames": 121},
    {"fps": 29.97, "duration": 3, "aspect_ratio": "9:16"},
    {"seed": 2**53 - 1, "negative_prompt": "rain"},
    {"seed": 0, "aspect_ratio": "21:9"},
]
# What a mode needs beside the media that its workflow requires.
OF_MODE: dict[str, dict[str, Any]] = {
    "keyframes": {"keyframes": [{"image": MEDIA, "frame": 0}, {"image": MEDIA, "frame": 8}]},
    "v2v": {"control": "canny"},
    "retake": {"start_time": 0.0, "end_time": 1.0},
}
OF_VARIANT: dict[str, dict[str, Any]] = {
    "": {},
    "restyle": {"control": "restyle"},
    "backward": {"direction": "backward"},
}
# Classes of ComfyUI-LTXVideo that the workflows use.
NODE_PACK = {
    "GuiderParameters",
    "MultimodalGuider",
    "LTXVLoopingSampler",
    "LTXVSetAudioVideoMaskByTime",
}
OPTIONS = ("generate_audio", "enhance_prompt", "spatial_upscale", "temporal_upscale", "detailer")


def request_for(template: Template, family: str, fields: dict[str, Any]) -> GenerateRequest:
    """A request that `template` serves, with these fields."""
    needed: dict[str, Any] = dict.fromkeys(template.requires, MEDIA) | OF_MODE.get(
        template.mode, {}
    )
    if template.variant:
        needed |= {"v2v": {"control": "restyle"}, "extend": {"direction": "backward"}}[
            template.mode
        ]
    asked = {"prompt": "canary words", "model": family, "mode": template.mode}
    return parse_request(asked | {"quality": template.quality} | needed | fields, OFFER)


def render_for(
    template: Template, family: str, fields: dict[str, Any], inventory: Inventory = EVERYTHING
) -> tuple[Graph, GenerateRequest]:
    """The graph of a request for `template`, and the request."""
    request = request_for(template, family, fields)
    items = [
        {"image": f"ltx2/job/{i}.png", "frame": keyframe.frame, "strength": keyframe.strength}
        for i, keyframe in enumerate(request.keyframes)
    ]
    placed = Placed(
        {
            name: f"ltx2/job/{name}"
            for name in ("image", "audio", "video")
            if name in template.takes
        },
        {"keyframes": items},
        frozenset({"source_audio", "keep_audio", "head", "tail"}),
    )
    recipe = load_recipe(family, template.quality)
    graph = render(template, request, recipe, inventory, "ltx2/job/clip", placed)
    return graph, request


def nodes_of(graph: Graph, node_class: str) -> list[dict[str, Any]]:
    return [node["inputs"] for node in graph.values() if node["class_type"] == node_class]


def combinations(template: Template, family: str) -> Iterator[dict[str, Any]]:
    """Every combination of the workflow's options that the family has files for."""
    possible = [
        name
        for name in OPTIONS
        if name in template.takes
        and not (name == "detailer" and "detailer_lora" not in CATALOG.roles(family))
    ]
    for on in product([False, True], repeat=len(possible)):
        yield dict(zip(possible, on, strict=True))


def test_every_workflow_family_option_and_value_passes_the_node_schema(
    record_property: Callable[[str, object], None],
) -> None:
    """No graph of any combination would be refused by ComfyUI's validation."""
    schema = CATALOG.offer(load_node_schema(), CATALOG.names())
    checked = 0
    for template, family in product(TEMPLATES.values(), FAMILIES):
        for options in combinations(template, family):
            with_lora = [{}, {"loras": [{"name": LORA, "strength": 0.5}] * 2}]
            for fields in (*VALUES, *(with_lora if "loras" in template.takes else [])):
                if options.get("detailer") and fields.get("num_frames") == 9:
                    continue  # refused: too short for the detailer
                graph, _ = render_for(template, family, options | fields)
                result = validate(graph, schema)
                assert explain(result.error, result.node_errors, graph) == []
                assert template.output_id in result.good_outputs
                checked += 1
    record_property("graphs checked against the node schema", checked)
    assert checked >= 2 * len(TEMPLATES) * len(VALUES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
@pytest.mark.parametrize("options", VALUES, ids=lambda o: ",".join(o) or "defaults")
def test_frames_sound_and_rate_agree_everywhere(
    template: Template, family: str, options: dict[str, Any]
) -> None:
    """Video latent, audio latent, conditioning and container are told of the same clip."""
    graph, request = render_for(template, family, options)
    for video in nodes_of(graph, "EmptyLTXVLatentVideo"):
        assert video["length"] == request.num_frames
        assert video["length"] % 8 == 1
        assert Size(video["width"], video["height"]).times(request.passes) == request.size
    for audio in nodes_of(graph, "LTXVEmptyLatentAudio"):
        audio_s = audio["frames_number"] / audio["frame_rate"]
        assert 0 <= audio_s - request.duration_s < 1 / AUDIO_LATENTS_PER_SECOND
    assert nodes_of(graph, "LTXVConditioning")[0]["frame_rate"] == request.fps
    assert nodes_of(graph, "CreateVideo")[0]["fps"] == request.fps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
def test_the_family_and_the_quality_choose_the_files(template: Template, family: str) -> None:
    """Fast loads the distilled checkpoint alone; pro the dev one, with its LoRA in pass two."""
    graph, _ = render_for(template, family, {})
    names = {inputs["ckpt_name"] for inputs in nodes_of(graph, "CheckpointLoaderSimple")}
    names |= {inputs["ckpt_name"] for inputs in nodes_of(graph, "LTXVAudioVAELoader")}
    names |= {inputs["ckpt_name"] for inputs in nodes_of(graph, "LTXAVTextEncoderLoader")}
    role = "distilled_checkpoint" if template.quality == "fast" else "dev_checkpoint"
    found = EVERYTHING.find(family, role)
    assert found is not None
    assert names == {found.name}
    if template.mode == "v2v":
        return  # its control LoRA is another matter
    loras = nodes_of(graph, "LoraLoaderModelOnly")
    assert len(loras) == (0 if template.quality == "fast" else 1)
    if loras:
        assert loras[0]["strength_model"] == {"ltx-2": 1.0, "ltx-2.3": 0.5}[family]
        second_pass = next(n for n in nodes_of(graph, "CFGGuider") if n["cfg"] == 1.0)
        assert graph[second_pass["model"][0]]["class_type"] == "LoraLoaderModelOnly"


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
def test_both_passes_draw_different_noise_from_the_one_seed(template: Template) -> None:
    """The second pass follows from the caller's seed and differs from the first."""
    graph, _ = render_for(template, "ltx-2", {"seed": 41})
    seeds = {inputs["noise_seed"] for inputs in nodes_of(graph, "RandomNoise")}
    assert seeds == ({41} if template.mode == "retake" else {41, 42})


def test_what_the_caller_says_overrides_the_recipe() -> None:
    """A negative prompt and an image strength of the request replace the recipe's."""
    template = TEMPLATES["i2v", "pro", ""]
    graph, _ = render_for(template, "ltx-2", {"negative_prompt": "rain", "image_strength": 0.4})
    assert "rain" in {inputs["text"] for inputs in nodes_of(graph, "CLIPTextEncode")}
    strengths = [inputs["strength"] for inputs in nodes_of(graph, "LTXVImgToVideoInplace")]
    assert strengths == [0.4, 1.0]
    graph, _ = render_for(template, "ltx-2.3", {})
    strengths = [inputs["strength"] for inputs in nodes_of(graph, "LTXVImgToVideoInplace")]
    assert strengths == [0.7, 1.0]


def test_rendering_leaves_the_template_as_it_was() -> None:
    """A job's values do not reach the next job's graph."""
    template = TEMPLATES["t2v", "fast", ""]
    before = json.dumps(template.graph)
    render_for(template, "ltx-2.3", {"seed": 7})
    assert json.dumps(template.graph) == before


def test_a_missing_file_is_named_with_its_size_and_source() -> None:
    """A family of which one file is absent says which, how large and from where."""
    dev = "ltx-2-19b-dev"
    offered = frozenset(pair for pair in EVERYTHING.offered if not pair[1].startswith(dev))
    with pytest.raises(ModelMissing) as failure:
        render_for(TEMPLATES["t2v", "pro", ""], "ltx-2", {}, Inventory(CATALOG, offered))
    assert "ltx-2-19b-dev-fp8.safetensors (27.1 GB, Lightricks/LTX-2" in failure.value.message


def test_the_variant_decides_between_two_files() -> None:
    """With both precisions installed, the setting chooses; without it, the first listed."""
    fp16 = Inventory(CATALOG, EVERYTHING.offered, "fp16").find("ltx-2", "dev_checkpoint")
    unset = EVERYTHING.find("ltx-2", "dev_checkpoint")
    assert fp16 is not None
    assert unset is not None
    assert (fp16.variant, unset.variant) == ("fp16", "fp8")


# ---- a workflow and its bindings that disagree --------------------------------------------------


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    """A copy of the t2v workflow to spoil; the path of its TOML file."""
    for suffix in (".json", ".toml"):
        source = (WORKFLOWS / "t2v_fast").with_suffix(suffix)
        (tmp_path / "copy").with_suffix(suffix).write_text(source.read_text())
    return tmp_path / "copy.toml"


def node_titled(graph: Graph, title: str) -> dict[str, Any]:
    return next(node for node in graph.values() if node["_meta"]["title"] == title)


def edit_graph(workflow: Path, change: Any) -> None:
    path = workflow.with_suffix(".json")
    graph = json.loads(path.read_text())
    change(graph)
    path.write_text(json.dumps(graph))


def test_a_binding_that_matches_no_node_is_refused_by_name(workflow: Path) -> None:
    """A renamed node is named together with the binding that misses it."""

    def rename(graph: Graph) -> None:
        node_titled(graph, "First pass noise")["_meta"]["title"] = "N"

    edit_graph(workflow, rename)
    with pytest.raises(
        WorkflowMismatch, match=r"copy: binding seed .*'First pass noise'.*but no node"
    ):
        load_template(workflow)


def test_a_binding_that_matches_two_nodes_is_refused_by_name(workflow: Path) -> None:
    """Two nodes of one title and class are named by their ids."""

    def double(graph: Graph) -> None:
        graph["99"] = copy.deepcopy(node_titled(graph, "First pass noise"))

    edit_graph(workflow, double)
    with pytest.raises(WorkflowMismatch, match=r"binding seed .*2 nodes \(ids \d+, 99\)"):
        load_template(workflow)


def test_a_binding_to_an_input_that_is_not_there_is_refused(workflow: Path) -> None:
    """An input that is absent, or linked to another node, cannot be written."""
    text = workflow.read_text()
    workflow.write_text(text.replace('input = "length"', 'input = "lenght"'))
    with pytest.raises(WorkflowMismatch, match=r"input lenght of node .*does not exist"):
        load_template(workflow)
    workflow.write_text(text.replace('input = "filename_prefix"', 'input = "video"'))
    with pytest.raises(WorkflowMismatch, match=r"input video .* is linked"):
        load_template(workflow)


def test_moved_node_ids_and_other_settings_keep_a_working_workflow(workflow: Path) -> None:
    """Exported again with other ids and values, it binds as before and keeps what nobody binds."""

    def renumber(graph: Graph) -> None:
        ids = {old: str(1000 - int(old)) for old in graph}
        moved = {
            ids[old]: node
            | {
                "inputs": {
                    k: [ids[v[0]], v[1]] if isinstance(v, list) else v
                    for k, v in node["inputs"].items()
                }
            }
            for old, node in reversed(graph.items())
        }
        graph.clear()
        graph.update(moved)

    def set_values(graph: Graph) -> None:
        node_titled(graph, "Decode video")["inputs"]["tile_size"] = 512
        node_titled(graph, "First pass sampler")["inputs"]["sampler_name"] = "res_multistep"

    edit_graph(workflow, renumber)
    edit_graph(workflow, set_values)
    graph, _ = render_for(load_template(workflow), "ltx-2", {"seed": 5})
    assert {inputs["noise_seed"] for inputs in nodes_of(graph, "RandomNoise")} == {5, 6}
    assert nodes_of(graph, "VAEDecodeTiled")[0]["tile_size"] == 512


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ('{"nodes": [], "links": []}', "API format"),
        ("[]", "API format"),
    ],
)
def test_a_file_that_is_no_api_workflow_is_refused(
    workflow: Path, content: str, words: str
) -> None:
    """Broken JSON and the editor's own format are told apart from a workflow."""
    workflow.with_suffix(".json").write_text(content)
    with pytest.raises(WorkflowMismatch, match=words):
        load_template(workflow)


def test_two_workflows_for_one_mode_and_quality_are_refused(workflow: Path) -> None:
    """Which of two would run must not depend on their file names."""
    for suffix in (".json", ".toml"):
        (workflow.parent / f"twin{suffix}").write_text(workflow.with_suffix(suffix).read_text())
    with pytest.raises(WorkflowMismatch, match="copy and twin are both t2v at fast"):
        load_templates(workflow.parent)


def test_every_sampler_and_save_node_has_a_stage() -> None:
    """Progress and timings cover the nodes that take the time."""
    slow = {"SamplerCustomAdvanced", "VAEDecodeTiled", "SaveVideo", "CheckpointLoaderSimple"}
    for template in TEMPLATES.values():
        staged = frozenset[str]().union(*(stage.node_ids for stage in template.stages))
        assert {i for i, n in template.graph.items() if n["class_type"] in slow} <= staged


# ---- a ComfyUI that lacks nodes -----------------------------------------------------------------


def classes_of(graph: Graph) -> set[str]:
    return {node["class_type"] for node in graph.values()}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
def test_missing_nodes_cost_only_what_needs_them(template: Template) -> None:
    """Without a class, a workflow loses the options that use it, or is not offered."""
    for missing in classes_of(template.everything()) & (NODE_PACK | {"LTXVLatentUpsampler"}):
        present = load_node_schema().keys() - {missing}
        available = template.available_with(present)
        base = template.render({}, Choices(repeats={name: [{}] for name in template.repeats}))
        if available is None:
            assert missing in classes_of(base)
        else:
            assert missing not in classes_of(available.everything())
            assert available.unavailable
            assert not available.unavailable & available.takes


def test_text_and_picture_to_video_need_no_node_pack() -> None:
    """Core ComfyUI is enough for fast and pro; only the detailer goes."""
    core = {name for name in load_node_schema() if name not in NODE_PACK}
    for mode, quality in product(("t2v", "i2v"), ("fast", "pro")):
        available = TEMPLATES[mode, quality, ""].available_with(core)
        assert available is not None
        assert available.unavailable == {"detailer"}
    assert TEMPLATES["t2v", "quality", ""].available_with(core) is None
