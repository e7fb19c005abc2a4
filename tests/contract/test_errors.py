"""What a caller gets for a bad request: one coded error, every problem in it, nothing computed."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from tests.conftest import SMALL, RunJob, picture, settings_for
from tests.faults.proxy import Proxy

from ltx_worker import engines, samples
from ltx_worker.errors import JobError
from ltx_worker.worker import Worker


def error_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The contract's error in RunPod's answer to a job that failed."""
    assert answer["status"] == "FAILED", answer
    return json.loads(answer["error"])


def test_five_mistakes_come_back_in_one_error(run_job: RunJob) -> None:
    """Every wrong field is named at once, with a message of its own."""
    error = error_of(
        run_job({"prompt": "", "seed": -1, "fps": 0, "num_frames": 3.5, "resolution": "banana"})
    )
    assert error["code"] == "invalid_request"
    assert not error["retryable"]
    assert {problem["field"] for problem in error["details"]} == {
        "prompt",
        "seed",
        "fps",
        "num_frames",
        "resolution",
    }
    assert all(problem["message"] for problem in error["details"])


def test_a_bad_request_is_refused_without_an_engine(engine: engines.Engine) -> None:
    """The request is judged before the engine is touched: it may even be gone."""
    port = urlsplit(engine.url).port
    assert port is not None
    way = Proxy(port)
    worker = Worker(settings_for(replace(engine, url=way.url), comfy_start_timeout_s=1))
    worker.start()
    way.close()
    with pytest.raises(JobError) as bad:
        worker.run({"id": "bad", "input": {"promt": "x", "fps": math.nan}})
    with pytest.raises(JobError) as good:
        worker.run({"id": "good", "input": SMALL})
    worker.close()
    assert bad.value.code == "invalid_request"
    assert good.value.code == "comfy_unavailable"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("not base64!", "base64"),
        (base64.b64encode(b"GIF89a").decode(), "PNG, JPEG or WebP"),
        ("data:image/png,abc", "data URI"),
        ("http://127.0.0.1/a.png", "https"),
        ("https://127.0.0.1/a.png", "not public"),
        ("https://user@example.com/a.png", "user name"),
    ],
)
def test_a_picture_that_cannot_be_used_is_rejected(run_job: RunJob, image: str, words: str) -> None:
    """Each refusal names the field and the reason."""
    error = error_of(run_job(SMALL | {"image": image}))
    assert error["code"] == "input_rejected"
    assert error["details"][0]["field"] == "image"
    assert words in error["message"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"keyframes": [{"image": "!", "frame": 0}]}, "keyframes.0.image"),
        ({"last_image": "!"}, "last_image"),
        ({"audio": base64.b64encode(b"no sound").decode()}, "audio"),
        ({"video": base64.b64encode(b"no video").decode()}, "video"),
        ({"video": "https://10.0.0.1/a.mp4"}, "video"),
    ],
)
def test_every_medium_is_named_by_its_field(
    run_job: RunJob, fields: dict[str, Any], field: str
) -> None:
    """The caller learns which of several media cannot be used."""
    error = error_of(run_job(SMALL | fields))
    assert error["code"] == "input_rejected"
    assert error["details"][0]["field"] == field


def test_a_retake_outside_the_source_is_named(run_job: RunJob) -> None:
    """Times are judged once the source's length is known, before anything is computed."""
    times = {"mode": "retake", "start_time": 5.0, "end_time": 6.0}
    fields = {k: v for k, v in SMALL.items() if k != "num_frames"}
    error = error_of(run_job(fields | times | {"video": samples.clip(1.0)}))
    assert error["code"] == "invalid_request"
    assert error["details"][0]["field"] == "start_time"
    assert "1.00 s" in error["message"]


def test_a_truncated_picture_is_rejected(run_job: RunJob) -> None:
    """Half a JPEG is not taken for a whole one."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, format="JPEG")
    half = base64.b64encode(buffer.getvalue()[: buffer.tell() // 2]).decode()
    assert error_of(run_job(SMALL | {"image": half}))["code"] == "input_rejected"


def test_a_clip_too_large_for_the_answer_is_refused(engine: engines.Engine) -> None:
    """A result over the limit is an error that names both sizes, not a lost video."""
    worker = Worker(settings_for(engine, max_response_bytes=70_000))
    worker.start()
    with pytest.raises(JobError) as failure:
        worker.run({"id": "large", "input": SMALL | {"resolution": "640x384", "num_frames": 49}})
    worker.close()
    assert failure.value.code == "output_too_large"
    assert "MB" in failure.value.message
    assert not any(path.is_file() for path in engine.output_dir.rglob("*"))


def test_a_job_over_its_time_is_stopped_and_the_next_one_runs(engine: engines.Engine) -> None:
    """The deadline ends the job with its code, and leaves the engine idle for the next."""
    worker = Worker(settings_for(engine, job_timeout_s=0.3))
    worker.start()
    request = SMALL | {"resolution": "768x512", "num_frames": 97, "quality": "pro", "seed": 5}
    with pytest.raises(JobError) as failure:
        worker.run({"id": "slow", "input": request})
    assert failure.value.code == "deadline_exceeded"
    with pytest.raises(JobError):
        worker.run({"id": "slow again", "input": request})
    worker.close()
    patient = Worker(settings_for(engine))
    patient.start()
    result = patient.run({"id": "next", "input": SMALL | {"image": picture(64, 64)}})
    patient.close()
    assert result.metadata.num_frames == 9
