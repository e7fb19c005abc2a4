"""Who waits for whom: the line for ComfyUI, and memory that one job must not take from another."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import pytest

from ltx_worker.errors import Cancelled, DeadlineExceeded, JobError
from ltx_worker.media.memory_limit import ample_memory, limited_memory
from ltx_worker.stop import StopSignal
from ltx_worker.turns import Line

IN_TIME_S = 10.0


class Waiter:
    """A job in the line, which keeps what it is told."""

    def __init__(self, engine_left_s: float | None = None) -> None:
        self.engine_left_s = engine_left_s
        self.told: list[float | None] = []
        self.is_told = threading.Event()

    def wait(self, ahead_s: float | None) -> None:
        self.told.append(ahead_s)
        self.is_told.set()


class Held:
    """A thread that enters a context, and leaves it when it is told to."""

    def __init__(self, *contexts: Callable[[], AbstractContextManager[None]]) -> None:
        self.error: JobError | None = None
        self.inside, self.leaves, self.over = (threading.Event() for _ in range(3))
        self._contexts = contexts
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            with ExitStack() as entered:
                for context in self._contexts:
                    entered.enter_context(context())
                self.inside.set()
                self.leaves.wait(IN_TIME_S)
        except JobError as error:
            self.error = error
        self.over.set()

    def leave(self) -> None:
        self.leaves.set()
        assert self.over.wait(IN_TIME_S)


def in_line(line: Line, waiter: Waiter, stop: StopSignal | None = None) -> Held:
    """A job that has its place in the line."""
    return Held(lambda: line.turn(waiter, stop or StopSignal(60)))


def test_the_first_to_come_is_the_first_to_have_its_turn() -> None:
    """One at a time, in order; each is told what those before it will still need."""
    line, waiters = Line(), [Waiter(5.0), Waiter(7.0), Waiter(1.0)]
    held = [in_line(line, waiters[0])]
    assert held[0].inside.wait(IN_TIME_S)
    for waiter in waiters[1:]:
        held.append(in_line(line, waiter))
        assert waiter.is_told.wait(IN_TIME_S)
    assert [waiter.told[0] for waiter in waiters[1:]] == [5.0, 12.0]
    assert not held[1].inside.is_set()
    held[0].leave()
    assert held[1].inside.wait(IN_TIME_S)
    assert not held[2].inside.is_set()
    held[1].leave()
    assert held[2].inside.wait(IN_TIME_S)
    held[2].leave()


def test_nobody_says_how_long_when_one_job_cannot() -> None:
    """A sum with an unknown in it is unknown."""
    line, last = Line(), Waiter(1.0)
    first = in_line(line, Waiter(None))
    assert first.inside.wait(IN_TIME_S)
    second = in_line(line, last)
    assert last.is_told.wait(IN_TIME_S)
    assert last.told == [None]
    first.leave()
    second.leave()


def test_a_job_that_is_alone_is_told_nothing() -> None:
    """It has its turn at once."""
    waiter = Waiter()
    in_line(Line(), waiter).leave()
    assert waiter.told == []


@pytest.mark.parametrize("by", ["cancel", "deadline"])
def test_a_job_that_has_to_stop_leaves_the_line(by: str) -> None:
    """The one after it moves up; the one before it is not disturbed."""
    line, waiters = Line(), [Waiter(), Waiter(), Waiter()]
    stop = StopSignal(0.3 if by == "deadline" else 60)
    first = in_line(line, waiters[0])
    assert first.inside.wait(IN_TIME_S)
    second = in_line(line, waiters[1], stop)
    if by == "cancel":
        assert waiters[1].is_told.wait(IN_TIME_S)
        stop.cancel()
    assert second.over.wait(IN_TIME_S)
    assert isinstance(second.error, Cancelled if by == "cancel" else DeadlineExceeded)
    assert not first.over.is_set()
    third = in_line(line, waiters[2])
    assert waiters[2].is_told.wait(IN_TIME_S)
    first.leave()
    assert third.inside.wait(IN_TIME_S)
    third.leave()


def test_a_file_is_read_under_a_limit_only_while_nobody_needs_much_memory() -> None:
    """The limit is the process's: it waits for the others, and they wait for its end."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    decoding = Held(ample_memory)
    assert decoding.inside.wait(IN_TIME_S)
    reading = Held(limited_memory)
    assert not reading.inside.wait(0.1)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    decoding.leave()
    assert reading.inside.wait(IN_TIME_S)
    assert resource.getrlimit(resource.RLIMIT_DATA) != before
    decoding_again = Held(ample_memory)
    assert not decoding_again.inside.wait(0.1)
    reading.leave()
    assert decoding_again.inside.wait(IN_TIME_S)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    decoding_again.leave()


def test_a_thread_that_reads_within_its_own_work_waits_for_nobody() -> None:
    """Not for itself, and two of them not for each other."""
    both = [Held(ample_memory, limited_memory, limited_memory, ample_memory) for _ in range(2)]
    first = next(one for one in both if one.inside.wait(IN_TIME_S / 2))
    first.leave()
    for one in both:
        assert one.inside.wait(IN_TIME_S)
        one.leave()
        assert one.error is None
