"""Figures of jobs, their medians, the table and the file of a day's results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tests.fakes.runpod_queue import JobRecord

Figures = dict[str, Any]

_RESULTS = Path(__file__).parent / "results"
# Nodes that take less than this part of a job are left out of the tables.
_SHOWN_SHARE = 0.01


def figures_of(record: JobRecord, nodes: Iterable[Mapping[str, Any]]) -> Figures:
    """Seconds of one job, from the moment it was handed out to the arrival of its result.

    `sdk_s` is what lies outside the worker: RunPod's SDK looks at its jobs every 0.1 s, and the
    result travels as JSON. `own_s` is the worker's time less ComfyUI's and the upload.
    """
    assert record.output is not None
    assert record.handed_out_at is not None
    assert record.finished_at is not None
    timings: dict[str, Any] = record.output["timings"]
    job_s = record.finished_at - record.handed_out_at
    by_node: defaultdict[str, float] = defaultdict(float)
    for node in nodes:
        name = f"{node['title']} ({node['class']})" if node["title"] else str(node["class"])
        by_node[name] += node["seconds"]
    comfy_s = timings["comfy_s"] or 0.0
    return {
        "job_s": round(job_s, 4),
        "worker_s": timings["total_s"],
        "sdk_s": round(job_s - timings["total_s"], 4),
        "comfy_s": comfy_s,
        "own_s": round(timings["total_s"] - comfy_s - timings["upload_s"], 4),
        "timings": {k: v for k, v in timings.items() if isinstance(v, int | float)},
        "stages": timings["stages"],
        "boot": timings.get("boot"),
        "nodes": {name: round(seconds, 5) for name, seconds in by_node.items()},
        "clip_bytes": record.output["outputs"][0]["bytes"],
        "warnings": record.output["warnings"],
    }


def medians(jobs: Sequence[Figures]) -> Figures:
    """The median of every number, also within groups; of a node that ran in every job."""
    result: Figures = {}
    for name in jobs[0]:
        values = [job.get(name) for job in jobs]
        groups = [cast("Figures", value) for value in values if isinstance(value, dict)]
        numbers = [value for value in values if isinstance(value, int | float)]
        if len(groups) == len(values):
            result[name] = medians(groups)
        elif len(numbers) == len(values):
            result[name] = round(statistics.median(numbers), 5)
    return result


def tables(runs: Iterable[Figures], console: Console) -> None:
    """One table of all runs, then each run's stages and nodes."""
    runs = [run for run in runs if run["jobs"]]
    if not runs:
        console.print("nothing was measured")
        return
    table = Table(title="medians, seconds")
    seconds = ("job", "worker", "comfy", "own", "sdk", "ready", "start_to_result")
    columns = ("jobs", *(name.replace("_", " ") for name in seconds), "peak MiB", "clip MB")
    for name in ("scenario", "configuration", *columns):
        table.add_column(name, justify="left" if name in ("scenario", "configuration") else "right")
    for run in runs:
        m = run["medians"]
        table.add_row(
            run["scenario"],
            run["configuration"],
            str(len(run["jobs"])),
            *(_seconds(m.get(f"{name}_s")) for name in seconds),
            str(int(m["peak_mib"])) if "peak_mib" in m else "-",
            f"{m['clip_bytes'] / 1e6:.1f}",
        )
    console.print(table)
    for run in runs:
        console.print(_parts(run))


def _parts(run: Figures) -> Table:
    m = run["medians"]
    table = Table(title=f"{run['scenario']}, {run['configuration']}")
    table.add_column("stage or node")
    table.add_column("seconds", justify="right")
    for name, seconds in m["stages"].items():
        table.add_row(name, _seconds(seconds))
    table.add_section()
    least = _SHOWN_SHARE * m["comfy_s"]
    for name, seconds in sorted(m["nodes"].items(), key=lambda item: -item[1]):
        if seconds >= least:
            table.add_row(name, _seconds(seconds))
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def machine_facts() -> Figures:
    """The GPU, its driver, and the machine around it."""
    facts: Figures = {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "python": platform.python_version(),
        "gpu": "none",
    }
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        query = (smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
        done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode == 0:
            name, memory, driver = done.stdout.splitlines()[0].split(", ")
            facts |= {"gpu": name, "gpu_memory": memory, "driver": driver}
    return facts


class Results:
    """The file of a day's results on one GPU: each measured run replaces its older self."""

    def __init__(self, path: Path | None, machine: Figures) -> None:
        self._date = datetime.datetime.now(datetime.UTC).date().isoformat()
        gpu = re.sub(r"[^a-z0-9]+", "-", str(machine["gpu"]).lower()).strip("-")
        slug = "cpu" if gpu == "none" else gpu
        self.path = path or _RESULTS / f"{self._date}-gpu-{slug}.json"
        self._machine = machine
        self._runs: dict[str, Figures] = {}
        if self.path.is_file():
            known: list[Figures] = json.loads(self.path.read_text())["runs"]
            self._runs = {_key(run): run for run in known}

    def put(self, run: Figures) -> None:
        """Keep a run as it is now, and write the file whole."""
        run["medians"] = medians(run["jobs"])
        self._runs[_key(run)] = run
        content = {"date": self._date, "machine": self._machine, "runs": [*self._runs.values()]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(self.path)


def _key(run: Figures) -> str:
    names = ("scenario", "configuration", "family", "variant", "models", "reserved_gb", "note")
    return json.dumps([run.get(name) for name in names])
