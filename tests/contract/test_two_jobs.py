"""Two jobs at a time: one's clip is delivered while the next is generated, and neither is hurt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
import requests
from tests.conftest import SMALL, settings_for
from tests.delivery.storage import BUCKET, KEY_ID, SECRET, Storage, Wire, moto, wire

from ltx_worker import engines
from ltx_worker.errors import Cancelled, DeadlineExceeded, JobError
from ltx_worker.progress import WAITING, JobProgress
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker

# Long enough to be caught in the act on both engines.
LONG = SMALL | {"resolution": "384x256", "num_frames": 17, "quality": "pro"}
IN_TIME_S = 50.0


class Run:
    """A job under way in a thread of its own."""

    def __init__(
        self, worker: Worker, job_id: str, job_input: dict[str, Any], stop: StopSignal | None = None
    ) -> None:
        self.stop = stop or StopSignal(IN_TIME_S)
        self.reports: list[JobProgress] = []
        self.result: Any = None
        self.error: JobError | None = None
        self.ended_at = 0.0
        self._job = {"id": job_id, "input": job_input}
        self._thread = threading.Thread(target=self._run, args=(worker,), daemon=True)
        self._thread.start()

    def _run(self, worker: Worker) -> None:
        try:
            self.result = worker.run(self._job, self.stop, self.reports.append)
        except JobError as error:
            self.error = error
        self.ended_at = time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether it was last heard of in the line."""
        return bool(self.reports) and self.reports[-1]["name"] == WAITING

    @property
    def samples(self) -> bool:
        return any(report["step"] for report in self.reports)

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> Run:
        self._thread.join(IN_TIME_S)
        assert self.is_over
        return self

    def done(self) -> Any:
        """Its result."""
        self.end()
        assert self.error is None, self.error
        return self.result


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + IN_TIME_S
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.005)


def queue_of(engine: engines.Engine) -> list[str]:
    queue = requests.get(f"{engine.url}/queue", timeout=30).json()
    return [item[1] for item in queue["queue_running"] + queue["queue_pending"]]


@pytest.fixture(scope="module")
def storage() -> Generator[Storage]:
    with moto() as storage:
        yield storage


@pytest.fixture
def slow(storage: Storage) -> Generator[Wire]:
    """A way to the storage on which uploads stall until they may go on."""
    with wire(storage, hold=threading.Event()) as relay:
        yield relay


@pytest.fixture
def worker(slow_engine: engines.Engine) -> Generator[Worker]:
    """A worker, after which nothing is left on its engine."""
    worker = Worker(settings_for(slow_engine))
    worker.start()
    yield worker
    worker.close()
    folders = (slow_engine.input_dir, slow_engine.output_dir)
    assert [path for folder in folders for path in folder.rglob("*") if path.is_file()] == []
    assert queue_of(slow_engine) == []
    assert requests.get(f"{slow_engine.url}/history", timeout=30).json() == {}


@pytest.fixture
def uploading(slow_engine: engines.Engine, slow: Wire) -> Generator[Worker]:
    """A worker with a bucket behind the slow way."""
    bucket: dict[str, Any] = {
        "r2_endpoint_url": slow.url,
        "r2_bucket": BUCKET,
        "r2_access_key_id": KEY_ID,
        "r2_secret_access_key": SECRET,
    }
    settings: Settings = settings_for(slow_engine, **bucket)
    worker = Worker(settings)
    worker.start()
    yield worker
    worker.close()


def linked(seed: int) -> dict[str, Any]:
    """A job's input whose clip is uploaded."""
    return SMALL | {"seed": seed, "output": {"delivery": "url"}}


def test_the_next_job_is_generated_while_a_clip_is_uploaded(
    uploading: Worker, slow: Wire, storage: Storage
) -> None:
    """The first upload does not end before the second job samples; each has a clip of its own."""
    assert slow.hold is not None
    first = Run(uploading, "overlap-1", linked(101))
    assert slow.held.wait(IN_TIME_S)
    second = Run(uploading, "overlap-2", linked(202))
    wait_for(lambda: second.samples)
    assert not first.is_over
    slow.hold.set()
    results = [first.done(), second.done()]
    assert [one.metadata.seed for one in results] == [101, 202]
    keys = [f"{time.strftime('%Y-%m-%d', time.gmtime())}/overlap-{n}.mp4" for n in (1, 2)]
    clips = [storage.content(f"outputs/ltx2/{key}") for key in keys]
    alone = [Run(uploading, f"alone-{seed}", linked(seed)).done() for seed in (101, 202)]
    assert [one.outputs[0].sha256 for one in results] == [one.outputs[0].sha256 for one in alone]
    assert clips[0] != clips[1]
    assert [len(clip) for clip in clips] == [one.outputs[0].bytes for one in results]


def test_a_job_waits_for_the_prompt_before_it(worker: Worker, slow_engine: engines.Engine) -> None:
    """ComfyUI has one prompt at a time; the job that waits says so, and its timings tell."""
    worker.run({"id": "pace", "input": LONG | {"seed": 1}})
    first = Run(worker, "first", LONG | {"seed": 2})
    wait_for(lambda: first.samples)
    second = Run(worker, "second", LONG | {"seed": 3})
    wait_for(lambda: second.waits)
    queued: set[int] = set()
    while not (first.is_over and second.is_over):
        queued.add(len(queue_of(slow_engine)))
    results = first.done(), second.done()
    assert max(queued) == 1
    assert first.ended_at < second.ended_at
    waiting = [report for report in second.reports if report["name"] == WAITING]
    assert {(one["stage"], one["percent"], one["step"]) for one in waiting} == {(1, 0, 0)}
    whole_s = first.reports[0]["remaining_s"]
    left = [report["remaining_s"] for report in second.reports]
    assert left[0] is not None
    assert whole_s is not None
    assert whole_s < left[0] < 2.5 * whole_s
    assert left == sorted(left, key=lambda seconds: -(seconds or 0))
    assert results[1].timings.queue_s > 0.3 * results[0].timings.comfy_s
    assert results[1].timings.comfy_s < 2 * results[0].timings.comfy_s


def test_a_cancelled_job_does_not_touch_the_next_one(worker: Worker) -> None:
    """The one that is generated stops; the one that waits has its turn then."""
    first = Run(worker, "cancelled", LONG | {"seed": 4})
    wait_for(lambda: first.samples)
    second = Run(worker, "kept", LONG | {"seed": 5})
    wait_for(lambda: second.waits)
    first.stop.cancel()
    assert isinstance(first.end().error, Cancelled)
    assert second.done().metadata.seed == 5


@pytest.mark.parametrize(("by", "seed"), [("cancel", 6), ("deadline", 66)])
def test_a_job_that_stops_while_it_waits_touches_nobody(
    worker: Worker, slow_engine: engines.Engine, by: str, seed: int
) -> None:
    """It ends at once, and ComfyUI has never heard of its prompt."""
    first = Run(worker, f"goes on {by}", LONG | {"seed": seed})
    wait_for(lambda: first.samples)
    stop = StopSignal(0.4 if by == "deadline" else IN_TIME_S)
    second = Run(worker, f"stops {by}", LONG | {"seed": 7}, stop)
    wait_for(lambda: second.waits)
    if by == "cancel":
        stop.cancel()
    second.end()
    assert isinstance(second.error, Cancelled if by == "cancel" else DeadlineExceeded)
    assert not first.is_over
    assert len(queue_of(slow_engine)) == 1
    assert first.done().metadata.seed == seed


def test_a_cancel_during_the_upload_leaves_the_next_job_alone(
    uploading: Worker, slow: Wire, storage: Storage
) -> None:
    """The upload is given up; the job that is generated meanwhile goes on."""
    assert slow.hold is not None
    first = Run(uploading, "upload cancelled", linked(8))
    assert slow.held.wait(IN_TIME_S)
    second = Run(uploading, "after it", LONG | {"seed": 9})
    wait_for(lambda: second.samples)
    first.stop.cancel()
    assert isinstance(first.end().error, Cancelled)
    assert not second.is_over
    slow.hold.set()
    assert second.done().metadata.seed == 9
    assert storage.open_uploads() == []


def test_another_delivery_of_a_job_does_not_hold_up_the_line(uploading: Worker, slow: Wire) -> None:
    """It waits for the first one's end; a third job is generated meanwhile."""
    assert slow.hold is not None
    first = Run(uploading, "twice", linked(10))
    assert slow.held.wait(IN_TIME_S)
    again = Run(uploading, "twice", linked(10))
    third = Run(uploading, "third", SMALL | {"seed": 11})
    assert third.done().metadata.seed == 11
    assert not first.is_over
    assert again.reports == []
    slow.hold.set()
    assert first.done().outputs[0].sha256 == again.done().outputs[0].sha256


def test_a_refused_job_costs_the_running_one_nothing(worker: Worker) -> None:
    """What ends before its turn takes no turn."""
    first = Run(worker, "runs", LONG | {"seed": 12})
    wait_for(lambda: first.samples)
    refused = Run(worker, "refused", SMALL | {"promt": "x"}).end()
    assert refused.error is not None
    assert refused.error.code == "invalid_request"
    assert not first.is_over
    assert first.done().metadata.seed == 12
