"""Validation of graphs against the node schema, and the sentences that explain it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltx_worker.workflow.nodes import compact, explain, load_node_schema, validate

INT = ["INT", {"default": 1, "min": 0, "max": 10}]


def node_class(
    required: dict[str, Any], *output: str, optional: dict[str, Any] | None = None
) -> dict[str, Any]:
    inputs = {"required": required, "optional": optional or {}}
    return {"input": inputs, "output": list(output), "output_node": not output}


INFO: dict[str, Any] = {
    "Number": node_class({"value": INT}, "INT"),
    "Text": node_class({"text": ["STRING", {}]}, "STRING"),
    "Add": node_class({"left": INT, "right": INT}, "INT"),
    "Show": node_class({"value": ["*", {}]}),
    "ShowInt": node_class({"value": ["INT", {}]}),
    "Load": node_class({"image": [[], {"image_upload": True}]}, "IMAGE"),
    "Pick": node_class({"one": ["COMBO", {"options": [f"o{i}" for i in range(21)]}]}),
    "OldPick": node_class({"one": [["a", "b"]]}),
    "Convert": node_class(
        {"whole": ["INT", {}], "real": ["FLOAT", {}], "text": ["STRING", {}], "yes": ["BOOLEAN"]}
    ),
    "Mode": node_class(
        {
            "mode": [
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "on", "inputs": {"required": {"heat": ["FLOAT", {"max": 2.0}]}}},
                        {"key": "off", "inputs": {"required": {}}},
                    ]
                },
            ]
        }
    ),
    "Grow": node_class(
        {
            "items": [
                "COMFY_AUTOGROW_V3",
                {
                    "template": {
                        "input": {"required": {"item": ["INT", {}]}},
                        "prefix": "item",
                        "min": 1,
                        "max": 3,
                    }
                },
            ]
        }
    ),
    "Any": node_class({}, "COMFY_MATCHTYPE_V3"),
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    title = {"_meta": {"title": f"My {class_type}"}}
    return {"class_type": class_type, "inputs": inputs, **title}


def problems(*nodes: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    """The (type, details) of all problems of a graph with nodes "0", "1", …"""
    graph = {str(number): each for number, each in enumerate(nodes)}
    answer = validate(graph, INFO, **options)
    found = answer.node_errors.values()
    return [(each["type"], each["details"]) for entry in found for each in entry["errors"]]


def test_a_good_graph_has_no_problem() -> None:
    """Its outputs are named, there is no error, and the graph is the same."""
    graph = {"7": node("Number", value=3), "8": node("Show", value=["7", 0])}
    answer = validate(graph, INFO)
    assert (answer.good_outputs, answer.error, answer.node_errors) == (("8",), None, {})
    assert answer.graph == graph


def test_values_are_converted_as_comfyui_does() -> None:
    """Text becomes a number, 24.7 loses its fraction, numbers become text; the caller's stay."""
    graph = {"0": node("Convert", whole=24.7, real="5", text=12, yes="false")}
    before = copy.deepcopy(graph)
    answer = validate(graph, INFO)
    assert answer.graph["0"]["inputs"] == {"whole": 24, "real": 5.0, "text": "12", "yes": True}
    assert graph == before


def test_a_wrapped_list_is_a_constant() -> None:
    """A list is taken for a link unless it is wrapped."""
    assert problems(node("OldPick", one={"__value__": "a"})) == []
    assert problems(node("OldPick", one={"__value__": ["a"]}))[0][0] == "value_not_in_list"
    assert problems(node("OldPick", one=["a"]))[0][0] == "bad_linked_input"


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ([node("ShowInt")], ("required_input_missing", "value")),
        (
            [node("Number", value=-1), node("Show", value=["0", 0])],
            ("value_smaller_than_min", "value"),
        ),
        (
            [node("Number", value=11), node("Show", value=["0", 0])],
            ("value_bigger_than_max", "value"),
        ),
        (
            [node("Text", text="x"), node("ShowInt", value=["0", 0])],
            ("return_type_mismatch", "value, received_type(STRING) mismatch input_type(INT)"),
        ),
        ([node("OldPick", one="c")], ("value_not_in_list", "one: 'c' not in ['a', 'b']")),
        ([node("Pick", one="c")], ("value_not_in_list", "one: 'c' not in (list of length 21)")),
        ([node("ShowInt", value=["9", 0])], ("exception_during_validation", "'9'")),
        (
            [node("Number", value=1), node("ShowInt", value=["0", 5])],
            ("exception_during_validation", "list index out of range"),
        ),
    ],
)
def test_a_mistake_is_told_as_comfyui_tells_it(
    graph: list[dict[str, Any]], expected: tuple[str, str]
) -> None:
    """The type of the problem and its details."""
    assert problems(*graph) == [expected]


def test_a_long_list_is_not_repeated() -> None:
    """Above twenty options the declaration is left out too."""
    answer = validate({"0": node("Pick", one="c")}, INFO)
    assert answer.node_errors["0"]["errors"][0]["extra_info"]["input_config"] is None


def test_dynamic_inputs_have_dotted_names() -> None:
    """The inputs of the option chosen and of a list that grows are checked like others."""
    assert problems(node("Mode", mode="off")) == []
    assert problems(node("Mode", mode="on", **{"mode.heat": 0.7})) == []
    assert problems(node("Mode", mode="on")) == [("required_input_missing", "heat")]
    too_hot = node("Mode", mode="on", **{"mode.heat": 3})
    assert problems(too_hot) == [("value_bigger_than_max", "mode.heat")]
    assert problems(node("Grow", **{"items.item0": 1, "items.item2": 2})) == []
    assert problems(node("Grow")) == [("required_input_missing", "item0")]


def test_a_type_that_matches_any_fits_everywhere() -> None:
    """Matching such types is left to the page, as in ComfyUI."""
    assert problems(node("Any"), node("ShowInt", value=["0", 0])) == []


def test_a_circle_is_found_once() -> None:
    """Each node on it is named with the whole circle."""
    found = problems(
        node("Add", left=["1", 0], right=1),
        node("Add", left=["0", 0], right=1),
        node("Show", value=["0", 0]),
    )
    assert found == [("dependency_cycle", "0 (Add) -> 1 (Add) -> 0 (Add)")] * 2


def test_a_class_may_check_its_own_inputs() -> None:
    """Without a check a file is not looked for; with one, its answer is the problem."""
    graph = [node("Load", image="a.png"), node("Show", value=["0", 0])]

    def refuse(image: str) -> bool | str:
        return f"no {image}"

    assert problems(*graph) == []
    assert problems(*graph, checks={"Load": lambda image: image == "a.png"}) == []
    assert problems(*graph, checks={"Load": refuse}) == [
        ("custom_validation_failed", "image - no a.png")
    ]
    assert problems(*graph, checks={"Load": lambda image: image is None}) == [
        ("custom_validation_failed", "image")
    ]


def test_a_class_check_sees_no_links() -> None:
    """A link is None to it; a list that is no link comes as it is, as in ComfyUI."""
    seen: list[Any] = []
    checks = {"Load": lambda image: not seen.append(image)}
    for image in (["1", 0], ["1"]):
        graph = [node("Load", image=image), node("Any"), node("Show", value=["0", 0])]
        problems(*graph, checks=checks)
    assert seen == [None, ["1"]]


def test_one_good_output_is_enough() -> None:
    """There is no error, the bad output is in node_errors with what depends on it."""
    graph = {
        "0": node("Number", value=99),
        "1": node("Show", value=["0", 0]),
        "2": node("Show", value=5),
    }
    answer = validate(graph, INFO)
    assert (answer.good_outputs, answer.error) == (("2",), None)
    assert answer.node_errors["0"]["dependent_outputs"] == ["1"]
    assert validate(graph, INFO, targets=["1"]).error is not None


@pytest.mark.parametrize(
    "graph", [None, [], "x", {"0": 5}, {"0": {"class_type": "Show", "inputs": []}}]
)
def test_what_is_no_graph_raises(graph: Any) -> None:
    """ComfyUI answers 500 to these; the caller is told by a TypeError."""
    with pytest.raises(TypeError):
        validate(graph, INFO)


LINKED = {"0": node("Text", text=""), "1": node("ShowInt", value=["0", 0])}
CIRCLE = {"0": node("Add", left=["0", 0], right=1), "1": node("Show", value=["0", 0])}
TOO_MUCH = {"0": node("Number", value=11), "1": node("Show", value=["0", 0])}


@pytest.mark.parametrize(
    ("graph", "name", "sentence"),
    [
        (TOO_MUCH, "Number", "input 'value' is 11, above its maximum of 10."),
        ({"0": node("ShowInt")}, "ShowInt", "input 'value' is missing."),
        ({"0": node("ShowInt", value="x")}, "ShowInt", "input 'value' takes INT, not 'x'."),
        (
            {"0": node("ShowInt", value="x" * 99)},
            "ShowInt",
            "input 'value' takes INT, not a value of 101 characters.",
        ),
        (
            {"0": node("OldPick", one="c")},
            "OldPick",
            "input 'one' is 'c', which is not offered (offered: a, b).",
        ),
        ({"0": node("Pick", one="c")}, "Pick", "input 'one' is 'c', which is not offered."),
        (
            LINKED,
            "ShowInt",
            "input 'value' takes INT, but output 0 of 'My Text' (Text) is STRING.",
        ),
        (
            {"0": node("ShowInt", value=["9", 0])},
            "ShowInt",
            "input 'value' is linked to node 9, which does not exist.",
        ),
        (
            {"0": node("Show", value=[1, 2, 3])},
            "Show",
            "input 'value' must be a value or a link [node id, output].",
        ),
        (CIRCLE, "Add", "it depends on itself: 'My Add' (Add) -> 'My Add' (Add)."),
    ],
)
def test_a_problem_is_explained_in_a_sentence(
    graph: dict[str, Any], name: str, sentence: str
) -> None:
    """It names the node by its title and class, the input, and what is wrong."""
    answer = validate(graph, INFO)
    explained = explain(answer.error, answer.node_errors, graph)
    assert explained == [f"'My {name}' ({name}): {sentence}"]


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (
            {"0": {"class_type": "Nope", "inputs": {}}},
            "'Nope' (node 0) is a Nope, a class that this ComfyUI does not have.",
        ),
        ({"0": {"inputs": {}}}, "Node 0 names no class."),
        ({"0": node("Number", value=1)}, "The graph has no output node."),
    ],
)
def test_a_problem_of_the_whole_graph_is_explained(graph: dict[str, Any], sentence: str) -> None:
    """Without problems of single nodes, the error itself is put into words."""
    answer = validate(graph, INFO)
    assert explain(answer.error, answer.node_errors, graph) == [sentence]


def test_explanations_hold_no_traceback() -> None:
    """Whatever went wrong inside the validation is told in its own short words."""
    graph = {"0": node("Number", value=1), "1": node("ShowInt", value=["0", 5])}
    answer = validate(graph, INFO)
    (sentence,) = explain(answer.error, answer.node_errors, graph)
    assert sentence.endswith("it could not be checked (IndexError: list index out of range).")
    assert "File" not in sentence


def test_the_schema_holds_what_the_product_runs_on() -> None:
    """Core and LTXVideo classes, empty lists of files, no other pack, no long default."""
    schema = load_node_schema()
    assert {"SaveVideo", "LTXVLoopingSampler", "TextGenerateLTX2Prompt"} <= schema.keys()
    assert not [name for name in schema if name.startswith("VHS_")]
    assert schema["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"] == [[], {}]
    assert schema["SaveVideo"]["output_node"] is True
    assert all(item.keys() == {"input", "output", "output_node"} for item in schema.values())
    assert "tooltip" not in json.dumps(schema)


def test_the_schema_can_be_made_again(tmp_path: Path) -> None:
    """The module prints a recorded /object_info in compact form, one class to a line."""
    info = {
        "Demo": {
            "input": {
                "required": {
                    "b": ["STRING", {"default": "x" * 201, "tooltip": "help", "multiline": True}],
                    "a": ["INT", {"min": 1, "display": "number"}],
                    "image": [["mine.png"], {"image_upload": True}],
                },
                "hidden": {"prompt": "PROMPT"},
            },
            "input_order": {"hidden": ["prompt"], "required": ["a", "b", "image"]},
            "output": ["IMAGE"],
            "output_node": False,
            "python_module": "nodes",
            "description": "shown only",
        },
        "Other": {"python_module": "custom_nodes.ComfyUI-VideoHelperSuite"},
    }
    file = tmp_path / "object_info.json"
    file.write_text(json.dumps(info))
    command = [sys.executable, "-m", "ltx_worker.workflow.nodes", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == compact(info)
    assert len(printed.splitlines()) == 3
    required = {
        "a": ["INT", {"min": 1}],
        "b": ["STRING", {}],
        "image": [[], {"image_upload": True}],
    }
    assert json.loads(printed) == {
        "Demo": {"input": {"required": required}, "output": ["IMAGE"], "output_node": False}
    }


def test_importing_it_loads_no_heavy_library() -> None:
    """The worker can check its workflows without the sandbox's libraries."""
    program = (
        "import sys, ltx_worker.workflow.nodes; "
        "print(sorted({'aiohttp', 'av', 'numpy', 'PIL', 'requests'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
