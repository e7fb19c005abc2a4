"""The last step of a job: its files handed over, or kept until the job comes again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ltx_worker.delivery.bucket import Bucket
from ltx_worker.delivery.handover import Destination, ResultFile, body_bytes, hand_over
from ltx_worker.delivery.kept import KeptResults
from ltx_worker.delivery.keys import key_maker
from ltx_worker.errors import DeadlineExceeded, DeliveryFailed
from ltx_worker.raw_result import RawResult
from ltx_worker.request_fields import OutputOptions
from ltx_worker.result import GenerateResult
from ltx_worker.stop import StopSignal

_Result = TypeVar("_Result", GenerateResult, RawResult)


@dataclass(frozen=True)
class JobDelivery:
    """How one job's files are handed over; `output_key` is the pattern of the objects' names."""

    job_id: str
    job_input: object
    max_response_bytes: int
    output_key: str
    bucket: Bucket | None
    kept: KeptResults
    stop: StopSignal

    def deliver(
        self, draft: _Result, files: Sequence[ResultFile], options: OutputOptions
    ) -> _Result:
        """The result of a job from its `draft`, in which the files are empty.

        Raises what `hand_over` raises. After an upload that failed the files are kept.
        """
        try:
            return self._handed_over(draft, files, options)
        except (DeliveryFailed, DeadlineExceeded):
            self.kept.keep(self.job_id, self.job_input, draft.model_dump(mode="json"), files)
            raise

    def deliver_again(self, kind: type[_Result], options: OutputOptions) -> _Result | None:
        """The result of a job whose files are kept from an earlier delivery, or None.

        Raises what `hand_over` raises; the files then stay.
        """
        found = self.kept.find(self.job_id, self.job_input)
        if found is None:
            return None
        result = self._handed_over(kind.model_validate(found.result), found.files, options)
        self.kept.drop(self.job_id)
        return result

    def _handed_over(
        self, draft: _Result, files: Sequence[ResultFile], options: OutputOptions
    ) -> _Result:
        key_for = key_maker(self.output_key, self.job_id, options.key)
        handed = hand_over(
            files,
            choice=options.delivery,
            rest_bytes=body_bytes(draft.model_dump(mode="json")),
            max_response_bytes=self.max_response_bytes,
            stop=self.stop,
            destination=self.bucket and Destination(self.bucket, key_for),
        )
        return draft.delivered(handed)
