"""How far a job is: one direction, steps, and the time that remains, by a clock of the test's."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_worker.comfy.events import (
    Cached,
    Ended,
    Event,
    Executed,
    Executing,
    Progress,
    Started,
)
from ltx_worker.progress import DELIVERY, WAITING, JobProgress, ProgressTracker
from ltx_worker.workflow.template import Stage

STAGES = (
    Stage("Loading models", 10, frozenset({"1", "2"})),
    Stage("Diffusion", 60, frozenset({"3"})),
    Stage("Encoding", 30, frozenset({"4"})),
    DELIVERY,
)
EXPECTED = {"Loading models": 4.0, "Diffusion": 8.0, "Encoding": 6.0, "Delivery": 2.0}


class Job:
    """A job under way: events at given moments, and what the caller was told."""

    def __init__(
        self,
        expected: dict[str, float] | None = None,
        stages: tuple[Stage, ...] = STAGES,
        started: float | None = None,
    ) -> None:
        self.now = 100.0
        self.reports: list[JobProgress] = []
        self.tracker = ProgressTracker(
            stages, self.reports.append, expected, started, clock=lambda: self.now
        )

    def at(self, second: float, *events: Event) -> Job:
        """Events `second` seconds after the submission."""
        self.now = 100.0 + second
        for event in events:
            self.tracker.on_event(event)
        return self

    def end(self, second: float, delivery_s: float) -> Job:
        """ComfyUI is done, the clip is delivered, the job is done."""
        self.at(second, Ended("p"))
        self.tracker.deliver()
        self.now += delivery_s
        self.tracker.finish()
        return self

    @property
    def remaining(self) -> list[float | None]:
        return [report["remaining_s"] for report in self.reports]

    @property
    def percents(self) -> list[int]:
        return [report["percent"] for report in self.reports]


def run(node: str) -> Executing:
    return Executing("p", node)


def step(node: str, value: int, maximum: int) -> Progress:
    return Progress("p", node, value, maximum)


def test_a_job_like_those_before_counts_down_to_nothing() -> None:
    """Where every stage takes what was expected, the time that remains is the time that remains."""
    job = Job(EXPECTED).at(0, Started("p"), Cached("p", frozenset()), run("1"))
    job.at(2, run("2")).at(4, run("3")).at(6, step("3", 1, 4)).at(8, step("3", 2, 4))
    job.at(12, run("4")).end(18, 2)
    assert job.remaining == [20, 18, 16, 14, 12, 8, 2, 0]
    assert job.percents == [0, 10, 20, 30, 40, 60, 90, 100]
    assert [report["name"] for report in job.reports][-3:] == ["Encoding", "Delivery", "Delivery"]


def test_stages_that_are_kept_do_not_count() -> None:
    """Models that ComfyUI still has take no time: the job starts at 0 with less to go."""
    job = Job(EXPECTED).at(0, Started("p"), Cached("p", frozenset({"1", "2"})), run("3"))
    assert job.remaining == [16]
    assert job.percents == [0]


def test_a_stage_that_is_kept_in_part_counts_as_a_whole() -> None:
    """What is left of it may be the part that takes the time."""
    job = Job(EXPECTED).at(0, Started("p"), Cached("p", frozenset({"1"})), run("2"))
    assert job.remaining == [20]


def test_a_stage_that_takes_longer_holds_the_time() -> None:
    """A slow stage neither raises what remains nor reaches the end before it is over."""
    job = Job(EXPECTED).at(0, Started("p"), run("1")).at(3, run("2")).at(9, run("2"))
    job.at(30, run("3")).at(60, step("3", 1, 8)).at(61, run("4")).at(90, run("4"))
    assert job.remaining == [20, 17, 16, 16, 15, 8, 2]
    assert job.percents == [0, 15, 20, 20, 25, 60, 90]


def test_a_job_that_is_faster_is_told_so() -> None:
    """A stage that is over early takes its rest with it."""
    job = Job(EXPECTED).at(0, Started("p"), run("1")).at(1, run("3")).at(2, run("4"))
    assert job.remaining == [20, 16, 8]


def test_time_passes_before_the_steps_of_a_stage_begin() -> None:
    """A stage's nodes before its sampler count by the clock, its sampler by the steps."""
    stages = (Stage("Diffusion", 1, frozenset({"1", "2"})), DELIVERY)
    job = Job({"Diffusion": 10.0, "Delivery": 1.0}, stages)
    job.at(0, Started("p"), run("1")).at(3, run("2")).at(4, step("2", 1, 2))
    assert job.remaining == [11, 8, 6]


def test_without_experience_the_shares_and_the_pace_so_far_tell() -> None:
    """The first job of a kind: nothing for a second, then the rest at the pace so far."""
    job = Job().at(0, Started("p"), run("1")).at(0.5, run("2")).at(1, run("3"))
    job.at(4, step("3", 1, 2))
    assert job.remaining == [None, None, 9.2, 6.2]
    assert job.percents == [0, 0, 9, 39]


def test_without_experience_the_time_is_held_as_well() -> None:
    """A pace that slows down does not put the end off."""
    job = Job().at(2, Started("p"), run("1")).at(4, run("3")).at(30, step("3", 1, 60))
    job.end(40, 5)
    known = [seconds for seconds in job.remaining if seconds is not None]
    assert known[0] == known[1] == 18.4
    assert known[-1] == 0


def test_a_stage_without_experience_gets_its_share() -> None:
    """Something new in a job is as long as its share makes it beside the stages that are known."""
    job = Job({"Diffusion": 6.0, "Encoding": 3.0}).at(0, Started("p"), run("1"))
    assert job.remaining == [pytest.approx(10.2)]


def test_the_time_since_arrival_is_told_and_the_queue_is_not_the_pace() -> None:
    """Reading inputs and waiting in the queue are in what elapsed, not in what is learned of it."""
    job = Job(started=70.0).at(10, Started("p"), run("1")).at(11, run("3"))
    assert [report["elapsed_s"] for report in job.reports] == [40, 41]
    assert job.remaining == [None, 9.2]
    assert job.tracker.queue_s == 10


def test_what_ran_as_a_whole_is_there_to_learn_from() -> None:
    """A stage that was kept, whole or in part, or never came says nothing about its length."""
    stages = (*STAGES[:3], Stage("Never", 5, frozenset({"9"})), DELIVERY)
    job = Job(stages=stages).at(0, Started("p"), Cached("p", frozenset({"1"})), run("2"))
    job.at(3, run("3")).at(7, run("4")).end(9, 1.5)
    assert job.tracker.learnt_seconds == {"Diffusion": 4, "Encoding": 2, "Delivery": 1.5}


def test_delivery_is_not_among_comfyuis_stages() -> None:
    """The result's timings name delivery elsewhere."""
    job = Job().at(0, Started("p"), run("3")).end(4, 2)
    assert job.tracker.stage_seconds == {"Loading models": 0, "Diffusion": 4, "Encoding": 0}


def test_a_job_without_delivery_ends_in_its_last_stage() -> None:
    """A caller's own graph has the stages of its nodes alone."""
    job = Job(stages=STAGES[:3]).at(0, Started("p"), run("3")).end(4, 2)
    assert [report["stage"] for report in job.reports] == [2, 3]
    assert job.percents[-1] == 100


def test_a_job_without_stages_tells_nothing() -> None:
    """Nothing is known of such a graph, so nothing is said."""
    job = Job(stages=()).at(0, Started("p"), run("3"), step("3", 1, 2)).end(4, 2)
    assert job.reports == []
    assert job.tracker.learnt_seconds == {}


def test_a_copy_of_a_node_belongs_to_the_stage_of_its_original() -> None:
    """Nodes that were repeated for a list count, and so do ids that only look like a copy's."""
    stages = (Stage("One", 1, frozenset({"1"})), Stage("Two", 1, frozenset({"2", "1_a"})))
    job = Job(stages=stages).at(0, run("1"), run("1_1"), run("1_a"))
    assert [report["name"] for report in job.reports] == ["One", "One", "Two"]


def test_a_job_that_is_kept_as_a_whole_is_done_at_once() -> None:
    """Of a graph that ComfyUI has the results of nothing remains."""
    job = Job(stages=STAGES[:3]).at(0, Started("p"), Cached("p", frozenset("1234")), run("4"))
    assert job.percents == [99]


NODES = st.sampled_from(["1", "2", "3", "4", "3_1", "unknown"])
EVENTS = st.one_of(
    st.just(Started("p")),
    st.builds(Executing, st.just("p"), NODES),
    st.builds(Executed, st.just("p"), NODES),
    st.builds(Cached, st.just("p"), st.frozensets(NODES)),
    st.builds(Progress, st.just("p"), NODES, st.integers(0, 99), st.integers(0, 50)),
    st.just(Ended("p")),
)
KNOWN = st.none() | st.dictionaries(st.sampled_from([*EXPECTED]), st.floats(0, 1e4))


@given(st.lists(st.tuples(st.floats(0, 60), EVENTS), max_size=40), KNOWN)
def test_whatever_comes_nothing_goes_back(
    events: list[tuple[float, Event]], expected: dict[str, float] | None
) -> None:
    """In any order of events: stage and percent rise, what remains falls, 100 is the end alone."""
    job = Job(expected)
    moment = 0.0
    for wait_s, event in events:
        moment += wait_s
        job.at(moment, event)
    job.end(moment + 1, 1)
    assert all(one["stage"] <= two["stage"] for one, two in pairwise(job.reports))
    assert job.percents == sorted(job.percents)
    assert all(percent < 100 for percent in job.percents[:-1])
    known = [seconds for seconds in job.remaining if seconds is not None]
    assert known == sorted(known, reverse=True)
    assert job.remaining[len(job.remaining) - len(known) :] == known
    assert (job.percents[-1], known[-1], job.reports[-1]["stage"]) == (100, 0, 4)


def test_a_job_that_waits_counts_the_time_of_those_before_it() -> None:
    """It is at 0 % of its first stage, by another name; its time goes down as theirs does."""
    before, job = Job(EXPECTED), Job(EXPECTED)
    before.at(0, run("1"))
    assert before.tracker.engine_left_s == 18.0
    job.tracker.wait(before.tracker.engine_left_s)
    before.at(4, run("3")).at(8, step("3", 4, 8))
    job.now = 108.0
    job.tracker.wait(before.tracker.engine_left_s)
    assert job.tracker.engine_left_s == 18.0
    job.at(18, Started("p"), run("1"))
    names = [(one["name"], one["stage"], one["percent"]) for one in job.reports]
    assert names == [(WAITING, 1, 0), (WAITING, 1, 0), ("Loading models", 1, 0)]
    assert job.remaining == [38.0, 30.0, 20.0]
    assert job.tracker.queue_s == 18.0


def test_a_stage_without_steps_counts_down_for_the_job_behind_it() -> None:
    """Nothing is heard of it; what it was expected to take goes by, and no more than that."""
    job = Job(EXPECTED).at(0, run("1")).at(4, run("3")).at(12, run("4"))
    left: list[float | None] = []
    for job.now in (112.0, 115.0, 119.0):
        left.append(job.tracker.engine_left_s)
    assert left == [pytest.approx(6), pytest.approx(3), 0.0]


def test_nobody_knows_how_long_the_first_job_of_a_worker_takes() -> None:
    """The one behind it is told nothing either, but that it waits."""
    first, job = Job(), Job()
    first.at(0.5, run("1"))
    assert first.tracker.engine_left_s is None
    job.tracker.wait(first.tracker.engine_left_s)
    assert job.remaining == [None]
