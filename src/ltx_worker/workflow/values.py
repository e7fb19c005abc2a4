"""What a request, its recipe and the installed files give to a workflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltx_worker.catalog import Inventory
from ltx_worker.errors import ModelMissing, Problem
from ltx_worker.geometry import audio_clock
from ltx_worker.recipes import Recipe
from ltx_worker.request import GenerateRequest
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.template import Choices, Template


@dataclass(frozen=True)
class Placed:
    """A job's files as ComfyUI knows them.

    `values` are bindings (a picture's name for `image`), `repeats` the items of repeated groups,
    `options` those that follow from the media.
    """

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    repeats: Mapping[str, Sequence[Mapping[str, Any]]] = field(
        default_factory=dict[str, Sequence[Mapping[str, Any]]]
    )
    options: frozenset[str] = frozenset()


def render(
    template: Template,
    request: GenerateRequest,
    recipe: Recipe,
    inventory: Inventory,
    filename_prefix: str,
    placed: Placed,
) -> Graph:
    """The graph of one job.

    Recipe values go where the workflow binds them and are otherwise dropped; what the request
    says overrides the recipe. Raises `ModelMissing` naming each file that is not installed.
    """
    values = dict(recipe.values)
    values |= _model_names(template, request.family, recipe, inventory, request.control)
    values |= _request_values(request, recipe)
    values |= placed.values
    # ComfyUI's SaveVideo knows only mp4; other containers are made from it afterwards.
    values |= {"filename_prefix": filename_prefix, "format": "mp4"}
    graph = template.render(
        {k: v for k, v in values.items() if k in template.targets},
        Choices(
            options=request.options | placed.options,
            repeats=placed.repeats,
            loras=[*_camera_lora(request, inventory), *request.loras],
        ),
    )
    require_models(graph, inventory)
    return graph


def require_models(graph: Graph, inventory: Inventory) -> None:
    """Raise `ModelMissing` when ComfyUI does not offer a file that the graph loads."""
    missing = inventory.missing(graph)
    if not missing:
        return
    listed = [file.describe() if file else name for name, file in missing]
    commands = [file.command for _, file in missing if file]
    raise ModelMissing(
        "Model files are not installed: " + "; ".join(listed),
        details=[Problem("model", line) for line in listed],
        hint="In ComfyUI's folder: " + " && ".join(commands) if commands else None,
    )


def base_graph(template: Template, family: str, recipe: Recipe, inventory: Inventory) -> Graph:
    """The graph of a job that asks for nothing optional, with the models of `family`."""
    return template.render(_model_names(template, family, recipe, inventory, "union"))


def _model_names(
    template: Template, family: str, recipe: Recipe, inventory: Inventory, control: str | None
) -> dict[str, str]:
    """File names for the workflow's model bindings, installed or not."""
    known = inventory.catalog.roles(family)
    roles = {binding: role_of(binding, recipe, control, known) for binding in template.targets}
    return {b: inventory.choose(family, role).name for b, role in roles.items() if role in known}


def role_of(binding: str, recipe: Recipe, control: str | None, known: frozenset[str]) -> str:
    """The catalogue's role for a binding; its own name unless the recipe says another.

    A control without a LoRA of its own uses the one for all of them.
    """
    if binding == "control_lora":
        own = f"control_{control}"
        return own if own in known else "control_union"
    return recipe.models.get(binding, binding)


def _camera_lora(request: GenerateRequest, inventory: Inventory) -> list[tuple[str, float]]:
    if request.camera_lora is None:
        return []
    role, strength = request.camera_lora
    return [(inventory.choose(request.family, role).name, strength)]


def _request_values(request: GenerateRequest, recipe: Recipe) -> dict[str, Any]:
    audio_frames, audio_frame_rate = audio_clock(request.num_frames, request.fps)
    seed = request.seed
    values = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.size.width,
        "height": request.size.height,
        "first_pass_width": request.size.width // request.passes,
        "first_pass_height": request.size.height // request.passes,
        "num_frames": request.num_frames,
        "fps": request.fps,
        "output_fps": request.made.fps,
        "audio_frames": audio_frames,
        "audio_frame_rate": audio_frame_rate,
        "seed": seed,
        "second_pass_seed": seed + recipe.second_pass_seed_offset,
        "third_pass_seed": seed + 2 * recipe.second_pass_seed_offset,
        "image_strength": request.image_strength,
        "control_strength": request.control_strength,
    }
    return {k: v for k, v in values.items() if v is not None}
