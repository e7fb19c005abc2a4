"""The log of a worker: one JSON line an event, with its job, and nothing of what callers sent."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tests.conftest import SMALL, picture
from tests.fakes.runpod_platform import RunPodPlatform, production_handler

from ltx_worker import engines
from ltx_worker.logs import bound_job, configure_logging, get_logger

CANARY = "canary4711"
# What a caller and an operator hold dear; each contains the canary.
PROMPT = f"a {CANARY} prompt in the rain"
NEGATIVE = f"{CANARY} negative"
TOKENS = {"HF_TOKEN": f"hf_{CANARY}", "R2_SECRET_ACCESS_KEY": f"{CANARY}-secret"}
BUCKET = {
    "R2_ENDPOINT_URL": "http://127.0.0.1:9",
    "R2_BUCKET": "clips",
    "R2_ACCESS_KEY_ID": f"{CANARY}-key",
}


def test_nothing_of_a_job_or_a_secret_is_logged(tmp_path: Path) -> None:
    """Jobs that succeed, that are refused and that fail at delivery leave no word of theirs."""
    environment = TOKENS | BUCKET | {"LTX2_LOG_FORMAT": "json", "AWS_MAX_ATTEMPTS": "1"}
    image = picture(256, 128)
    with (
        engines.sandbox(tmp_path, ["--speed", "0"]) as engine,
        RunPodPlatform() as platform,
        production_handler(platform, engine.environment | environment) as process,
    ):
        jobs = [
            SMALL | {"prompt": PROMPT, "negative_prompt": NEGATIVE, "image": image},
            {"prompt": PROMPT, "promt": CANARY, "image": f"https://{CANARY}@example.com/x"},
            SMALL | {"prompt": PROMPT, "image": f"https://192.168.0.1/{CANARY}?token={CANARY}"},
            {"workflow": {"1": {"class_type": CANARY, "inputs": {"text": CANARY}}}},
        ]
        records = [platform.wait(platform.submit(job), 60) for job in jobs]
        assert [record.error is None for record in records] == [True, False, False, False]
    # All of it: what is written just before an answer is read just after it.
    log = process.log_tail
    assert image[:40] not in "\n".join(log)
    assert [line for line in log if CANARY in line] == []
    events = [json.loads(line) for line in log if line.startswith("{")]
    ours = [event for event in events if "event" in event]
    done = next(event for event in ours if event["event"] == "job.done")
    assert done["job"] == records[0].id
    assert done["seconds"] > 0
    assert set(done["stages"]) >= {"Decoding", "Encoding"}
    failed = [event for event in ours if event["event"] == "job.failed"]
    codes = [event["code"] for event in failed]
    assert codes == ["invalid_request", "input_rejected", "invalid_request"]
    stages = [event for event in ours if event["event"] == "job.stage"]
    assert [event["stage"] for event in stages] == [*done["stages"], "Delivery"]
    assert {event["job"] for event in stages} == {records[0].id}


@pytest.fixture
def plain_logging() -> object:
    """Put the log back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("plain_logging")
def test_an_event_is_one_line_in_either_form(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON for a platform, text for people; a library's warning takes the same form."""
    configure_logging("INFO", "json")
    with bound_job("j1"):
        get_logger("ltx_worker.x").info("stage.done", stage="Decoding", seconds=1.5)
    logging.getLogger("some.library").warning("it %s", "warns")
    get_logger("ltx_worker.x").debug("unseen")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert {k: first[k] for k in ("event", "job", "stage", "seconds", "level")} == {
        "event": "stage.done",
        "job": "j1",
        "stage": "Decoding",
        "seconds": 1.5,
        "level": "info",
    }
    assert (second["event"], second["level"]) == ("it warns", "warning")
    configure_logging("INFO", "text")
    get_logger("ltx_worker.x").info("stage.done", stage="Decoding")
    assert "stage.done" in capsys.readouterr().err
