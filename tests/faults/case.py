"""One case: a fault, how the job ended, and what the worker is like afterwards."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
import requests
from tests.conftest import SMALL, picture
from tests.fakes.runpod_queue import JobRecord
from tests.faults.deployment import Deployment, Left, RemoteEngine, wait_until
from tests.faults.proxy import Proxy

from ltx_worker.settings import Settings
from ltx_worker.workflow.template import Choices, load_template

_OUTCOME_S = 60.0
# How long after a deadline or a cancel a job may still go on.
_LATE_S = 2.0
_PICTURE = picture(64, 64)
_FOREIGN_FOLDER = "foreign"
_seeds = itertools.count(time.time_ns() % 10**9)


@dataclass
class Row:
    """A line of the table."""

    case: str
    engine: str
    expected: str = ""
    outcome: str = ""
    seconds: float | None = None
    note: str = ""
    after: str = ""
    left: int | None = None


class Case:
    """Drives one `deployment` through a fault and fills in its `row`."""

    def __init__(self, deployment: Deployment, row: Row) -> None:
        self.deployment = deployment
        self.engine = deployment.engine
        self.platform = deployment.platform
        self.row = row
        self._expected_results: dict[str, int] = {}
        self._foreign = ""

    @property
    def remote(self) -> RemoteEngine:
        """The engine of a worker that has not started its own."""
        assert isinstance(self.engine, RemoteEngine)
        return self.engine

    @property
    def proxy(self) -> Proxy:
        """What lies between the worker and that engine."""
        return self.remote.proxy

    def submit(self, **fields: Any) -> str:
        """Queue a small job with a seed of its own, or `job_input`; returns its id."""
        timeout_s = fields.pop("execution_timeout_s", None)
        job_input = fields.pop("job_input", None) or SMALL | {"seed": next(_seeds)} | fields
        return self.platform.submit(job_input, execution_timeout_s=timeout_s)

    def submit_slow(self, delay_s: float = 0.4, **fields: Any) -> str:
        """Queue a job as `queue_slow` does; returns once it samples."""
        job_id = self.queue_slow(delay_s, **fields)
        wait_until(lambda: self._is_sampling(job_id), _OUTCOME_S)
        return job_id

    def queue_slow(self, delay_s: float, **fields: Any) -> str:
        """Queue a job with a picture, whose eleven sampling steps take `delay_s` each."""
        self.engine.arm("slow", delay_s=delay_s)
        return self.submit(image=_PICTURE, **fields)

    def _is_sampling(self, job_id: str) -> bool:
        return any(progress["step"] for _, progress in self.platform.record(job_id).progress)

    def wait_handed_out(self, job_id: str) -> float:
        """Wait until the worker has the job; returns the moment."""
        wait_until(lambda: self.platform.record(job_id).handed_out_at)
        return self.platform.record(job_id).handed_out_at or 0.0

    def expect(
        self, job_id: str, outcome: str, *, within_s: float = _OUTCOME_S, results: int = 1
    ) -> JobRecord:
        """Wait for the job's end, which must be `outcome`: video, a code, or a state without one.

        `within_s` counts from the hand-out. `results` is how many the worker may post.
        """
        self.row.expected = outcome
        record = self.platform.wait(job_id, _OUTCOME_S)
        assert record.finished_at is not None
        assert record.handed_out_at is not None
        self.row.outcome = _outcome_of(record)
        self.row.seconds = record.finished_at - record.handed_out_at
        self._expected_results[job_id] = results
        assert self.row.outcome == outcome, f"{self.row.outcome}: {record.error}"
        assert self.row.seconds < within_s, f"it took {self.row.seconds:.1f} s"
        return record

    def expect_deadline(self, job_id: str, deadline_s: float) -> None:
        """The job ends by its deadline, and within two seconds of it."""
        self.expect(job_id, "deadline_exceeded", within_s=deadline_s + _LATE_S)
        self.row.note = f"{(self.row.seconds or 0) - deadline_s:+.1f} s of the deadline"

    def expect_stopped(self, job_id: str, state: str) -> None:
        """The platform ended the job: ComfyUI lets go of it soon, and nothing is posted for it."""
        record = self.expect(job_id, state, results=0)
        wait_until(lambda: set(self.engine.queued()) <= {self._foreign})
        seconds = time.monotonic() - (record.finished_at or 0)
        self.row.note = f"ComfyUI let go of it after {seconds:.1f} s"
        assert seconds < _LATE_S

    def submit_foreign(self, delay_s: float) -> None:
        """Queue another client's prompt, which is then running for eleven times `delay_s`."""
        self._foreign = str(uuid.uuid4())
        self.engine.arm("slow", delay_s=delay_s)
        self.engine.submit(self._foreign, _foreign_graph())
        wait_until(lambda: self.engine.queue("running"))

    def expect_foreign_success(self) -> None:
        """The other client's prompt ends well; take it and its file away."""
        wait_until(lambda: self._foreign in self.engine.history())
        assert self.engine.history()[self._foreign]["status"]["completed"]
        self.engine.forget(self._foreign)
        shutil.rmtree(self.engine.output_dir / _FOREIGN_FOLDER)

    def restart_worker(self, seconds: float) -> None:
        """Start the worker that ended in `seconds`."""
        self.row.note = f"the worker ended in {seconds:.1f} s"
        self.deployment.stop()
        self.deployment.start()

    def recovers(self) -> None:
        """The next job succeeds on the same worker, and nothing is left of any job."""
        # An engine that is being started again has forgotten what it was told.
        with suppress(requests.ConnectionError):
            self.engine.disarm()
        record = self.platform.wait(self.submit(), _OUTCOME_S)
        self.row.after = _outcome_of(record)
        assert self.row.after == "video", f"{self.row.after}: {record.error}"
        assert not any(self.platform.record(job_id).stop_pod for job_id in self._expected_results)
        self.leaves_nothing()

    def leaves_nothing(self) -> None:
        """No file, no prompt, and of every job exactly its results, with nothing after the last."""
        left = self.deployment.left()
        self.row.left = len(left.files)
        assert left == Left(), f"{left}"
        assert self.platform.takes_while_busy == 0
        for job_id, results in self._expected_results.items():
            assert len(self.platform.results(job_id)) == results
            posts = self.platform.posts[job_id]
            if results:
                assert not posts[-1].is_progress
            else:
                ended_at = self.platform.record(job_id).finished_at or 0
                assert all(post.moment < ended_at + _LATE_S for post in posts)

    def asks_to_be_replaced(self, job_id: str) -> None:
        """The job's answer says so, and the next job's as well."""
        assert self.platform.record(job_id).stop_pod
        record = self.platform.wait(self.submit(), _OUTCOME_S)
        assert _outcome_of(record) == "comfy_unavailable"
        assert record.stop_pod
        self.row.after = "asks for a replacement"
        self.leaves_nothing()


def _foreign_graph() -> dict[str, Any]:
    """A graph that any client could send, saving into a folder of its own."""
    template = load_template(Settings().workflows_dir / "t2v_fast.toml")
    values = {
        "prompt": "somebody else's",
        "first_pass_width": 128,
        "first_pass_height": 64,
        "num_frames": 9,
        "audio_frames": 9,
        "seed": next(_seeds),
        "filename_prefix": f"{_FOREIGN_FOLDER}/clip",
    }
    return template.render(values, Choices(options=frozenset({"generate_audio"})))


def _outcome_of(record: JobRecord) -> str:
    if record.state == "FAILED":
        return record.error_object["code"]
    if record.state != "COMPLETED":
        return record.state
    return "nothing" if record.output is None else _product_of(record.output)


def _product_of(output: dict[str, Any]) -> str:
    """`video` for a whole clip: what it says it is, in length and in content."""
    clip = base64.b64decode(output["video"], validate=True)
    assert hashlib.sha256(clip).hexdigest() == output["outputs"][0]["sha256"]
    with av.open(io.BytesIO(clip)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == output["metadata"]["num_frames"]
    return "video"
