"""The pipeline: one job in, one clip out.

Invariant 1: a job ends in exactly one of a result whose clip was probed, or one coded error.
Neither torch nor RunPod's SDK is imported here or below.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

from ltx_worker import __version__
from ltx_worker.catalog import Inventory, load_catalog
from ltx_worker.comfy.client import ComfyClient, History
from ltx_worker.comfy.execution import execute
from ltx_worker.comfy.process import wait_until_ready
from ltx_worker.delivery.inline import encode
from ltx_worker.delivery.probe import ClipFacts, check, probe
from ltx_worker.delivery.transcode import to_webm
from ltx_worker.errors import (
    ComfyFailed,
    InternalError,
    JobError,
    WorkflowMismatch,
)
from ltx_worker.job_files import JobFiles
from ltx_worker.media.placing import Placer
from ltx_worker.offer import Offer
from ltx_worker.progress import OnProgress, ProgressTracker
from ltx_worker.raw_job import RawLimits, run_raw
from ltx_worker.raw_request import is_raw
from ltx_worker.raw_result import RawResult
from ltx_worker.recipes import load_recipe
from ltx_worker.request import GenerateRequest
from ltx_worker.request_reader import parse_request
from ltx_worker.result import GenerateResult, Metadata, OutputEntry
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.lora_check import require_fitting_loras
from ltx_worker.workflow.nodes import explain, validate
from ltx_worker.workflow.template import Template, load_templates
from ltx_worker.workflow.values import Placed, base_graph, render, require_models

_log = logging.getLogger(__name__)

# Job ids become prompt ids under this namespace.
_PROMPT_NAMESPACE = uuid.UUID("5a1c3f0e-2f3b-5d7c-9f53-6c7478320001")


class Worker:
    """Runs jobs on the ComfyUI of `settings`. `start` it before the first job."""

    def __init__(self, settings: Settings) -> None:
        """Load the workflows; raises `WorkflowMismatch` when one and its bindings disagree."""
        self._settings = settings
        self._client = ComfyClient(settings.comfy_url)
        self._templates = load_templates(settings.workflows_dir)
        self._catalog = load_catalog()
        self._inventory = Inventory(self._catalog, frozenset())
        self._offer = self._make_offer()
        self._engine = "unknown"
        self._node_info: Mapping[str, Any] = {}

    def start(self) -> None:
        """Wait for ComfyUI, check every workflow against its nodes and see which models it has.

        Raises `ComfyUnavailable` or `WorkflowMismatch`.
        """
        wait_until_ready(self._client, self._settings.comfy_start_timeout_s)
        self._engine = self._client.system_stats()["system"].get("engine", "comfyui")
        self._node_info = self._client.node_info()
        self._check_nodes()
        self._inventory = Inventory.from_node_info(
            self._catalog, self._node_info, self._settings.variant
        )
        self._offer = self._make_offer()
        _log.info(
            "worker.ready engine=%s models=%s workflows=%s",
            self._engine,
            ",".join(self._offer.installed) or "none",
            ",".join(template.name for template in self._templates.values()),
        )

    def close(self) -> None:
        """Close the connections to ComfyUI."""
        self._client.close()

    def new_stop_signal(self) -> StopSignal:
        """The deadline of a job that arrives now."""
        return StopSignal(self._settings.job_timeout_s)

    def run(
        self,
        job: Mapping[str, Any],
        stop: StopSignal | None = None,
        on_progress: OnProgress | None = None,
    ) -> GenerateResult | RawResult:
        """Run one job of RunPod's form `{"id", "input"}`; raises only `JobError`."""
        started = time.monotonic()
        job_id = str(job.get("id") or uuid.uuid4())
        try:
            steps = self._run_raw if is_raw(job.get("input")) else self._run
            result = steps(job_id, job.get("input"), stop or self.new_stop_signal(), on_progress)
        except JobError as error:
            _log.info("job.failed id=%s code=%s seconds=%.2f", job_id, error.code, _since(started))
            raise
        except Exception as error:
            _log.exception("job.crashed id=%s", job_id)
            raise InternalError("The worker failed; its log has the details") from error
        _log.info("job.done id=%s seconds=%.2f", job_id, result.timings.total_s)
        return result

    def _run(
        self, job_id: str, job_input: Any, stop: StopSignal, on_progress: OnProgress | None
    ) -> GenerateResult:
        """The five steps. The job's files and its history are gone after them, however they end."""
        started = time.monotonic()
        prompt_id = _prompt_id(job_id)
        with self._files() as files:
            request = self._parse(job_input)
            request, placed = Placer(self._settings, files, stop).place(request)
            template, graph = self._render(request, files, placed)
            inputs_s = _since(started)
            tracker = ProgressTracker(template.stages_in(graph), on_progress)
            try:
                history = execute(self._client, graph, prompt_id, stop, tracker.on_event)
                made = time.monotonic()
                facts, video = self._deliver(history, template, request, files)
            finally:
                self._forget(prompt_id)
        timings = tracker.timings(history, inputs_s, _since(made), _since(started))
        return GenerateResult(
            video=video,
            outputs=[_entry(request, facts, self._format(request))],
            metadata=self._metadata(request, facts, _enhanced_prompt(history, template)),
            timings=timings,
            warnings=list(request.warnings),
        )

    def _run_raw(
        self, job_id: str, job_input: Any, stop: StopSignal, on_progress: OnProgress | None
    ) -> RawResult:
        """The same for a caller's own graph."""
        prompt_id = _prompt_id(job_id)
        limits = RawLimits(self._settings.max_media_bytes, self._settings.max_response_bytes)
        with self._files() as files:
            try:
                return run_raw(
                    self._client,
                    files,
                    job_input,
                    self._node_info,
                    prompt_id,
                    stop,
                    on_progress,
                    limits,
                )
            finally:
                self._forget(prompt_id)

    def _files(self) -> JobFiles:
        settings = self._settings
        return JobFiles(
            self._client, settings.comfy_input_dir, settings.comfy_output_dir, settings.output_dir
        )

    def _parse(self, job_input: Any) -> GenerateRequest:
        """Step 1; a worker without any model says so instead of blaming the request."""
        if not self._offer.installed:
            template = next(iter(self._templates.values()))
            require_models(self._base_graph(self._catalog.families[0], template), self._inventory)
        return parse_request(job_input, self._offer)

    def _render(
        self, request: GenerateRequest, files: JobFiles, placed: Placed
    ) -> tuple[Template, Graph]:
        """Step 3: the workflow for the request, with every value in it."""
        template = self._templates[request.mode, request.quality, request.variant]
        recipe = load_recipe(request.family, request.quality)
        graph = render(template, request, recipe, self._inventory, files.filename_prefix, placed)
        require_fitting_loras(graph, request.family, self._settings.comfy_models_dirs)
        return template, graph

    def _deliver(
        self, history: History, template: Template, request: GenerateRequest, files: JobFiles
    ) -> tuple[ClipFacts, str]:
        """Step 5: the clip, read for what it is and encoded for the answer."""
        clip = next((f for f in history.files if f.node_id == template.output_id), None)
        if clip is None:
            raise ComfyFailed("ComfyUI reported success without a clip")
        path = files.collect(clip)
        if self._format(request) == "webm":
            mp4, path = path, files.scratch_path("clip.webm")
            to_webm(mp4, path)
        facts = probe(path)
        check(facts, request.made)
        return facts, encode(path, self._settings.max_response_bytes)

    def _format(self, request: GenerateRequest) -> str:
        return request.output.format or self._settings.video_format

    def _forget(self, prompt_id: str) -> None:
        """Take the job's graph, with its prompt, out of ComfyUI's history."""
        try:
            self._client.forget(prompt_id)
        except JobError:
            _log.warning("comfy.history_kept prompt=%s", prompt_id)

    def _check_nodes(self) -> None:
        """Keep the workflows that this ComfyUI has the nodes for; refuse those that misuse them.

        A node pack that is not installed costs the modes and options that need it, no more.
        """
        with_models = self._catalog.offer(self._node_info, self._catalog.names())
        for key, template in list(self._templates.items()):
            available = template.available_with(self._node_info.keys())
            if available is None:
                _log.warning("workflow.unavailable name=%s reason=missing-nodes", template.name)
                del self._templates[key]
                continue
            if available.unavailable:
                options = ",".join(sorted(available.unavailable))
                _log.warning("workflow.without name=%s options=%s", template.name, options)
            self._templates[key] = available
            graph = available.everything()
            validation = validate(graph, with_models)
            if problems := explain(validation.error, validation.node_errors, graph):
                raise WorkflowMismatch(f"Workflow {template.name}: " + "; ".join(problems))
        if not self._templates:
            raise WorkflowMismatch("This ComfyUI has the nodes for none of the workflows")

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
        )

    def _base_graph(self, family: str, template: Template) -> Graph:
        recipe = load_recipe(family, template.quality)
        return base_graph(template, family, recipe, self._inventory)

    def _metadata(
        self, request: GenerateRequest, facts: ClipFacts, enhanced_prompt: str | None
    ) -> Metadata:
        checkpoint = load_recipe(request.family, request.quality).models["checkpoint"]
        file = self._inventory.choose(request.family, checkpoint)
        return Metadata(
            seed=request.seed,
            mode=request.mode,
            model=request.family,
            variant=file.variant or "unknown",
            quality=request.quality,
            width=facts.width,
            height=facts.height,
            fps=facts.fps,
            num_frames=facts.num_frames,
            duration_s=facts.duration_s,
            has_audio=facts.audio_codec is not None,
            audio_sample_rate=facts.audio_sample_rate,
            enhanced_prompt=enhanced_prompt,
            engine=self._engine,
            worker_version=__version__,
        )


def _enhanced_prompt(history: History, template: Template) -> str | None:
    texts = history.texts.get(template.texts.get("enhanced_prompt", ""), ())
    return texts[0] if texts else None


def _entry(request: GenerateRequest, facts: ClipFacts, container: str) -> OutputEntry:
    return OutputEntry(
        filename=f"ltx2-{request.mode}-{request.seed}.{container}",
        mime_type=f"video/{container}",
        bytes=facts.bytes,
        sha256=facts.sha256,
    )


def _prompt_id(job_id: str) -> str:
    """A job delivered twice finds its own prompt."""
    return str(uuid.uuid5(_PROMPT_NAMESPACE, job_id))


def _since(moment: float) -> float:
    return time.monotonic() - moment
