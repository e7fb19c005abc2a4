"""A job's files on their way to the caller: inside the answer as base64, or as links to a bucket.

All files of a job go the same way, and what does not fit is refused before it is read: RunPod drops
an answer over its limit, and the caller of such a job gets nothing at all (invariant 1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ltx_worker.delivery.bucket import Bucket
from ltx_worker.errors import InvalidRequest, OutputTooLarge
from ltx_worker.request_fields import Delivery
from ltx_worker.request_output import NO_BUCKET
from ltx_worker.stop import StopSignal

# Numbers of the answer that get more digits once the files are handed over: its timings.
_TIMINGS_BYTES = 64
# The fields of a result that hold base64 or a link.
_PLAIN_FIELDS = frozenset({"video", "data", "url", "video_url"})


@dataclass(frozen=True)
class ResultFile:
    """A file for the caller; `part` tells it from the others of its job, the clip itself has none.

    `bytes` and `sha256` (hex) are those of the file.
    """

    path: Path
    filename: str
    mime_type: str
    bytes: int
    sha256: str
    part: str = ""

    @classmethod
    def of(cls, path: Path, filename: str, mime_type: str, part: str = "") -> ResultFile:
        """The file at `path`, which is read for its checksum."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path, filename, mime_type, path.stat().st_size, sha256, part)


@dataclass(frozen=True)
class Handed:
    """A file as the caller gets it: exactly one of base64 and a link."""

    data: str | None = field(default=None, repr=False)
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class HandedOver:
    """Every file of a job in its order, and the seconds that encoding or uploading took."""

    files: tuple[Handed, ...]
    encode_s: float = 0.0
    upload_s: float = 0.0


KeyFor = Callable[[ResultFile], str]


@dataclass(frozen=True)
class Destination:
    """Where files are uploaded to, and under which keys."""

    bucket: Bucket
    key_for: KeyFor


def hand_over(
    files: Sequence[ResultFile],
    *,
    choice: Delivery,
    rest_bytes: int,
    max_response_bytes: int,
    stop: StopSignal,
    destination: Destination | None = None,
) -> HandedOver:
    """Hand all files over as `choice` says.

    `rest_bytes` is `body_bytes` of the answer whose files are empty texts. Raises `OutputTooLarge`
    where they have to go inside and do not fit, `DeliveryFailed` where the upload fails for good,
    `InvalidRequest` for links without a destination, and what `stop` raises.
    """
    total = rest_bytes + _TIMINGS_BYTES + sum(4 * -(-file.bytes // 3) for file in files)
    if choice != "url" and total <= max_response_bytes:
        return _inside(files)
    if choice == "base64" or (choice == "auto" and destination is None):
        raise _too_large(files, total, max_response_bytes, has_bucket=destination is not None)
    if destination is None:
        raise InvalidRequest.of("output.delivery", NO_BUCKET)
    return _uploaded(files, destination, stop)


def body_bytes(answer: dict[str, Any]) -> int:
    """The bytes of the body in which RunPod's SDK posts `answer`, the `model_dump` of a result.

    Base64 and links, which JSON writes as they are, are counted and not serialised.
    """
    counted = 0

    def shortened(value: Any) -> Any:
        nonlocal counted
        if isinstance(value, list):
            return [shortened(one) for one in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        plain = {k for k in _PLAIN_FIELDS & fields.keys() if isinstance(fields[k], str)}
        counted += sum(len(fields[name]) for name in plain)
        return {k: "" if k in plain else shortened(v) for k, v in fields.items()}

    body = json.dumps({"output": shortened(answer)}, ensure_ascii=False)
    return counted + len(body.encode("utf-8", "surrogatepass"))


def _inside(files: Sequence[ResultFile]) -> HandedOver:
    started = time.monotonic()
    encoded = [base64.b64encode(file.path.read_bytes()).decode("ascii") for file in files]
    return HandedOver(
        tuple(Handed(data=data) for data in encoded), encode_s=time.monotonic() - started
    )


def _uploaded(
    files: Sequence[ResultFile], destination: Destination, stop: StopSignal
) -> HandedOver:
    started = time.monotonic()
    upload, key_for = destination.bucket.upload, destination.key_for
    stored = [upload(file.path, key_for(file), file.mime_type, file.sha256, stop) for file in files]
    return HandedOver(
        tuple(Handed(url=one.url) for one in stored), upload_s=time.monotonic() - started
    )


def _too_large(
    files: Sequence[ResultFile], total: int, limit: int, *, has_bucket: bool
) -> OutputTooLarge:
    size = sum(file.bytes for file in files) / 1e6
    what = "The clip has" if len(files) == 1 else f"The {len(files)} files have"
    link = (
        "ask for output.delivery auto or url"
        if has_bucket
        else "give the worker a bucket (the R2 settings), which large files are then uploaded to"
    )
    return OutputTooLarge(
        f"{what} {size:.1f} MB and the answer as base64 {total / 1e6:.1f} MB; it may have "
        f"{limit / 1e6:.1f} MB",
        hint=f"One of three ways: {link}; ask for a smaller or shorter clip, or fewer files; where "
        "every job comes by /runsync, which takes 20 MB, raise LTX2_MAX_RESPONSE_BYTES.",
    )
