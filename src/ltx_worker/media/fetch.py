"""A caller's medium as bytes, from a URL, a data URI or base64."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass

from ltx_worker.errors import InputRejected
from ltx_worker.request_fields import MediaSource
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal

_BLANKS = " \t\r\n"
_LONGEST_HEADER = 256
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched: http beside https or not, and in how many seconds for one input."""

    allow_http: bool = False
    timeout_s: float = 60.0

    @classmethod
    def of(cls, settings: Settings) -> FetchRules:
        """The rules of this worker."""
        return cls(settings.allow_http_inputs, settings.fetch_timeout_s)


_USUAL = FetchRules()


def read_media(
    source: MediaSource,
    field: str,
    max_bytes: int,
    stop: StopSignal,
    rules: FetchRules = _USUAL,
) -> bytes:
    """The bytes of `source`; raises `InputRejected` or `InputUnavailable` naming `field`."""
    if source.url is not None:
        # Takes a fifth of a second, and not every job fetches something.
        from ltx_worker.media.download import download  # noqa: PLC0415 - see above

        return download(source.url, field, max_bytes, stop, rules)
    return _decode(source.base64 or "", field, max_bytes)


def _decode(text: str, field: str, max_bytes: int) -> bytes:
    """The bytes of a data URI or base64. Texts are large: each copy of one is made on purpose."""
    if text[:5].lower() == "data:":
        comma = text.find(",", 0, _LONGEST_HEADER)
        if not text[: max(0, comma)].lower().endswith(";base64"):
            raise InputRejected.of(field, "is a data URI without base64 data")
        text = text[comma + 1 :]
    elif _SCHEME.match(text):
        raise InputRejected.of(field, "must be an https URL, a data URI or base64")
    # Four characters carry three bytes: the size is known before anything is decoded.
    characters = len(text) - sum(map(text.count, _BLANKS))
    size = characters * 3 // 4 - text.count("=")
    if size > max_bytes:
        raise InputRejected.of(field, f"is larger than {max_bytes / 1e6:g} MB")
    for blank in _BLANKS:
        text = text.replace(blank, "")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    # Text that is not ASCII is a plain ValueError.
    except ValueError as error:
        raise InputRejected.of(field, "is not valid base64") from error
    if not data:
        raise InputRejected.of(field, "is empty")
    return data
