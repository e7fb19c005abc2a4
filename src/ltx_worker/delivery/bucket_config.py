"""Which bucket files go to: the operator's, from the settings, or one job's own.

The keys never appear in a `repr` (invariant 7). A job's bucket is a caller's word: it is reached
by https at public addresses only (invariant 6).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from ltx_worker.errors import InvalidRequest, Problem
from ltx_worker.settings import InvalidSettings, Settings

# Services that have regions name theirs in the endpoint, and want it in the signature.
_REGION = re.compile(r"(?:^|[.-])([a-z]{2}(?:-[a-z]+)+-\d{1,3})\.")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_JOB_FIELDS = ("endpointUrl", "bucketName", "accessId", "accessSecret")
_MAX_CHARACTERS = 1024
_WEEK_S = 604_800


@dataclass(frozen=True)
class BucketConfig:
    """A bucket of an S3 service, and how its objects are linked to.

    `public_url` is the address under which the bucket is public; without it links are presigned
    for `link_expiry_s` seconds. With `public_only`, only public addresses are connected to.
    """

    endpoint_url: str
    bucket: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    region: str = "auto"
    public_url: str | None = None
    link_expiry_s: int = _WEEK_S
    public_only: bool = False


class NotPublic(Exception):
    """A host that is not on the internet; the message continues the sentence of a field."""


def bucket_config(settings: Settings) -> BucketConfig | None:
    """The operator's bucket, or None where nothing is set.

    Raises `InvalidSettings` that names every variable that is missing or wrong.
    """
    endpoint = settings.r2_endpoint_url
    if endpoint is None and settings.r2_account_id is not None:
        endpoint = f"https://{settings.r2_account_id}.r2.cloudflarestorage.com"
    secret = settings.r2_secret_access_key
    values = {
        "R2_ACCOUNT_ID or R2_ENDPOINT_URL": endpoint,
        "R2_BUCKET": settings.r2_bucket,
        "R2_ACCESS_KEY_ID": settings.r2_access_key_id,
        "R2_SECRET_ACCESS_KEY": None if secret is None else secret.get_secret_value(),
    }
    missing = [name for name, value in values.items() if not value]
    if len(missing) == len(values) and settings.r2_public_url is None:
        return None
    if missing:
        raise InvalidSettings(f"uploads also need {', '.join(missing)}")
    endpoint, bucket, key_id, secret_key = (value or "" for value in values.values())
    endpoint = _endpoint(endpoint, bucket)
    return BucketConfig(
        endpoint_url=endpoint,
        bucket=bucket,
        access_key_id=key_id,
        secret_access_key=secret_key,
        region=_region_of(endpoint) if settings.r2_region == "auto" else settings.r2_region,
        public_url=_public_url(settings.r2_public_url),
        link_expiry_s=settings.link_expiry_s,
    )


def bucket_from_job(s3_config: object, link_expiry_s: int = _WEEK_S) -> BucketConfig:
    """The bucket of a job's `s3Config`: `{endpointUrl, bucketName, accessId, accessSecret}`.

    Raises `InvalidRequest` that names what is wrong. Resolves the endpoint's name.
    """
    if not isinstance(s3_config, Mapping):
        raise InvalidRequest.of("s3Config", f"must be an object with {', '.join(_JOB_FIELDS)}")
    given = cast("Mapping[str, Any]", s3_config)
    values = [given.get(name) for name in _JOB_FIELDS]
    problems = [
        Problem(f"s3Config.{name}", "must be text, and not empty")
        for name, value in zip(_JOB_FIELDS, values, strict=True)
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_CHARACTERS
    ]
    if problems:
        raise InvalidRequest.listing(problems)
    endpoint, bucket, key_id, secret = (str(value) for value in values)
    parts = _split(endpoint)
    if parts is None or parts.scheme != "https" or parts.path.strip("/"):
        raise InvalidRequest.of("s3Config.endpointUrl", "must be an https URL without a path")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidRequest.of("s3Config.bucketName", "is not the name of a bucket")
    try:
        require_public(endpoint)
    except NotPublic as error:
        raise InvalidRequest.of("s3Config.endpointUrl", str(error)) from error
    return BucketConfig(
        endpoint_url=endpoint.rstrip("/"),
        bucket=bucket,
        access_key_id=key_id,
        secret_access_key=secret,
        region=_region_of(endpoint),
        link_expiry_s=link_expiry_s,
        public_only=True,
    )


def require_public(url: str) -> None:
    """Raise `NotPublic` unless every address of the URL's host is public.

    The limit: the name is resolved once more when a connection is made, and its owner may answer
    differently then. What is reached has to show a certificate for the name before it is sent
    anything, since the URL is https; the handshake is all that a private address can see.
    """
    from ltx_worker.media.download import is_public  # noqa: PLC0415 - takes a fifth of a second

    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotPublic("names a host that is not found") from error
    if not all(is_public(str(address[0])) for *_, address in found):
        raise NotPublic("leads to an address that is not public")


def _endpoint(url: str, bucket: str) -> str:
    """The service's address; Cloudflare shows it with the bucket as its path."""
    parts = _split(url)
    if parts is None or parts.path.strip("/") not in ("", bucket):
        raise InvalidSettings("R2_ENDPOINT_URL: must be an http or https address without a path")
    return f"{parts.scheme}://{parts.netloc}"


def _public_url(url: str | None) -> str | None:
    if url is None:
        return None
    if _split(url) is None:
        raise InvalidSettings("R2_PUBLIC_URL: must be an http or https address")
    return url.rstrip("/")


def _split(url: str) -> SplitResult | None:
    """The parts of an http or https URL that only names a place; None for anything else."""
    try:
        parts = urlsplit(url)
        is_valid = parts.port != 0 and "@" not in parts.netloc and bool(parts.hostname)
    except ValueError:
        return None
    is_plain = not parts.query and not parts.fragment and parts.scheme in ("http", "https")
    return parts if is_valid and is_plain else None


def _region_of(endpoint: str) -> str:
    """The region in the endpoint's name, as in s3.eu-central-1.amazonaws.com; else auto."""
    found = _REGION.search(urlsplit(endpoint).netloc.lower())
    return found[1] if found else "auto"
