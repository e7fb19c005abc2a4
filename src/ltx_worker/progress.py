"""How far a job is, from ComfyUI's events, the workflow's stages and what earlier jobs took.

Within a stage the sampler's steps count. Stage and percent never go back, though ComfyUI may run
the nodes of a later stage early; the time that remains never grows: a stage that takes longer than
expected holds it. A job that waits for those before it, on a worker that takes several, is told so
and counts their time in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from ltx_worker.comfy.client import History
from ltx_worker.comfy.events import Cached, Ended, Event, Executed, Executing, Progress, Started
from ltx_worker.result import Timings
from ltx_worker.workflow.splice import original_id
from ltx_worker.workflow.template import Stage

# What the worker does once ComfyUI is done; the last stage of a job that is given it.
DELIVERY = Stage("Delivery", 2.0, frozenset())
# The name of the first stage for as long as another job's prompt has ComfyUI.
WAITING = "Waiting for the job before"

# So much has to pass before a pace can be told.
_MIN_ELAPSED_S = 1.0


class JobProgress(TypedDict):
    """What a caller gets while a job runs; stages and steps count from 1, times in seconds.

    `elapsed_s` counts from the job's arrival. `remaining_s` is None only while nothing is known,
    and never more than it was before. `percent` is 100 only when the job is done.
    """

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
    """Turns each event into a `JobProgress`, and times the stages.

    `expected` has the seconds that stages will take, by name, as far as that is known. Without it
    the stages' shares are taken for their lengths, at the pace of this job. `started` is when the
    job arrived by `clock`, in seconds; default now. `on_stage` gets each stage's name once, with
    the seconds since then.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        on_progress: OnProgress | None,
        expected: Mapping[str, float] | None = None,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_stage: Callable[[str, float], None] | None = None,
    ) -> None:
        self._stages = stages
        self._on_stage = on_stage
        self._on_progress = on_progress
        self._clock = clock
        self._stage_of = {node: i for i, stage in enumerate(stages) for node in stage.node_ids}
        self._lengths, self._in_seconds = _lengths(stages, expected or {})
        self._submitted = self._clock()
        self._arrived = self._submitted if started is None else started
        self._queue_left: float | None = None
        self._current = 0
        self._fraction = 0.0
        self._running: tuple[int, float] | None = None
        self._seconds = [0.0] * len(stages)
        self._ran: set[int] = set()
        self._cached: set[int] = set()
        self._percent = 0
        self._remaining_s: float | None = None

    @property
    def queue_s(self) -> float:
        """Seconds between submission and ComfyUI's start of the prompt."""
        return 0.0 if self._queue_left is None else self._queue_left - self._submitted

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent in each stage's nodes, in the workflow's order."""
        return {
            stage.name: round(seconds, 3)
            for stage, seconds in zip(self._stages, self._seconds, strict=True)
            if stage != DELIVERY
        }

    @property
    def learnt_seconds(self) -> dict[str, float]:
        """Seconds of each stage that ran as a whole: nothing of it was kept by ComfyUI."""
        return {self._stages[i].name: self._seconds[i] for i in sorted(self._ran - self._cached)}

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
        now = self._clock()
        match event:
            case Started():
                self._queue_left = now
            case Cached(node_ids=node_ids):
                self._skip(node_ids)
            case Executing(node_id=node_id):
                self._enter(self._stage_with(node_id), now)
                self._report(now, 0, 0)
            case Progress(node_id=node_id, value=value, maximum=maximum):
                if self._stage_with(node_id) == self._current and maximum > 0:
                    self._fraction = max(self._fraction, min(1.0, value / maximum))
                self._report(now, value, maximum)
            case Ended():
                self._enter(None, now)
            case Executed():
                pass

    def wait(self, ahead_s: float | None) -> None:
        """Other jobs come first, which need ComfyUI for `ahead_s` yet; None: nobody knows."""
        if self._on_progress is None or not self._stages:
            return
        if self._in_seconds and ahead_s is not None:
            self._count_down(ahead_s + sum(self._lengths))
        self._tell(self._clock(), WAITING, 0, 0)

    @property
    def engine_left_s(self) -> float | None:
        """Seconds for which ComfyUI will be busy with this job yet; None when nobody knows.

        May be asked from another thread.
        """
        if not self._stages:
            return None
        remaining_s = self._estimate(self._clock())[1]
        if remaining_s is None:
            return None
        delivery_s = self._lengths[-1] if self._stages[-1] == DELIVERY else 0.0
        return max(0.0, remaining_s - delivery_s) if self._in_seconds else remaining_s

    def deliver(self) -> None:
        """ComfyUI is done: what follows is delivery, where the job has that stage."""
        if DELIVERY in self._stages:
            now = self._clock()
            self._enter(self._stages.index(DELIVERY), now)
            self._report(now, 0, 0)

    def finish(self) -> None:
        """The job is done: all of it, and nothing remains."""
        now = self._clock()
        self._enter(None, now)
        self._current = max(0, len(self._stages) - 1)
        self._percent, self._remaining_s = 100, 0.0
        self._report(now, 0, 0)

    def _stage_with(self, node_id: str) -> int | None:
        """The stage of a node, or of the node that it is a copy of."""
        return self._stage_of.get(node_id, self._stage_of.get(original_id(node_id)))

    def _skip(self, node_ids: frozenset[str]) -> None:
        """These nodes do not run: a stage of nothing else takes no time."""
        for i, stage in enumerate(self._stages):
            if stage.node_ids & node_ids:
                self._cached.add(i)
            if stage.node_ids and stage.node_ids <= node_ids:
                self._lengths[i] = 0.0

    def _enter(self, stage: int | None, now: float) -> None:
        """A node of `stage` starts, or the prompt is over: the time since then was its own."""
        if self._running is not None:
            index, since = self._running
            self._seconds[index] += now - since
        self._running = None if stage is None else (stage, now)
        if stage is None:
            return
        if stage not in self._ran and self._on_stage is not None:
            self._on_stage(self._stages[stage].name, now - self._arrived)
        self._ran.add(stage)
        if stage > self._current:
            self._current, self._fraction = stage, 0.0

    def _report(self, now: float, step: int, steps: int) -> None:
        if self._on_progress is None or not self._stages:
            return
        self._look_ahead(now)
        self._tell(now, self._stages[self._current].name, step, steps)

    def _tell(self, now: float, name: str, step: int, steps: int) -> None:
        if self._on_progress is None:
            return
        self._on_progress(
            JobProgress(
                stage=self._current + 1,
                stages=len(self._stages),
                name=name,
                step=step,
                steps=steps,
                percent=self._percent,
                elapsed_s=round(now - self._arrived, 1),
                remaining_s=self._remaining_s,
            )
        )

    def _look_ahead(self, now: float) -> None:
        """Bring the percentage and the time that remains up to date, in their one direction."""
        done, remaining_s = self._estimate(now)
        self._percent = max(self._percent, min(99, int(100 * done)))
        if remaining_s is not None:
            self._count_down(remaining_s)

    def _count_down(self, remaining_s: float) -> None:
        shown = round(remaining_s, 1)
        if self._remaining_s is None or shown < self._remaining_s:
            self._remaining_s = shown

    def _estimate(self, now: float) -> tuple[float, float | None]:
        """How much is done, from 0 to 1, and the seconds that remain, None while nobody knows."""
        whole = sum(self._lengths)
        part = self._part_of_stage(now) * self._lengths[self._current]
        done = (sum(self._lengths[: self._current]) + part) / whole if whole else 1.0
        if not self._in_seconds:
            ran_s = now - (self._queue_left or self._submitted)
            if ran_s < _MIN_ELAPSED_S or not done:
                return done, None
            whole = ran_s / done
        return done, whole * (1 - done)

    def _part_of_stage(self, now: float) -> float:
        """How much of the current stage is done, from 0 to 1; without steps, by its time."""
        length = self._lengths[self._current]
        if self._fraction or not self._in_seconds or not length:
            return self._fraction
        spent_s = self._seconds[self._current]
        if self._running is not None and self._running[0] == self._current:
            spent_s += now - self._running[1]
        return min(1.0, spent_s / length)


def _lengths(stages: Sequence[Stage], expected: Mapping[str, float]) -> tuple[list[float], bool]:
    """How long each stage is, and whether that is in seconds.

    Where some stages' seconds are known, the others' follow from their shares.
    """
    known = [stage for stage in stages if stage.name in expected]
    seconds = sum(expected[stage.name] for stage in known)
    if not seconds:
        return [stage.share for stage in stages], False
    unit_s = seconds / sum(stage.share for stage in known)
    return [expected.get(stage.name, unit_s * stage.share) for stage in stages], True
