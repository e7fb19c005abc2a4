"""RunPod's files: the Hub's, in the schema of its publishing guide, and the legacy runpod.toml."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, HttpUrl
from tests.conftest import RunJob, clip_of

from ltx_worker.catalog import load_catalog
from ltx_worker.downloads import files_of
from ltx_worker.geometry import RESOLUTIONS
from ltx_worker.gpu import Gpu, SystemMemory, decide
from ltx_worker.runbook import ROOT, Variable, other_variables, setting_variables
from ltx_worker.settings import Settings

HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
CASES = json.loads((ROOT / ".runpod" / "tests.json").read_text())
LEGACY = tomllib.loads((ROOT / "runpod.toml").read_text())
RUNBOOK_DATA = tomllib.loads((ROOT / "src" / "ltx_worker" / "runbook.toml").read_text())
CUDA = r"^\d+\.\d+$"
POOLS = {gpu["pool"] for gpu in RUNBOOK_DATA["gpus"] if gpu["pool"]}
# The image, without weights, and what RunPod wants free of the container's disk.
IMAGE_GB = 15
FREE_SHARE = 0.1


class Part(BaseModel):
    """A part of the schema: nothing else is allowed."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Option(Part):
    label: str
    value: str


class Input(Part):
    name: str
    type: Literal["string", "number", "boolean", "huggingface"]
    description: str = Field(min_length=1)
    default: str | int | float | bool
    advanced: bool = False
    required: bool = False
    options: list[Option] | None = None
    min: float | None = None
    max: float | None = None
    trueValue: str | None = None  # noqa: N815 - RunPod's name
    falseValue: str | None = None  # noqa: N815


class Static(Part):
    key: str
    value: str


class Asked(Part):
    key: str
    input: Input


class Preset(Part):
    name: str
    defaults: dict[str, str | int | bool]


class HubConfig(Part):
    runsOn: Literal["GPU"]  # noqa: N815
    containerDiskInGb: int  # noqa: N815
    gpuCount: int  # noqa: N815
    gpuIds: str  # noqa: N815
    allowedCudaVersions: list[Annotated[str, Field(pattern=CUDA)]]  # noqa: N815
    env: list[Static | Asked]
    presets: list[Preset]


class Hub(Part):
    title: str
    description: str
    type: Literal["serverless"]
    category: Literal["audio", "embedding", "language", "video", "image"]
    iconUrl: HttpUrl | None = None  # noqa: N815
    config: HubConfig


class Case(Part):
    name: str
    input: dict[str, Any]
    timeout: int = Field(ge=1000)


class CaseConfig(Part):
    gpuTypeId: str  # noqa: N815
    gpuCount: int  # noqa: N815
    env: list[Static]
    allowedCudaVersions: list[Annotated[str, Field(pattern=CUDA)]]  # noqa: N815


class Suite(Part):
    tests: list[Case] = Field(min_length=1)
    config: CaseConfig


class Project(Part):
    uuid: str
    base_image: str
    gpu_types: list[str] = Field(min_length=1)
    gpu_count: int
    volume_mount_path: Literal["/runpod-volume"]
    ports: str = Field(pattern=r"^\d+/(http|tcp)(, \d+/(http|tcp))*$")
    container_disk_size_gb: int
    env_vars: dict[str, str]


class Endpoint(Part):
    active_workers: int
    max_workers: int
    flashboot: bool
    idle_timeout: int
    model_refs: list[str]


class Runtime(Part):
    python_version: str
    handler_path: str
    requirements_path: str


class Legacy(Part):
    name: str
    project: Project
    endpoint: Endpoint
    runtime: Runtime


def known() -> dict[str, Variable]:
    return {one.name: one for one in (*other_variables(), *setting_variables())}


@pytest.mark.parametrize(
    ("schema", "data"), [(Hub, HUB), (Suite, CASES), (Legacy, LEGACY)], ids=["hub", "tests", "toml"]
)
def test_each_file_has_the_shape_that_runpod_reads(
    schema: type[BaseModel], data: dict[str, Any]
) -> None:
    """Every key is known, every required one is there, and of its type."""
    schema.model_validate(data)


def test_every_input_is_a_variable_with_its_own_default() -> None:
    """What the form shows before anybody types is what the worker does without it."""
    for entry in HUB["config"]["env"]:
        variable = known()[entry["key"]]
        if "input" in entry:
            default = entry["input"]["default"]
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            assert shown == variable.default, entry["key"]


def test_every_choice_is_one_that_the_worker_takes() -> None:
    """The options of a list are the setting's values, and nothing for its own choice."""
    for entry in HUB["config"]["env"]:
        options = {option["value"] for option in entry.get("input", {}).get("options") or ()}
        if options:
            assert options - {""} == set(known()[entry["key"]].values)


def test_the_presets_are_every_family_in_every_variant() -> None:
    """Each sets inputs of the form, and names what download_models.sh takes."""
    presets = [preset["defaults"] for preset in HUB["config"]["presets"]]
    made = {(preset["LTX2_MODELS"], preset["LTX2_VARIANT"]) for preset in presets}
    families = {family.replace("-", "", 1) for family in load_catalog().families}
    assert made == {(family, variant) for family in families for variant in ("fp8", "fp16")}
    inputs = {entry["key"] for entry in HUB["config"]["env"] if "input" in entry}
    assert all(preset.keys() <= inputs for preset in presets)


def test_the_disk_holds_the_largest_preset() -> None:
    """Image and weights leave free what RunPod wants free."""
    catalog = load_catalog()
    sizes = [
        sum(
            file.bytes
            for file in files_of(
                [preset["defaults"]["LTX2_MODELS"]], preset["defaults"]["LTX2_VARIANT"], catalog
            )
        )
        for preset in HUB["config"]["presets"]
    ]
    needed_gb = (max(sizes) / 1e9 + IMAGE_GB) / (1 - FREE_SHARE)
    assert HUB["config"]["containerDiskInGb"] >= needed_gb


def test_every_gpu_of_the_pools_serves() -> None:
    """No worker starts on a GPU that would only refuse."""
    pools = HUB["config"]["gpuIds"].split(",")
    assert set(pools) <= POOLS
    for gpu in RUNBOOK_DATA["gpus"]:
        if gpu["pool"] in pools:
            decide([gpu_of(gpu["id"])], SystemMemory(256 << 30), Settings.model_construct())


def test_the_cuda_versions_are_those_of_the_images_torch() -> None:
    """The lowest is the one that the image's torch is built for."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    built_for = re.search(r"wheels are built for CUDA (\d+\.\d+)", dockerfile)
    assert built_for
    for config in (HUB["config"], CASES["config"]):
        assert min(config["allowedCudaVersions"]) == built_for[1]
    runbook = (ROOT / "docker" / "README.md").read_text()
    assert set(re.findall(r'(?:minCudaVersion": "|min-cuda-version )([\d.]+)', runbook)) == {
        built_for[1]
    }


@pytest.mark.parametrize("case", CASES["tests"], ids=lambda case: case["name"])
def test_every_hub_test_is_a_job_that_succeeds(run_job: RunJob, case: dict[str, Any]) -> None:
    """On the sandbox here; its answer is far below RunPod's limit."""
    answer = run_job(case["input"])
    assert len(clip_of(answer)) < 5_000_000
    assert answer["output"]["warnings"] == []


def test_every_hub_test_fits_its_gpu() -> None:
    """What is known to fit the GPU that the tests are run on, in the variant that it gets."""
    decision = decide(
        [gpu_of(CASES["config"]["gpuTypeId"])], SystemMemory(64 << 30), Settings.model_construct()
    )
    assert decision.megapixel_frames is not None
    for case in CASES["tests"]:
        width, height = RESOLUTIONS[case["input"]["resolution"]]
        work = width * height * case["input"]["num_frames"] / 1e6
        assert work <= decision.megapixel_frames, case["name"]


def test_the_legacy_file_says_that_it_is_and_sets_known_variables() -> None:
    """Nobody deploys with it by mistake."""
    assert (ROOT / "runpod.toml").read_text().startswith("# Legacy")
    assert LEGACY["project"]["env_vars"].keys() <= known().keys()
    for path in (LEGACY["runtime"]["handler_path"], LEGACY["runtime"]["requirements_path"]):
        assert (ROOT / path).is_file()


def gpu_of(gpu_id: str) -> Gpu:
    """A GPU of the runbook's table, by RunPod's name for it."""
    row = next(row for row in RUNBOOK_DATA["gpus"] if row["id"] == gpu_id)
    return Gpu(gpu_id, row["memory_mib"], "580.00")
