"""What a caller's own graph may touch, decided before ComfyUI sees it (invariants 6 and 8).

ComfyUI opens whatever a loader node names, also `/etc/passwd`, and writes wherever a save node
asks within its output folder. Here loaders get this job's own files only, save nodes write into
this job's own folder, and no other input leads out of ComfyUI's folders. Nodes that no output
needs are screened too: ComfyUI reads their files to tell whether they changed.

A class of a foreign node pack is judged by the names and types of its inputs, which is as much as
ComfyUI says of it; what its code does with a harmless value cannot be seen from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ltx_worker.catalog import load_catalog
from ltx_worker.errors import ModelMissing, Problem
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.node_inputs import (
    UPLOADS,
    DeclaredInput,
    NodeInfo,
    declared_inputs,
    is_list,
)
from ltx_worker.workflow.template import title_of
from ltx_worker.workflow.validation import validate

# Classes that no value of their inputs makes safe, and why.
_REFUSED_CLASSES = {
    "LTXVPromptEnhancerLoader": "downloads the models that its inputs name, and runs their code",
    "LTXVSaveConditioning": "leaves its file among the models",
}
_FILE_WORDS = frozenset({"image", "mask", "audio", "video", "latent", "file", "filename", "path"})
# Old loaders list a folder without saying that their file is an upload.
_LISTED_FILES = frozenset({"image", "audio", "video", "latent", "file"})
# What ComfyUI's page records for a node: names of files, in these types.
_RECORDINGS = ("WEBCAM", "AUDIO_RECORD", "LOAD_3D")
# What says where a save node writes, and what says where any node reads or writes.
_FOLDER_WORDS = frozenset({"dir", "directory", "folder", "path"})
_PLACE_WORDS = _FOLDER_WORDS | {"file", "filename", "filepath", "url", "uri"}
_NO_FILE = ("", "none")
_MODEL_SUFFIXES = (
    *(".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx"),
)
_LONGEST_STEM = 64
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Screened:
    """A graph that is safe to submit if there are no `problems` and no `missing_models`."""

    graph: Graph
    problems: tuple[Problem, ...] = ()
    missing_models: tuple[Problem, ...] = ()

    def check_models(self) -> None:
        """Raise one `ModelMissing` that names every model file that is not installed."""
        if self.missing_models:
            files = dict.fromkeys(problem.message for problem in self.missing_models)
            raise ModelMissing(
                "This worker lacks model files that the workflow names: " + "; ".join(files),
                details=self.missing_models,
            )


def screen(
    graph: Graph, node_info: NodeInfo, offered: Mapping[str, str], subfolder: str
) -> Screened:
    """The graph with its file names made this job's own, and all that is wrong with them.

    `offered` maps the names of the job's files to their names in ComfyUI's input folder;
    `subfolder` is the job's folder within the output folder. Neither is changed, nor is `graph`.
    """
    screening = _Screening(node_info, offered, subfolder)
    nodes = {node_id: screening.node(node_id, node) for node_id, node in graph.items()}
    missing: tuple[Problem, ...] = ()
    if not screening.unknown_class:
        missing = tuple(_missing_models(nodes, node_info))
    return Screened(nodes, tuple(screening.problems), missing)


class _Screening:
    """One walk over a graph's nodes."""

    def __init__(self, node_info: NodeInfo, offered: Mapping[str, str], subfolder: str) -> None:
        self.problems: list[Problem] = []
        self.unknown_class = False
        self._node_info = node_info
        self._offered = offered
        self._subfolder = subfolder

    def node(self, node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
        """The node as it may be submitted."""
        class_type: str = node["class_type"]
        name = f"'{title_of(node)}' ({class_type})"
        if class_type not in self._node_info:
            self.unknown_class = True
            reason = f"is {name}, a class that this ComfyUI does not have"
            self.problems.append(Problem(f"workflow.{node_id}", reason))
            return dict(node)
        if class_type in _REFUSED_CLASSES:
            reason = f"is {name}, which {_REFUSED_CLASSES[class_type]}: it is not run here"
            self.problems.append(Problem(f"workflow.{node_id}", reason))
            return dict(node)
        info = self._node_info[class_type]
        inputs: dict[str, Any] = dict(node["inputs"])
        declared = list(declared_inputs(info["input"], inputs))
        targets = _targets(declared, is_output=info["output_node"])
        for item in declared:
            if item.name in targets:
                problem, value = self._target(item, inputs.get(item.name), targets)
            elif item.name in inputs:
                problem, value = self._source(item, inputs[item.name], class_type)
            else:
                continue
            inputs[item.name] = value
            if problem is not None:
                where = f"workflow.{node_id}.inputs.{item.name}"
                self.problems.append(Problem(where, f"of {name} {problem}"))
        return {**node, "inputs": inputs}

    def _target(
        self, item: DeclaredInput, value: Any, targets: Mapping[str, bool]
    ) -> tuple[str | None, Any]:
        """Where a save node writes instead, also when the graph leaves it to the default.

        A prefix beside a folder is the beginning of a name in that folder.
        """
        is_folder = targets[item.name]
        if is_folder and (problem := _place_problem(value)) is not None:
            return problem, value
        stem = _stem(value)
        is_within_folder = not is_folder and any(targets.values())
        return None, stem if is_within_folder else f"{self._subfolder}/{stem}"

    def _source(self, item: DeclaredInput, value: Any, class_type: str) -> tuple[str | None, Any]:
        """What is wrong with any other input, and the value it gets."""
        if _names_a_file(class_type, item):
            return self._own_file(value)
        # An input that takes a text or an object may be linked: the object is what it is for.
        may_be_place = item.kind == "STRING" or (_is_text(item) and not is_list(value))
        if may_be_place and not _PLACE_WORDS.isdisjoint(_words(item)):
            return _place_problem(value), value
        return None, value

    def _own_file(self, value: Any) -> tuple[str | None, Any]:
        """The job's own file of this name, as ComfyUI finds it."""
        if is_list(value):
            return "must name one of the job's images, not be linked to another node", value
        if not isinstance(value, str):
            return "must be the name of one of the job's images", value
        name = value.removesuffix(" [input]")
        if name in _NO_FILE:
            return None, name
        if name not in self._offered:
            listed = ", ".join(self._offered) or "none"
            return f"names a file that is not among the job's images ({listed})", value
        return None, self._offered[name]


def _targets(declared: list[DeclaredInput], *, is_output: bool) -> dict[str, bool]:
    """The inputs that say where a node writes; True for a folder, False for a prefix."""
    targets: dict[str, bool] = {}
    for item in filter(_is_text, declared):
        words = _words(item)
        if item.name == "filename_prefix" or (is_output and words[-1] == "prefix"):
            targets[item.name] = False
        elif is_output and not _FOLDER_WORDS.isdisjoint(words):
            targets[item.name] = True
    return targets


def _is_text(item: DeclaredInput) -> bool:
    return isinstance(item.kind, str) and "STRING" in item.kind.split(",")


def _words(item: DeclaredInput) -> list[str]:
    """The words of an input's name; the last says what it is, whatever its number."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", item.name).lower()) or [""]


def _names_a_file(class_type: str, item: DeclaredInput) -> bool:
    """Whether an input takes the name of a file in the input folder."""
    if UPLOADS & item.options.keys() or item.kind in _RECORDINGS:
        return True
    if item.choices is not None:
        return class_type.startswith("Load") and item.name in _LISTED_FILES
    return _is_text(item) and "load" in class_type.lower() and _words(item)[-1] in _FILE_WORDS


def _place_problem(value: Any) -> str | None:
    """Why a value may not say where a node reads or writes, if so."""
    if value is None:
        return None
    if not isinstance(value, str):
        return "must be a text of its own, not a link or an object"
    parts = re.split(r"[\\/]", value)
    if ":" in value or "\\" in value or value.startswith(("/", "~")) or ".." in parts:
        return "must be a relative name without '..', backslash or address"
    return None


def _stem(value: Any) -> str:
    """The last part of a caller's name, as a name of ours."""
    last = re.split(r"[\\/]", value)[-1] if isinstance(value, str) else ""
    return re.sub(r"[^A-Za-z0-9._ -]", "_", last)[:_LONGEST_STEM].strip(". ") or "output"


def _missing_models(graph: Graph, node_info: NodeInfo) -> Iterator[Problem]:
    """The model files that nodes on the outputs' way name and this ComfyUI does not list."""
    catalog = load_catalog()
    folders = {(one.node_class, one.input): one.folder for one in catalog.loaders}
    for node_id, found in validate(graph, node_info).node_errors.items():
        for error in found["errors"]:
            if error["type"] != "value_not_in_list":
                continue
            name: str = error["extra_info"]["input_name"]
            value = str(error["extra_info"]["received_value"])
            folder = folders.get((found["class_type"], name))
            if folder is None and not value.lower().endswith(_MODEL_SUFFIXES):
                continue
            known = (f for f in catalog.files if (f.folder, f.name) == (folder, value))
            shown = f"{value[:_LONGEST_NAME]}" + (f" (folder {folder})" if folder else "")
            described = next((file.describe() for file in known), shown)
            yield Problem(f"workflow.{node_id}.inputs.{name}", described)
