"""Measure the whole way of a job on this machine: handed out by RunPod's stand-in, result back.

The worker is started as in its container, its handler in the SDK's production loop, its own
ComfyUI with a folder of models. Weights may be random (`full_size_weights.py`): they decide the
time of nothing but the video encoder, which is why the decoder's frames are replaced by
natural-like ones unless a configuration says noise.

    python bench/gpu.py --models DIR --scenario warm-720p-5s warm-1080p-5s --jobs 5
    python bench/gpu.py --models DIR --compare default default,-transformer
    python bench/gpu.py --models tiny --scenario warm-720p-5s --size 256x128x9

Scenarios and configurations are data (`gpu.toml`). After each job the results so far are written;
a table is printed at the end, also of a run that is told to stop (SIGTERM).
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from gpu_plan import Configuration, Plan, Scenario, load_plan
from gpu_report import Figures, Results, figures_of, machine_facts, tables
from gpu_worker import Machine, MemoryWatch, Running, held_memory, running_worker
from rich.console import Console

console = Console(width=140)


class Bench:
    """The runs of one call. Each keeps its jobs' figures and is written after each job."""

    def __init__(
        self, machine: Machine, plan: Plan, results: Results, jobs: int, clips: Path | None
    ) -> None:
        self._machine = machine
        self._clips = clips
        self._plan = plan
        self._results = results
        self._jobs = jobs
        self._seeds: Iterator[int] = itertools.count(int.from_bytes(os.urandom(3), "big"))
        self._prompts = itertools.cycle(plan.prompts)
        self.memory = MemoryWatch(machine.reserved_gb)
        self.runs: dict[tuple[str, str], Figures] = {}

    def measure(self, scenarios: list[Scenario], configuration: Configuration, starts: int) -> None:
        """All scenarios with one configuration, the fresh worker's in `starts` workers."""
        fresh = [scenario for scenario in scenarios if scenario.is_of_a_fresh_worker]
        further = [scenario for scenario in scenarios if not scenario.is_of_a_fresh_worker]
        for number in range(starts if fresh else 1):
            with self._worker(configuration) as worker:
                self._switch(worker, configuration)
                if fresh:
                    self._first_job(worker, fresh, configuration)
                if number == (starts if fresh else 1) - 1:
                    for scenario in further:
                        self._job(worker, scenario)
                        for _ in range(self._jobs):
                            self._measured(worker, scenario, configuration)

    def compare(self, scenarios: list[Scenario], pair: tuple[Configuration, Configuration]) -> None:
        """Two configurations in one worker, job by job, in the order ABBA."""
        first, second = pair
        with self._worker(first) as worker:
            for scenario in scenarios:
                for configuration in pair:
                    self._switch(worker, configuration)
                    self._job(worker, scenario)
                for number in range(self._jobs):
                    for configuration in (first, second) if number % 2 == 0 else (second, first):
                        self._switch(worker, configuration)
                        self._measured(worker, scenario, configuration)

    def profile(self, scenario: Scenario, configuration: Configuration, path: Path) -> None:
        """What one warm job runs on the GPU and the CPU, as tables in `path`."""
        with self._worker(configuration) as worker:
            self._switch(worker, configuration)
            self._job(worker, scenario)
            worker.call("/profile", {})
            self._job(worker, scenario)
            shutil.copy(worker.folder / "profile.txt", path)
            console.print(f"profile: {path}")

    @contextmanager
    def _worker(self, configuration: Configuration) -> Generator[Running]:
        with (
            tempfile.TemporaryDirectory(prefix="ltx-bench-", ignore_cleanup_errors=True) as folder,
            running_worker(self._machine, configuration.launch, Path(folder)) as worker,
        ):
            ready_s = worker.ready_at - worker.started_at
            console.print(f"{configuration.name}: ready after {ready_s:.2f} s")
            self._software = worker.call()
            yield worker

    def _switch(self, worker: Running, configuration: Configuration) -> None:
        """As the worker was started, but for what the configuration says."""
        known: dict[str, bool] = self._software["switches"] or {}
        wanted = configuration.switched(known)
        if wanted:
            worker.call("/switch", wanted)

    def _first_job(
        self, worker: Running, scenarios: list[Scenario], configuration: Configuration
    ) -> None:
        """One job serves every scenario of a fresh worker: they differ in what is read off it."""
        figures, finished_at = self._job(worker, scenarios[0])
        figures["ready_s"] = round(worker.ready_at - worker.started_at, 3)
        figures["start_to_result_s"] = round(finished_at - worker.started_at, 3)
        for scenario in scenarios:
            self._keep(scenario, configuration, figures)

    def _measured(self, worker: Running, scenario: Scenario, configuration: Configuration) -> None:
        figures, _ = self._job(worker, scenario)
        self._keep(scenario, configuration, figures)

    def _job(self, worker: Running, scenario: Scenario) -> tuple[Figures, float]:
        """One job: its figures, and when its result had come."""
        is_new = scenario.kind == "new_prompt"
        job_input: dict[str, Any] = {
            **scenario.request,
            "model": self._machine.family,
            "prompt": next(self._prompts) if is_new else self._plan.prompts[0],
            "seed": next(self._seeds),
            "output": {"delivery": "base64"},
        }
        if is_new:
            # The list is short: no prompt may come twice.
            job_input["prompt"] += f", take {job_input['seed']}"
        worker.node_times()
        worker.call("/reset", {})
        self.memory.reset()
        record = worker.job(job_input)
        figures = figures_of(record, worker.node_times())
        figures["seed"] = job_input["seed"]
        if self._clips is not None:
            assert record.output is not None
            self._clips.mkdir(parents=True, exist_ok=True)
            clip = self._clips / f"{scenario.name}-{job_input['seed']}.mp4"
            clip.write_bytes(base64.b64decode(record.output["video"]))
        state = worker.call()
        figures["peak_allocated_bytes"] = state["peak_allocated_bytes"]
        figures["peak_mib"] = self.memory.peak_mib
        assert record.finished_at is not None
        return figures, record.finished_at

    def _keep(self, scenario: Scenario, configuration: Configuration, figures: Figures) -> None:
        machine = self._machine
        run = self.runs.setdefault(
            (scenario.name, configuration.name),
            {
                "scenario": scenario.name,
                "configuration": configuration.name,
                "family": machine.family,
                "variant": machine.variant,
                "models": "tiny" if machine.models == "tiny" else "full size, random",
                "reserved_gb": machine.reserved_gb,
                "is_synchronised": machine.is_synchronised,
                "request": dict(scenario.request),
                "content": configuration.launch.content,
                "comfy_args": configuration.launch.comfy_args,
                "software": self._software,
                "jobs": [],
            },
        )
        run["jobs"].append(figures)
        self._results.put(run)
        console.print(
            f"{scenario.name}, {configuration.name}: {figures['job_s']:.3f} s "
            f"(ComfyUI {figures['comfy_s']:.3f}, own {figures['own_s']:.3f})"
        )


def main() -> None:
    """Measure what the options choose."""
    signal.signal(signal.SIGTERM, _stop)
    plan = load_plan()
    options = _options(plan)
    machine = Machine(
        options.models,
        options.family,
        options.variant,
        options.reserve,
        options.sync,
        options.log,
    )
    scenarios = [plan.scenario(name, options.size) for name in options.scenario]
    results = Results(options.json, machine_facts())
    bench = Bench(machine, plan, results, options.jobs, options.clips)
    try:
        with held_memory(options.reserve):
            _run(bench, plan, scenarios, options)
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    finally:
        bench.memory.close()
        tables(bench.runs.values(), console)
        if bench.runs:
            console.print(f"written: {results.path}")


def _run(bench: Bench, plan: Plan, scenarios: list[Scenario], options: argparse.Namespace) -> None:
    if options.compare:
        first, second = (plan.configuration(text) for text in options.compare)
        bench.compare(scenarios, (first, second))
        return
    for text in options.configuration:
        configuration = plan.configuration(text)
        if options.profile:
            bench.profile(scenarios[0], configuration, options.profile)
        else:
            bench.measure(scenarios, configuration, options.starts)


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)


def _options(plan: Plan) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--models", required=True, help="folder of models, or tiny: random ones for a CPU")
    add("--family", choices=("ltx-2", "ltx-2.3"), default="ltx-2")
    add("--variant", choices=("fp8", "fp16"), help="default: what the GPU decides")
    add("--scenario", nargs="+", default=["warm-720p-5s"], metavar="NAME", help="of gpu.toml")
    add("--size", metavar="WxHxFRAMES", help="in place of the scenarios' own")
    add("--configuration", nargs="+", default=["default"], metavar="NAME[,-SWITCH]")
    add("--compare", nargs=2, metavar="NAME[,-SWITCH]", help="two that differ in switches only")
    add("--jobs", type=int, default=5, help="measured jobs of each scenario and configuration")
    add("--starts", type=int, default=1, help="workers started for start and first scenarios")
    add("--reserve", type=float, default=0.0, metavar="GB", help="hold so much GPU memory")
    add("--sync", action="store_true", help="wait for the GPU around each node")
    add("--profile", type=Path, metavar="FILE", help="profile one warm job instead")
    add("--json", type=Path, help="default: bench/results/DATE-gpu-NAME.json")
    add("--clips", type=Path, metavar="DIR", help="keep the clips there")
    add("--log", type=Path, help="where the worker's and ComfyUI's log goes")
    options = parser.parse_args()
    try:
        for name in options.scenario:
            plan.scenario(name, options.size)
        for text in options.compare or options.configuration:
            plan.configuration(text)
    except ValueError as error:
        parser.error(str(error))
    if options.compare:
        first, second = (plan.configuration(text).launch for text in options.compare)
        if first != second:
            parser.error("--compare takes two that differ in switches only, or run one by one")
    return options


if __name__ == "__main__":
    main()
