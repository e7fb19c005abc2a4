"""Run every hostile input in this process and print what memory it took at most.

`python -m tests.hostile.memory FILES FOLDER`. One of each kind is read before measuring begins, so
that what is imported with it is not counted.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from tests.hostile.cases import CASES, NORMALISED, world

from ltx_worker.errors import JobError


def _mb(name: str) -> float:
    """A figure of this process, which began with it: `ru_maxrss` knows the parent's, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


def main(files: Path, folder: Path) -> None:
    first = {case.field: case for case in CASES if case.ends == NORMALISED}
    with world(files, folder) as here:
        for case in first.values():
            case.act(here)
        before, peak, worst = _mb("VmRSS"), _mb("VmHWM"), ""
        for case in CASES:
            with suppress(JobError):
                case.act(here)
            if _mb("VmHWM") > peak:
                peak, worst = _mb("VmHWM"), case.name
    result = {"inputs": len(CASES), "extra_mb": round(peak - before), "worst": worst}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
