"""Step 4, for a caller's own graph as for ours: a job's turn at ComfyUI.

One prompt runs at a time. As soon as it is over the next job has its turn, while this one's clip is
still read and handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ltx_worker.comfy.client import History
from ltx_worker.comfy.execution import Executor
from ltx_worker.errors import JobError
from ltx_worker.health import Health
from ltx_worker.job import Job
from ltx_worker.progress import ProgressTracker
from ltx_worker.turns import Line
from ltx_worker.workflow.bindings import Graph


class Generation:
    """Runs the prompts of jobs on `executor`, as long as the worker is in `health`."""

    def __init__(self, executor: Executor, health: Health) -> None:
        self._executor = executor
        self._health = health
        self._line = Line()

    def run(
        self,
        job: Job,
        graph: Graph,
        tracker: ProgressTracker,
        is_whole: Callable[[History], bool],
    ) -> History:
        """The history of the job's prompt, once those before it are over.

        Raises what `Executor.execute`, `Health.require` and the job's stop signal raise.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._line.turn(tracker, job.stop))
                self._health.require()
            except JobError:
                self._executor.disown(job.prompt_id)
                raise
            try:
                return self._executor.execute(
                    graph, job.prompt_id, job.stop, tracker.on_event, is_whole
                )
            except JobError as error:
                # Before the next one's turn: it must not run on a GPU that is known to be broken.
                self._health.note(error)
                raise
