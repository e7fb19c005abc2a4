"""A bucket of R2, or of any other S3 service: files in, links out.

An upload is over when the object has been compared with the file. Credentials, keys' ids and links
never reach an error or a log (invariant 7); an upload that ends early leaves nothing in the bucket.
boto3 is imported and its client built with the first upload, which costs it a quarter second.
"""

# boto3 has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ltx_worker.delivery.bucket_config import BucketConfig, require_public
from ltx_worker.delivery.bucket_errors import delivery_failed
from ltx_worker.errors import DeliveryFailed
from ltx_worker.stop import StopSignal

# S3 takes parts from 5 MiB; R2 wants all but the last to be of one size.
PART_BYTES = 8 << 20
_THREADS = 3
_ATTEMPTS = 5
_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_CHUNK = 1 << 20
# One object of one request, and one of two parts.
_CHECK_BYTES = (100_000, 9_000_000)
_CHECK_LIMIT_S = 120.0


@dataclass(frozen=True)
class Stored:
    """An object that is in the bucket and is the file it was made from."""

    url: str = field(repr=False)
    key: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class CheckedObject:
    """An object that was uploaded, read through its link and deleted; seconds of each."""

    bytes: int
    upload_s: float
    read_s: float
    delete_s: float


class Bucket:
    """Uploads to one bucket; may be used by several threads."""

    def __init__(self, config: BucketConfig, attempts: int = _ATTEMPTS) -> None:
        """`attempts` is how often one request, such as that of a part, is tried."""
        self._config = config
        self._attempts = attempts

    def upload(self, path: Path, key: str, mime_type: str, sha256: str, stop: StopSignal) -> Stored:
        """Store the file, whose checksum is `sha256` in hex, as `key`.

        Raises `DeliveryFailed` or what `stop` raises; a stopped upload ends in the background.
        """
        started = time.monotonic()
        transfer = _Transfer()

        def store() -> str:
            transfer.run(self._client, path, self._config.bucket, key, mime_type)
            self._verify(path, key, sha256)
            return self._link(key)

        try:
            url = stop.call(store)
        except BaseException as error:
            transfer.cancel()
            if (failure := delivery_failed(error)) is not None:
                raise failure from error
            raise
        return Stored(url, key, path.stat().st_size, round(time.monotonic() - started, 4))

    def check(self, prefix: str = "") -> tuple[CheckedObject, ...]:
        """Upload, read through the link and delete a small object and one of two parts.

        Their keys begin with `prefix`. Raises `DeliveryFailed`.
        """
        return tuple(self._check(f"{prefix}check-{secrets.token_hex(8)}", n) for n in _CHECK_BYTES)

    @cached_property
    def _client(self) -> Any:
        from boto3.session import Session  # noqa: PLC0415 - see the docstring of this module
        from botocore.config import Config  # noqa: PLC0415

        config = self._config
        client = Session().client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region,
            aws_access_key_id=config.access_key_id,
            aws_secret_access_key=config.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                # Otherwise bodies are sent as aws-chunked with a trailer, which R2 refuses.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "max_attempts": self._attempts},
                connect_timeout=_CONNECT_TIMEOUT_S,
                read_timeout=_READ_TIMEOUT_S,
                proxies={} if config.public_only else None,
            ),
        )
        if config.public_only:
            client.meta.events.register("before-send.s3", _require_public)
        return client

    def _verify(self, path: Path, key: str, sha256: str) -> None:
        """Raise `DeliveryFailed` unless the object is the file.

        Most services name an object by its MD5, so that asking for the name suffices. From one
        that does not, the object is read.
        """
        where = {"Bucket": self._config.bucket, "Key": key}
        head = self._client.head_object(**where)
        is_whole = head["ContentLength"] == path.stat().st_size
        if is_whole and head["ETag"].strip('"').lower() not in _etags(path):
            body = self._client.get_object(**where)["Body"]
            is_whole = _sha256_of(iter(lambda: body.read(_CHUNK), b"")) == sha256
        if not is_whole:
            raise DeliveryFailed("The upload failed: what the storage holds is not the file")

    def _link(self, key: str) -> str:
        if self._config.public_url is not None:
            return f"{self._config.public_url}/{quote(key)}"
        return self._client.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._config.bucket, "Key": key},
            ExpiresIn=self._config.link_expiry_s,
        )

    def _check(self, key: str, size: int) -> CheckedObject:
        content = os.urandom(size)
        stop = StopSignal(_CHECK_LIMIT_S)
        with tempfile.NamedTemporaryFile(prefix="ltx2-check-") as file:
            file.write(content)
            file.flush()
            sha256 = hashlib.sha256(content).hexdigest()
            stored = self.upload(Path(file.name), key, "application/octet-stream", sha256, stop)
        started = time.monotonic()
        try:
            _require_readable(stored.url, content)
        finally:
            read_s = time.monotonic() - started
            self._client.delete_object(Bucket=self._config.bucket, Key=key)
        delete_s = time.monotonic() - started - read_s
        return CheckedObject(size, stored.seconds, round(read_s, 4), round(delete_s, 4))


class _Transfer:
    """One upload, which another thread may cancel at any time."""

    def __init__(self) -> None:
        self._is_cancelled = False
        self._future: Any = None

    def run(self, client: Any, path: Path, bucket: str, key: str, mime_type: str) -> None:
        """Upload; an upload in parts that does not succeed is aborted at the service."""
        from boto3.s3.transfer import (  # noqa: PLC0415 - see `Bucket._client`
            TransferConfig,
            create_transfer_manager,
        )

        config = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=_THREADS,
            preferred_transfer_client="classic",
        )
        with create_transfer_manager(client, config) as manager:
            self._future = manager.upload(str(path), bucket, key, {"ContentType": mime_type})
            if self._is_cancelled:
                self._future.cancel()
            self._future.result()

    def cancel(self) -> None:
        """Let the upload end at its next chunk; nothing happens when it is over."""
        self._is_cancelled = True
        if self._future is not None:
            self._future.cancel()


def _require_public(request: Any, **_: Any) -> None:
    """boto3 calls this before each request, also before one that is tried again."""
    require_public(request.url)


def _require_readable(url: str, content: bytes) -> None:
    """Raise `DeliveryFailed` unless the link leads to the content."""
    import requests  # noqa: PLC0415 - see the docstring of this module

    try:
        response = requests.get(url, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S))
    except requests.RequestException as error:
        raise DeliveryFailed("The link to an uploaded file does not answer") from error
    if response.status_code != 200 or response.content != content:
        raise DeliveryFailed(
            f"The link to an uploaded file does not give it (status {response.status_code})"
        )


def _etags(path: Path) -> tuple[str, str]:
    """What S3 services call the file: its MD5, or that of its parts' MD5s and their number."""
    whole, parts = hashlib.md5(usedforsecurity=False), list[bytes]()
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return whole.hexdigest(), f"{of_parts}-{len(parts)}"


def _sha256_of(chunks: Iterable[bytes]) -> str:
    checksum = hashlib.sha256()
    for chunk in chunks:
        checksum.update(chunk)
    return checksum.hexdigest()
