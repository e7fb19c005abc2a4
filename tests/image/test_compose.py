"""Compose: what it hands to the container is what the worker and its scripts read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltx_worker.runbook import (
    ROOT,
    Variable,
    image_environment,
    other_variables,
    setting_variables,
)
from ltx_worker.settings import Settings, load_settings

FOLDER = ROOT / "docker"
# What the requirements name; all of it has to be shown by `config`.
REQUIRED = {
    "ENABLE_LTX2",
    "LTX2_VARIANT",
    "ENABLE_LTX2_VRAM_MANAGEMENT",
    "LTX2_OUTPUT_DIR",
    "LTX2_VIDEO_FORMAT",
    "LTX2_MAX_FRAMES",
    "HF_TOKEN",
}


@pytest.fixture(scope="module")
def compose() -> tuple[str, ...]:
    """Docker Compose, in either of its forms."""
    for command in (("docker-compose",), ("docker", "compose")):
        if shutil.which(command[0]):
            version = subprocess.run([*command, "version"], capture_output=True, check=False)
            if version.returncode == 0:
                return command
    pytest.skip("neither docker-compose nor docker compose is installed")


@cache
def config(
    compose: tuple[str, ...],
    profile: str,
    folder: Path = FOLDER,
    variables: tuple[tuple[str, str], ...] = (),
) -> dict[str, Any]:
    """The service of a profile, as Compose understands it."""
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    command = [*compose, "-f", str(folder / "docker-compose.yml"), "--profile", profile, "config"]
    environment = clean | dict(variables)
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env=environment
    )
    assert shown.returncode == 0, shown.stderr
    return yaml.safe_load(shown.stdout)["services"][profile]


def handed_on() -> list[Variable]:
    """The variables that go to the container."""
    return [one for one in (*other_variables(), *setting_variables()) if one.compose is not None]


def test_config_shows_every_variable_and_no_other(compose: tuple[str, ...]) -> None:
    """In both profiles: each setting, and what the scripts read beside them."""
    for profile in ("comfy", "sandbox"):
        shown = config(compose, profile)["environment"]
        assert shown.keys() == {variable.name for variable in handed_on()}
        assert shown.keys() >= REQUIRED
    assert {variable.name for variable in setting_variables()} <= shown.keys()


def test_the_file_says_the_same_without_docker() -> None:
    """Where no Compose is installed, its YAML is read all the same."""
    services = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())["services"]
    for service in services.values():
        assert service["environment"].keys() == {variable.name for variable in handed_on()}


def test_what_compose_hands_on_by_default_is_the_workers_default(
    compose: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from the container's environment, every setting is as without any variable, but for
    the ComfyUI that the image names."""
    shown = config(compose, "comfy")["environment"]
    for name in os.environ:
        if name.startswith(("LTX2_", "COMFY", "R2_", "BUCKET_")):
            monkeypatch.delenv(name)
    defaults = load_settings()
    for name, value in shown.items():
        monkeypatch.setenv(name, value)
    image = image_environment()
    inside = {"comfyui_dir": image["COMFYUI_DIR"], "comfyui_python": image["COMFYUI_PYTHON"]}
    assert load_settings() == Settings.model_validate(defaults.model_dump() | inside)


def test_the_shell_goes_before_the_default(compose: tuple[str, ...]) -> None:
    """Also where the default is empty, and for the ports."""
    variables = (("LTX2_VARIANT", "fp16"), ("LTX2_COMFY_PORT", "9188"))
    service = config(compose, "comfy", variables=variables)
    assert service["environment"]["LTX2_VARIANT"] == "fp16"
    assert service["environment"]["LTX2_COMFY_PORT"] == "9188"
    assert "9188" in str(service["ports"])


def test_the_env_file_is_found_and_its_example_sets_the_defaults(
    compose: tuple[str, ...], tmp_path: Path
) -> None:
    """Copied to docker/.env with every line taken in, the example changes nothing but the key."""
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy(FOLDER / name, tmp_path / name)
    example = (tmp_path / ".env.example").read_text()
    lines = re.findall(r"^#([A-Z][A-Z0-9_]*=.*)$", example, re.MULTILINE)
    # Those of the image are not the example's to know.
    lines = [line for line in lines if line.partition("=")[0] not in image_environment()]
    (tmp_path / ".env").write_text("\n".join([*lines, "LTX2_MAX_FRAMES=121"]))
    shown = config(compose, "comfy", tmp_path)["environment"]
    expected = config(compose, "comfy")["environment"] | {"LTX2_MAX_FRAMES": "121"}
    changed = {name for name, value in expected.items() if shown[name] != value}
    assert changed <= {"LTX2_OUTPUT_KEY", "LTX2_WORKFLOWS_DIR"}
    assert shown["LTX2_OUTPUT_KEY"] == Settings.model_fields["output_key"].default


def test_the_gpu_is_for_the_profile_that_needs_it(compose: tuple[str, ...]) -> None:
    """The sandbox starts where no GPU is, fetches nothing, and both listen on this machine only."""
    comfy, sandbox = config(compose, "comfy"), config(compose, "sandbox")
    (device,) = comfy["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in sandbox
    assert sandbox["environment"]["LTX2_ENGINE"] == "sandbox"
    assert sandbox["environment"]["ENABLE_LTX2"] == "false"
    for service in (comfy, sandbox):
        ports = str(service["ports"])
        assert "8000" in ports
        assert "8188" in ports
        assert ports.count("127.0.0.1") == len(service["ports"]) == 2
