"""How far a job is, from ComfyUI's events and the workflow's stage map.

The share of each stage is data of the workflow; within a stage the sampler's steps count. Percent
and stage never go back: ComfyUI may run the nodes of a later stage early.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypedDict

from ltx_worker.comfy.client import History
from ltx_worker.comfy.events import Cached, Ended, Event, Executed, Executing, Progress, Started
from ltx_worker.result import Timings
from ltx_worker.workflow.splice import original_id
from ltx_worker.workflow.template import Stage

# So much has to pass before a pace can be told.
_MIN_ELAPSED_S = 1.0


class JobProgress(TypedDict):
    """What a caller gets while a job runs; stages and steps count from 1, times in seconds."""

    stage: int
    stages: int
    name: str
    step: int
    steps: int
    percent: int
    elapsed_s: float
    remaining_s: float | None


OnProgress = Callable[[JobProgress], None]


class ProgressTracker:
    """Turns each event into a `JobProgress`, and times the stages."""

    def __init__(self, stages: Sequence[Stage], on_progress: OnProgress | None) -> None:
        self._stages = stages
        self._on_progress = on_progress
        self._stage_of = {node: i for i, stage in enumerate(stages) for node in stage.node_ids}
        self._started = time.monotonic()
        self._queue_left: float | None = None
        self._current = 0
        self._fraction = 0.0
        self._running: tuple[int, float] | None = None
        self._seconds = [0.0] * len(stages)

    @property
    def queue_s(self) -> float:
        """Seconds between submission and ComfyUI's start of the prompt."""
        return 0.0 if self._queue_left is None else self._queue_left - self._started

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent in each stage's nodes, in the workflow's order."""
        return {
            stage.name: round(seconds, 3)
            for stage, seconds in zip(self._stages, self._seconds, strict=True)
        }

    def timings(
        self, history: History, inputs_s: float, encode_s: float, total_s: float
    ) -> Timings:
        """Where a finished job's time went, in seconds."""
        return Timings(
            inputs_s=round(inputs_s, 4),
            queue_s=round(self.queue_s, 4),
            comfy_s=history.execution_s,
            stages=self.stage_seconds,
            encode_s=round(encode_s, 4),
            upload_s=0.0,
            total_s=round(total_s, 4),
        )

    def on_event(self, event: Event) -> None:
        """Take in one event of this job's prompt."""
        now = time.monotonic()
        match event:
            case Started():
                self._queue_left = now
            case Executing(node_id=node_id):
                self._enter(self._stage_of.get(original_id(node_id)), now)
                self._report(now, 0, 0)
            case Progress(node_id=node_id, value=value, maximum=maximum):
                stage = self._stage_of.get(original_id(node_id))
                if stage == self._current and maximum > 0:
                    self._fraction = max(self._fraction, value / maximum)
                self._report(now, value, maximum)
            case Ended():
                self._enter(None, now)
            case Cached() | Executed():
                pass

    def _enter(self, stage: int | None, now: float) -> None:
        """A node of `stage` starts, or the prompt is over: the time since then was its own."""
        if self._running is not None:
            index, since = self._running
            self._seconds[index] += now - since
        self._running = None if stage is None else (stage, now)
        if stage is not None and stage > self._current:
            self._current, self._fraction = stage, 0.0

    def _report(self, now: float, step: int, steps: int) -> None:
        if self._on_progress is None or not self._stages:
            return
        done = self._done()
        elapsed_s = now - self._started
        self._on_progress(
            JobProgress(
                stage=self._current + 1,
                stages=len(self._stages),
                name=self._stages[self._current].name,
                step=step,
                steps=steps,
                percent=int(100 * done),
                elapsed_s=round(elapsed_s, 1),
                remaining_s=_remaining(elapsed_s, done),
            )
        )

    def _done(self) -> float:
        """The share of the work that is done, from 0 to 1."""
        shares = [stage.share for stage in self._stages]
        before = sum(shares[: self._current])
        return (before + self._fraction * shares[self._current]) / sum(shares)


def _remaining(elapsed_s: float, done: float) -> float | None:
    """Seconds still to go at the pace so far; None while too little has passed to tell."""
    if elapsed_s < _MIN_ELAPSED_S or not done:
        return None
    return round(elapsed_s * (1 - done) / done, 1)
