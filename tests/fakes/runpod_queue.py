"""The jobs of a serverless endpoint as RunPod keeps them: who has them and what became of them.

No HTTP here. What is known is changed under one lock, so a record is never seen half written.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass
class JobRecord:
    """What RunPod knows of a job. Moments are those of `time.monotonic`."""

    id: str
    state: str = "IN_QUEUE"
    output: dict[str, Any] | None = None
    error: str | None = None
    handed_out_at: float | None = None
    """The latest time a worker was given the job."""
    deliveries: int = 0
    finished_at: float | None = None
    """When the job was over for its caller: by a result, refused or not, a cancel, a timeout."""
    progress: list[tuple[float, Any]] = field(default_factory=list)
    posts_after_result: int = 0
    """Progress and results that came after the job's first result."""
    refused_bytes: int | None = None
    """The size of a result that was too large; such a job is COMPLETED, without output."""
    stop_pod: bool = False
    stopped_at: float | None = None
    """When a worker was told to stop the job."""
    late: dict[str, Any] | None = None
    """The result of a job that was cancelled or had timed out before; nobody sees it."""

    @property
    def error_object(self) -> Any:
        """The error, parsed; fails when it is not JSON."""
        return json.loads(self.error or "null")

    @property
    def is_over(self) -> bool:
        return self.state in _OVER


@dataclass(frozen=True)
class Ping:
    """A worker's heartbeat and the jobs that it says it has."""

    moment: float
    worker: str
    job_ids: tuple[str, ...]


@dataclass
class _Job:
    record: JobRecord
    body: dict[str, Any]
    execution_timeout_s: float | None
    workers: set[str] = field(default_factory=set)
    has_result: bool = False
    clock: threading.Timer | None = None


class JobQueue:
    """The calls of callers (`submit` to `wait`) and of workers (`take` to `ping`)."""

    def __init__(self, max_body_bytes: int, hold_s: float) -> None:
        """`max_body_bytes` limits inputs and results; an empty poll is held for `hold_s`."""
        self._max_body_bytes = max_body_bytes
        self._hold_s = hold_s
        self._changed = threading.Condition()
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[str] = deque()
        self._stops: defaultdict[str, list[str]] = defaultdict(list)
        self._takes: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self.pings: list[Ping] = []
        self.unhealthy: str | None = None
        """Check and reason of a fitness check that failed."""
        self.takes_while_busy = 0
        """Polls for a job by a worker that had one."""

    def close(self) -> None:
        """Let no job time out any more."""
        with self._changed:
            for job in self._jobs.values():
                _stop_clock(job)

    def submit(
        self,
        job_input: Any,
        *,
        job_id: str | None = None,
        s3_config: Mapping[str, str] | None = None,
        execution_timeout_s: float | None = None,
    ) -> str:
        """Queue a job; returns its id. Raises `ValueError` when the body is over the limit."""
        body: dict[str, Any] = {"id": job_id or str(uuid.uuid4()), "input": job_input}
        if s3_config is not None:
            body["s3Config"] = dict(s3_config)
        if len(json.dumps(body)) > self._max_body_bytes:
            raise ValueError("The body is over the endpoint's limit")
        with self._changed:
            job = _Job(JobRecord(body["id"]), body, execution_timeout_s)
            self._jobs[body["id"]] = job
            self._queue.append(body["id"])
            self._changed.notify_all()
        return body["id"]

    def cancel(self, job_id: str) -> None:
        """Cancel a job as its caller; one that is over stays as it is."""
        self._end_early(job_id, "CANCELLED")

    def redeliver(self, job_id: str) -> None:
        """Queue a job again under its id: at once if it runs, from the start if it is over."""
        with self._changed:
            job = self._jobs[job_id]
            if job.record.is_over:
                job.has_result = False
                job.record = JobRecord(job_id, deliveries=job.record.deliveries)
            self._queue.append(job_id)
            self._changed.notify_all()

    def record(self, job_id: str) -> JobRecord:
        """What is known of a job now."""
        with self._changed:
            record = self._jobs[job_id].record
            return replace(record, progress=list(record.progress))

    def wait(self, job_id: str, timeout_s: float = 30.0) -> JobRecord:
        """The record of a job once it is over; raises `TimeoutError` when it is not in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs[job_id].record.is_over, timeout_s)
            record = self.record(job_id)
        if not record.is_over:
            raise TimeoutError(f"The job is {record.state} after {timeout_s:g} s")
        return record

    def wait_for_worker(self, timeout_s: float = 60.0) -> None:
        """Wait until a worker has asked for a job; raises `TimeoutError` when none does."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._takes.total() > 0, timeout_s):
                raise TimeoutError(f"No worker asked for a job within {timeout_s:g} s")

    def takes(self, worker: str) -> int:
        """How often a worker has asked for a job."""
        with self._changed:
            return self._takes[worker]

    def welcome(self, worker: str) -> None:
        """Hold a worker's polls (again)."""
        with self._changed:
            self._leaving.discard(worker)
            self._stops.pop(worker, None)

    def dismiss(self, worker: str) -> None:
        """Answer a worker's polls at once, so that one that was told to end does not wait."""
        with self._changed:
            self._leaving.add(worker)
            self._changed.notify_all()

    def take(
        self, worker: str, is_busy: bool, is_connected: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """A worker's poll for a job: held until there is one, None when there is none in time."""
        with self._changed:
            self._takes[worker] += 1
            self.takes_while_busy += is_busy
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or worker in self._leaving, self._hold_s)
            # A worker that was killed in its poll would take the job to its grave.
            if not self._queue or worker in self._leaving or not is_connected():
                return None
            job = self._jobs[self._queue.popleft()]
            job.workers.add(worker)
            job.record.state = "IN_PROGRESS"
            job.record.deliveries += 1
            job.record.handed_out_at = time.monotonic()
            if job.execution_timeout_s is not None:
                _stop_clock(job)
                timed_out = (job.record.id, "TIMED_OUT")
                job.clock = threading.Timer(job.execution_timeout_s, self._end_early, timed_out)
                job.clock.daemon = True
                job.clock.start()
            return job.body

    def stops(self, worker: str) -> list[str]:
        """A worker's poll for jobs to stop: held until there are some."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stops[worker] or worker in self._leaving, self._hold_s
            )
            job_ids = self._stops.pop(worker, [])
            for job_id in job_ids:
                self._jobs[job_id].record.stopped_at = time.monotonic()
            # After an empty answer the SDK waits for a second before it sees that it shall end.
            return job_ids or (["none"] if worker in self._leaving else [])

    def post(self, job_id: str, body: bytes) -> bool:
        """A worker's progress or result; whether it was taken."""
        moment, message = time.monotonic(), json.loads(body)
        is_taken = len(body) <= self._max_body_bytes
        with self._changed:
            job = self._jobs[job_id]
            if message.get("status") == "IN_PROGRESS":
                job.record.posts_after_result += job.has_result
                if is_taken:
                    job.record.progress.append((moment, message["output"]))
            elif is_taken:
                self._take_result(job, message, moment)
            else:
                job.record.refused_bytes = len(body)
                if not job.record.is_over:
                    self._end(job, "COMPLETED", moment)
            job.has_result |= message.get("status") != "IN_PROGRESS"
        return is_taken

    def ping(self, worker: str, query: Mapping[str, str]) -> None:
        """A worker's heartbeat, or its report of a fitness check that failed."""
        with self._changed:
            if query.get("status") == "unhealthy":
                self.unhealthy = f"{query['check']}: {query['reason']}"
            else:
                job_ids = tuple(filter(None, query.get("job_id", "").split(",")))
                self.pings.append(Ping(time.monotonic(), worker, job_ids))
            self._changed.notify_all()

    def _take_result(self, job: _Job, message: dict[str, Any], moment: float) -> None:
        if job.has_result:
            job.record.posts_after_result += 1
        elif job.record.is_over:
            job.record.late = message
        else:
            job.record.output = message.get("output")
            job.record.error = message.get("error")
            job.record.stop_pod = message.get("stopPod", False)
            self._end(job, "FAILED" if "error" in message else "COMPLETED", moment)

    def _end_early(self, job_id: str, state: str) -> None:
        with self._changed:
            job = self._jobs[job_id]
            if job.record.is_over:
                return
            while job_id in self._queue:
                self._queue.remove(job_id)
            for worker in job.workers:
                self._stops[worker].append(job_id)
            self._end(job, state, time.monotonic())

    def _end(self, job: _Job, state: str, moment: float) -> None:
        _stop_clock(job)
        job.record.state, job.record.finished_at = state, moment
        self._changed.notify_all()


def _stop_clock(job: _Job) -> None:
    if job.clock is not None:
        job.clock.cancel()
