"""Every hostile input of the suite: how it is given, and how it has to end."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile import pictures, recordings, spellings
from tests.hostile.answers import ANSWERS, CANARY, REDIRECTS
from tests.hostile.web import PUBLIC, Web, hostile_web

from ltx_worker.comfy.client import ComfyClient
from ltx_worker.errors import InvalidRequest
from ltx_worker.job_files import JobFiles
from ltx_worker.media.fetch import FetchRules, read_media
from ltx_worker.media.placing import Placer
from ltx_worker.offer import Offer, WorkflowOffer
from ltx_worker.raw_request import parse_raw_request
from ltx_worker.request_fields import MediaSource
from ltx_worker.request_reader import parse_request
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.nodes import load_node_schema
from ltx_worker.workflow.screening import screen

NORMALISED = "normalised"
_SMALL = {"prompt": "x", "resolution": "256x128", "num_frames": 9}
_OFFER = Offer(
    workflows={
        ("i2v", "fast", ""): WorkflowOffer(frozenset({"image"})),
        ("a2v", "fast", ""): WorkflowOffer(frozenset({"audio"})),
        ("keyframes", "fast", ""): WorkflowOffer(frozenset({"keyframes", "loras"})),
        ("v2v", "fast", "restyle"): WorkflowOffer(frozenset({"video"})),
        ("t2v", "fast", ""): WorkflowOffer(frozenset({"loras"})),
    },
    families=("ltx-2",),
    installed=("ltx-2",),
    max_frames=121,
    roles={},
    loras=("style.safetensors",),
)
_OUR_NAMES = {"image.png", "audio.wav", "video.mp4", "keyframe_0.png"}


@dataclass(frozen=True)
class World:
    """The network, the files that callers have, and a place for the worker's own."""

    web: Web
    files: Path
    folder: Path

    def place(self, **fields: Any) -> None:
        """Read a request and its media as a job does; what it writes is named by us."""
        request = parse_request(_SMALL | fields, _OFFER)
        with JobFiles(ComfyClient("http://127.0.0.1:9"), self.folder, None) as files:
            Placer(Settings(), files, StopSignal(60)).place(request)
            written = [path for path in self.folder.rglob("*") if path.is_file()]
            assert {path.name for path in written} <= _OUR_NAMES
            assert written
            assert all(CANARY.encode() not in path.read_bytes() for path in written)

    def text_of(self, name: str) -> str:
        """One of the callers' files in base64."""
        return base64.b64encode((self.files / name).read_bytes()).decode("ascii")


@contextmanager
def world(files: Path, folder: Path) -> Any:
    """A hostile network with its names, its answers and the files in `files`."""
    folder.mkdir()
    with hostile_web(folder) as web:
        web.answers.update(ANSWERS)
        web.names.update(
            {name: [[PUBLIC]] for name in ("media.example", "other.example")}
            | {
                "loopback.example": [["127.0.0.1"]],
                "private.example": [["10.0.0.5"]],
                "metadata.example": [["169.254.169.254"]],
                "unique-local.example": [["fd00::5"]],
                "mapped.example": [["::ffff:127.0.0.1"]],
                "to-private.example": [["10.0.0.5", "::1"]],
                "mixed.example": [["10.0.0.5", PUBLIC]],
                "rebinding.example": [[PUBLIC], ["127.0.0.1"]],
            }
        )
        inputs = folder / "input"
        inputs.mkdir()
        yield World(web, files, inputs)


@dataclass(frozen=True)
class Case:
    """One input: `ends` is the code of its error or `NORMALISED`, `field` the one it names."""

    name: str
    ends: str
    field: str
    act: Callable[[World], object]


def _given(name: str, ends: str, field: str, value: Any, **more: Any) -> Case:
    return Case(name, ends, field, lambda world: world.place(**{field: value}, **more))


def _page(path: str, ends: str, name: str = "") -> Case:
    url = f"https://media.example{path}?token={CANARY}"
    return _given(name or f"web{path.replace('/', '-')}", ends, "image", url)


def _urls() -> list[Case]:
    refused = "input_rejected"
    return [
        *(
            _given(f"host-{host}", refused, "image", f"https://{host}/{CANARY}")
            for host in spellings.PRIVATE_HOSTS + spellings.BROKEN_HOSTS
        ),
        *(_given(f"url-{n}", refused, "image", url) for n, url in spellings.WRONG_URLS.items()),
        *(_given(f"text-{n}", refused, "image", text) for n, text in spellings.NO_URLS.items()),
        *(_page(f"/to-{name}", refused) for name in REDIRECTS if name != "backslash"),
        # A path on the same server.
        _page("/to-backslash", "input_unavailable"),
        _given("host-none", "input_unavailable", "image", "https://nobody.example/a.png"),
        _given("host-line", refused, "image", "https://media.example\r\nX: y.example/"),
        _given("host-long", "input_unavailable", "image", f"https://{'a' * 70}.example/a.png"),
        _given("certificate", "input_unavailable", "image", "https://other.example/ok.png"),
        _given("host-mixed", NORMALISED, "image", "https://mixed.example/ok.png"),
        _given("media-fields", refused, "audio", f"https://127.0.0.1/{CANARY}"),
        _given("media-video", refused, "video", f"https://10.0.0.1/{CANARY}"),
        Case(
            "media-keyframe",
            refused,
            "keyframes.0.image",
            lambda world: world.place(
                keyframes=[{"frame": 0, "image": "https://[::1]/"}], mode="keyframes"
            ),
        ),
    ]


def _bodies() -> list[Case]:
    gone = "input_unavailable"
    fine = ("ok.png", "until-closed.png", "chunked.png", "hop-1", "hop-2", "hop-3")
    refused = ("claims-a-terabyte", "endless", "endless-chunks", "gzip", "deflate", "empty", "page")
    broken = (
        *(
            "short.png",
            "long.png",
            "claims-no-number",
            "claims-below-zero",
            "broken-chunks",
            "no-http",
        ),
        *("nothing", "large-header", "many-headers", "no-location"),
    )
    slow = FetchRules(timeout_s=0.5)
    return [
        *(_page(f"/{name}", NORMALISED) for name in fine),
        *(_page(f"/{name}", "input_rejected") for name in (*refused, "hop-4", "to-itself")),
        *(_page(f"/{name}", gone) for name in broken),
        *(_page(path, gone) for path in ANSWERS if path.startswith("/status")),
        *(
            Case(f"web-{name}", gone, "image", lambda _, name=name: _fetch(name, slow))
            for name in ("drip", "drip-in-header", "silence")
        ),
    ]


def _fetch(name: str, rules: FetchRules) -> None:
    source = MediaSource(url=f"https://media.example/{name}?token={CANARY}")
    read_media(source, "image", 1_000_000, StopSignal(60), rules)


def _file(field: str, name: str, ends: str) -> Case:
    path = f"{field}-{name}"
    more = {"resolution": "1920x1088", "num_frames": 33} if name.endswith("full-hd") else {}
    return Case(
        path, ends, field, lambda world: world.place(**{field: world.text_of(path)}, **more)
    )


def _files() -> list[Case]:
    cases: list[Case] = []
    kinds: list[tuple[str, Mapping[str, Any], str]] = [
        ("image", pictures.REFUSED, "input_rejected"),
        ("image", pictures.NORMALISED, NORMALISED),
        ("audio", recordings.SOUND_REFUSED, "input_rejected"),
        ("audio", recordings.SOUND_NORMALISED, NORMALISED),
        ("video", recordings.CLIP_REFUSED, "input_rejected"),
        ("video", recordings.CLIP_NORMALISED, NORMALISED),
    ]
    for field, builds, ends in kinds:
        cases += [_file(field, name, ends) for name in builds]
    return [
        *cases,
        Case("base64-50-mb", "input_rejected", "image", lambda w: w.place(image="A" * 50_000_000)),
        Case(
            "base64-50-mb-of-blanks",
            "input_rejected",
            "image",
            lambda world: world.place(image=" \n" * 25_000_000),
        ),
        Case(
            "data-50-mb",
            "input_rejected",
            "video",
            lambda world: world.place(video="data:video/mp4;base64," + "A" * 50_000_000),
        ),
    ]


def _shapes() -> list[Case]:
    wrong = "invalid_request"
    return [
        _given("source-both", wrong, "image", {"url": "https://x.example", "base64": "AAAA"}),
        _given("source-neither", wrong, "image", {}),
        _given("source-number", wrong, "image", 5),
        _given("source-list", wrong, "image", ["https://127.0.0.1/"]),
        _given("source-path", wrong, "image", {"path": "/etc/passwd"}),
        _given("source-url-number", wrong, "image", {"url": 2130706433}),
        _given("source-empty", wrong, "image", {"url": ""}),
        _given("source-surrogate", wrong, "image", "AAAA\ud800"),
        _given("source-long", wrong, "image", "https://media.example/" + "a" * 9000),
        *(
            _given(f"lora-{name!r:.30}", wrong, "loras", [{"name": name}])
            for name in spellings.WRONG_NAMES
        ),
        *(
            Case(f"image-name-{name!r:.30}", wrong, "images", lambda _, name=name: _raw(name))
            for name in spellings.WRONG_NAMES
        ),
        *(
            Case(f"graph-file-{name!r:.30}", wrong, "workflow", lambda _, name=name: _graph(name))
            for name in spellings.WRONG_NAMES
            if name
        ),
        *(
            Case(f"prefix-{name!r:.30}", NORMALISED, "", lambda _, name=name: _prefix(name))
            for name in spellings.WRONG_NAMES
        ),
    ]


def _raw(name: str) -> None:
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    parse_raw_request({"workflow": graph, "images": [{"name": name, "image": "AAAA"}]})


def _graph(name: str) -> None:
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": name}, "_meta": {}}}
    screened = screen(graph, load_node_schema(), {"a.png": "ltx2/0/a.png"}, "ltx2/0")
    if screened.problems:
        raise InvalidRequest.listing(screened.problems)


def _prefix(name: str) -> None:
    inputs = {"filename_prefix": name, "images": ["2", 0]}
    graph = {"1": {"class_type": "SaveImage", "inputs": inputs, "_meta": {}}}
    screened = screen(graph, load_node_schema(), {}, "ltx2/0")
    folder, _, stem = screened.graph["1"]["inputs"]["filename_prefix"].rpartition("/")
    assert folder == "ltx2/0"
    assert stem.strip(". ")
    assert not set(stem) & set("/\\:\0\n$`|;%~")


CASES = [*_urls(), *_bodies(), *_files(), *_shapes()]
