"""One job on its way through the worker."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ltx_worker.progress import OnProgress
from ltx_worker.request_fields import MAX_SEED
from ltx_worker.stop import StopSignal

# Job ids become prompt ids under this namespace.
_PROMPT_NAMESPACE = uuid.UUID("5a1c3f0e-2f3b-5d7c-9f53-6c7478320001")


@dataclass(frozen=True)
class Job:
    """What RunPod hands out, what stops it, who hears of it, and when it came (monotonic)."""

    id: str
    input: Any
    stop: StopSignal
    on_progress: OnProgress | None = None
    s3_config: Any = None
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls, job: Mapping[str, Any], stop: StopSignal, on_progress: OnProgress | None = None
    ) -> Job:
        """A job of RunPod's form `{"id", "input", "s3Config"}`; one without an id gets its own."""
        job_id = str(job.get("id") or uuid.uuid4())
        return cls(job_id, job.get("input"), stop, on_progress, job.get("s3Config"))

    @property
    def prompt_id(self) -> str:
        """Its prompt on ComfyUI: a job delivered twice finds its own."""
        return str(uuid.uuid5(_PROMPT_NAMESPACE, self.id))

    @property
    def default_seed(self) -> int:
        """The seed where the request names none: another delivery of the job has the same."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "big") % MAX_SEED

    @property
    def age_s(self) -> float:
        """Seconds since it came, to the tenth of a millisecond."""
        return round(time.monotonic() - self.started, 4)
