"""A clip that nobody gets, made before the worker takes jobs: the first job is then a warm one.

It takes the way of a job: the default request, rendered and executed as any other, with as few
sampling steps as the workflow allows. Weights are then on the GPU, kernels loaded, and ComfyUI
keeps the loaders. However it ends, the worker starts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ltx_worker.comfy.execution import Executor
from ltx_worker.errors import JobError, ModelMissing
from ltx_worker.geometry import MIN_FRAMES, snap_frames_down
from ltx_worker.job import Job
from ltx_worker.job_files import JobFiles
from ltx_worker.logs import get_logger
from ltx_worker.progress import ProgressTracker
from ltx_worker.recipes import Recipe, load_recipe
from ltx_worker.repertoire import Repertoire
from ltx_worker.request import GenerateRequest
from ltx_worker.request_fields import Quality
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.template import Template
from ltx_worker.workflow.values import Placed

_log = get_logger(__name__)

OpenFiles = Callable[[Job], AbstractContextManager[JobFiles]]
Forget = Callable[[Job], None]


@dataclass(frozen=True)
class WarmUpFindings:
    """How long it took, in seconds, by the workflow's stages too; `problem` where it failed."""

    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict[str, float])
    problem: str | None = None


@dataclass(frozen=True)
class WarmUp:
    """One warm-up. `data` is the table warm_up of boot.toml.

    `open_files` and `forget` do for its job what they do for any, `replace` ends a ComfyUI that is
    lost. `megapixel_frames` is what is known to fit the GPU, None where nothing is known.
    """

    executor: Executor
    repertoire: Repertoire
    open_files: OpenFiles
    forget: Forget
    replace: Callable[[str], bool]
    models_dirs: Sequence[Path]
    data: Mapping[str, Any]
    megapixel_frames: float | None = None

    def run(self, timeout_s: float) -> WarmUpFindings:
        """Make the clip, or log why not; raises nothing but what ends the process."""
        started = time.monotonic()
        stages: Mapping[str, float] = {}
        problem = None
        try:
            stages = self._run(StopSignal(timeout_s))
        except JobError as error:
            problem = error.code
            _log.warning("warm_up.failed", code=error.code, stage=error.stage, reason=error.message)
            if error.replace_worker:
                # Such as a fault of the GPU, which lasts as long as the process does.
                self.replace("it failed when it was warmed up")
        except Exception:  # noqa: BLE001 - it is no reason not to start
            problem = "internal"
            _log.exception("warm_up.failed")
        return WarmUpFindings(round(time.monotonic() - started, 3), stages, problem)

    def _run(self, stop: StopSignal) -> Mapping[str, float]:
        """Seconds by stage."""
        job = Job.of({"id": f"warm-up-{uuid.uuid4()}"}, stop)
        with self.open_files(job) as files:
            template, graph = self._graph(files.filename_prefix)
            tracker = ProgressTracker(template.stages_in(graph), None)
            try:
                self.executor.execute(graph, job.prompt_id, stop, tracker.on_event)
            finally:
                self.forget(job)
        return tracker.stage_seconds

    def _graph(self, filename_prefix: str) -> tuple[Template, Graph]:
        """The default job's workflow, of the first quality whose models are installed."""
        missing: ModelMissing | None = None
        for quality in get_args(Quality):
            request = self._request(quality)
            recipe = load_recipe(request.family, request.quality)
            placed = Placed(few_steps(recipe, self.data["steps"]))
            try:
                return self.repertoire.render(request, placed, filename_prefix, self.models_dirs)
            except ModelMissing as error:
                missing = missing or error
        assert missing is not None
        raise missing

    def _request(self, quality: str) -> GenerateRequest:
        data = self.data
        fields = {"mode": data["mode"], "prompt": data["prompt"], "quality": quality}
        request = self.repertoire.parse(fields, data["seed"])
        frames = self._most_frames(request)
        if frames >= request.num_frames:
            return request
        return self.repertoire.parse(fields | {"num_frames": frames}, data["seed"])

    def _most_frames(self, request: GenerateRequest) -> int:
        if self.megapixel_frames is None:
            return request.num_frames
        pixels = request.size.width * request.size.height
        return max(MIN_FRAMES, snap_frames_down(int(self.megapixel_frames * 1e6 / pixels)))


def few_steps(recipe: Recipe, steps: int) -> dict[str, Any]:
    """The recipe's values with so few steps in each pass.

    Of sigmas the first ones stay, and the last, with which a pass ends.
    """
    values: dict[str, Any] = {}
    for name, value in recipe.values.items():
        if name.endswith("sigmas"):
            sigmas = value.split(",")
            values[name] = ",".join([*sigmas[:-1][:steps], sigmas[-1]])
        elif name == "steps":
            values[name] = min(value, steps)
    return values
