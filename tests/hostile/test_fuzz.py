"""Any JSON object as a job's input ends in a result or in one coded error, and soon."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import SMALL, picture

from ltx_worker.errors import JobError
from ltx_worker.request_fields import RequestFields
from ltx_worker.worker import Worker

_LONGEST_S = 2.0
_PICTURE = picture(64, 64)


def _examples(count: int) -> settings:
    """So many examples, the same each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


_text = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\0", "\ud800", "../../etc/passwd", "{{7*7}}", "true", "null", "NaN", "-0", "💥" * 9]
)
_numbers = (
    st.integers(-3, 30)
    | st.sampled_from([2**31, 2**53, 2**64, -(2**70), 10**300, 1e308, -1e-308, 0.5, -0.0])
    | st.floats(allow_nan=False, allow_infinity=False)
)
_scalars = st.none() | st.booleans() | _numbers | _text
_any = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_media = st.sampled_from(
    [
        _PICTURE,
        f"data:image/png;base64,{_PICTURE}",
        {"base64": _PICTURE},
        {"base64": _PICTURE[:60]},
        {"base64": "AAAA", "url": "https://x.example"},
        "AAAA",
        "iVBORw0KGgo=",
        "UklGRiQAAABXQVZFZm10IA==",
        "AAAAIGZ0eXBpc29t",
        "GkXfo59ChoEB",
        "data:,x",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "\u0661",
    ]
)
_lists = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": _text,
            "image": _media | _any,
            "frame": _numbers,
            "time": _numbers,
            "strength": _numbers,
        },
    )
    | _any,
    max_size=3,
)
_words = st.sampled_from(
    [
        *("t2v", "i2v", "a2v", "lipsync", "keyframes", "v2v", "extend", "retake", "fast", "pro"),
        *("quality", "Balanced", "ltx-2", "ltx-2.3-pro", "canny", "restyle", "forward", "both"),
        *("dolly_in", "contain", "16:9", "9:0", "256x128", "0x0", "1e3x9", "99999x99999"),
    ]
)
_ALIASES = (
    *("type", "preset", "length", "frame_rate", "camera_lora", "image_url", "image_uri"),
    *("image_base64", "end_image", "end_image_url", "last_frame_uri", "audio_uri", "video_base64"),
)
_UNKNOWN = ("promt", "", "__class__", "model_config", "workflow_json", "webhook", "\ud800", "a.b")
_names = st.sampled_from([*RequestFields.model_fields, *_ALIASES, *_UNKNOWN])
_values = _any | _media | _words | _lists
_changes = st.dictionaries(_names, _values, min_size=1, max_size=4)
# Without a size of its own a clip is large, and takes longer than this test has.
_inputs = st.one_of(
    _changes.map(lambda changes: {**SMALL, **changes}),
    _changes.map(lambda changes: {"prompt": "x", **SMALL, **changes, "seed": -1}),
    st.dictionaries(_names | _text, _values, max_size=6).map(lambda some: some | {"fps": "x"}),
)
# One to three fields that are nearly right, so that jobs get as far as their media and the engine.
_plausible = st.fixed_dictionaries(
    {},
    optional={
        "image": _media,
        "num_frames": st.sampled_from([9, 17, 10, 9.0, "9", -1]),
        "fps": st.sampled_from([24, 23.976, 60, 1, 61, True]),
        "seed": st.sampled_from([0, 2**53 - 1, 2**53, 1.5]),
        "mode": st.sampled_from(["t2v", "i2v", " I2V ", "keyframes", "pro"]),
        "quality": st.sampled_from(["fast", "FAST", "balanced", "best"]),
        "fit": st.sampled_from(["cover", "contain", "stretch"]),
        "generate_audio": st.sampled_from([True, False, "false"]),
        "aspect_ratio": st.sampled_from(["16:9", "0:0"]),
        "image_strength": st.sampled_from([0, 0.5, 2]),
        "loras": _lists,
        "output": st.sampled_from([{"format": "mp4"}, {"delivery": "x"}, []]),
    },
).filter(lambda fields: 1 <= len(fields) <= 3)

_node = st.fixed_dictionaries(
    {},
    optional={
        "class_type": st.sampled_from(["LoadImage", "SaveImage", "ImageScale", "Nope"]) | _any,
        "inputs": st.dictionaries(
            st.sampled_from(["image", "images", "filename_prefix", "width", "upscale_method"]),
            _any | st.tuples(st.sampled_from(["1", "2", "9"]), _numbers).map(list) | _media,
            max_size=4,
        )
        | _any,
        "_meta": st.fixed_dictionaries({"title": _any}) | _any,
    },
)
_graphs = st.dictionaries(st.sampled_from(["1", "2", "x", ""]), _node | _any, max_size=3)
_raw = st.fixed_dictionaries(
    {"workflow": _graphs | _graphs.map(json.dumps) | _any},
    optional={"images": _lists | _any, "prompt": _any, "comfy_org_api_key": _text},
)


def _ending(worker: Worker, job_input: Any) -> str:
    """How a job ends: the code of its error, or `result`."""
    started = time.monotonic()
    try:
        worker.run({"id": "fuzz", "input": job_input})
        ending = "result"
    except JobError as error:
        ending = json.loads(error.to_json())["code"]
    assert ending != "internal", job_input
    assert time.monotonic() - started < _LONGEST_S, job_input
    return ending


@pytest.mark.timeout(120)
def test_any_input_ends_in_a_result_or_a_coded_error(worker: Worker, record_property: Any) -> None:
    """Fields of wrong types, names nobody knows, media that are none."""
    endings: Counter[str] = Counter()

    @_examples(1600)
    @given(_inputs)
    def run(job_input: Any) -> None:
        endings[_ending(worker, job_input)] += 1

    @_examples(150)
    @given(_plausible)
    def run_plausible(changes: Any) -> None:
        endings[_ending(worker, SMALL | changes)] += 1

    run()
    run_plausible()
    record_property("fuzzed inputs", _counted(endings))
    assert endings.total() >= 1600
    assert endings["result"] >= 10
    assert endings["input_rejected"] >= 10


@pytest.mark.timeout(120)
def test_any_graph_ends_in_a_result_or_a_coded_error(worker: Worker, record_property: Any) -> None:
    """Graphs that are none, with links to nowhere and names of anything."""
    endings: Counter[str] = Counter()

    @_examples(700)
    @given(_raw)
    def run(job_input: Any) -> None:
        endings[_ending(worker, job_input)] += 1

    run()
    record_property("fuzzed graphs", _counted(endings))
    assert endings.total() >= 500


@pytest.mark.parametrize("job_input", [None, [], "text", 5, True, {}, [{}], {"workflow": None}])
def test_what_is_no_request_is_an_invalid_one(worker: Worker, job_input: Any) -> None:
    """An input that is not an object, or an empty one, is refused as such."""
    assert _ending(worker, job_input) == "invalid_request"


def _counted(endings: Counter[str]) -> str:
    listed = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
    return f"{endings.total()} ({listed})"
