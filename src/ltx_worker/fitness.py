"""Whether this worker can serve: looked at before its first job, and by people with `ltx doctor`.

Every finding names what was looked at and what to do. A failure keeps the worker from taking jobs
that it could only lose; a warning does not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltx_worker.delivery.bucket_config import bucket_config
from ltx_worker.errors import InternalError, ModelMissing
from ltx_worker.gpu import Decision
from ltx_worker.logs import get_logger
from ltx_worker.settings import Settings, unknown_variables
from ltx_worker.worker import Worker
from ltx_worker.workflow.lora_files import read_header

State = Literal["ok", "warning", "failure"]

_log = get_logger(__name__)

# A clip takes a few megabytes; below this not even a handful fits.
_LEAST_DISK_BYTES = 200_000_000
# Pictures, clips of five jobs and their inputs, with room for the log.
_LOW_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` where there is something to do."""

    name: str
    state: State
    text: str
    advice: str = ""


def report(
    settings: Settings, worker: Worker, environment: Mapping[str, str] = os.environ
) -> list[Finding]:
    """Look at everything, on a worker that has started."""
    stats = worker.system_stats()
    return [
        *_settings(environment),
        *_gpu(stats, worker.decision),
        *_comfyui(stats),
        *_nodes(worker),
        *_models(worker),
        *_folders(worker),
        *_delivery(settings),
    ]


def require_fit(findings: Sequence[Finding]) -> None:
    """Log the findings; raises `InternalError` when one of them is a failure."""
    for finding in findings:
        if finding.state != "ok":
            _log.warning(
                "worker.unfit" if finding.state == "failure" else "worker.finding",
                check=finding.name,
                text=finding.text,
                advice=finding.advice,
            )
    if failures := [finding for finding in findings if finding.state == "failure"]:
        raise InternalError("; ".join(f"{f.name}: {f.text}. {f.advice}" for f in failures))


def _settings(environment: Mapping[str, str]) -> list[Finding]:
    unknown = unknown_variables(environment)
    if not unknown:
        return [Finding("settings", "ok", "every LTX2_ variable is known")]
    return [
        Finding(
            "settings",
            "warning",
            f"{name} is not a setting",
            f"Did you mean {near}?" if near else "See the README for all settings.",
        )
        for name, near in unknown.items()
    ]


def _gpu(stats: Mapping[str, Any], decision: Decision | None) -> list[Finding]:
    devices: list[Mapping[str, Any]] = stats.get("devices") or []
    gpus = [device for device in devices if device.get("type") != "cpu"]
    if not gpus:
        advice = "Rent a machine with a GPU; the sandbox and tests need none."
        return [Finding("gpu", "warning", "ComfyUI runs on the CPU", advice)]
    found = [
        f"{gpu.get('name', 'a GPU')}, {gpu.get('vram_total', 0) / 1e9:.0f} GB, "
        f"{gpu.get('vram_free', 0) / 1e9:.0f} GB free"
        for gpu in gpus
    ]
    decided = decision.reasons if decision else ()
    return [Finding("gpu", "ok", text) for text in (*found, *decided)]


def _comfyui(stats: Mapping[str, Any]) -> list[Finding]:
    system: Mapping[str, Any] = stats.get("system", {})
    version = system.get("comfyui_version", "unknown")
    torch = f" with torch {found}" if (found := system.get("pytorch_version")) else ""
    engine = system.get("engine", "comfyui")
    return [Finding("engine", "ok", f"{engine} {version}{torch} answers")]


def _nodes(worker: Worker) -> list[Finding]:
    missing = worker.repertoire.unavailable
    names = worker.repertoire.workflow_names
    if not missing:
        return [Finding("nodes", "ok", f"every node of {len(names)} workflows is there")]
    lacking = "; ".join(f"{name}: {', '.join(what)}" for name, what in missing.items())
    return [
        Finding(
            "nodes", "warning", f"not offered: {lacking}", "Install ComfyUI-LTXVideo for these."
        )
    ]


def _models(worker: Worker) -> list[Finding]:
    broken: list[Finding] = []
    for path in worker.repertoire.model_files(worker.folders.models_dirs):
        try:
            read_header(path)
        except ModelMissing as error:
            broken.append(Finding("models", "failure", error.message, error.hint or ""))
    if broken:
        return broken
    installed = worker.repertoire.installed
    if not installed:
        needed = worker.repertoire.needed_files()
        return [Finding("models", "warning", "no model is complete", f"Missing: {needed}")]
    return [Finding("models", "ok", f"{' and '.join(installed)} installed")]


def _folders(worker: Worker) -> list[Finding]:
    folders = worker.folders
    shared = {"input": folders.input_dir, "output": folders.output_dir}
    if None in shared.values():
        return [Finding("folders", "ok", "files travel to and from ComfyUI over HTTP")]
    return [_folder(name, path) for name, path in shared.items() if path is not None]


def _folder(name: str, path: Path) -> Finding:
    if not os.access(path, os.W_OK):
        return Finding(name, "failure", "the folder cannot be written to", f"Make {path} writable.")
    free = shutil.disk_usage(path).free
    text = f"{free / 1e9:.1f} GB free in the {name} folder"
    if free < _LEAST_DISK_BYTES:
        return Finding(name, "failure", text, "Free some disk, or rent more.")
    if free < _LOW_DISK_BYTES:
        return Finding(name, "warning", text, "Few long clips fit: free some disk.")
    return Finding(name, "ok", text)


def _delivery(settings: Settings) -> list[Finding]:
    # A worker with some of the variables missing is not made.
    bucket = bucket_config(settings)
    limit = f"{settings.max_response_bytes / 1e6:g} MB"
    if bucket is None:
        advice = "Set the R2_ variables: larger clips are then uploaded."
        return [Finding("delivery", "warning", f"clips over {limit} cannot be delivered", advice)]
    return [Finding("delivery", "ok", f"clips over {limit} go to the bucket {bucket.bucket}")]
