"""A caller's URL as bytes, from public addresses only (invariant 6).

The address is judged when it is dialled, so it does not matter how a host is spelt, what its name
server answers next, or where a redirect leads. No proxy of the environment is used, certificates
are verified, and what arrives is counted. Error messages never contain the URL: it may carry a
token.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import certifi
from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    InvalidURL,
    TCPConnector,
    ThreadedResolver,
)
from yarl import URL

from ltx_worker.errors import InputRejected, InputUnavailable, JobError, Problem
from ltx_worker.media.fetch import FetchRules
from ltx_worker.stop import StopSignal

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 10.0
_LOOK_S = 0.2
_MAX_REDIRECTS = 3
_CHUNK = 1 << 16
_HANG_UP_LOOKS = 100
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Answers that may be different a moment later, as may every 5xx.
_PASSING = frozenset({408, 425, 429})
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "ltx-worker"}

# Global unicast is all of IPv6 that may be reached; these parts of it are not what they seem:
# protocol assignments with Teredo, documentation, 6to4, documentation.
_IPV6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_IPV6 = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
)
# Protocol assignments and the 6to4 relay: Python 3.11 takes them for global.
_NOT_PUBLIC_IPV4 = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")))


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address in its usual spelling may be dialled."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _IPV6 and not any(ip in network for network in _NOT_PUBLIC_IPV6)
    is_usual = ip.is_global and not (ip.is_multicast or ip.is_reserved)
    return is_usual and not any(ip in network for network in _NOT_PUBLIC_IPV4)


def download(url: str, field: str, max_bytes: int, stop: StopSignal, rules: FetchRules) -> bytes:
    """The content of `url`, at most `max_bytes`.

    Raises `InputRejected` for a URL that may not be fetched or is too large, `InputUnavailable`
    for one that cannot be, and what `stop` raises, then at once.
    """
    fetch = _Fetch(field, max_bytes, rules)
    return asyncio.run(_watched(fetch.content(url), field, stop, rules.timeout_s))


async def _watched(
    content: Coroutine[Any, Any, bytes], field: str, stop: StopSignal, timeout_s: float
) -> bytes:
    """The content, unless the job has to stop or the time is up; then its connection is closed."""
    asyncio.get_running_loop().set_default_executor(_LeftBehind(max_workers=1))
    task = asyncio.ensure_future(content)
    give_up = time.monotonic() + timeout_s
    try:
        while not task.done():
            stop.check()
            if time.monotonic() > give_up:
                raise InputUnavailable.of(
                    field, f"could not be fetched: it takes longer than {timeout_s:g} s"
                )
            await asyncio.wait({task}, timeout=_LOOK_S)
        return task.result()
    finally:
        task.cancel()


class _LeftBehind(ThreadPoolExecutor):
    """Looks up names. A look-up cannot be stopped, so nobody waits for one that is not needed."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)


class _NotPublic(OSError):
    """An address that may not be dialled."""


class _Fetch:
    """One input on its way through redirects."""

    def __init__(self, field: str, max_bytes: int, rules: FetchRules) -> None:
        self._field = field
        self._max_bytes = max_bytes
        self._ports = {"https": 443} | ({"http": 80} if rules.allow_http else {})
        self._met_private = False
        self._sockets: list[socket.socket] = []

    async def content(self, text: str) -> bytes:
        """Follow `text` to its bytes; raises only `JobError`."""
        try:
            async with self._session() as session:
                return await self._follow(session, self._checked(text, None))
        except InvalidURL as error:
            raise self._rejected("is not a valid URL") from error
        except ClientConnectorCertificateError as error:
            raise self._unavailable("its certificate is not valid", is_passing=False) from error
        except (ClientConnectorError, UnicodeError) as error:
            if self._met_private:
                raise self._rejected("leads to an address that is not public") from error
            raise self._unavailable("the server cannot be reached") from error
        except TimeoutError as error:
            raise self._unavailable("the server does not answer") from error
        except (ClientError, OSError, ValueError) as error:
            raise self._unavailable("the server broke off or its answer is malformed") from error
        finally:
            await self._hang_up()

    async def _hang_up(self) -> None:
        """Close what is still open: a server that does not answer does not say goodbye either."""
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for _ in range(_HANG_UP_LOOKS):
            if all(connection.fileno() < 0 for connection in self._sockets):
                return
            await asyncio.sleep(0.001)

    def _session(self) -> ClientSession:
        """No proxies, cookies or decompression, and no address that is not public."""
        trusted = ssl.create_default_context()
        # Slim images have no certificates of their own.
        trusted.load_verify_locations(certifi.where())
        connector = TCPConnector(
            ssl=trusted,
            resolver=ThreadedResolver(),
            use_dns_cache=False,
            socket_factory=self._socket,
        )
        timeout = ClientTimeout(None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S)
        return ClientSession(
            connector=connector,
            timeout=timeout,
            headers=_HEADERS,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    def _socket(self, dialled: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
        """A socket for an address that is about to be dialled."""
        family, kind, protocol, _, address = dialled
        if not is_public(str(address[0])):
            self._met_private = True
            raise _NotPublic("not a public address")
        self._sockets.append(socket.socket(family, kind, protocol))
        return self._sockets[-1]

    async def _follow(self, session: ClientSession, url: URL) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    return await self._body(response)
                url = self._checked(response.headers["Location"], url)
        raise self._rejected(f"has more than {_MAX_REDIRECTS} redirects")

    def _checked(self, text: str, base: URL | None) -> URL:
        """A caller's URL, or that of a redirect from `base`, if it may be asked for."""
        try:
            # Signed addresses are sent as they are; what no address may contain is quoted.
            url = URL(text, encoded=re.fullmatch("[!-~]+", text) is not None)
            url = base.join(url) if base is not None else url
            host, port = url.host, url.port
        except ValueError as error:
            raise self._rejected(
                "is not a valid URL" if base is None else "is redirected to what is no valid URL"
            ) from error
        is_plain = url.user is None and url.password is None
        if host and is_plain and port is not None and self._ports.get(url.scheme) == port:
            return url
        kinds = " or ".join(f"{scheme} URL on port {port}" for scheme, port in self._ports.items())
        how = "must be an" if base is None else "is redirected to something other than an"
        raise self._rejected(f"{how} {kinds}, without a user name")

    async def _body(self, response: ClientResponse) -> bytes:
        if response.status != 200:
            is_passing = response.status >= 500 or response.status in _PASSING
            raise self._unavailable(f"status {response.status}", is_passing=is_passing)
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise self._rejected("is sent compressed, which was not asked for")
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large()
        data = io.BytesIO()
        async for chunk in response.content.iter_chunked(_CHUNK):
            data.write(chunk)
            if data.tell() > self._max_bytes:
                raise self._too_large()
        return data.getvalue()

    def _too_large(self) -> JobError:
        return self._rejected(f"is larger than {self._max_bytes / 1e6:g} MB")

    def _rejected(self, message: str) -> JobError:
        return InputRejected.of(self._field, message)

    def _unavailable(self, reason: str, *, is_passing: bool = True) -> JobError:
        """Whether another try can help is up to `is_passing`."""
        problem = Problem(self._field, f"could not be fetched: {reason}")
        message = f"{problem.field} {problem.message}"
        return InputUnavailable(message, details=[problem], retryable=is_passing)
