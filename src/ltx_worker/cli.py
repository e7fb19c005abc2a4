"""`ltx`: try the worker on this machine, or send a job to one that runs.

ltx demo       start an engine and the handler here, send one job, write the clip
ltx generate   send one job to a running worker
ltx doctor     check what a worker on this machine needs
ltx gpu        what this machine's GPU decides: variant, flags, limits
ltx models     the model files that are here, or a plan of what to fetch
ltx smoke      run a sample job, and compare its time with the GPU's baseline
ltx docs       check the runbook's generated tables, or write them
ltx workflows  check the workflow files, or write their index
ltx schema     print the JSON Schema of the request or the result
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ltx_worker import cli_jobs, downloads, runbook, smoke
from ltx_worker.catalog import load_catalog
from ltx_worker.doctor import examine, print_findings
from ltx_worker.errors import JobError
from ltx_worker.gpu import decide, read_gpus, read_system_memory
from ltx_worker.job_client import (
    JobFailed,
)
from ltx_worker.logs import configure_logging
from ltx_worker.request_fields import RequestFields
from ltx_worker.result import GenerateResult
from ltx_worker.settings import InvalidSettings, load_settings
from ltx_worker.workflow.index import index_text
from ltx_worker.workflow.template import load_templates

_console = Console(stderr=True)


def main(argv: list[str] | None = None) -> None:
    """Run one command; exits with status 1 and one line when it fails."""
    arguments = _parser().parse_args(argv)
    # A worker that runs inside a command is quiet but for what is wrong.
    configure_logging("WARNING", "auto")
    try:
        arguments.command(arguments)
    except JobFailed as failure:
        cli_jobs.print_failure(failure)
        sys.exit(1)
    except (JobError, InvalidSettings, OSError) as error:
        _console.print(f"[red]{error}[/red]", highlight=False)
        if isinstance(error, JobError) and error.hint:
            _console.print(error.hint, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ltx", description="LTX-2 worker: try it, call it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    cli_jobs.add_demo(commands.add_parser("demo", help="start everything here, send one job"))
    cli_jobs.add_generate(commands.add_parser("generate", help="send one job to a worker"))

    gpu = commands.add_parser("gpu", help="what this machine's GPU decides")
    gpu.add_argument("--json", action="store_true")
    gpu.set_defaults(command=_gpu)

    models = commands.add_parser("models", help="the model files that are here, or a plan")
    models.add_argument("--plan", nargs="+", metavar="NAME", help="what these names would fetch")
    models.add_argument("--json", action="store_true")
    models.set_defaults(command=_models)

    doctor = commands.add_parser("doctor", help="check what a worker on this machine needs")
    doctor.add_argument("--r2", action="store_true", help="also upload, read back and delete")
    doctor.set_defaults(command=_doctor)

    docs = commands.add_parser("docs", help="check the runbook's tables, or write them")
    docs.add_argument("--write", action="store_true", help="write them again")
    docs.set_defaults(command=_docs)

    smoke_command = commands.add_parser("smoke", help="a sample job, held against its baseline")
    smoke.add_options(smoke_command)
    smoke_command.set_defaults(command=smoke.run_command)

    workflows = commands.add_parser("workflows", help="check the workflows, or write their index")
    workflows.add_argument("--write", action="store_true", help="write workflows/index.md again")
    workflows.set_defaults(command=_workflows)

    schema = commands.add_parser("schema", help="print the contract as JSON Schema")
    schema.add_argument("part", nargs="?", choices=("request", "result"), default="request")
    schema.set_defaults(command=_schema)
    return parser


def _doctor(arguments: argparse.Namespace) -> None:
    if not print_findings(examine(load_settings(), with_upload=arguments.r2), Console()):
        sys.exit(1)


def _gpu(arguments: argparse.Namespace) -> None:
    decision = decide(read_gpus(), read_system_memory(), load_settings())
    if arguments.json:
        print(json.dumps(dataclasses.asdict(decision), indent=2))
        return
    for reason in decision.reasons:
        print(reason)


def _models(arguments: argparse.Namespace) -> None:
    settings = load_settings()
    plan = downloads.plan_downloads(arguments.plan, settings) if arguments.plan else None
    files = downloads.survey(settings) if plan is None else plan.files
    if arguments.json:
        print(json.dumps([file.to_dict() for file in files], indent=2))
    elif plan is not None:
        print("\n".join(plan.lines()))
    else:
        Console().print(_models_table(files))
    if any(file.fault for file in files):
        sys.exit(1)


def _models_table(files: Sequence[downloads.Planned]) -> Table:
    table = Table("file", "GB", "state", "", box=None)
    for file in files:
        known = file.to_dict()
        size = f"{known['bytes'] / 1e9:.2f}"
        table.add_row(str(known["name"]), size, str(known["state"]), file.fault or "")
    return table


def _docs(arguments: argparse.Namespace) -> None:
    if arguments.write:
        runbook.write()
    elif stale := runbook.outdated():
        names = ", ".join(path.name for path in stale)
        raise OSError(f"{names} not current; make them again with ltx docs --write")


def _workflows(arguments: argparse.Namespace) -> None:
    folder = load_settings().workflows_dir
    templates = load_templates(folder).values()
    index = folder / "index.md"
    text = index_text(templates, load_catalog())
    if arguments.write:
        index.write_text(text, encoding="utf-8")
    elif not index.exists() or index.read_text(encoding="utf-8") != text:
        raise OSError(f"{index} is not current; make it again with ltx workflows --write")
    _console.print(f"{len(templates)} workflows fit their bindings", highlight=False)


def _schema(arguments: argparse.Namespace) -> None:
    model = RequestFields if arguments.part == "request" else GenerateResult
    print(json.dumps(model.model_json_schema(), indent=2))


if __name__ == "__main__":
    main()
