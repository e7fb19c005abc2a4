"""What the worker learns from its finished jobs about the time of the next one."""

from __future__ import annotations

import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_worker.geometry import Size
from ltx_worker.pace import Pace, kind_of, work_of
from ltx_worker.request import ClipSpec, GenerateRequest
from ltx_worker.settings import Settings

HD, FULL_HD = 1280 * 704 * 121 / 1e6, 1920 * 1088 * 121 / 1e6
PASSES = ("Diffusion, first pass", "Diffusion, second pass")

REQUEST = GenerateRequest(
    mode="t2v",
    family="ltx-2",
    quality="fast",
    prompt="A pier at dawn",
    size=Size(1280, 704),
    num_frames=121,
    fps=24,
    seed=1,
)


def test_nothing_is_expected_before_a_job_has_finished() -> None:
    """A worker that has finished nothing of a kind knows nothing of it."""
    pace = Pace()
    pace.learn("t2v_fast ltx-2", HD, {"Decoding": 1.0})
    assert pace.expected("i2v_fast ltx-2", HD) == {}
    assert pace.largest("i2v_fast ltx-2") == 0


def test_a_job_is_expected_to_take_what_the_same_job_took() -> None:
    """The same size again needs no scaling."""
    pace = Pace()
    pace.learn("kind", HD, {"Loading models": 4.2, "Diffusion, first pass": 2.6})
    expected = pace.expected("kind", HD)
    assert expected == pytest.approx({"Loading models": 4.2, "Diffusion, first pass": 2.6})


@pytest.mark.parametrize(("work", "seconds"), [(FULL_HD, 26.4), (2 * HD, 22.7)])
def test_other_sizes_are_told_from_one_as_they_were_measured(work: float, seconds: float) -> None:
    """From a measured warm job follow the measured jobs of twice the pixels or the length."""
    pace = Pace()
    warm = dict(zip((*PASSES, "Decoding", "Encoding"), (2.21, 3.22, 1.82, 4.95), strict=True))
    pace.learn("kind", HD, warm)
    assert sum(pace.expected("kind", work).values()) == pytest.approx(seconds, rel=0.03)


def test_loading_and_the_prompt_take_the_same_for_every_size() -> None:
    """What does not handle the clip does not grow with it."""
    pace = Pace()
    fixed = {"Loading models": 4.0, "Reading the prompt": 1.5}
    pace.learn("kind", HD, fixed | {"Reading the video": 1.0})
    expected = pace.expected("kind", 2 * HD)
    assert {name: expected[name] for name in fixed} == pytest.approx(fixed)
    assert expected["Reading the video"] > 1.5


def test_the_stages_of_every_workflow_are_told_apart_by_their_names() -> None:
    """Renaming a stage of a workflow does not silently change how it is scaled."""
    names = {
        stage["name"]
        for path in Settings().workflows_dir.glob("*.toml")
        for stage in tomllib.loads(path.read_text())["stages"]
    }
    pace = Pace()
    pace.learn("kind", HD, dict.fromkeys(names, 1.0))
    expected = pace.expected("kind", 2 * HD)
    fixed = {name for name in names if expected[name] == pytest.approx(1.0)}
    sampled = {name for name in names if expected[name] > 2}
    assert fixed == {"Loading models", "Reading the prompt"}
    assert names - fixed - sampled == {
        "Reading the sound",
        "Reading the video",
        "Decoding",
        "Encoding",
    }


def test_one_slow_run_does_not_spoil_the_expectation() -> None:
    """The first run, which also loads, and a later outlier both count for nothing."""
    pace = Pace()
    pace.learn("kind", HD, {"Decoding": 6.8})
    pace.learn("kind", HD, {"Decoding": 1.2})
    assert pace.expected("kind", HD) == {"Decoding": pytest.approx(1.2)}
    pace.learn("kind", HD, {"Decoding": 60.0})
    pace.learn("kind", HD, {"Decoding": 1.1})
    assert pace.expected("kind", HD) == {"Decoding": pytest.approx(1.2)}


def test_jobs_of_about_the_same_size_count_before_newer_ones() -> None:
    """Alternating sizes keep their own times."""
    pace = Pace()
    for _ in range(3):
        pace.learn("kind", HD, {"Decoding": 1.0})
        pace.learn("kind", 2 * HD, {"Decoding": 9.0})
    assert pace.expected("kind", HD) == {"Decoding": pytest.approx(1.0)}
    assert pace.expected("kind", 2 * HD) == {"Decoding": pytest.approx(9.0)}


def test_a_tiny_job_says_nothing_of_a_large_one() -> None:
    """A warm-up of a few frames is not scaled up a thousand times."""
    pace = Pace()
    pace.learn("kind", 0.15, {"Diffusion, first pass": 0.5})
    assert pace.expected("kind", HD) == {}
    assert pace.largest("kind") == 0.15


def test_a_stage_that_did_not_run_is_not_unlearned() -> None:
    """A job whose models were kept leaves what is known of loading as it was."""
    pace = Pace()
    pace.learn("kind", HD, {"Loading models": 4.0, "Decoding": 1.0})
    pace.learn("kind", HD, {"Decoding": 1.0})
    assert pace.expected("kind", HD)["Loading models"] == pytest.approx(4.0)


def test_only_so_many_kinds_are_kept() -> None:
    """Memory is bounded: the kind that was not seen for longest goes first."""
    pace = Pace()
    for number in range(64):
        pace.learn(f"kind {number}", HD, {"Decoding": 1.0})
    pace.learn("kind 0", HD, {"Decoding": 1.0})
    pace.learn("one more", HD, {"Decoding": 1.0})
    assert pace.expected("kind 1", HD) == {}
    assert pace.expected("kind 0", HD)
    assert pace.expected("one more", HD)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns after every few instructions."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual_s)


@pytest.mark.usefixtures("eager_threads")
def test_jobs_may_finish_and_start_at_the_same_time() -> None:
    """Learning and asking from several threads loses no job and raises nothing."""
    pace = Pace()
    start = threading.Barrier(4)
    failures: list[Exception] = []

    def work(number: int) -> None:
        start.wait()
        try:
            for step in range(300):
                pace.learn(f"kind {number % 2}", HD + step, {f"{number} {step}": 1.0})
                pace.expected(f"kind {number % 2}", HD)
        except Exception as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pace.largest("kind 0") == pace.largest("kind 1") == HD + 299


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=20), st.floats(1 / 7, 7))
def test_an_expectation_is_between_what_was_seen(seconds: list[float], factor: float) -> None:
    """At one size it is one of the times seen; at another, that much scaled."""
    pace = Pace()
    for spent_s in seconds:
        pace.learn("kind", HD, {"Loading models": spent_s, "Decoding": spent_s})
    expected = pace.expected("kind", factor * HD)
    assert expected["Loading models"] in seconds
    assert expected["Decoding"] == pytest.approx(expected["Loading models"] * factor**0.7)


def test_upscalers_count_into_the_work_and_are_a_kind_of_their_own() -> None:
    """Later stages handle the upscaled size, so such jobs compare among themselves."""
    upscaled = replace(REQUEST, options=frozenset({"spatial_upscale", "detailer"}))
    assert work_of(REQUEST) == pytest.approx(HD)
    assert work_of(upscaled) == pytest.approx(4 * HD)
    assert kind_of("t2v_fast", REQUEST) == "t2v_fast ltx-2"
    assert kind_of("t2v_fast", upscaled) == "t2v_fast ltx-2 spatial_upscale"


def test_an_extension_is_as_much_work_as_what_is_sampled() -> None:
    """The source's frames are in the file, but no pass handles them."""
    spec = ClipSpec(REQUEST.size, 500, 24, has_audio=True)
    assert work_of(replace(REQUEST, expected=spec)) == pytest.approx(HD)
