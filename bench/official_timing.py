"""Seconds of each part of the official pipeline, taken from outside it.

A part is wrapped in an object that is called in its place, waits for the device before and after,
and hands on everything else. The pipeline itself stays as it is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# Parts that follow each other in one call; what the total has beyond them lies between them.
PARTS = ("images", "stage_1", "upsample", "stage_2", "decode_audio", "decode_video", "encode")


class Stopwatch:
    """Adds up seconds by name; `synchronize` returns when the device has nothing left to do."""

    def __init__(
        self, synchronize: Callable[[], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._synchronize = synchronize
        self._clock = clock
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def span(self, name: str) -> Generator[None]:
        """Add what happens inside to `name`."""
        self._synchronize()
        started = self._clock()
        yield
        self._synchronize()
        self._seconds[name] += self._clock() - started

    def take(self) -> dict[str, float]:
        """The seconds so far, and what lies between the parts; starts over.

        The encoder pulls the frames: its wait for them is the decoder's time. What is left of
        `encode` is what the file adds to the call beyond the decoding beside which x264 works.
        """
        seconds = dict(self._seconds)
        self._seconds.clear()
        waited = seconds.pop("frames", 0.0)
        if "encode" in seconds:
            seconds["encode"] -= waited
        seconds["decode_video"] = seconds.get("decode_video", 0.0) + waited
        if "total" in seconds:
            seconds["between"] = seconds["total"] - sum(seconds.get(part, 0.0) for part in PARTS)
        return seconds


class Timed:
    """A part of the pipeline, called under a name."""

    def __init__(self, part: Any, name: str, watch: Stopwatch) -> None:
        self._part = part
        self._name = name
        self._watch = watch

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with self._watch.span(self._name):
            return self._part(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class TimedStages(Timed):
    """The part that denoises: called once for each of the two stages of a clip.

    Beside each stage it times the loop alone: the rest is getting the transformer's weights into
    place and giving its memory back.
    """

    def __init__(self, part: Any, watch: Stopwatch, default_loop: Callable[..., Any]) -> None:
        super().__init__(part, "stage", watch)
        self._default_loop = default_loop
        self._calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        stage = f"stage_{self._calls % 2 + 1}"
        self._calls += 1
        loop = options.pop("loop", None) or self._default_loop
        timed_loop = Timed(loop, f"{stage}_loop", self._watch)
        with self._watch.span(stage):
            return self._part(*arguments, loop=timed_loop, **options)


def timed_frames(chunks: Iterable[Any], watch: Stopwatch) -> Iterator[Any]:
    """The chunks as they are decoded, with the wait for each under `frames`."""
    iterator = iter(chunks)
    while True:
        with watch.span("frames"):
            chunk = next(iterator, None)
        if chunk is None:
            return
        yield chunk
