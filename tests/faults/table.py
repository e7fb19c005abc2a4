"""The table of `make faults`: rows travel in the tests' reports, whichever process ran them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.case import Row

_HEAD = ("Case", "Engine", "Expected", "Outcome", "Seconds", "Worker after", "Files left", "Notes")


def write(path: Path, reports: Iterable[Any]) -> str:
    """Write the table of all cases in `reports` to `path`; returns its last line, the count."""
    cases: dict[str, Any] = {}
    for report in reports:
        # Also of a module that cannot be imported, or a process that died. A failure of the
        # tear-down is the case's, and nothing covers a failure up.
        is_outcome = hasattr(report, "fault_row") or getattr(report, "failed", False)
        if is_outcome and (report.nodeid not in cases or not cases[report.nodeid].failed):
            cases[report.nodeid] = report
    ordered = sorted(cases.values(), key=_place)
    failed = sum(report.failed for report in ordered)
    skipped = [report for report in ordered if report.skipped]
    count = f"{len(ordered) - len(skipped)} cases, {failed} failures"
    if skipped:
        count += f", {len(skipped)} not run"
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD)), *(_line(_cells(r)) for r in ordered)]
    text = "\n".join([*lines, "", count]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return count


def _place(report: Any) -> tuple[Any, ...]:
    """Where a case stands in the table: as in its module, the sandbox before the real one."""
    file, line, name = getattr(report, "location", None) or (report.nodeid, 0, "")
    return file, line or 0, "comfyui" in name, name


def _cells(report: Any) -> Sequence[str]:
    row = getattr(report, "fault_row", None) or asdict(Row(report.nodeid, ""))
    outcome, note = row["outcome"], row["note"]
    if report.skipped:
        outcome, note = "NOT RUN", report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        outcome = f"FAILED ({outcome or 'no outcome'})"
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    left = "" if row["left"] is None else str(row["left"])
    start = [row["case"], row["engine"], row["expected"], outcome, seconds]
    return [*start, row["after"], left, note]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
