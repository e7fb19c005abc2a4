"""One tree of coded errors; what a caller sees of a failed job.

    JobError
    ├── InvalidRequest      the request is wrong; every problem is in `details`
    ├── InputUnavailable    a URL could not be fetched
    ├── InputRejected       a picture, sound or clip that cannot be used
    ├── ModelMissing        a model file is not installed
    ├── WorkflowMismatch    a workflow file and its bindings disagree
    ├── ComfyRejected       ComfyUI refused the graph
    ├── ComfyFailed         a node failed while the graph ran
    ├── ComfyUnavailable    ComfyUI does not answer
    ├── OutOfMemory         the GPU's memory did not suffice (SystemOutOfMemory: the machine's)
    ├── DeadlineExceeded    the job's time is up
    ├── Cancelled           the caller or the platform cancelled the job
    ├── OutputTooLarge      the clip does not fit the answer
    ├── DeliveryFailed      the clip could not be handed over
    └── InternalError       a fault of the worker itself

Messages are written for callers: no tracebacks, prompts, base64, tokens or paths (invariant 7).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the request field it is in."""

    field: str
    message: str


class JobError(Exception):
    """A job's failure: a stable `code`, a message for people, and whether to try again.

    `replace_worker` asks the platform for another worker: this one cannot serve any more.
    """

    code: ClassVar[str] = "internal"
    _retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[Problem] = (),
        stage: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
        replace_worker: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.replace_worker = replace_worker
        self.retryable = self._retryable if retryable is None else retryable
        self.details = tuple(details)
        self.stage = stage
        self.hint = hint

    @classmethod
    def of(cls, field: str, message: str) -> Self:
        """An error about one field; `message` continues the sentence that its name begins."""
        return cls(f"{field} {message}", details=[Problem(field, message)])

    def to_dict(self) -> dict[str, Any]:
        """The error object of the contract."""
        return {
            "code": self.code,
            "message": self.message,
            "details": [{"field": p.field, "message": p.message} for p in self.details],
            "stage": self.stage,
            "retryable": self.retryable,
            "hint": self.hint,
        }

    def to_json(self) -> str:
        """The error as RunPod carries it: its `error` is a string."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


class InvalidRequest(JobError):
    """The request is wrong; `details` names every field at once."""

    code = "invalid_request"

    @classmethod
    def listing(cls, problems: Sequence[Problem]) -> Self:
        """One error that carries all `problems`."""
        listed = "; ".join(f"{problem.field} {problem.message}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return cls(f"The request has {count}: {listed}", details=problems)


class InputUnavailable(JobError):
    """A URL of the request could not be fetched."""

    code = "input_unavailable"
    _retryable = True


class InputRejected(JobError):
    """A picture, sound or clip that cannot be used."""

    code = "input_rejected"


class ModelMissing(JobError):
    """A model file that the job needs is not installed."""

    code = "model_missing"


class WorkflowMismatch(JobError):
    """A workflow file and its bindings, or this ComfyUI's nodes, disagree."""

    code = "workflow_mismatch"


class ComfyRejected(JobError):
    """ComfyUI's validation refused the graph."""

    code = "comfy_rejected"


class ComfyFailed(JobError):
    """A node raised an error, or ComfyUI ended the run without a result."""

    code = "comfy_failed"


class ComfyUnavailable(JobError):
    """ComfyUI does not answer."""

    code = "comfy_unavailable"
    _retryable = True


class OutOfMemory(JobError):
    """The GPU's memory did not suffice for this size and length."""

    code = "out_of_memory"


class SystemOutOfMemory(OutOfMemory):
    """The machine's memory did not suffice, not the GPU's."""


class DeadlineExceeded(JobError):
    """The job was stopped because its time was up."""

    code = "deadline_exceeded"
    _retryable = True


class Cancelled(JobError):
    """The job was stopped because the caller or the platform asked for it."""

    code = "cancelled"


class OutputTooLarge(JobError):
    """The clip does not fit the answer that RunPod takes."""

    code = "output_too_large"


class DeliveryFailed(JobError):
    """The clip was made but could not be handed over."""

    code = "delivery_failed"
    _retryable = True


class InternalError(JobError):
    """A fault of the worker itself; the log has its traceback."""

    code = "internal"
