"""What a request, its recipe and the installed files give to a workflow's bindings."""

from __future__ import annotations

from typing import Any

from ltx_worker.catalog import Inventory
from ltx_worker.errors import ModelMissing, Problem
from ltx_worker.geometry import audio_clock
from ltx_worker.recipes import Recipe
from ltx_worker.request import GenerateRequest
from ltx_worker.workflow.template import Graph, Template


def render(
    template: Template,
    request: GenerateRequest,
    recipe: Recipe,
    inventory: Inventory,
    *,
    filename_prefix: str,
    image_name: str | None = None,
) -> Graph:
    """The graph of one job.

    Recipe values go where the workflow binds them and are otherwise dropped; what the request
    says overrides the recipe. Raises `ModelMissing` naming each file that is not installed.
    """
    values = {name: value for name, value in recipe.values.items() if name in template.takes}
    values |= _model_names(template, request, recipe, inventory)
    values |= _request_values(template, request, recipe)
    values |= {"filename_prefix": filename_prefix, "format": request.output.format}
    if image_name is not None:
        values["image"] = image_name
    return template.render(values)


def model_roles(template: Template, recipe: Recipe) -> list[str]:
    """The catalogue roles that the workflow loads."""
    return [role for binding, role in recipe.models.items() if binding in template.takes]


def _model_names(
    template: Template, request: GenerateRequest, recipe: Recipe, inventory: Inventory
) -> dict[str, str]:
    missing = inventory.missing(request.family, model_roles(template, recipe))
    if missing:
        listed = [file.describe() for file in missing]
        raise ModelMissing(
            f"{request.family} at quality {request.quality} needs files that are not installed: "
            + "; ".join(listed),
            details=[Problem("model", line) for line in listed],
        )
    return {
        binding: file.name
        for binding, role in recipe.models.items()
        if binding in template.takes and (file := inventory.find(request.family, role))
    }


def _request_values(template: Template, request: GenerateRequest, recipe: Recipe) -> dict[str, Any]:
    audio_frames, audio_frame_rate = audio_clock(request.num_frames, request.fps)
    values = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.size.width,
        "height": request.size.height,
        "first_pass_width": request.size.width // request.passes,
        "first_pass_height": request.size.height // request.passes,
        "num_frames": request.num_frames,
        "fps": request.fps,
        "audio_frames": audio_frames,
        "audio_frame_rate": audio_frame_rate,
        "seed": request.seed,
        "second_pass_seed": request.seed + recipe.second_pass_seed_offset,
        "image_strength": request.image_strength,
    }
    return {k: v for k, v in values.items() if v is not None and k in template.takes}
