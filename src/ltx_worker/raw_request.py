"""From a job's input with a `workflow` to a graph and its files, in the form of RunPod's generic
ComfyUI worker: `workflow` (API format, or its JSON text) and `images` (`[{name, image}]`).

`parse_raw_request` raises one `InvalidRequest` that names every problem at once. What comes out
can be copied, sent as JSON and queued without hurting ComfyUI: a node without `inputs` that no
output needs would be accepted and then end its worker thread for good. Names of files are only
looked up, never used as paths (invariant 6). What the graph asks for is judged by
`workflow.screening`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from ltx_worker.errors import InvalidRequest, Problem
from ltx_worker.request_fields import Media, MediaSource, RequestFields, unknown_field
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.node_inputs import is_list, is_object

MAX_NODES = 1000
MAX_IMAGES = 64
# Far more than any node takes, and far less than what copying a value can follow.
MAX_DEPTH = 32
_MAX_NAME_CHARACTERS = 200

_FIELDS = ("workflow", "images", "comfy_org_api_key")
_IMAGE_FIELDS = ("name", "image")
_NODE_FIELDS = ("class_type", "inputs", "_meta")
# Parentheses are in the names that ComfyUI's own page gives to pasted pictures.
_NAME_PART = r"[\w()-][\w() .-]*"
_NAME = re.compile(rf"{_NAME_PART}(/{_NAME_PART})?")
_MEDIA: TypeAdapter[MediaSource] = TypeAdapter(Media)


@dataclass(frozen=True)
class RawImage:
    """A file for the graph's loader nodes: the name that the graph uses, and its content."""

    name: str
    source: MediaSource


@dataclass(frozen=True)
class RawRequest:
    """A checked request: every node of `graph` has a class, inputs and nothing unknown."""

    graph: Graph
    images: tuple[RawImage, ...] = ()
    warnings: tuple[str, ...] = ()


def is_raw(job_input: object) -> bool:
    """Whether a job brings its own graph."""
    return is_object(job_input) and "workflow" in job_input


def parse_raw_request(job_input: object) -> RawRequest:
    """Read a job's `input`; raises `InvalidRequest` with every problem in `details`."""
    reader = _Reader()
    request = reader.read(job_input)
    if reader.problems:
        raise InvalidRequest.listing(reader.problems)
    return request


class _Reader:
    """Reads each field in turn and collects problems on the way."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def read(self, job_input: object) -> RawRequest:
        if not is_object(job_input):
            self._problem("input", "must be an object with a workflow")
            return RawRequest({})
        given = {name: value for name, value in job_input.items() if value is not None}
        self._check_names("", given, _FIELDS)
        warnings = ()
        if "comfy_org_api_key" in given:
            warnings = ("comfy_org_api_key is not used: this worker gives no key to its nodes",)
        return RawRequest(
            self._graph(given.get("workflow")), self._images(given.get("images", [])), warnings
        )

    def _problem(self, field: str, message: str) -> None:
        self.problems.append(Problem(field, message))

    def _check_names(self, prefix: str, given: Iterable[str], known: tuple[str, ...]) -> None:
        """Name the fields that nobody knows, with the nearest that somebody does."""
        for name in given:
            if name in known:
                continue
            if not prefix and name in RequestFields.model_fields:
                self._problem(name, "cannot be given with workflow; write it into the graph")
            else:
                self._problem(prefix + name, unknown_field(name, known))

    def _graph(self, workflow: object) -> Graph:
        if isinstance(workflow, str):
            try:
                workflow = json.loads(workflow)
            except (ValueError, RecursionError):
                self._problem("workflow", "is a text that is not valid JSON")
                return {}
        if not is_object(workflow):
            self._problem("workflow", "must be an object in ComfyUI's API format, or its JSON text")
        elif is_list(workflow.get("nodes")):
            self._problem(
                "workflow",
                "is in the format of ComfyUI's editor; export it with 'Export (API)' in ComfyUI",
            )
        elif not 1 <= len(workflow) <= MAX_NODES:
            self._problem("workflow", f"has {len(workflow):,} nodes; 1 to {MAX_NODES:,} are taken")
        else:
            return {node_id: self._node(node_id, node) for node_id, node in workflow.items()}
        return {}

    def _node(self, node_id: str, node: object) -> dict[str, Any]:
        """The node with the fields that a graph has; others could steer ComfyUI's cache."""
        field = f"workflow.{node_id}"
        if not is_object(node):
            self._problem(field, "is not a node: it must be an object")
            return {}
        if not isinstance(node.get("class_type"), str):
            self._problem(field, "has no class_type")
        if not is_object(node.get("inputs")):
            self._problem(field, "has no inputs: they must be an object, if need be an empty one")
        meta = node.get("_meta", {})
        if not is_object(meta) or not isinstance(meta.get("title", ""), str):
            self._problem(f"{field}._meta", "must be an object whose title is text")
        if reason := _unfit_for_json(node):
            self._problem(field, reason)
        return {name: node[name] for name in _NODE_FIELDS if name in node}

    def _images(self, images: object) -> tuple[RawImage, ...]:
        if not is_list(images) or len(images) > MAX_IMAGES:
            self._problem(
                "images", f"must be a list of at most {MAX_IMAGES} objects with name and image"
            )
            return ()
        read = [self._image(f"images.{index}", entry) for index, entry in enumerate(images)]
        kept = {image.name: image for image in read if image is not None}
        if len(kept) < sum(image is not None for image in read):
            self._problem("images", "has the same name more than once")
        return tuple(kept.values())

    def _image(self, field: str, entry: object) -> RawImage | None:
        if not is_object(entry):
            self._problem(field, "must be an object with name and image")
            return None
        before = len(self.problems)
        self._check_names(f"{field}.", entry, _IMAGE_FIELDS)
        name = entry.get("name")
        if not isinstance(name, str):
            self._problem(f"{field}.name", "must be text")
        elif len(name) > _MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
            self._problem(
                f"{field}.name",
                "must be a file name, in one folder at most, of letters, digits, spaces and ._-()",
            )
        source = None
        try:
            source = _MEDIA.validate_python(entry.get("image"))
        except ValidationError:
            self._problem(f"{field}.image", "must be a data URI, base64 or an https URL")
        if source is None or len(self.problems) > before:
            return None
        return RawImage(cast("str", name), source)


def _unfit_for_json(value: object) -> str | None:
    """Why a value cannot be passed on as JSON, if so."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            return "has a number that is not finite"
        level = [inner for one in level for inner in _parts(one)]
        if not level:
            return None
    return f"is nested more than {MAX_DEPTH} levels deep"


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).values()
    return value if is_list(value) else ()
