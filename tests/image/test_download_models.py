"""`download_models.sh` on real processes: bash, Hugging Face's client, aria2c and wget against a
Hub on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.image.fakes.hub import SIGNATURE, FakeHub, fake_hub, safetensors_file
from tests.image.fakes.nvidia_smi import nvidia_smi

from ltx_worker.catalog import load_catalog
from ltx_worker.downloads import files_of, plan_downloads
from ltx_worker.hub import DownloadRefused
from ltx_worker.settings import Settings

SCRIPT = Path(__file__).parents[2] / "download_models.sh"
# What the script itself takes; the tools that download are added one by one.
COMMANDS = (
    *("basename", "bash", "cut", "dirname", "du", "env", "find", "flock", "grep", "head", "ln"),
    *("mkdir", "mktemp", "mv", "rm", "sha256sum", "sleep", "stat", "tail"),
)
TOKEN = "hf_token-canary"
REPOSITORY = "Lightricks/LTX-2"
CHECKPOINT = "ltx-2-19b-distilled-fp8.safetensors"
# The Hub's client writes ten megabytes at a time: they are there when the rest is not.
LARGE, MOST, KEPT = 12_000_000, 11_000_000, 10_000_000


@dataclass
class Machine:
    """A container of ours: its PATH, its environment, a volume, and the image's ComfyUI."""

    folder: Path
    hub: FakeHub

    def __post_init__(self) -> None:
        self.environment = {
            "HOME": str(self.folder),
            "HF_ENDPOINT": self.hub.url,
            "LTX2_VARIANT": "fp8",
            "COMFYUI_DIR": str(self.comfyui),
            "WORKER_PYTHON": sys.executable,
            "PATH": str(self.bin),
        }
        self.bin.mkdir()
        self.volume.mkdir()
        for command in COMMANDS:
            self.install(command)

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def comfyui(self) -> Path:
        return self.folder / "ComfyUI"

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    @property
    def dest(self) -> Path:
        return self.volume / "models" / "checkpoints" / CHECKPOINT

    @property
    def url(self) -> str:
        return f"{self.hub.url}/{REPOSITORY}/resolve/main/{CHECKPOINT}"

    def install(self, command: str) -> None:
        beside = Path(sys.executable).with_name(command)
        found = beside if beside.exists() else shutil.which(command)
        if found is None:
            pytest.skip(f"{command} is not installed here")
        (self.bin / command).symlink_to(found)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        """The exit status and the output, which carries no secret."""
        with self.start(*words) as process:
            output, _ = process.communicate(timeout=30)
        assert TOKEN not in output
        assert SIGNATURE not in output
        return process.returncode, output

    def download_models(self, *arguments: str) -> tuple[int, str]:
        return self.run(str(SCRIPT), "--volume", str(self.volume), *arguments)

    def asset_command(self) -> Sequence[str]:
        script = f'. "{SCRIPT}"; download_asset "$0" "$1"'
        return ("bash", "-c", script, self.url, str(self.dest))

    def download_asset(self) -> tuple[int, str]:
        return self.run(*self.asset_command())

    def has_kept_most(self, tool: str) -> bool:
        """Whether a download that is held has reached the disk, and aria2c's note of it, too."""
        control = self.dest.with_name(f"{self.dest.name}.part.aria2")
        if tool == "aria2c" and not (control.exists() and any(control.read_bytes()[34:36])):
            return False
        return any(p.stat().st_size > KEPT for p in self.dest.parent.rglob("*"))

    def is_whole(self) -> bool:
        return self.dest.read_bytes() == self.hub.content(CHECKPOINT)

    def left_over(self) -> list[str]:
        return sorted(p.name for p in self.dest.parent.iterdir() if not p.name.startswith("."))


@pytest.fixture
def hub() -> Generator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def machine(tmp_path: Path, hub: FakeHub) -> Machine:
    return Machine(tmp_path, hub)


@pytest.fixture(params=["hf", "aria2c", "wget"])
def tool(request: pytest.FixtureRequest, machine: Machine) -> str:
    """The one tool that is installed."""
    machine.install(request.param)
    return request.param


def test_each_tool_alone_fetches_the_whole_file(machine: Machine, tool: str) -> None:
    """What is there afterwards is the file, and nothing beside it; a second time, nothing moves."""
    status, output = machine.download_asset()
    assert (status, machine.is_whole()) == (0, True), output
    assert f"starting download of {CHECKPOINT}" in output
    assert machine.left_over() == [CHECKPOINT]
    sent = machine.hub.sent_bytes
    status, output = machine.download_asset()
    assert status == 0
    assert output == f"file already exists: {machine.dest}\n"
    assert machine.hub.sent_bytes == sent


def test_each_tool_continues_after_a_lost_connection(machine: Machine, tool: str) -> None:
    """A connection that breaks in the middle costs the rest of the file, not the whole."""
    data = machine.hub.files[CHECKPOINT] = safetensors_file(CHECKPOINT, LARGE)
    machine.hub.cut_after, machine.hub.cuts = MOST, 1
    status, output = machine.download_asset()
    assert (status, machine.is_whole()) == (0, True), output
    assert machine.hub.sent_bytes < 1.5 * len(data)


@pytest.mark.parametrize(
    ("first", "then"), [("aria2c", None), ("wget", None), ("hf", "aria2c"), ("hf", "wget")]
)
def test_a_killed_download_is_continued(machine: Machine, first: str, then: str | None) -> None:
    """What a killed run has left is the beginning of the next one, also after the Hub's client."""
    machine.install(first)
    hub = machine.hub
    data = hub.files[CHECKPOINT] = safetensors_file(CHECKPOINT, LARGE)
    hub.stop_after = MOST
    with machine.start(*machine.asset_command()) as process:
        assert hub.held.wait(20)
        wait_until(lambda: machine.has_kept_most(first))
        os.killpg(process.pid, signal.SIGKILL)
    hub.stop_after = None
    hub.go_on.set()
    sent = hub.sent_bytes
    if then:
        machine.install(then)
    status, output = machine.download_asset()
    assert (status, machine.is_whole()) == (0, True), output
    assert "continued" in output
    assert hub.sent_bytes - sent < 0.7 * len(data)
    assert machine.left_over() == [CHECKPOINT]


def test_a_tool_that_fails_is_followed_by_the_next(machine: Machine) -> None:
    """The Hub's client comes first; what it could not do, wget does."""
    (machine.bin / "hf").write_text('#!/usr/bin/env bash\necho "hf $*" >>"$HOME/calls"; exit 1\n')
    (machine.bin / "hf").chmod(0o755)
    machine.install("wget")
    status, output = machine.download_asset()
    assert (status, machine.is_whole()) == (0, True), output
    assert f"hf could not fetch {CHECKPOINT}" in output
    assert f"{REPOSITORY} {CHECKPOINT}" in (machine.folder / "calls").read_text()


def test_no_tool_at_all_is_said(machine: Machine) -> None:
    """Without any of the three there is one line that names them."""
    status, output = machine.download_asset()
    assert status == 9
    assert "hf (huggingface_hub), aria2c or wget" in output


def test_a_file_outside_the_hub_is_fetched(machine: Machine) -> None:
    """Any URL will do; the Hub's client, which knows no other place, leaves it to the others."""
    machine.install("hf")
    machine.install("wget")
    url = f"{machine.hub.url}/plain/{CHECKPOINT}"
    script = f'. "{SCRIPT}"; download_asset "$0" "$1"'
    status, output = machine.run("bash", "-c", script, url, str(machine.dest))
    assert (status, machine.is_whole()) == (0, True), output


def test_a_wrong_checksum_is_refused(machine: Machine) -> None:
    """A file that is not the Hub's does not stay, under any name."""
    machine.install("wget")
    machine.hub.wrong_sha256 = True
    status, output = machine.download_asset()
    assert status == 8
    assert f"{CHECKPOINT} has the wrong checksum" in output
    assert machine.left_over() == []


def test_a_file_that_is_too_short_is_refused(machine: Machine) -> None:
    """A server that ends early, as if that were all, is caught by the Hub's size."""
    machine.install("wget")
    machine.hub.short_by = 1
    size = len(machine.hub.content(CHECKPOINT))
    status, output = machine.download_asset()
    assert status == 8
    assert f"has the wrong size: {size - 1} bytes instead of {size}" in output
    assert machine.left_over() == []


def test_a_busy_hub_is_asked_again(machine: Machine) -> None:
    """Two answers that say later are no failure."""
    machine.install("wget")
    machine.hub.busy = 2
    assert machine.download_asset()[0] == 0


def test_an_absent_file_is_named(machine: Machine) -> None:
    """404: status 5, before a tool is started."""
    machine.install("wget")
    machine.hub.absent.add(CHECKPOINT)
    status, output = machine.download_asset()
    assert (status, machine.hub.transfers) == (5, [])
    assert f"{CHECKPOINT} is not published there" in output


def test_a_gated_model_without_a_token_stops_at_once(machine: Machine) -> None:
    """The page to accept the terms on and the variable are named; nothing was fetched."""
    machine.install("wget")
    machine.hub.gated.add("Comfy-Org/ltx-2")
    status, output = machine.download_models("ltx2")
    assert (status, machine.hub.transfers) == (4, [])
    assert "error: HF_TOKEN is required for LTX-2" in output
    assert "https://huggingface.co/Comfy-Org/ltx-2 and set HF_TOKEN" in output


def test_a_token_without_access_is_said(machine: Machine) -> None:
    """A token that the Hub knows but does not let in: the page of the terms is named."""
    machine.hub.gated.add(REPOSITORY)
    machine.hub.token, machine.environment["HF_TOKEN"] = "hf_other", TOKEN
    status, output = machine.download_asset()
    assert status == 4
    assert f"accept its terms at https://huggingface.co/{REPOSITORY}" in output


def test_the_token_goes_to_the_hub_alone(machine: Machine, tool: str) -> None:
    """Neither a command line nor the storage that the Hub redirects to gets it."""
    variable = "RUNPOD_SECRET_hf_token" if tool == "hf" else "HF_TOKEN"
    hub = machine.hub
    hub.gated.add(REPOSITORY)
    hub.token = machine.environment[variable] = TOKEN
    hub.stop_after = 100_000
    with machine.start(*machine.asset_command()) as process:
        assert hub.held.wait(20)
        command_lines = [command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
        hub.go_on.set()
        output, _ = process.communicate(timeout=30)
    assert (process.returncode, machine.is_whole()) == (0, True), output
    assert not [line for line in command_lines if TOKEN in line or SIGNATURE in line]
    assert {request.token for request in hub.transfers if "/storage/" in request.path} == {None}
    assert TOKEN not in output


def test_a_family_is_fetched_once(machine: Machine) -> None:
    """The variant is told and written down; a second run finds every file and fetches none."""
    machine.install("wget")
    status, output = machine.download_models("ltx2")
    assert status == 0, output
    assert output.startswith("selected variant: fp8\n")
    models = machine.volume / "models"
    assert (models / "ltx2_variant.txt").read_text() == "fp8\n"
    fetched = sorted(str(p.relative_to(models)) for p in models.rglob("*.safetensors"))
    assert fetched == [
        f"checkpoints/{CHECKPOINT}",
        "latent_upscale_models/ltx-2-spatial-upscaler-x2-1.0.safetensors",
        "text_encoders/gemma_3_12B_it_fp8_scaled.safetensors",
    ]
    requests = len(machine.hub.requests)
    status, output = machine.download_models("ltx2")
    assert (status, output.count("file already exists: ")) == (0, 3)
    assert len(machine.hub.requests) == requests


def test_a_dry_run_tells_and_does_nothing(machine: Machine) -> None:
    """`--dry-run ltx2` needs neither network, disk nor a tool."""
    status, output = machine.download_models("--dry-run", "ltx2")
    assert status == 0
    assert output.startswith("selected variant: fp8\n")
    assert f"to download: {CHECKPOINT}, 27.1 GB from {REPOSITORY}" in output
    assert "needed: 40.9 GB; free in" in output
    assert (machine.hub.requests, list(machine.volume.iterdir())) == ([], [])


def test_the_gpu_chooses_the_variant(machine: Machine) -> None:
    """Without LTX2_VARIANT nvidia-smi is asked; a GPU that is too small fetches nothing."""
    del machine.environment["LTX2_VARIANT"]
    nvidia_smi(machine.bin, "NVIDIA GeForce RTX 4090, 24564, 570.86.10, [N/A]")
    status, output = machine.download_models("--dry-run", "ltx2")
    assert status == 0
    assert output.startswith("selected variant: fp8\n  NVIDIA GeForce RTX 4090 (24564 MiB")
    nvidia_smi(machine.bin, "Tesla T4, 15360, 570.86.10, [N/A]")
    status, output = machine.download_models("ltx2")
    assert (status, machine.hub.requests) == (3, [])
    assert "Tesla T4 has 15360 MiB of memory; LTX-2 needs 24000 MiB" in output


def test_files_in_the_image_are_used_there(machine: Machine) -> None:
    """What ComfyUI's own folder holds is neither fetched nor copied to the volume."""
    machine.install("wget")
    baked = machine.comfyui / "models" / "checkpoints" / CHECKPOINT
    baked.parent.mkdir(parents=True)
    baked.write_bytes(machine.hub.content(CHECKPOINT))
    status, output = machine.download_models("distilled-checkpoint")
    assert status == 0
    assert f"file already exists: {baked}" in output
    assert not machine.dest.exists()


def test_cached_models_are_linked(machine: Machine) -> None:
    """A file in RunPod's cached-model folder gets a name where ComfyUI looks, and no copy."""
    cache = machine.volume / "huggingface-cache/hub/models--Lightricks--LTX-2"
    snapshot = cache / "snapshots" / "abc" / CHECKPOINT
    snapshot.parent.mkdir(parents=True)
    snapshot.write_bytes(machine.hub.content(CHECKPOINT))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    for _ in range(2):
        status, output = machine.download_models("distilled-checkpoint")
        assert (status, machine.hub.requests) == (0, [])
        assert "file already exists: " in output
    link = machine.comfyui / "models" / "checkpoints" / CHECKPOINT
    assert link.is_symlink()
    assert link.resolve() == snapshot


def test_a_truncated_file_is_named_and_fetched_again(machine: Machine) -> None:
    """The file's own header says how long it is: no network is needed to see that."""
    machine.install("wget")
    machine.dest.parent.mkdir(parents=True)
    machine.dest.write_bytes(machine.hub.content(CHECKPOINT)[:-1000])
    told = f"{CHECKPOINT} is cut off: 1,000 bytes are missing; to download: {CHECKPOINT}"
    assert told in machine.download_models("--dry-run", "distilled-checkpoint")[1]
    status, output = machine.download_models("distilled-checkpoint")
    assert (status, machine.is_whole()) == (0, True), output


def test_two_runs_at_once_fetch_each_file_once(machine: Machine) -> None:
    """The second waits for the first and finds its file."""
    machine.install("wget")
    machine.hub.stop_after = 100_000
    with machine.start(*machine.asset_command()) as first:
        assert machine.hub.held.wait(20)
        with machine.start(*machine.asset_command()) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting for another download to end\n"
            machine.hub.go_on.set()
            output, _ = second.communicate(timeout=30)
        first.communicate(timeout=30)
    assert (first.returncode, second.returncode, machine.is_whole()) == (0, 0, True)
    assert output == f"file already exists: {machine.dest}\n"
    assert len(machine.hub.transfers) == 1


def test_a_small_disk_is_seen_before_anything_is_fetched(machine: Machine) -> None:
    """The sum of all files is compared with what is free."""
    machine.install("wget")
    with small_disk(machine.volume):
        status, output = machine.download_models("ltx2")
        assert (status, machine.hub.transfers) == (6, [])
    assert "not enough disk: 600,234 bytes are needed" in output


def test_a_disk_that_fills_up_is_said(machine: Machine, tool: str) -> None:
    """Where no size is known beforehand, as with a quota, the cause is told all the same."""
    machine.hub.tells_size = False
    machine.hub.files[CHECKPOINT] = safetensors_file(CHECKPOINT, 1_000_000)
    with small_disk(machine.volume):
        status, output = machine.download_asset()
    assert status == 6, output
    assert f"not enough disk for {CHECKPOINT}" in output


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["camera-lora"], "did you mean camera-loras?"),
        (["ltx2.3", "detailer"], "detailer is not published for ltx-2.3"),
    ],
)
def test_unknown_names_are_refused(machine: Machine, names: list[str], told: str) -> None:
    """A name that means nothing gets status 2 and what was meant."""
    status, output = machine.download_models(*names)
    assert status == 2
    assert told in output


def test_a_model_that_is_known_to_be_gated_is_not_even_asked_for(tmp_path: Path) -> None:
    """The catalogue's mark is enough to ask for the token, before the network."""
    gated = [replace(file, gated=True) for file in load_catalog().files]
    catalog = replace(load_catalog(), files=tuple(gated))
    settings = Settings(variant="fp8", comfyui_dir=tmp_path)
    with pytest.raises(DownloadRefused, match="HF_TOKEN is required for LTX-2") as refused:
        plan_downloads(["ltx2"], settings, catalog=catalog)
    assert refused.value.status == 4


def test_every_name_has_files() -> None:
    """Each group stands for roles that are published, and each role for a file of each variant."""
    catalog = load_catalog()
    for name in catalog.groups:
        for variant in ("fp8", "fp16"):
            files = files_of([name], variant, catalog)
            assert {file.family for file in files} <= {"ltx-2", "any"}
            assert len({file.name for file in files}) == len(files) > 0


def command_line(path: Path) -> str:
    """The command line of a process, which may have ended meanwhile."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


@contextmanager
def small_disk(folder: Path) -> Generator[None]:
    """500 kB mounted on `folder`."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
