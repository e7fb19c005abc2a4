"""What this worker can run: the workflows its ComfyUI has the nodes for, with the models installed.

Made once, when the worker starts (invariant 5: a workflow that misuses a node refuses the start).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltx_worker.catalog import Inventory, Variant, load_catalog
from ltx_worker.errors import WorkflowMismatch
from ltx_worker.offer import Offer, WorkflowKey
from ltx_worker.recipes import load_recipe
from ltx_worker.request import GenerateRequest
from ltx_worker.request_output import unheeded_warnings
from ltx_worker.request_reader import parse_request
from ltx_worker.settings import Settings
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.lora_check import require_fitting_loras
from ltx_worker.workflow.nodes import explain, validate
from ltx_worker.workflow.substitutes import Substitutes
from ltx_worker.workflow.template import Template, load_templates
from ltx_worker.workflow.values import Placed, base_graph, render, require_models


class Repertoire:
    """The workflows of `settings`; `learn` tells it what ComfyUI has."""

    def __init__(self, settings: Settings) -> None:
        """Load the workflows; raises `WorkflowMismatch` when one and its bindings disagree."""
        self._settings = settings
        self._templates = load_templates(settings.workflows_dir)
        self._catalog = load_catalog()
        self._inventory = Inventory(self._catalog, frozenset())
        self._offer = self._make_offer()
        self._unavailable: dict[str, tuple[str, ...]] = {}
        self._substitutes = Substitutes()

    @property
    def installed(self) -> tuple[str, ...]:
        """The model families with all files of at least one workflow."""
        return self._offer.installed

    @property
    def workflow_names(self) -> tuple[str, ...]:
        """The workflows that can run."""
        return tuple(template.name for template in self._templates.values())

    @property
    def unavailable(self) -> dict[str, tuple[str, ...]]:
        """Workflows that this ComfyUI lacks nodes for, wholly or for some options."""
        return self._unavailable

    def model_files(self, models_dirs: Sequence[Path]) -> list[Path]:
        """The catalogue's files that lie in these folders."""
        files = self._catalog.files
        places = [folder / file.folder / file.name for file in files for folder in models_dirs]
        return [path for path in places if path.is_file()]

    def needed_files(self) -> str:
        """The files of the first family that are missing, for messages."""
        template = next(iter(self._templates.values()))
        graph = self._base_graph(self._catalog.families[0], template)
        return ", ".join(name for name, _ in self._inventory.missing(graph))

    def learn(self, node_info: Mapping[str, Any], preferred: Variant | None = None) -> None:
        """Take in what ComfyUI offers; raises `WorkflowMismatch`.

        Of files that serve alike, those of the `preferred` variant are taken.
        """
        self._substitutes = Substitutes.of(node_info)
        self._templates = self._runnable(node_info)
        self._inventory = Inventory.from_node_info(
            self._catalog, node_info, self._settings.variant, preferred
        )
        self._offer = self._make_offer()

    def parse(
        self, job_input: Any, default_seed: int, *, has_bucket: bool = False
    ) -> GenerateRequest:
        """Step 1; a worker without any model says so instead of blaming the request."""
        if not self._offer.installed:
            template = next(iter(self._templates.values()))
            require_models(self._base_graph(self._catalog.families[0], template), self._inventory)
        offer = replace(self._offer, has_bucket=has_bucket)
        request = parse_request(job_input, offer, default_seed)
        return request.warned(*unheeded_warnings(request.output, self._substitutes.options))

    def render(
        self,
        request: GenerateRequest,
        placed: Placed,
        filename_prefix: str,
        models_dirs: Sequence[Path],
    ) -> tuple[Template, Graph]:
        """Step 3: the workflow for the request, with every value in it."""
        template = self._templates[request.mode, request.quality, request.variant]
        recipe = load_recipe(request.family, request.quality)
        graph = render(template, request, recipe, self._inventory, filename_prefix, placed)
        require_fitting_loras(graph, request.family, models_dirs)
        container = request.output.format or self._settings.video_format
        asked = {"format": container, "quality": request.output.quality}
        return template, self._substitutes.in_graph(graph, asked)

    def variant_of(self, request: GenerateRequest) -> str:
        """The precision of the checkpoint that serves the request: fp8 or fp16."""
        checkpoint = load_recipe(request.family, request.quality).models["checkpoint"]
        return self._inventory.choose(request.family, checkpoint).variant or "unknown"

    def _runnable(self, node_info: Mapping[str, Any]) -> dict[WorkflowKey, Template]:
        """The workflows this ComfyUI has the nodes for; refuses those that misuse them.

        A node pack that is not installed costs the modes and options that need it, no more.
        """
        with_models = self._catalog.offer(node_info, self._catalog.names())
        runnable: dict[WorkflowKey, Template] = {}
        self._unavailable = {}
        for key, template in self._templates.items():
            available = template.available_with(node_info.keys())
            if available is None:
                self._unavailable[template.name] = ("all of it",)
                continue
            if available.unavailable:
                self._unavailable[template.name] = tuple(sorted(available.unavailable))
            graph = self._substitutes.in_graph(available.everything())
            validation = validate(graph, with_models)
            if problems := explain(validation.error, validation.node_errors, graph):
                raise WorkflowMismatch(f"Workflow {template.name}: " + "; ".join(problems))
            runnable[key] = available
        if not runnable:
            raise WorkflowMismatch("This ComfyUI has the nodes for none of the workflows")
        return runnable

    def _make_offer(self) -> Offer:
        catalog, templates = self._catalog, self._templates.values()
        installed = tuple(
            family
            for family in catalog.families
            if any(
                not self._inventory.missing(self._base_graph(family, template))
                for template in templates
            )
        )
        return Offer(
            workflows={key: template.offer for key, template in self._templates.items()},
            families=catalog.families,
            installed=installed,
            max_frames=self._settings.max_frames,
            roles={family: catalog.roles(family) for family in catalog.families},
            loras=self._inventory.loras,
            video_format=self._settings.video_format,
        )

    def _base_graph(self, family: str, template: Template) -> Graph:
        recipe = load_recipe(family, template.quality)
        return base_graph(template, family, recipe, self._inventory)
