"""What the Hugging Face Hub says of a file before it is fetched: size, checksum, where it lies.

A token goes to the Hub alone. It sends on to other hosts, by addresses that need none.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ltx_worker.catalog import ModelFile
from ltx_worker.errors import InternalError

# No revision is pinned: what is fetched is compared with the checksum that the Hub gives for it.
REVISION = "main"
_MODEL_PAGES = "https://huggingface.co"
_MAX_HOPS = 5
_TIMEOUT_S = (10, 30)
_RETRIES = Retry(
    total=3, backoff_factor=0.3, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Status(IntEnum):
    """Why nothing was fetched, as an exit status; download_models.sh has the whole list."""

    USAGE = 2
    GPU = 3
    TOKEN = 4
    ABSENT = 5
    DISK = 6
    FAILED = 7


class DownloadRefused(InternalError):
    """A download that cannot begin, and the exit status for its cause."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Remote:
    """A file as its server describes it; None for what it does not tell.

    `location` is where the bytes are, after redirections; a signed address there is a secret.
    `takes_token` says whether the Hub's token goes along.
    """

    bytes: int | None
    sha256: str | None
    location: str
    takes_token: bool


def token() -> str | None:
    """The Hub's token, from HF_TOKEN or RunPod's secret of this name."""
    secret = os.environ.get("RUNPOD_SECRET_hf_token")  # noqa: SIM112 - RunPod's spelling
    return os.environ.get("HF_TOKEN") or secret or None


def endpoint() -> str:
    """The Hub's address, or that of a mirror, as the Hub's own client takes it: HF_ENDPOINT."""
    return os.environ.get("HF_ENDPOINT", _MODEL_PAGES).rstrip("/")


def address(file: ModelFile) -> str:
    """Where the Hub has a file."""
    return f"{endpoint()}/{file.repository}/resolve/{REVISION}/{file.path}"


def about_missing_token(repository: str) -> str:
    """What to do about a gated repository."""
    page = f"{_MODEL_PAGES}/{repository}"
    return (
        f"HF_TOKEN is required for LTX-2: {repository} is gated; accept its terms at {page} "
        "and set HF_TOKEN"
    )


def look_up(url: str, name: str) -> Remote:
    """Ask for a file's size and checksum; `name` stands for it in the error, `DownloadRefused`."""
    size: int | None = None
    sha256: str | None = None
    location, of_hub = url, url.startswith(f"{endpoint()}/")
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=_RETRIES))
        session.mount("https://", HTTPAdapter(max_retries=_RETRIES))
        for _ in range(_MAX_HOPS):
            is_home = urlsplit(location).netloc == urlsplit(url).netloc
            if of_hub and not is_home:
                # The Hub has told what there is to know; its storage answers to GET alone.
                break
            answer = _head(session, location, name, with_token=of_hub)
            _require_given(answer, url if of_hub else None, name)
            size, sha256 = size or _size(answer), sha256 or _sha256(answer)
            if not answer.is_redirect:
                break
            location = urljoin(location, answer.headers["Location"])
    is_home = urlsplit(location).netloc == urlsplit(url).netloc
    return Remote(size, sha256, location, takes_token=bool(of_hub and is_home and token()))


def _head(
    session: requests.Session, location: str, name: str, *, with_token: bool
) -> requests.Response:
    headers = {"Accept-Encoding": "identity"}
    if with_token and (secret := token()):
        headers["Authorization"] = f"Bearer {secret}"
    try:
        return session.head(location, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        host = urlsplit(location).hostname
        raise DownloadRefused(Status.FAILED, f"{name}: {host} cannot be reached") from error


def _require_given(answer: requests.Response, hub_url: str | None, name: str) -> None:
    """Raises `DownloadRefused` for an answer that is neither the file nor a redirection."""
    if answer.status_code < 400:
        return
    code = answer.headers.get("X-Error-Code", "")
    if answer.status_code in (401, 403) and code not in ("RepoNotFound", "EntryNotFound"):
        if hub_url is None:
            text = f"{name}: its server wants other credentials (HTTP {answer.status_code})"
            raise DownloadRefused(Status.TOKEN, text)
        raise DownloadRefused(Status.TOKEN, _about_token(hub_url, answer.status_code))
    if answer.status_code in (401, 403, 404, 410):
        raise DownloadRefused(Status.ABSENT, f"{name} is not published there (HTTP 404)")
    raise DownloadRefused(Status.FAILED, f"{name}: its server answers HTTP {answer.status_code}")


def _about_token(hub_url: str, status_code: int) -> str:
    repository = hub_url.removeprefix(f"{endpoint()}/").partition("/resolve/")[0]
    page = f"{_MODEL_PAGES}/{repository}"
    if token() is None:
        return about_missing_token(repository)
    if status_code == 401:
        return f"HF_TOKEN is not valid: make another one that may read {page}"
    return f"HF_TOKEN may not read {repository}: accept its terms at {page}"


def _size(answer: requests.Response) -> int | None:
    text = answer.headers.get("X-Linked-Size")
    if text is None and not answer.is_redirect:
        text = answer.headers.get("Content-Length")
    return int(text) if text and text.isdecimal() else None


def _sha256(answer: requests.Response) -> str | None:
    """The checksum of a file in large storage; the etag of any other file is none."""
    etag = answer.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
    return etag if _SHA256.fullmatch(etag) else None
