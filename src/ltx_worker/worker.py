"""The pipeline: one job in, one clip out.

Invariant 1: a job ends in exactly one of a result whose clip was probed, or one coded error.
Neither torch nor RunPod's SDK is imported here or below.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_worker import __version__
from ltx_worker.boot import AnyResult, Boot
from ltx_worker.comfy.client import History
from ltx_worker.comfy.execution import Executor
from ltx_worker.comfy.launch import EngineFolders
from ltx_worker.delivery.bucket import Bucket
from ltx_worker.delivery.bucket_config import bucket_config, bucket_from_job
from ltx_worker.delivery.handover import ResultFile
from ltx_worker.delivery.job_delivery import JobDelivery
from ltx_worker.delivery.kept import KeptResults
from ltx_worker.errors import JobError, OutOfMemory, SystemOutOfMemory
from ltx_worker.generation import Generation
from ltx_worker.health import Health
from ltx_worker.job import Job
from ltx_worker.job_files import JobFiles
from ltx_worker.late_files import LateFiles
from ltx_worker.leftovers import left_behind
from ltx_worker.logs import bound_job, get_logger
from ltx_worker.media.memory_limit import ample_memory
from ltx_worker.media.placing import Placer
from ltx_worker.memory_advice import Gpu, advise, gpu_of
from ltx_worker.pace import Pace, kind_of, work_of
from ltx_worker.progress import DELIVERY, OnProgress, ProgressTracker
from ltx_worker.raw_job import run_raw
from ltx_worker.raw_request import is_raw
from ltx_worker.raw_result import RawResult
from ltx_worker.repertoire import Repertoire
from ltx_worker.request import GenerateRequest
from ltx_worker.request_fields import OutputOptions
from ltx_worker.result import GenerateResult, Metadata, OutputEntry
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.turns import Turns
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.template import Template

if TYPE_CHECKING:
    from ltx_worker.delivery.probe import ClipFacts

_log = get_logger(__name__)

_FORGET_TIMEOUT_S = 0.5


class Worker:
    """Runs jobs on the ComfyUI of `settings`. `start` it before the first job.

    `run` may be called from several threads: one job's clip is then delivered while the next is
    generated.
    """

    def __init__(
        self,
        settings: Settings,
        on_given_up: Callable[[str], None] | None = None,
        boot: Boot | None = None,
    ) -> None:
        """Raises `WorkflowMismatch`, `ComfyUnavailable`, `GpuUnfit` or `InvalidSettings`.

        `on_given_up` gets the cause when the worker's own ComfyUI cannot be started again. `boot`
        is a start that has begun; it has both arguments already.
        """
        self._boot = boot or Boot(settings, on_given_up)
        self.decision = self._boot.decision
        self._settings = settings = self._boot.settings
        with self._boot.timed("load_s"):
            self.repertoire = Repertoire(settings)
        self._server = self._boot.server
        self._executor = Executor(self._server)
        self._health = Health()
        self._generation = Generation(self._executor, self._health)
        self._late_files = LateFiles(self._executor.is_unsettled)
        config = bucket_config(settings)
        self._bucket = config and Bucket(config)
        self._kept = KeptResults(self._kept_dir, settings.keep_failed_s)
        self._node_info: Mapping[str, Any] = {}
        self._engine = "unknown"
        self._gpu: Gpu | None = None
        self._turns = Turns()
        self._pace = Pace()

    def start(self) -> None:
        """Have ComfyUI up, check every workflow against its nodes and see which models it has.

        The first job is made warm, too. Raises `ComfyUnavailable` or `WorkflowMismatch`.
        """
        self._node_info = self._boot.nodes()
        with self._boot.timed("check_s"):
            stats = self.system_stats()
            self._engine = stats["system"].get("engine", "comfyui")
            self._gpu = gpu_of(stats)
            self.repertoire.learn(self._node_info, self.decision and self.decision.variant)
            self._sweep()
        self._boot.warm_up(self._executor, self.repertoire, self._files, self._forget)
        _log.info(
            "worker.ready",
            engine=self._engine,
            models=self.repertoire.installed,
            workflows=self.repertoire.workflow_names,
            boot=self._boot.finish().model_dump(),
        )

    def close(self) -> None:
        """End the worker's own ComfyUI, or close the connections to another's."""
        self._boot.close()
        self._late_files.remove_all()

    @property
    def folders(self) -> EngineFolders:
        """ComfyUI's folders, where the worker shares them."""
        return self._server.folders

    def system_stats(self) -> Mapping[str, Any]:
        """ComfyUI's versions, memory and devices."""
        return self._server.client.system_stats()

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
        one = Job.of(job, stop or self.new_stop_signal(), on_progress)
        with bound_job(one.id):
            _log.info("job.started")
            try:
                with self._turns.of(one.id, one.stop):
                    self._health.require()
                    result = self._run_raw(one) if is_raw(one.input) else self._run(one)
            except Exception as raised:
                error = self._health.judged(raised)
                _log.warning("job.failed", code=error.code, stage=error.stage, seconds=one.age_s)
                if error is raised:
                    raise
                raise error from raised
            _log.info("job.done", seconds=one.age_s, stages=result.timings.stages)
        return result

    def _run(self, job: Job) -> GenerateResult:
        """The five steps. The job's files and its history are gone after them, however they end."""
        # What reads clips is loaded by the first job, as in `placing`: no start waits for it.
        from ltx_worker.delivery.clip import collect_clip  # noqa: PLC0415

        delivery = self._delivery(job)
        with self._files(job) as files:
            has_bucket = delivery.bucket is not None
            request = self.repertoire.parse(job.input, job.default_seed, has_bucket=has_bucket)
            if again := delivery.deliver_again(GenerateResult, request.output):
                return again
            request, placed = Placer(self._settings, files, job.stop).place(request)
            template, graph = self.repertoire.render(
                request, placed, files.filename_prefix, self.folders.models_dirs
            )
            inputs_s = job.age_s
            tracker = self._tracker(job, request, template, graph)
            try:
                history = self._execute(job, request, template, graph, tracker, files)
                made = time.monotonic()
                tracker.deliver()
                with ample_memory():
                    facts, result_files = collect_clip(
                        history, template.output_id, request, self._container(request), files
                    )
                collect_s = time.monotonic() - made
                draft = GenerateResult(
                    video="",
                    outputs=[OutputEntry.of(file) for file in result_files],
                    metadata=self._metadata(request, facts, _enhanced_prompt(history, template)),
                    timings=tracker.timings(history, inputs_s, collect_s, job.age_s),
                    warnings=list(request.warnings),
                )
                result = self._deliver(delivery, draft, result_files, request.output)
            finally:
                self._forget(job)
        tracker.finish()
        self._pace.learn(kind_of(template.name, request), work_of(request), tracker.learnt_seconds)
        return result

    def _run_raw(self, job: Job) -> RawResult:
        """The same for a caller's own graph."""
        delivery = self._delivery(job)
        if again := delivery.deliver_again(RawResult, OutputOptions()):
            return again
        with self._files(job) as files:
            try:
                return run_raw(
                    self._generation,
                    files,
                    job,
                    self._node_info,
                    self._settings,
                    lambda draft, found: self._deliver(delivery, draft, found, OutputOptions()),
                )
            finally:
                self._forget(job)

    def _tracker(
        self, job: Job, request: GenerateRequest, template: Template, graph: Graph
    ) -> ProgressTracker:
        expected = self._pace.expected(kind_of(template.name, request), work_of(request))
        return ProgressTracker(
            (*template.stages_in(graph), DELIVERY),
            job.on_progress,
            expected,
            job.started,
            on_stage=lambda name, s: _log.info("job.stage", stage=name, seconds=round(s, 3)),
        )

    def _execute(
        self,
        job: Job,
        request: GenerateRequest,
        template: Template,
        graph: Graph,
        tracker: ProgressTracker,
        files: JobFiles,
    ) -> History:
        """Step 4; what memory did not suffice for comes with what to ask for instead."""
        try:
            return self._generation.run(job, graph, tracker, files.is_whole)
        except OutOfMemory as error:
            advice = advise(
                request,
                error.stage or "",
                None if isinstance(error, SystemOutOfMemory) else self._gpu,
                self.repertoire.variant_of(request),
                self._pace.largest(kind_of(template.name, request)),
            )
            message = f"{error.message}: {advice.message}"
            raise OutOfMemory(message, stage=error.stage, hint=advice.hint) from error

    @contextmanager
    def _files(self, job: Job) -> Generator[JobFiles]:
        """The job's files, gone afterwards; a later job removes what ComfyUI may write yet."""
        # Only another's ComfyUI can still have what a killed worker's delivery of this job left.
        known_id = "" if self._server.is_own else job.prompt_id
        with self._job_files(known_id) as files:
            try:
                yield files
            finally:
                self._late_files.remove_settled()
                self._late_files.add(job.prompt_id, files)

    def _job_files(self, prompt_id: str = "") -> JobFiles:
        folders = (self.folders.input_dir, self.folders.output_dir)
        return JobFiles(self._server.client, *folders, self._settings.output_dir, prompt_id)

    def _delivery(self, job: Job) -> JobDelivery:
        """Step 5, into the job's own bucket where it brings one."""
        bucket = self._bucket
        if job.s3_config:
            bucket = Bucket(bucket_from_job(job.s3_config, self._settings.link_expiry_s))
        settings = self._settings
        return JobDelivery(
            job_id=job.id,
            job_input=job.input,
            max_response_bytes=settings.max_response_bytes,
            output_key=settings.output_key,
            bucket=bucket,
            kept=self._kept,
            stop=job.stop,
        )

    def _deliver(
        self,
        delivery: JobDelivery,
        draft: AnyResult,
        files: Sequence[ResultFile],
        options: OutputOptions,
    ) -> AnyResult:
        """Step 5; the first result tells how the worker's start went."""
        result = delivery.deliver(self._boot.tell(draft), files, options)
        self._boot.told()
        return result

    @property
    def _kept_dir(self) -> Path:
        """Where clips are kept whose upload failed."""
        return (self.folders.output_dir or Path(tempfile.gettempdir())) / "ltx2-kept"

    def _container(self, request: GenerateRequest) -> str:
        return request.output.format or self._settings.video_format

    def _forget(self, job: Job) -> None:
        """Take the job's graph, with its prompt, out of ComfyUI's history."""
        try:
            self._executor.forget(job.prompt_id, _FORGET_TIMEOUT_S)
        except JobError:
            _log.warning("comfy.history_kept")

    def _sweep(self) -> None:
        """Remove what a worker that was killed has left, but for what its engine still has."""
        with self._job_files() as files:
            for leftover in left_behind():
                if not leftover.prompt_id or not self._executor.knows(leftover.prompt_id):
                    files.remove_leftover(leftover)
                    _log.warning("worker.swept", token=leftover.token)
        self._kept.sweep()

    def _metadata(
        self, request: GenerateRequest, facts: ClipFacts, enhanced_prompt: str | None
    ) -> Metadata:
        return Metadata(
            seed=request.seed,
            mode=request.mode,
            model=request.family,
            variant=self.repertoire.variant_of(request),
            quality=request.quality,
            **facts.made,
            enhanced_prompt=enhanced_prompt,
            gpu=self._gpu and self._gpu.name,
            engine=self._engine,
            worker_version=__version__,
        )


def _enhanced_prompt(history: History, template: Template) -> str | None:
    texts = history.texts.get(template.texts.get("enhanced_prompt", ""), ())
    return texts[0] if texts else None
