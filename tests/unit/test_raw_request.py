"""A job that brings its own graph: what is taken, and how every mistake comes back at once."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ltx_worker.errors import InvalidRequest
from ltx_worker.raw_request import MAX_DEPTH, MAX_NODES, RawRequest, is_raw, parse_raw_request

NODE = {"class_type": "SaveImage", "inputs": {"filename_prefix": "a"}, "_meta": {"title": "Save"}}
GRAPH = {"9": NODE}


def problems_of(job_input: Any) -> dict[str, str]:
    """What is wrong with an input, by field."""
    with pytest.raises(InvalidRequest) as failure:
        parse_raw_request(job_input)
    return {problem.field: problem.message for problem in failure.value.details}


def test_a_job_with_a_workflow_is_raw_and_others_are_not() -> None:
    """The field `workflow` alone decides, whatever it holds."""
    assert is_raw({"workflow": None})
    assert not is_raw({"prompt": "a cat"})
    assert not is_raw(["workflow"])


@pytest.mark.parametrize("workflow", [GRAPH, json.dumps(GRAPH)], ids=["object", "text"])
def test_a_workflow_is_an_object_or_its_text(workflow: Any) -> None:
    """Clients send the exported graph either way."""
    assert parse_raw_request({"workflow": workflow}) == RawRequest(GRAPH)


def test_images_keep_their_names_and_sources() -> None:
    """A data URI, base64 and a URL are taken, under names as ComfyUI's page gives them."""
    images = [
        {"name": "photo.png", "image": "data:image/png;base64,AAAA"},
        {"name": "pasted/image (1).png", "image": "AAAA"},
        {"name": "Ünï_code-2", "image": "https://example.com/a.png"},
    ]
    read = parse_raw_request({"workflow": GRAPH, "images": images}).images
    assert [image.name for image in read] == ["photo.png", "pasted/image (1).png", "Ünï_code-2"]
    assert [image.source.url is not None for image in read] == [False, False, True]


def test_every_problem_comes_back_at_once() -> None:
    """Nodes, images and fields are all named in one error."""
    problems = problems_of(
        {
            "workflow": {
                "1": {"class_type": "SaveImage"},
                "2": {"inputs": {}},
                "3": "node",
                "4": NODE | {"_meta": {"title": 5}},
                "5": NODE | {"inputs": {"value": math.nan}},
            },
            "images": [{"name": "../a.png", "image": 5}, "b.png", {"nam": "c.png", "image": "AA"}],
            "image": "AAAA",
            "prompt": "a cat",
            "seed": 1,
            "frobnicate": 2,
        }
    )
    assert "no inputs" in problems["workflow.1"]
    assert "no class_type" in problems["workflow.2"]
    assert "not a node" in problems["workflow.3"]
    assert "title" in problems["workflow.4._meta"]
    assert "finite" in problems["workflow.5"]
    assert "file name" in problems["images.0.name"]
    assert "base64" in problems["images.0.image"]
    assert "object" in problems["images.1"]
    assert "did you mean name?" in problems["images.2.nam"]
    assert "cannot be given with workflow" in problems["prompt"]
    assert "cannot be given with workflow" in problems["image"]
    assert problems["frobnicate"] == "is not a field"


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    """A slip of the pen is told what it was meant to be."""
    assert problems_of({"workflow": GRAPH, "imagess": []})["imagess"].endswith("mean images?")


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        ({"nodes": [], "links": []}, "Export (API)"),
        ('{"nodes": [], "links": []}', "Export (API)"),
        ("{not json", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([NODE], "API format"),
        (None, "API format"),
        ({}, "1 to 1,000"),
        ({str(i): NODE for i in range(MAX_NODES + 1)}, "1 to 1,000"),
    ],
    ids=["editor", "editor text", "no json", "deep text", "list", "null", "empty", "large"],
)
def test_a_workflow_that_is_no_graph_is_refused(workflow: Any, words: str) -> None:
    """Each refusal says what to send instead."""
    assert words in problems_of({"workflow": workflow})["workflow"]


@pytest.mark.parametrize(
    "name",
    [
        *("", "/etc/passwd", "../a.png", "a/../b.png", "a/b/c.png", ".a.png", "a/.b", "a\\b.png"),
        *("a.png [output]", "a\n.png", "a\0.png", "a/", "C:a.png", " a.png", "a" * 201, None, 5),
    ],
)
def test_a_name_that_could_be_a_path_is_refused(name: Any) -> None:
    """One folder at most, no traversal, no hidden file, no annotation."""
    assert problems_of({"workflow": GRAPH, "images": [{"name": name, "image": "AA"}]}).keys() == {
        "images.0.name"
    }


def test_two_images_of_one_name_are_refused() -> None:
    """The graph could not say which of them it means."""
    twice = [{"name": "a.png", "image": "AA"}] * 2
    assert "more than once" in problems_of({"workflow": GRAPH, "images": twice})["images"]


def test_a_value_nested_too_deep_is_refused() -> None:
    """A graph can always be copied and sent."""
    deep: list[Any] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    problems = problems_of({"workflow": {"1": NODE | {"inputs": {"value": deep}}}})
    assert "nested" in problems["workflow.1"]


def test_fields_that_are_not_a_nodes_are_left_out() -> None:
    """A caller cannot tell ComfyUI's cache what has changed."""
    request = parse_raw_request({"workflow": {"9": NODE | {"is_changed": "x"}}})
    assert request.graph == GRAPH


def test_an_api_key_is_ignored_with_a_warning_that_does_not_repeat_it() -> None:
    """Requests for the generic worker keep working; the key reaches nothing."""
    request = parse_raw_request({"workflow": GRAPH, "comfy_org_api_key": "comfyui-secret"})
    assert "comfy_org_api_key" in request.warnings[0]
    assert "secret" not in repr(request)


def test_a_message_does_not_repeat_a_value() -> None:
    """Prompts and pictures stay out of errors."""
    problems = problems_of({"workflow": "secret words", "images": [{"name": "s/e/cret"}]})
    assert not any("secret" in message or "cret" in message for message in problems.values())
