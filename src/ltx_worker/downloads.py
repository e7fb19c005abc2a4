"""Which model files a worker needs, which of them are here, and what has to be fetched.

`download_models.sh` carries out what is planned here, by `python -m ltx_worker.downloads`. A file
that lies whole in the image, on the volume or in RunPod's cached-model folder is used where it is:
no file is on disk twice. Whole means that a safetensors file ends where its header says; what is
fetched is also compared with the Hub's size and checksum.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from ltx_worker.catalog import Catalog, ModelFile, Variant, load_catalog
from ltx_worker.errors import InternalError, ModelMissing
from ltx_worker.gpu import GpuUnfit, decide, read_gpus, read_system_memory
from ltx_worker.hub import (
    REVISION,
    DownloadRefused,
    Status,
    about_missing_token,
    address,
    look_up,
    token,
)
from ltx_worker.settings import InvalidSettings, Settings, load_settings
from ltx_worker.workflow.lora_files import read_header

# Where RunPod mounts a network volume: on serverless workers, and on pods.
_VOLUMES = (Path("/runpod-volume"), Path("/workspace"))
_CACHE = "huggingface-cache/hub"
# An empty column: the shell would take two tabs for one.
_NONE = "-"


@dataclass(frozen=True)
class Places:
    """The model folders that ComfyUI reads, in order, the one that is downloaded to, and RunPod's
    cached models."""

    read: tuple[Path, ...]
    target: Path
    cache: Path | None = None


@dataclass(frozen=True)
class Planned:
    """A file of the catalogue and its `path`: where it is, or will be.

    `source` is its cached copy, to be linked at `path`; `fault` says what is wrong with the file
    that lies at `path` and has to be fetched again.
    """

    file: ModelFile
    path: Path
    state: Literal["present", "cached", "missing"]
    source: Path | None = None
    fault: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "name": self.file.name,
            "family": self.file.family,
            "role": self.file.role,
            "variant": self.file.variant,
            "bytes": self.file.bytes,
            "repository": self.file.repository,
            "gated": self.file.gated,
            "state": self.state,
            "path": str(self.path),
            "fault": self.fault,
        }


@dataclass(frozen=True)
class Plan:
    """The files that are wanted in one variant, `reason` says why in this one."""

    variant: Variant
    reason: str
    places: Places
    files: tuple[Planned, ...]

    @property
    def missing(self) -> tuple[Planned, ...]:
        """What has to be fetched."""
        return tuple(planned for planned in self.files if planned.state == "missing")

    @property
    def bytes(self) -> int:
        """What has to be fetched, less what an interrupted download has left."""
        return sum(_rest(planned.file.bytes, planned.path) for planned in self.missing)

    def lines(self) -> list[str]:
        """The plan for people, and how much disk it takes."""
        told = [f"selected variant: {self.variant}", f"  {self.reason}"]
        told += [_line(planned) for planned in self.files]
        if self.missing:
            free = _free_bytes(self.places.target)
            told.append(f"needed: {_gb(self.bytes)}; free in {self.places.target}: {_gb(free)}")
        return told

    def tsv(self) -> str:
        """For the shell: variant and target folder, then a line for each file to link or fetch:
        url, dest, bytes, sha256, gated, repo, revision, file. A url that is a path is linked."""
        rows = [[self.variant, str(self.places.target)]]
        rows += [_row(planned) for planned in self.files if planned.state != "present"]
        return "".join("\t".join(row) + "\n" for row in rows)

    def measured(self) -> Plan:
        """The same with the Hub's own sizes; raises `DownloadRefused` for what it does not give."""
        files = tuple(_measured(p) if p.state == "missing" else p for p in self.files)
        return replace(self, files=files)


def plan_downloads(
    names: Sequence[str],
    settings: Settings,
    *,
    to: Path | None = None,
    volume: Path | None = None,
    catalog: Catalog | None = None,
) -> Plan:
    """What families, groups and roles take on this machine; nothing is asked of the network.

    Raises `DownloadRefused` for an unknown name or a token that is missing, `GpuUnfit` where the
    GPU serves no variant.
    """
    catalog = catalog or load_catalog()
    variant, reason = choose_variant(settings)
    places = places_of(settings, to, volume)
    files = tuple(_planned(file, places) for file in files_of(names, variant, catalog))
    gated = [p.file.repository for p in files if p.state == "missing" and p.file.gated]
    if gated and not token():
        raise DownloadRefused(Status.TOKEN, about_missing_token(gated[0]))
    return Plan(variant, reason, places, files)


def survey(settings: Settings, *, volume: Path | None = None) -> list[Planned]:
    """Every file of the catalogue, of every family and variant, as it is on this machine."""
    places = places_of(settings, None, volume)
    return [_planned(file, places) for file in load_catalog().files]


def choose_variant(settings: Settings) -> tuple[Variant, str]:
    """LTX2_VARIANT, which needs no GPU, else the GPU's; raises `GpuUnfit`. And why."""
    if settings.variant:
        return settings.variant, "LTX2_VARIANT"
    decision = decide(read_gpus(), read_system_memory(), settings)
    return decision.variant, "; ".join(decision.reasons[:2])


def places_of(settings: Settings, to: Path | None = None, volume: Path | None = None) -> Places:
    """Where model files are looked for and put: into `to`, else on the volume that is mounted,
    else in ComfyUI's own folder. Raises `DownloadRefused` where there is none of them."""
    own = settings.comfy_models_dirs
    if not own and settings.comfyui_dir:
        own = (settings.comfyui_dir / "models",)
    volume = volume or next((path for path in _VOLUMES if path.is_mount()), None)
    on_volume = (volume / "models",) if volume else ()
    targets = [*([to] if to else []), *on_volume, *own]
    if not targets:
        raise DownloadRefused(Status.USAGE, "Say where the files go: --to DIR, or COMFYUI_DIR")
    read = tuple(dict.fromkeys((*own, *on_volume, targets[0])))
    return Places(read, targets[0], volume / _CACHE if volume else None)


def files_of(names: Sequence[str], variant: Variant, catalog: Catalog) -> list[ModelFile]:
    """The files that the names stand for, each once.

    A family (ltx2, ltx2.3) takes its base; groups and roles are those of the named families, of
    the first one where none is named. Raises `DownloadRefused`.
    """
    asked = [name.replace("ltx2", "ltx-2", 1) for name in names]
    families = [family for family in catalog.families if family in asked]
    wanted = [catalog.groups["base"]] if families else []
    families = families or [catalog.families[0]]
    wanted += [_roles(name, families, catalog) for name in asked if name not in catalog.families]
    found = [
        candidates[0]
        for family in families
        for roles in wanted
        for role in roles
        if (candidates := catalog.candidates(family, role, variant))
    ]
    return list(dict.fromkeys(found))


def require_space(needed: int, folder: Path) -> None:
    """Raises `DownloadRefused` when `folder` cannot take so many bytes."""
    free = _free_bytes(folder)
    if needed > free:
        raise DownloadRefused(
            Status.DISK,
            f"not enough disk: {_gb(needed)} are needed in {folder}, {_gb(free)} are free",
        )


def _roles(name: str, families: Iterable[str], catalog: Catalog) -> tuple[str, ...]:
    roles = catalog.groups.get(name) or (name.replace("-", "_"),)
    known = {role for family in catalog.families for role in catalog.roles(family)}
    if not known.intersection(roles):
        names = [*catalog.groups, *sorted(known)]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(catalog.groups)}"
        raise DownloadRefused(Status.USAGE, f"{name} is no family, group or role; {hint}")
    if not any(catalog.roles(family).intersection(roles) for family in families):
        raise DownloadRefused(Status.USAGE, f"{name} is not published for {' or '.join(families)}")
    return roles


def _planned(file: ModelFile, places: Places) -> Planned:
    """Where a file is. What ComfyUI finds first counts, also if it is broken."""
    paths = [folder / file.folder / file.name for folder in places.read]
    if found := next((path for path in paths if path.is_file()), None):
        if fault := _fault(found):
            return Planned(file, found, "missing", fault=fault)
        return Planned(file, found, "present")
    cached = _cached(file, places.cache) if places.cache else None
    if cached:
        return Planned(file, paths[0], "cached", source=cached)
    return Planned(file, places.target / file.folder / file.name, "missing")


def _cached(file: ModelFile, cache: Path) -> Path | None:
    """The file in the layout of the Hub's cache: refs/main names the snapshot."""
    repository = cache / f"models--{file.repository.replace('/', '--')}"
    try:
        commit = (repository / "refs" / REVISION).read_text(encoding="ascii").strip()
    except OSError:
        return None
    path = repository / "snapshots" / commit / file.path
    return path if path.is_file() and _fault(path) is None else None


def _fault(path: Path) -> str | None:
    try:
        read_header(path)
    except ModelMissing as error:
        return error.message
    return None


def _measured(planned: Planned) -> Planned:
    size = look_up(address(planned.file), planned.file.repository).bytes
    return planned if size is None else replace(planned, file=replace(planned.file, bytes=size))


def _rest(size: int, path: Path) -> int:
    """The bytes that are still to come. A download with a control file has holes: all count."""
    part = path.with_name(f"{path.name}.part")
    if not part.is_file() or path.with_name(f"{path.name}.part.aria2").exists():
        return size
    return max(0, size - part.stat().st_size)


def _line(planned: Planned) -> str:
    match planned.state:
        case "present":
            return f"file already exists: {planned.path}"
        case "cached":
            return f"file already exists: {planned.source}, RunPod's cached model"
        case "missing":
            fault = f"{planned.fault}; " if planned.fault else ""
            file = planned.file
            return f"{fault}to download: {file.name}, {_gb(file.bytes)} from {file.repository}"


def _row(planned: Planned) -> list[str]:
    file = planned.file
    url = str(planned.source) if planned.source else address(file)
    gated = "gated" if file.gated else _NONE
    size = str(file.bytes)
    return [url, str(planned.path), size, _NONE, gated, file.repository, REVISION, file.path]


def _free_bytes(folder: Path) -> int:
    """What is free where `folder` is, or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size:,} bytes"


def main(argv: list[str] | None = None) -> NoReturn:
    """`plan` and `look`, for download_models.sh; the exit statuses are in its head."""
    parser = argparse.ArgumentParser(prog="python -m ltx_worker.downloads")
    commands = parser.add_subparsers(required=True, dest="command")
    plan = commands.add_parser("plan", help="say what is needed, here and missing")
    plan.add_argument("names", nargs="+", metavar="NAME")
    plan.add_argument("--dry-run", action="store_true", help="ask nothing of the network")
    plan.add_argument("--to", type=Path, help="the model folder that is downloaded to")
    plan.add_argument("--volume", type=Path, help="where the network volume is mounted")
    plan.add_argument("--tsv", type=Path, required=True, help="gets what is to be done")
    look = commands.add_parser("look", help="size, checksum and address of a file to download")
    look.add_argument("url")
    look.add_argument("dest", type=Path)
    arguments = parser.parse_args(argv)
    try:
        _plan(arguments) if arguments.command == "plan" else _look(arguments)
    except DownloadRefused as refused:
        _fail(refused, refused.status)
    except GpuUnfit as unfit:
        sys.stderr.write("LTX2_VARIANT=fp8 or fp16 chooses the files without a GPU\n")
        _fail(unfit, Status.GPU)
    except InvalidSettings as invalid:
        _fail(InternalError(str(invalid)), Status.USAGE)
    sys.exit(0)


def _plan(arguments: argparse.Namespace) -> None:
    settings = load_settings()
    plan = plan_downloads(arguments.names, settings, to=arguments.to, volume=arguments.volume)
    if not arguments.dry_run:
        plan = plan.measured()
    sys.stdout.write("\n".join(plan.lines()) + "\n")
    sys.stdout.flush()
    if not arguments.dry_run:
        require_space(plan.bytes, plan.places.target)
        arguments.tsv.write_text(plan.tsv(), encoding="utf-8")


def _look(arguments: argparse.Namespace) -> None:
    """Write size, checksum, address to fetch from, and whether it takes the token."""
    remote = look_up(arguments.url, arguments.dest.name)
    is_here = arguments.dest.is_file() and arguments.dest.stat().st_size == remote.bytes
    if remote.bytes is not None and not is_here:
        require_space(_rest(remote.bytes, arguments.dest), arguments.dest.parent)
    size = _NONE if remote.bytes is None else str(remote.bytes)
    takes_token = "token" if remote.takes_token else _NONE
    row = [size, remote.sha256 or _NONE, remote.location, takes_token]
    sys.stdout.write("\t".join(row) + "\n")


def _fail(error: InternalError, status: int) -> NoReturn:
    sys.stderr.write(f"error: {error.message}{f'. {error.hint}' if error.hint else ''}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
