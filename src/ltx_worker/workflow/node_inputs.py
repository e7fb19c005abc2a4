"""The inputs that a node class declares, as ComfyUI's `/object_info` describes them.

Dynamic inputs (a combo with sub-inputs, a list that grows) become the dotted inputs that a graph
gives values to, so that everything else sees a flat list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

# ComfyUI's /object_info: node class -> input, output, output_node.
NodeInfo = Mapping[str, Any]

UPLOADS = frozenset({"image_upload", "audio_upload", "video_upload", "file_upload"})
_ANY_TYPES = frozenset({"*", "COMFY_MATCHTYPE_V3"})


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether a JSON value is a list."""
    return isinstance(value, list)


def link_of(value: Any) -> tuple[str, int] | None:
    """The (node id, slot) that an input is linked to, or None for anything else."""
    if is_list(value) and len(value) == 2 and isinstance(value[0], str):
        source, slot = value
        return (source, int(slot)) if isinstance(slot, int | float) else None
    return None


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


@dataclass(frozen=True)
class DeclaredInput:
    """An input as its class declares it; `kind` is a type or, in old style, a list of options."""

    name: str
    required: bool
    kind: Any
    options: Mapping[str, Any]

    @property
    def config(self) -> list[Any]:
        """The declaration as ComfyUI repeats it in an error."""
        return [self.kind, self.options]

    @property
    def choices(self) -> list[Any] | None:
        """The values a combo takes; None for other inputs.

        Also None for files in the input folder: their classes check those themselves.
        """
        if UPLOADS & self.options.keys():
            return None
        if is_list(self.kind):
            return self.kind
        return self.options.get("options", []) if self.kind == "COMBO" else None


def declared_inputs(
    declared: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any], prefix: str = ""
) -> Iterator[DeclaredInput]:
    """The inputs a node has, given its values: dynamic inputs are replaced by dotted ones."""
    for category in ("required", "optional"):
        for name, (kind, *rest) in declared.get(category, {}).items():
            options: Mapping[str, Any] = rest[0] if rest else {}
            item = DeclaredInput(prefix + name, category == "required", kind, options)
            if kind == "COMFY_AUTOGROW_V3":
                yield from _grown_inputs(item)
            elif kind == "COMFY_DYNAMICCOMBO_V3":
                yield from _chosen_inputs(item, given)
            elif kind != "COMFY_DYNAMICSLOT_V3":
                yield item
            elif item.name in given:
                yield item
                yield from declared_inputs(options["inputs"], given, f"{item.name}.")


def _grown_inputs(item: DeclaredInput) -> Iterator[DeclaredInput]:
    """The slots of an input that grows; the first `min` of a required template are required."""
    template = item.options["template"]
    category, (kind, *rest) = next(
        (category, next(iter(inputs.values())))
        for category, inputs in template["input"].items()
        if inputs
    )
    numbered = [f"{template.get('prefix')}{number}" for number in range(template.get("max", 0))]
    for index, slot in enumerate(template.get("names", numbered)):
        required = category == "required" and index < template["min"]
        yield DeclaredInput(f"{item.name}.{slot}", required, kind, rest[0] if rest else {})


def _chosen_inputs(item: DeclaredInput, given: Mapping[str, Any]) -> Iterator[DeclaredInput]:
    """The inputs of the option chosen; none when it is absent or unknown, as in ComfyUI."""
    for option in item.options["options"]:
        if item.name in given and option["key"] == given[item.name]:
            yield item
            yield from declared_inputs(option["inputs"], given, f"{item.name}.")


def fits(received: Any, wanted: Any) -> bool:
    """Whether an output of one type may feed an input of another; both may be "A,B,C"."""
    if received == wanted or (is_list(received) and wanted == "COMBO"):
        return True
    names = [
        {part.strip() for part in kind.split(",")} if isinstance(kind, str) else set[str]()
        for kind in (received, wanted)
    ]
    return bool(names[0] & names[1] or (names[0] | names[1]) & _ANY_TYPES)
