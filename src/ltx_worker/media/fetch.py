"""A caller's medium as bytes, from an https URL, a data URI or base64.

A URL is fetched from public addresses only, which `requests-hardened` checks on the address it
dials, on every redirect (invariant 6). The size is capped while bytes arrive, and the job's stop
signal bounds the whole transfer. Error messages never contain the URL: it may carry a token.
"""

from __future__ import annotations

import base64
import binascii
from urllib.parse import urlsplit

import requests
from requests_hardened import Config, HTTPSession, Manager
from requests_hardened.ip_filter import InvalidIPAddress

from ltx_worker.errors import InputRejected, InputUnavailable
from ltx_worker.request_fields import MediaSource
from ltx_worker.stop import StopSignal

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 10.0
_MAX_REDIRECTS = 3
_CHUNK = 1 << 16
_PORTS = (None, 443)


def read_media(source: MediaSource, field: str, max_bytes: int, stop: StopSignal) -> bytes:
    """The bytes of `source`; raises `InputRejected` or `InputUnavailable` naming `field`."""
    if source.url is not None:
        return _fetch(source.url, field, max_bytes, stop)
    return _decode(source.base64 or "", field, max_bytes)


def _decode(text: str, field: str, max_bytes: int) -> bytes:
    if text[:5].lower() == "data:":
        header, _, text = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise InputRejected.of(field, "is a data URI without base64 data")
    # Four characters carry three bytes: the size is known before anything is decoded.
    if len(text) * 3 // 4 > max_bytes + 3:
        raise InputRejected.of(field, f"is larger than {max_bytes / 1e6:g} MB")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise InputRejected.of(field, "is not valid base64") from error


def _fetch(url: str, field: str, max_bytes: int, stop: StopSignal) -> bytes:
    _check_url(url, field)
    try:
        with _session() as session, session.get(url, stream=True) as response:
            if response.status_code != 200:
                raise InputUnavailable.of(
                    field, f"could not be fetched: status {response.status_code}"
                )
            data = bytearray()
            for chunk in response.iter_content(_CHUNK):
                stop.check()
                data += chunk
                if len(data) > max_bytes:
                    raise InputRejected.of(field, f"is larger than {max_bytes / 1e6:g} MB")
            return bytes(data)
    except InvalidIPAddress as error:
        raise InputRejected.of(field, "leads to an address that is not public") from error
    except requests.exceptions.InvalidSchema as error:
        raise InputRejected.of(field, "is redirected to something other than https") from error
    except requests.exceptions.TooManyRedirects as error:
        raise InputRejected.of(field, f"has more than {_MAX_REDIRECTS} redirects") from error
    except requests.RequestException as error:
        raise InputUnavailable.of(
            field, "could not be fetched: the server does not answer"
        ) from error


def _check_url(url: str, field: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputRejected.of(field, "is not a valid URL") from error
    if parts.scheme != "https" or not parts.hostname or port not in _PORTS or "@" in parts.netloc:
        raise InputRejected.of(field, "must be an https URL without a user name, on port 443")


def _session() -> HTTPSession:
    """A session that dials public addresses only, ignores proxies and knows only https."""
    session = Manager(
        Config(
            ip_filter_enable=True,
            ip_filter_allow_loopback_ips=False,
            never_redirect=False,
            default_timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
        )
    ).get_session()
    session.trust_env = False
    session.max_redirects = _MAX_REDIRECTS
    session.adapters.pop("http://", None)
    return session
