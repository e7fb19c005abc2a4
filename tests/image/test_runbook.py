"""The runbook: its tables are current, and it documents what is read where it is read."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ltx_worker.errors import JobError
from ltx_worker.runbook import (
    FILES,
    ROOT,
    Variable,
    blocks,
    error_kinds,
    other_variables,
    outdated,
    setting_variables,
    write,
)
from ltx_worker.settings import Settings, unknown_variables

RUNBOOK = ROOT / "docker" / "README.md"
# The shell's own, and what every program has.
NOT_OURS = {"BASH_SOURCE", "BASH_REMATCH", "IFS", "LC_ALL", "LD_PRELOAD", "PATH", "PYTHONPATH"}
# What start.sh finds without naming it.
BY_PREFIX = {"RUNPOD_SECRET_@": {"RUNPOD_SECRET_hf_token", "RUNPOD_SECRET_r2_*"}}
IN_SHELL = re.compile(r"\$\{?!?([A-Z][A-Z0-9_]*(?<=RUNPOD_SECRET_)\w+@?|[A-Z][A-Z0-9_]+@?)")
IN_PYTHON = re.compile(
    r'environ(?:\.get)?[\[(]\s*"(\w+)"|"(\w+)" (?:not )?in os\.environ|_VARIABLE = "(\w+)"'
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A tree with copies of the files that have blocks."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_every_table_is_current() -> None:
    """What stands in the files is what is made now; else `ltx docs --write`."""
    assert outdated() == []


def test_every_block_stands_in_a_file() -> None:
    """Nothing is made that nobody reads."""
    texts = "".join((ROOT / name).read_text() for name in FILES)
    named = re.findall(r"begin ([a-z-]+): made by ltx docs --write", texts)
    assert sorted(named) == sorted(blocks())


def test_a_changed_table_is_noticed_and_made_again(copy: Path) -> None:
    """Only what is between the marks is written; a second time there is nothing to do."""
    path = copy / "docker" / "README.md"
    path.write_text(path.read_text().replace("24,564", "16,000") + "A sentence of ours.\n")
    assert outdated(copy) == [path]
    assert write(copy) == [path]
    assert path.read_text() == RUNBOOK.read_text() + "A sentence of ours.\n"
    assert write(copy) == outdated(copy) == []


def test_every_error_has_its_advice() -> None:
    """The codes are those of the tree, each once and in its order."""
    codes = re.findall(r"^\| `([a-z_]+)` \| (?:yes|no) \|", RUNBOOK.read_text(), re.MULTILINE)
    assert codes == list(dict.fromkeys(kind.code for kind in JobError.__subclasses__()))
    assert codes == [kind.code for kind in error_kinds()]


def test_the_gpu_table_says_what_is_decided() -> None:
    """Below 24000 MiB only by leave, fp8 from there, fp16 from 32000 MiB."""
    table = "\n".join(blocks()["gpus"]())
    row = re.compile(r"^\| NVIDIA (?:GeForce )?([^|]*) \|(?:[^|]*\|){3} ([^|]*) ", re.MULTILINE)
    variants = dict(row.findall(table))
    assert variants["L4"] == "fp8, with `LTX2_ALLOW_LOW_VRAM=true`"
    assert variants["RTX 4090"] == "fp8"
    assert variants["RTX 5090"] == variants["H200"] == "fp16"


def test_the_tables_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the shell of who makes them changes nothing."""
    for name, value in {"LTX2_VARIANT": "fp8", "LTX2_MAX_FRAMES": "9"}.items():
        monkeypatch.setenv(name, value)
    assert outdated() == []


# ---- variables -------------------------------------------------------------------------------


def test_every_variable_is_documented_exactly_where_it_is_read() -> None:
    """Every variable that a script or a module reads beside the settings has its row, with its
    readers; and no row names a reader that does not read it."""
    documented = {
        variable.name: set(variable.where) for variable in other_variables() if variable.where
    }
    assert documented == readers()


def test_every_variable_is_documented_once() -> None:
    """Also by the names that are taken as well."""
    names = [name for variable in variables() for name in (variable.name, *variable.aliases)]
    assert len(names) == len(set(names))


def test_every_setting_is_documented_by_the_name_that_sets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first name and all others really reach the setting."""
    fields = dict(zip(Settings.model_fields, setting_variables(), strict=True))
    for field, variable in fields.items():
        default = getattr(Settings.model_construct(), field)
        if default is None and not variable.values:
            for name in (variable.name, *variable.aliases):
                with monkeypatch.context() as environment:
                    environment.setenv(name, "x")
                    assert str(getattr(Settings(), field)) in ("x", "**********")


def test_no_documented_variable_is_taken_for_a_misspelling() -> None:
    """The worker warns of unknown `LTX2_` variables; none of ours may be among them."""
    assert unknown_variables({variable.name: "" for variable in variables()}) == {}


def variables() -> list[Variable]:
    return [*other_variables(), *setting_variables()]


def readers() -> dict[str, set[str]]:
    """The variables that are read beside the settings, each with the files that read it."""
    settings = {name for one in setting_variables() for name in (one.name, *one.aliases)}
    found: dict[str, set[str]] = defaultdict(set)
    for path, name in reads():
        for one in BY_PREFIX.get(name, {name} - settings - NOT_OURS):
            found[one].add(str(path.relative_to(ROOT)))
    return dict(found)


def reads() -> Iterator[tuple[Path, str]]:
    """Each place where a variable is read: the file and the variable."""
    for path in (*ROOT.glob("*.sh"), *ROOT.glob("docker/scripts/*.sh")):
        for name in IN_SHELL.findall(path.read_text()):
            yield path, name
    for path in (ROOT / "handler.py", *ROOT.glob("src/**/*.py")):
        for names in IN_PYTHON.findall(path.read_text()):
            yield path, "".join(names)


# ---- commands --------------------------------------------------------------------------------


class Part(BaseModel):
    """A part of RunPod's REST API v2, as far as the runbook uses it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PodGpu(Part):
    id: str
    minCudaVersion: Annotated[str, Field(pattern=r"^\d+\.\d+$")]  # noqa: N815 - RunPod's name


class Pools(Part):
    pools: list[str] = Field(min_length=1)
    minCudaVersion: Annotated[str, Field(pattern=r"^\d+\.\d+$")]  # noqa: N815


class Mount(Part):
    volumeId: str  # noqa: N815
    path: str


class Mounts(Part):
    network: list[Mount] = Field(max_length=1)


class Container(Part):
    name: str
    image: str
    disk: int = Field(ge=1)
    env: dict[str, str]


class CreatePod(Container):
    gpu: PodGpu
    ports: list[Annotated[str, Field(pattern=r"^\d+/(http|tcp)$")]]
    mounts: Mounts


class Scaling(Part):
    type: Literal["QUEUE_DELAY"]
    queueDelay: float = Field(ge=0.5)  # noqa: N815


class Workers(Part):
    min: int = Field(ge=0)
    max: int = Field(ge=0)
    idleTimeout: int = Field(ge=1, le=3600)  # noqa: N815


class CreateEndpoint(Container):
    type: Literal["QUEUE"]
    gpu: Pools
    scaling: Scaling
    workers: Workers
    timeout: int
    flashboot: Literal["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]
    networkVolumes: list[str]  # noqa: N815


def body_to(address: str) -> str:
    """The JSON that the runbook posts to an address."""
    found = re.search(rf"{re.escape(address)} .*?-d '(.*?)'\n```", RUNBOOK.read_text(), re.DOTALL)
    assert found
    return found[1]


def test_the_command_for_a_pod_is_what_runpod_takes() -> None:
    """Both ways create the same pod, with ENABLE_LTX2 and LTX2_VARIANT set."""
    pod = CreatePod.model_validate_json(body_to("https://api.runpod.io/v2/pods"))
    by_hand = re.search(r"runpodctl pod create .*?--env '(.*?)'", RUNBOOK.read_text(), re.DOTALL)
    assert by_hand
    assert json.loads(by_hand[1]) == pod.env
    assert pod.env.keys() >= {"ENABLE_LTX2", "LTX2_VARIANT"}
    assert pod.env.keys() <= {variable.name for variable in variables()}


def test_the_command_for_an_endpoint_is_what_runpod_takes() -> None:
    """Its timeout leaves room for the worker's own, and its variables are known."""
    endpoint = CreateEndpoint.model_validate_json(body_to("https://api.runpod.io/v2/serverless"))
    assert endpoint.timeout > Settings.model_construct().job_timeout_s * 1000
    assert endpoint.env.keys() <= {variable.name for variable in variables()}
