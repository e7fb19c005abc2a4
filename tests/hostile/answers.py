"""What hostile servers answer: each path of `https://media.example`."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Iterator

from tests.hostile.web import Answer
from tests.unit.media_files import png

CANARY = "canary-4b1d"
_OK = b"HTTP/1.1 200 OK\r\n"


def _whole(status: str, *headers: str, body: bytes = b"") -> Answer:
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers))
    return lambda: iter([head.encode() + b"\r\n" + body])


def redirect(location: str, status: str = "302 Found") -> Answer:
    """An answer that leads elsewhere."""
    return _whole(status, f"Location: {location}", "Content-Length: 0")


def sized(body: bytes, length: int | None = None) -> Answer:
    """A body and the length it is said to have, which may be another."""
    return _whole("200 OK", f"Content-Length: {len(body) if length is None else length}", body=body)


def _chunked() -> Iterator[bytes]:
    yield _OK + b"Transfer-Encoding: chunked\r\n\r\n"
    for piece in _pieces(png(), 50):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _endless() -> Iterator[bytes]:
    yield _OK + b"\r\n"
    yield from itertools.repeat(bytes(1 << 16))


def _endless_chunks() -> Iterator[bytes]:
    yield _OK + b"Transfer-Encoding: chunked\r\n\r\n"
    yield from itertools.repeat(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def _drip(head: bytes) -> Answer:
    def answer() -> Iterator[bytes]:
        yield head
        for _ in range(400):
            time.sleep(0.05)
            yield b"x"

    return answer


def _silence() -> Iterator[bytes]:
    time.sleep(20)
    yield b""


def _gzip() -> Iterator[bytes]:
    """100 MB of zeros in 100 KB."""
    packer = zlib.compressobj(9, wbits=31)
    yield _OK + b"Content-Encoding: gzip\r\n\r\n"
    for _ in range(100):
        yield packer.compress(bytes(1_000_000))
    yield packer.flush()


ANSWERS: dict[str, Answer] = {
    "/ok.png": sized(png()),
    "/until-closed.png": _whole("200 OK", body=png()),
    "/chunked.png": _chunked,
    "/short.png": sized(png()[:40], 100_000),
    "/long.png": sized(png() + b"more" * 1000, len(png())),
    "/claims-a-terabyte": sized(b"x", 10**12),
    "/claims-no-number": _whole("200 OK", "Content-Length: many"),
    "/claims-below-zero": _whole("200 OK", "Content-Length: -5"),
    "/endless": _endless,
    "/endless-chunks": _endless_chunks,
    "/broken-chunks": _whole("200 OK", "Transfer-Encoding: chunked", body=b"zz\r\nabc"),
    "/gzip": _gzip,
    "/deflate": _whole("200 OK", "Content-Encoding: deflate", body=zlib.compress(bytes(9**6))),
    "/no-http": lambda: iter([b"SSH-2.0-OpenSSH_9.6\r\n"]),
    "/nothing": lambda: iter([]),
    "/large-header": _whole("200 OK", "X: " + "x" * 100_000),
    "/many-headers": _whole("200 OK", *(f"X-{n}: {'y' * 1000}" for n in range(10_000))),
    "/empty": sized(b""),
    "/page": sized(b"<!doctype html><script>alert(1)</script>"),
    "/drip": _drip(_OK + b"Content-Length: 100000\r\n\r\n"),
    "/drip-in-header": _drip(_OK + b"X-Slow: "),
    "/silence": _silence,
    "/no-location": _whole("302 Found", "Content-Length: 0"),
    "/to-itself": redirect("/to-itself"),
    **{f"/hop-{n}": redirect(f"/hop-{n - 1}", "307 Temporary Redirect") for n in (2, 3, 4)},
    "/hop-1": redirect("https://media.example/ok.png", "301 Moved Permanently"),
    **{
        f"/status-{status}": _whole(f"{status} No", "Content-Length: 0")
        for status in (204, 206, 300, 304, 400, 401, 403, 404, 410, 429, 500, 502, 503, 504)
    },
}
# Where a redirect may not lead, and what an input is told of it.
REDIRECTS = {
    "loopback": "https://127.0.0.1/",
    "loopback-6": "https://[::1]/",
    "metadata": f"https://169.254.169.254/latest/meta-data/{CANARY}",
    "private-name": "https://private.example/",
    "mapped": "https://[::ffff:10.0.0.1]/",
    "decimal": "https://2130706433/",
    "no-scheme": "//127.0.0.1/",
    "http": "http://media.example/ok.png",
    "http-loopback": "http://127.0.0.1/",
    "port": "https://media.example:22/ok.png",
    "user": f"https://user:{CANARY}@media.example/ok.png",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:70/_x",
    "ftp": "ftp://media.example/a.png",
    "data": "data:image/png;base64,iVBORw0KGgo=",
    "javascript": "javascript:alert(1)",
    "backslash": "https:\\\\127.0.0.1\\",
    "broken": "https://[::1",
    "empty-host": "https://",
}
ANSWERS |= {f"/to-{name}": redirect(location) for name, location in REDIRECTS.items()}
