"""How long a download may take, who may stop it, and what its error says of another try."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tests.hostile.answers import ANSWERS
from tests.hostile.web import PUBLIC, Web, hostile_web
from tests.unit.media_files import png

from ltx_worker.errors import Cancelled, DeadlineExceeded, InputRejected, InputUnavailable
from ltx_worker.media.download import is_public
from ltx_worker.media.fetch import FetchRules, read_media
from ltx_worker.request_fields import MediaSource
from ltx_worker.stop import StopSignal

# What a job that is stopped may still take.
_SOON_S = 0.5


@pytest.fixture
def web(tmp_path: Path) -> Generator[Web]:
    """Servers under a public address."""
    with hostile_web(tmp_path) as found:
        found.answers.update(ANSWERS)
        found.names["media.example"] = [[PUBLIC]]
        found.names["other.example"] = [[PUBLIC]]
        yield found


def fetched(
    path: str,
    stop: StopSignal | None = None,
    *,
    scheme: str = "https",
    host: str = "media.example",
    max_bytes: int = 1_000_000,
    **rules: Any,
) -> bytes:
    source = MediaSource(url=f"{scheme}://{host}{path}")
    stop = stop or StopSignal(60)
    return read_media(source, "image", max_bytes, stop, FetchRules(**rules))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *(("8.8.8.8", True), ("1.1.1.1", True), (PUBLIC, True), ("2606:4700::1111", True)),
        *(("192.0.0.9", False), ("192.88.99.1", False), ("2002:808:808::1", False)),
        *(("::ffff:8.8.8.8", False), ("64:ff9b::808:808", False), ("2001::1", False)),
        *(("localhost", False), ("0x8.8.8.8", False), ("", False), ("8.8.8.8%eth0", False)),
    ],
)
def test_an_address_is_public_only_as_itself(address: str, expected: bool) -> None:
    """Addresses that stand for others are refused even where those others are public."""
    assert is_public(address) is expected


def test_a_file_is_fetched_whole(web: Web) -> None:
    """The bytes arrive, and the server is told neither cookies nor a wish for compression."""
    assert fetched("/ok.png?a=%2F&b=1+2#part") == png()
    request = web.requests[-1]
    assert request.startswith(b"GET /ok.png?a=%2F&b=1+2 HTTP/1.1\r\n")
    assert b"Accept-Encoding: identity\r\n" in request
    assert b"Cookie" not in request


@pytest.mark.parametrize("path", ["/drip", "/drip-in-header", "/silence", "/endless"])
@pytest.mark.parametrize("ending", ["cancelled", "deadline"])
def test_a_job_that_has_to_stop_stops_while_it_waits(web: Web, path: str, ending: str) -> None:
    """Whatever the server does or leaves undone, the job ends within half a second."""
    is_cancelled = ending == "cancelled"
    stop = StopSignal(60 if is_cancelled else 0.4)
    timer = threading.Timer(0.4, stop.cancel if is_cancelled else str)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled if is_cancelled else DeadlineExceeded):
        fetched(path, stop, max_bytes=10**12)
    assert time.monotonic() - started < 0.4 + _SOON_S
    timer.join()


def test_a_name_server_that_does_not_answer_holds_up_no_job(web: Web) -> None:
    """A look-up cannot be stopped; it is left behind."""
    release = threading.Event()

    def hanging(*_: Any, **__: Any) -> list[Any]:
        release.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    started = time.monotonic()
    with patch.object(socket, "getaddrinfo", hanging):
        try:
            with pytest.raises(InputUnavailable, match=r"takes longer than 0\.3 s"):
                fetched("/ok.png", timeout_s=0.3)
            assert time.monotonic() - started < 0.3 + _SOON_S
        finally:
            release.set()


def test_a_slow_server_has_its_time_in_all(web: Web) -> None:
    """A byte now and then keeps no download alive."""
    with pytest.raises(InputUnavailable, match=r"takes longer than 0\.5 s") as failure:
        fetched("/drip", timeout_s=0.5)
    assert failure.value.retryable


@pytest.mark.parametrize(
    ("status", "again"),
    [
        *((404, False), (403, False), (401, False), (410, False), (204, False), (400, False)),
        *((429, True), (500, True), (502, True), (503, True), (504, True)),
    ],
)
def test_another_try_is_advised_where_it_can_help(web: Web, status: int, again: bool) -> None:
    """A server in trouble may recover; a file that is not there will not appear."""
    with pytest.raises(InputUnavailable, match=f"status {status}") as failure:
        fetched(f"/status-{status}")
    assert failure.value.retryable is again


def test_a_certificate_for_another_name_is_not_accepted(web: Web) -> None:
    """The connection is given up, for good."""
    with pytest.raises(InputUnavailable, match="its certificate is not valid") as failure:
        fetched("/ok.png", host="other.example")
    assert not failure.value.retryable
    assert web.requests == []


def test_a_certificate_of_an_unknown_authority_is_not_accepted(web: Web, tmp_path: Path) -> None:
    """Verification is on: the tests' authority is trusted only where they say so."""
    with (
        patch.dict(os.environ, {"SSL_CERT_FILE": str(tmp_path / "none.pem")}),
        pytest.raises(InputUnavailable, match="certificate"),
    ):
        fetched("/ok.png")


def test_http_is_taken_only_where_the_worker_allows_it(web: Web) -> None:
    """Then on port 80, and as a redirect, too."""
    with pytest.raises(InputRejected, match="must be an https URL"):
        fetched("/ok.png", scheme="http")
    assert fetched("/ok.png", scheme="http", allow_http=True) == png()
    assert fetched("/to-http", allow_http=True) == png()
    with pytest.raises(InputRejected, match="or http URL on port 80"):
        fetched("/ok.png", scheme="http", host="media.example:443", allow_http=True)
    with pytest.raises(InputRejected, match="not public"):
        fetched("/to-http-loopback", allow_http=True)


def test_proxies_of_the_environment_are_not_used(web: Web) -> None:
    """A proxy would dial what may not be dialled."""
    proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:80")
    with patch.dict(os.environ, proxies):
        assert fetched("/ok.png") == png()
    assert web.strays == []


def test_a_name_that_moves_between_two_looks_reaches_nobody(web: Web) -> None:
    """The address that is dialled is the one that is judged, at every hop."""
    web.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    web.answers["/again"] = lambda: iter(
        [b"HTTP/1.1 302 Found\r\nLocation: /ok.png\r\nConnection: close\r\n\r\n"]
    )
    with pytest.raises(InputRejected, match="not public"):
        fetched("/again", host="rebinding.example")
    assert web.names["rebinding.example"] == [["127.0.0.1"]]
    assert web.canary_hits == 0


def test_the_limit_is_exact(web: Web) -> None:
    """So many bytes are taken, and not one more, whether or not their number is said before."""
    size = len(png())
    for path in ("/ok.png", "/chunked.png", "/until-closed.png"):
        assert fetched(path, max_bytes=size) == png()
        with pytest.raises(InputRejected, match="is larger than"):
            fetched(path, max_bytes=size - 1)


def test_the_canary_counts_what_reaches_it(web: Web) -> None:
    """The proof that others were not reached can fail."""
    with socket.socket() as connection:
        connection.connect(("10.0.0.1", 443))
    deadline = time.monotonic() + 5
    while not web.canary_hits and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (web.canary_hits, web.strays) == (1, [("10.0.0.1", 443)])
