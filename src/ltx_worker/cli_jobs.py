"""`ltx demo` and `ltx generate`: a job from the command line, watched, its clip written."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ltx_worker import engines
from ltx_worker.contact_sheet import write_contact_sheet
from ltx_worker.job_client import (
    JobFailed,
    LocalWorker,
    OnProgress,
    RunPodEndpoint,
    progress_sink,
    save_video,
)
from ltx_worker.progress import JobProgress
from ltx_worker.result import GenerateResult
from ltx_worker.samples import sample_request
from ltx_worker.settings import load_settings
from ltx_worker.workflow.template import load_templates

_DEMO_PROMPT = "A lighthouse on a cliff at dusk, waves breaking below, gulls calling"
# Request fields that have an option of their own; --set takes any other.
_TEXT_OPTIONS = ("mode", "model", "quality", "resolution", "aspect_ratio", "negative_prompt")
_NUMBER_OPTIONS = {"duration": float, "num_frames": int, "fps": float, "seed": int}
_MEDIA_OPTIONS = ("image", "last_image", "audio", "video")

_Run = Callable[[dict[str, Any]], dict[str, Any]]

_console = Console(stderr=True)


def add_demo(demo: argparse.ArgumentParser) -> None:
    """The options of `ltx demo`."""
    demo.add_argument("prompt", nargs="?", default=_DEMO_PROMPT)
    demo.add_argument(
        "--all", action="store_true", help="one clip of every mode and a contact sheet, in --out"
    )
    demo.add_argument("--engine", choices=("sandbox", "comfyui"), default="sandbox")
    demo.add_argument(
        "--comfyui-dir",
        type=Path,
        default=os.environ.get("COMFYUI_DIR"),
        help="ComfyUI's folder, for --engine comfyui; default COMFYUI_DIR",
    )
    demo.add_argument(
        "--comfyui-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option for ComfyUI's main.py, such as --comfyui-option=--lowvram; repeatable",
    )
    _add_job_options(demo)
    demo.set_defaults(command=_demo)


def add_generate(generate: argparse.ArgumentParser) -> None:
    """The options of `ltx generate`."""
    generate.add_argument("prompt")
    target = generate.add_mutually_exclusive_group()
    target.add_argument("--url", default="http://127.0.0.1:8000", help="a local handler's address")
    target.add_argument(
        "--endpoint", metavar="ID", help="a RunPod serverless endpoint; needs RUNPOD_API_KEY"
    )
    _add_job_options(generate)
    generate.set_defaults(command=_generate)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    for name in _MEDIA_OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=f"a file for {name}")
    for name in _TEXT_OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}")
    for name, kind in _NUMBER_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=JSON",
        help="any other field of the request; repeatable",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo.mp4"), help="the clip's file")


def _demo(arguments: argparse.Namespace) -> None:
    """One clip, or one of every mode; media that a mode needs and nobody gave are samples."""
    job_input = _job_input(arguments)
    with _local_worker(arguments) as run:
        if arguments.all:
            _demo_all(run, job_input, arguments.out)
        else:
            samples = sample_request(arguments.mode) if arguments.mode else {}
            _finish(run(samples | job_input), arguments.out)


def _demo_all(run: _Run, job_input: dict[str, Any], folder: Path) -> None:
    clips: list[tuple[str, Path]] = []
    templates = load_templates(load_settings().workflows_dir).values()
    for mode in dict.fromkeys(template.mode for template in templates):
        output = run(sample_request(mode) | job_input | {"mode": mode})
        path = folder / f"{mode}.mp4"
        save_video(output, path)
        seconds = output["timings"]["total_s"]
        clips.append((f"{mode}: {output['metadata']['num_frames']} frames, {seconds:.1f} s", path))
        _console.print(f"{path}  {seconds:.1f} s", highlight=False)
    write_contact_sheet(clips, folder / "contact_sheet.png")
    _console.print(f"{folder / 'contact_sheet.png'}", highlight=False)


@contextlib.contextmanager
def _local_worker(arguments: argparse.Namespace) -> Generator[_Run]:
    """Engine and handler on this machine; yields what runs a job there with a progress bar."""
    with (
        tempfile.TemporaryDirectory(prefix="ltx-demo-") as folder,
        _progress_bar() as on_progress,
        progress_sink(on_progress) as sink_url,
    ):
        _console.print(f"Starting the {arguments.engine} engine and the handler …")
        started = time.monotonic()
        with (
            _engine(arguments, Path(folder)) as engine,
            engines.handler(
                engine.environment | {"RUNPOD_WEBHOOK_POST_OUTPUT": sink_url}
            ) as worker_url,
        ):
            _console.print(f"Ready after {time.monotonic() - started:.1f} s; sending the job")
            yield lambda job_input: LocalWorker(worker_url).run(job_input, on_progress)


def _engine(
    arguments: argparse.Namespace, folder: Path
) -> contextlib.AbstractContextManager[engines.Engine]:
    if arguments.engine == "sandbox":
        return engines.sandbox(folder)
    if arguments.comfyui_dir is None:
        raise OSError("--engine comfyui needs --comfyui-dir or COMFYUI_DIR")
    return engines.comfyui(Path(arguments.comfyui_dir), folder, arguments.comfyui_option)


def _generate(arguments: argparse.Namespace) -> None:
    if arguments.endpoint is None:
        worker = LocalWorker(arguments.url)
    elif key := os.environ.get("RUNPOD_API_KEY"):
        worker = RunPodEndpoint(arguments.endpoint, key)
    else:
        raise OSError("--endpoint needs the environment variable RUNPOD_API_KEY")
    with _progress_bar() as on_progress:
        output = worker.run(_job_input(arguments), on_progress)
    _finish(output, arguments.out)


def _job_input(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request that the options describe."""
    job_input: dict[str, Any] = {"prompt": arguments.prompt}
    for name in (*_TEXT_OPTIONS, *_NUMBER_OPTIONS):
        if getattr(arguments, name) is not None:
            job_input[name] = getattr(arguments, name)
    for name in _MEDIA_OPTIONS:
        if (path := getattr(arguments, name)) is not None:
            job_input[name] = base64.b64encode(path.read_bytes()).decode("ascii")
    for assignment in arguments.set:
        name, _, value = assignment.partition("=")
        try:
            job_input[name] = json.loads(value)
        except ValueError:
            job_input[name] = value
    return job_input


@contextlib.contextmanager
def _progress_bar() -> Generator[OnProgress]:
    """A live bar on the terminal, fed by the worker's progress."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[steps]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task("", total=100, steps="", visible=False)

        def on_progress(progress: JobProgress) -> None:
            steps = f"step {progress['step']}/{progress['steps']}" if progress["steps"] else ""
            bar.update(
                task,
                description=f"{progress['stage']}/{progress['stages']} {progress['name']}",
                completed=progress["percent"],
                steps=steps,
                visible=True,
            )

        yield on_progress


def _finish(output: Mapping[str, Any], path: Path) -> None:
    save_video(output, path)
    result = GenerateResult.model_validate(output)
    made = Table(title=str(path), title_justify="left", show_header=False)
    for name, value in result.metadata.model_dump().items():
        made.add_row(name, str(value))
    made.add_row("bytes", f"{result.outputs[0].bytes:,}")
    times = Table(title="Where the time went", title_justify="left", show_header=False)
    timings = result.timings
    rows = {"Inputs": timings.inputs_s, "Queue": timings.queue_s} | timings.stages
    rows |= {"Check and encode": timings.encode_s, "Total": timings.total_s}
    for name, seconds in rows.items():
        times.add_row(name, f"{seconds:.2f} s")
    _console.print(made)
    _console.print(times)
    for warning in result.warnings:
        _console.print(f"[yellow]Warning:[/yellow] {warning}", highlight=False)


def print_failure(failure: JobFailed) -> None:
    """Print a job's error as people read it."""
    error: Mapping[str, Any] = failure.error or {}
    code = f"{error['code']}: " if "code" in error else ""
    details: list[dict[str, str]] = error.get("details", [])
    if len(details) > 1:
        _console.print(f"[red]{code}the request has {len(details)} problems[/red]")
        for detail in details:
            _console.print(f"  {detail['field']}: {detail['message']}", highlight=False)
    else:
        _console.print(f"[red]{code}{failure}[/red]", highlight=False)
    if error.get("hint"):
        _console.print(error["hint"], highlight=False)
