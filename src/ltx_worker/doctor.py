"""`ltx doctor`: the checks that a worker makes before its first job, as a table for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ltx_worker.comfy.launch import launch_of
from ltx_worker.delivery.bucket import Bucket
from ltx_worker.delivery.bucket_config import bucket_config
from ltx_worker.delivery.keys import key_prefix
from ltx_worker.errors import ComfyUnavailable, DeliveryFailed, JobError, WorkflowMismatch
from ltx_worker.fitness import Finding, report
from ltx_worker.settings import InvalidSettings, Settings
from ltx_worker.worker import Worker

_STYLES = {"ok": "green", "warning": "yellow", "failure": "red"}


def examine(settings: Settings, *, with_upload: bool) -> list[Finding]:
    """Every finding about a worker with these settings.

    An engine that answers already is used; otherwise the worker's own is started for the while.
    """
    try:
        # It looks, and makes no clip.
        quiet = {"warm_up": "false", "read_ahead": False}
        worker = Worker(_beside_a_running_engine(settings).model_copy(update=quiet))
    except JobError as error:
        return [_unstarted(error)]
    try:
        worker.start()
        findings = report(settings, worker)
    except (ComfyUnavailable, WorkflowMismatch) as error:
        findings = [_unstarted(error)]
    finally:
        worker.close()
    return [*findings, *_upload(settings)] if with_upload else findings


def print_findings(findings: list[Finding], console: Console) -> bool:
    """Print them as a table; whether none is a failure."""
    table = Table(show_header=False)
    for finding in findings:
        style = _STYLES[finding.state]
        advice = f"\n[dim]{finding.advice}[/dim]" if finding.advice else ""
        table.add_row(f"[{style}]{finding.state}[/{style}]", finding.name, finding.text + advice)
    console.print(table)
    return all(finding.state != "failure" for finding in findings)


def _beside_a_running_engine(settings: Settings) -> Settings:
    """The settings, pointing at the engine on the worker's own port where one answers there."""
    if settings.comfy_url is not None:
        return settings
    launch = launch_of(settings)
    if not launch.is_running:
        return settings
    folders = launch.folders
    return settings.model_copy(
        update={
            "comfy_url": launch.url,
            "comfy_input_dir": folders.input_dir,
            "comfy_output_dir": folders.output_dir,
            "comfy_models_dirs": folders.models_dirs,
        }
    )


def _unstarted(error: JobError) -> Finding:
    return Finding("engine", "failure", error.message, error.hint or "")


def _upload(settings: Settings) -> list[Finding]:
    """A real upload: written, read back, deleted."""
    try:
        config = bucket_config(settings)
        if config is None:
            return [Finding("upload", "failure", "no bucket is set", "Set the R2_ variables.")]
        checked = Bucket(config).check(key_prefix(settings.output_key))
    except (InvalidSettings, DeliveryFailed) as error:
        return [Finding("upload", "failure", str(error), "See the R2_ variables.")]
    return [
        Finding(
            "upload",
            "ok",
            f"{one.bytes / 1e6:.1f} MB uploaded in {one.upload_s:.2f} s, read back whole in "
            f"{one.read_s:.2f} s, deleted in {one.delete_s:.2f} s",
        )
        for one in checked
    ]
