"""How long a job will take, learned from the jobs that this worker has finished.

Seconds are kept for each stage of each kind of job, with the job's size, and scaled to the size of
the next one. A few last jobs are kept of a bounded number of kinds; all methods may be called from
any thread.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median_low

from ltx_worker.request import GenerateRequest

# A stage's seconds grow with pixels x frames to this power. From one warm job at 1280x704 and one
# at 1920x1088, 121 frames each (ComfyUI 0.27.0, bf16, H200): both passes 5.43 to 14.16 s, all else
# 6.77 to 12.24 s for 2.32 times the pixels. A third job bears it out: 241 frames at 1280x704 are
# told as 22.9 s and took 22.7 s.
_PASS_GROWTH = 1.14
_OTHER_GROWTH = 0.7
# Stages by how their names begin; loading and the prompt take the same whatever the clip's size.
_GROWTHS = (("Loading", 0.0), ("Reading the prompt", 0.0), ("Diffusion", _PASS_GROWTH))

# A job so many times larger or smaller says nothing: fixed costs outweigh what grows.
_REACH = 8.0
_JOBS_KEPT = 8
_JOBS_USED = 3
_KINDS_KEPT = 64
# Options after which stages handle other sizes than without.
_RESIZING = ("spatial_upscale", "temporal_upscale")


def work_of(request: GenerateRequest) -> float:
    """The size of a job in megapixel-frames: those of its largest pass, upscalers counted in."""
    largest = replace(request, expected=None).made
    return largest.size.width * largest.size.height * largest.num_frames / 1e6


def kind_of(workflow: str, request: GenerateRequest) -> str:
    """What jobs have in common whose stages can be compared."""
    return " ".join([workflow, request.family, *(o for o in _RESIZING if o in request.options)])


@dataclass
class _Kind:
    """The last jobs of a kind: for each stage its (work, seconds), the oldest first."""

    largest: float = 0.0
    stages: dict[str, deque[tuple[float, float]]] = field(
        default_factory=dict[str, deque[tuple[float, float]]]
    )


class Pace:
    """Seconds of each stage by kind of job (`kind_of`) and work in megapixel-frames."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()

    def learn(self, kind: str, work: float, seconds: Mapping[str, float]) -> None:
        """Take in a finished job: the seconds of each stage that ran as a whole."""
        with self._lock:
            known = self._kinds.setdefault(kind, _Kind())
            self._kinds.move_to_end(kind)
            known.largest = max(known.largest, work)
            for stage, spent_s in seconds.items():
                runs = known.stages.setdefault(stage, deque(maxlen=_JOBS_KEPT))
                runs.append((work, spent_s))
            if len(self._kinds) > _KINDS_KEPT:
                self._kinds.popitem(last=False)

    def expected(self, kind: str, work: float) -> dict[str, float]:
        """Seconds that each stage will take; a stage that nothing is known of is left out."""
        with self._lock:
            known = self._kinds.get(kind, _Kind())
            runs = {stage: list(reversed(runs)) for stage, runs in known.stages.items()}
        guesses = {stage: _seconds(stage, work, stage_runs) for stage, stage_runs in runs.items()}
        return {stage: guess for stage, guess in guesses.items() if guess is not None}

    def largest(self, kind: str) -> float:
        """The work of the largest job of a kind that was finished, 0 where none was."""
        with self._lock:
            return self._kinds.get(kind, _Kind()).largest


def _seconds(stage: str, work: float, runs: list[tuple[float, float]]) -> float | None:
    """The median of the jobs nearest in size, the newest first where they are as near.

    Of two it is the lower: the first run of a stage also pays for what is loaded on the way.
    """
    within = [run for run in runs if _distance(run[0], work) <= math.log(_REACH)]
    nearest = sorted(within, key=lambda run: _distance(run[0], work))[:_JOBS_USED]
    if not nearest:
        return None
    growth = next((power for name, power in _GROWTHS if stage.startswith(name)), _OTHER_GROWTH)
    return median_low(seconds * (work / before) ** growth for before, seconds in nearest)


def _distance(one: float, other: float) -> float:
    return abs(math.log(one / other))
