"""The tables of the runbook and of the files for deployment, made from the data that the worker
itself goes by: settings, catalogue, thresholds of the GPU, errors.

They stand between two marked lines of their files; `outdated` says which files are not current.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from ltx_worker.catalog import Catalog, ModelFile, Variant, load_catalog
from ltx_worker.downloads import files_of
from ltx_worker.errors import JobError
from ltx_worker.geometry import RESOLUTIONS, snap_frames_down
from ltx_worker.gpu import Gpu, GpuUnfit, SystemMemory, decide
from ltx_worker.settings import Settings

ROOT = Path(__file__).parents[2]
FILES = ("docker/README.md", "docker/docker-compose.yml", "docker/.env.example")
_BLOCK = re.compile(
    r"(^[^\n]*\bbegin (?P<name>[a-z-]+): made by ltx docs --write[^\n]*\n)"
    r".*?(?=^[^\n]*\bend (?P=name)\b)",
    re.MULTILINE | re.DOTALL,
)
_PLENTY = SystemMemory(256 << 30)
_LITTLE = SystemMemory(32 << 30)
_FPS = 24
# Files from this size on are listed one by one.
_LARGE_BYTES = 5e9


@dataclass(frozen=True)
class Variable:
    """A variable of the environment: what it is set to where nothing is, and what it does.

    `compose` is what docker-compose.yml sets it to, None where it does not hand it on.
    """

    name: str
    default: str
    text: str
    aliases: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    compose: str | None = None
    where: tuple[str, ...] = ()


def setting_variables() -> list[Variable]:
    """The variables of `settings.py`, in its order."""
    return [_of_setting(name, field) for name, field in Settings.model_fields.items()]


def other_variables() -> list[Variable]:
    """The variables that scripts and commands read beside the settings."""
    rows: list[dict[str, Any]] = _data()["variables"]
    return [
        Variable(
            name=row["name"],
            default=row["default"],
            text=row["text"],
            compose=row.get("compose"),
            where=tuple(row["where"]),
        )
        for row in rows
    ]


def blocks() -> Mapping[str, Callable[[], Iterable[str]]]:
    """What is made, by the name that stands in its first line."""
    return {
        "gpus": _gpus,
        "environment": _environment_table,
        "storage": _storage,
        "clips": _clips,
        "errors": _errors,
        "compose-environment": _compose_environment,
        "example-environment": _example_environment,
    }


def outdated(root: Path = ROOT) -> list[Path]:
    """The files whose blocks are not what would be made now."""
    return [path for path, text in _made(root) if path.read_text(encoding="utf-8") != text]


def write(root: Path = ROOT) -> list[Path]:
    """Bring every file up to date; returns those that were changed."""
    changed: list[Path] = []
    for path, text in _made(root):
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def _made(root: Path) -> Iterator[tuple[Path, str]]:
    for name in FILES:
        path = root / name
        yield path, _BLOCK.sub(_block, path.read_text(encoding="utf-8"))


def _block(found: re.Match[str]) -> str:
    made = blocks()[found["name"]]()
    return found[1] + "".join(f"{line}\n" if line else "\n" for line in made)


def _of_setting(name: str, field: FieldInfo) -> Variable:
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else ()
    names = [str(choice) for choice in choices if choice != name] or [f"LTX2_{name.upper()}"]
    default = _default_text(field.default)
    return Variable(
        name=names[0],
        default=default,
        text=field.description or "",
        aliases=tuple(names[1:]),
        values=_values(field),
        # Compose would end the value at the first brace; empty is the default as well.
        compose="" if "{" in default or isinstance(field.default, Path) else default,
    )


def _default_text(default: object) -> str:
    match default:
        case None | ():
            return ""
        case bool():
            return str(default).lower()
        case Path():
            return str(default.relative_to(ROOT))
        case float():
            return f"{default:g}"
        case _:
            return str(default)


def _values(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting takes, where it takes only some."""
    options = [field.annotation, *get_args(field.annotation)]
    words = [word for option in options for word in get_args(option) if isinstance(word, str)]
    return tuple(dict.fromkeys(words)) or (("true", "false") if field.annotation is bool else ())


def _environment_table() -> Iterator[str]:
    yield "| variable | default | |"
    yield "|---|---|---|"
    for variable in (*other_variables(), *setting_variables()):
        default = f"`{variable.default}`" if variable.default else ""
        yield f"| `{variable.name}` | {default} | {_told(variable)} |"


def _told(variable: Variable) -> str:
    parts = [variable.text]
    if variable.values and variable.values[0] != "true":
        parts.append(f"One of {', '.join(f'`{word}`' for word in variable.values)}.")
    if variable.aliases:
        parts.append(f"Also taken: {', '.join(f'`{name}`' for name in variable.aliases)}.")
    return " ".join(parts)


def _compose_environment() -> Iterator[str]:
    image = image_environment()
    for variable in (*other_variables(), *setting_variables()):
        if variable.compose is not None:
            value = image.get(variable.name, variable.compose)
            yield f'  {variable.name}: "${{{variable.name}:-{value}}}"'


def image_environment() -> dict[str, str]:
    """What the image itself sets: handed on empty, it would be gone."""
    last_stage = (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    settings = " ".join(re.findall(r"^ENV ((?:.*\\\n)*.*)", last_stage, re.MULTILINE))
    return dict(re.findall(r"([A-Z][A-Z0-9_]*)=([^\s$]+)(?:\s|$)", settings))


def _example_environment() -> Iterator[str]:
    for variable in (*other_variables(), *setting_variables()):
        if variable.compose is not None:
            yield f"# {_told(variable).replace('`', '')}"
            yield f"#{variable.name}={variable.default}"


def _gpus() -> Iterator[str]:
    yield "| GPU | serverless pool | $/h | MiB | variant | flags | known to fit at 720p | 1080p |"
    yield "|---|---|---|---|---|---|---|---|"
    rows: list[dict[str, Any]] = _data()["gpus"]
    for row in sorted(rows, key=lambda row: row["memory_mib"]):
        yield _gpu_row(row)
    largest = max(rows, key=lambda row: row["memory_mib"])
    why = decide([_gpu(largest)], _LITTLE, _defaults()).reasons[1]
    yield ""
    yield "The flags are those with the models of quality fast installed, and no others."
    yield f"With {_LITTLE.bytes >> 30} GiB of system memory, {largest['id']} serves {why}."


def _gpu_row(row: Mapping[str, Any]) -> str:
    settings = _defaults()
    note = ""
    try:
        decision = decide([_gpu(row)], _PLENTY, settings)
    except GpuUnfit:
        settings, note = _defaults(allow_low_vram=True), ", with `LTX2_ALLOW_LOW_VRAM=true`"
        decision = decide([_gpu(row)], _PLENTY, settings)
    variant = f"{decision.variant}{note}"
    decision = decide([_gpu(row)], _PLENTY, settings, _bytes_of_fast(decision.variant))
    price = f"{row['price'] * 3600:.2f}" if "price" in row else ""
    longest = [
        _longest(decision.megapixel_frames or 0, name, decision.max_frames)
        for name in ("720p", "1080p")
    ]
    memory, flags = f"{row['memory_mib']:,}", f"`{' '.join(decision.comfy_args)}`"
    cells = (row["id"], row["pool"], price, memory, variant, flags, *longest)
    return f"| {' | '.join(cells)} |"


def _bytes_of_fast(variant: Variant) -> int:
    """The checkpoint and the text encoder of quality fast."""
    roles = ("distilled_checkpoint", "text_encoder")
    return sum(load_catalog().candidates("ltx-2", role, variant)[0].bytes for role in roles)


def _gpu(row: Mapping[str, Any]) -> Gpu:
    return Gpu(row["id"], row["memory_mib"], "any")


def _longest(megapixel_frames: float, resolution: str, max_frames: int) -> str:
    width, height = RESOLUTIONS[resolution]
    frames = min(max_frames, snap_frames_down(int(megapixel_frames * 1e6 / (width * height))))
    return f"{frames / _FPS:.0f} s"


def _defaults(**values: Any) -> Settings:
    """Settings that no environment has touched."""
    return Settings.model_construct(**values)


def _storage() -> Iterator[str]:
    catalog = load_catalog()
    yield "| `./download_models.sh …` | for | fp8 | fp16 |"
    yield "|---|---|---|---|"
    for family in catalog.families:
        command = family.replace("-", "", 1)
        wishes = {
            command: "quality fast",
            f"{command} pro": "every quality",
            " ".join((command, *_published(family, catalog))): "everything",
        }
        for names, what in wishes.items():
            sizes = _sizes(lambda variant, names=names: files_of(names.split(), variant, catalog))
            yield f"| `{names}` | {family}, {what} | {sizes} |"
    yield ""
    yield "The large ones among these files:"
    yield ""
    yield "| file | fp8 | fp16 |"
    yield "|---|---|---|"
    for owner, role in dict.fromkeys(
        (file.family, file.role) for file in catalog.files if file.bytes > _LARGE_BYTES
    ):
        sizes = _sizes(lambda variant, of=(owner, role): catalog.candidates(*of, variant)[:1])
        family = "both families" if owner == "any" else owner
        yield f"| {family}, {role.replace('_', ' ')} | {sizes} |"


def _sizes(files: Callable[[Variant], Iterable[ModelFile]]) -> str:
    """Two cells: what the files take in each variant."""
    sums = [sum(file.bytes for file in files(variant)) for variant in get_args(Variant)]
    return " | ".join(f"{size / 1e9:.1f} GB" for size in sums)


def _published(family: str, catalog: Catalog) -> list[str]:
    """The groups of which something is published for the family, without the base."""
    known = catalog.roles(family)
    return [name for name, roles in catalog.groups.items() if name != "base" and known & {*roles}]


def _clips() -> Iterator[str]:
    yield "| | 5 s | 10 s | 20 s | as base64, 5 s |"
    yield "|---|---|---|---|---|"
    for name, size in _data()["clips"].items():
        lengths = [f"{size * factor / 1e6:.1f} MB" for factor in (1, 2, 4)]
        yield f"| {name} | {' | '.join(lengths)} | {size * 4 / 3 / 1e6:.1f} MB |"


def _errors() -> Iterator[str]:
    yield "| code | again? | what to do |"
    yield "|---|---|---|"
    for kind in error_kinds():
        again = "yes" if kind("").retryable else "no"
        yield f"| `{kind.code}` | {again} | {_data()['errors'][kind.code]} |"


def error_kinds() -> list[type[JobError]]:
    """The errors of the contract, each code once, in the order of `errors.py`."""
    kinds = {kind.code: kind for kind in reversed(JobError.__subclasses__())}
    return list(reversed(kinds.values()))


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("runbook.toml").read_text(encoding="utf-8"))
