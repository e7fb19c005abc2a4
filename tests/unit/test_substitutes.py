"""Nodes of the worker's own in place of ComfyUI's: which ones go, and which stay."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.substitutes import Substitutes

TILES = {"tile_size": 768, "overlap": 64, "temporal_size": 4096, "temporal_overlap": 4}


def told(**defaults: str) -> dict[str, Any]:
    """What ComfyUI tells of a node, as far as it matters here."""
    return {"input": {"required": {n: ["COMBO", {"default": d}] for n, d in defaults.items()}}}


SAVE = {"LTXWorkerSaveVideo": told(format="mp4", quality="high")}
DECODE = {"LTXWorkerDecodeVideo": told(format="mp4", quality="high")}
BOTH = {**SAVE, **DECODE}


def node(node_class: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": node_class, "inputs": inputs, "_meta": {"title": f"My {node_class}"}}


@pytest.fixture
def graph() -> Graph:
    """The end of a workflow: latents are decoded, put together with sound, and saved."""
    return {
        "loader": node("CheckpointLoaderSimple", ckpt_name="x"),
        "latent": node("LTXVSeparateAVLatent"),
        "decode": node("VAEDecodeTiled", samples=["latent", 0], vae=["loader", 2], **TILES),
        "sound": node("LTXVAudioVAEDecode", samples=["latent", 1], audio_vae=["loader", 0]),
        "create": node("CreateVideo", images=["decode", 0], audio=["sound", 0], fps=48.0),
        "save": node("SaveVideo", video=["create", 0], filename_prefix="a/b", format="mp4"),
    }


def with_substitutes(graph: Graph, node_info: dict[str, Any], **asked: str | None) -> Graph:
    return Substitutes.of(node_info).in_graph(graph, asked)


def class_of_save(graph: Graph) -> str:
    return graph["save"]["class_type"]


def test_the_whole_chain_becomes_one_node(graph: Graph) -> None:
    """Under the save node's id and title, with what each of the chain was given."""
    made = with_substitutes(graph, BOTH, format="webm", quality="low")
    assert made.keys() == graph.keys() - {"decode", "create"}
    assert made["save"] == {
        "class_type": "LTXWorkerDecodeVideo",
        "_meta": {"title": "My SaveVideo"},
        "inputs": {
            "samples": ["latent", 0],
            "vae": ["loader", 2],
            **TILES,
            "audio": ["sound", 0],
            "fps": 48.0,
            "filename_prefix": "a/b",
            "format": "webm",
            "quality": "low",
        },
    }
    assert all(made[node_id] == graph[node_id] for node_id in ("loader", "latent", "sound"))


def test_a_clip_without_sound_stays_without(graph: Graph) -> None:
    del graph["create"]["inputs"]["audio"]
    del graph["sound"]
    made = with_substitutes(graph, BOTH)
    assert class_of_save(made) == "LTXWorkerDecodeVideo"
    assert "audio" not in made["save"]["inputs"]


def test_what_a_job_does_not_ask_for_is_the_nodes_own_default(graph: Graph) -> None:
    """SaveVideo's own format is not taken over: it stands in every workflow file."""
    given = {**DECODE, "LTXWorkerDecodeVideo": told(format="webm", quality="medium")}
    inputs = with_substitutes(graph, given, format=None)["save"]["inputs"]
    assert (inputs["format"], inputs["quality"]) == ("webm", "medium")


@pytest.mark.parametrize("shared", ["create", "decode"])
def test_what_serves_another_node_too_stays(graph: Graph, shared: str) -> None:
    """The clip is then saved from it, by the node that does no more than that."""
    graph["other"] = node("PreviewAny", source=[shared, 0])
    made = with_substitutes(graph, BOTH)
    assert made.keys() == graph.keys()
    assert class_of_save(made) == "LTXWorkerSaveVideo"
    assert made["save"]["inputs"]["video"] == ["create", 0]
    assert with_substitutes(graph, DECODE) == graph


def test_pictures_from_elsewhere_are_not_taken_for_decoded_ones(graph: Graph) -> None:
    """A node between decoder and clip has its work done."""
    graph["cut"] = node("ImageFromBatch", image=["decode", 0], batch_index=0, length=8)
    graph["create"]["inputs"]["images"] = ["cut", 0]
    made = with_substitutes(graph, BOTH)
    assert class_of_save(made) == "LTXWorkerSaveVideo"
    assert made["cut"] == graph["cut"]
    assert made["decode"] == graph["decode"]


def test_a_pack_with_the_save_node_alone_saves_what_comfyui_decodes(graph: Graph) -> None:
    made = with_substitutes(graph, SAVE, quality="maximum")
    assert made.keys() == graph.keys()
    assert class_of_save(made) == "LTXWorkerSaveVideo"
    assert made["save"]["inputs"] == {
        "video": ["create", 0],
        "filename_prefix": "a/b",
        "format": "mp4",
        "quality": "maximum",
    }


def test_a_comfyui_without_the_pack_gets_the_graph_as_it_is(graph: Graph) -> None:
    """And nothing that a job may ask of its output beyond the container is heeded."""
    assert with_substitutes(graph, {"SaveVideo": {}}, quality="low") == graph
    assert Substitutes.of({}).options == frozenset()
    assert Substitutes.of(DECODE).options == {"format", "quality"}


def test_the_given_graph_is_left_as_it_was(graph: Graph) -> None:
    """Templates are rendered again for the next job."""
    before = deepcopy(graph)
    with_substitutes(graph, BOTH, quality="low")
    assert graph == before


def test_each_chain_of_a_graph_is_replaced(graph: Graph) -> None:
    second = deepcopy({f"{name}2": graph[name] for name in ("decode", "create", "save")})
    second["create2"]["inputs"] |= {"images": ["decode2", 0], "fps": 12.0}
    second["save2"]["inputs"]["video"] = ["create2", 0]
    made = with_substitutes({**graph, **second}, BOTH)
    assert made["save"]["inputs"]["fps"] == 48.0
    assert made["save2"]["inputs"]["fps"] == 12.0
    assert not made.keys() & {"decode", "create", "decode2", "create2"}
