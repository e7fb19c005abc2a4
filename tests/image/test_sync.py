"""The pod's sync as a process of its own, against S3 services on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from moto.server import ThreadedMotoServer
from tests.delivery.storage import (
    BUCKET,
    KEY_ID,
    SECRET,
    Storage,
    Wire,
    free_port,
    moto,
    rclone,
    wire,
)
from tests.unit.media_files import ramp, video_file

from ltx_worker.delivery.bucket import Bucket
from ltx_worker.delivery.bucket_config import BucketConfig
from ltx_worker.errors import Cancelled
from ltx_worker.stop import StopSignal
from ltx_worker.sync import Sync
from ltx_worker.sync_files import look

STATUS = Path(__file__).parents[2] / "docker" / "scripts" / "r2_sync_status.sh"
UNKNOWN_SIZE = bytes.fromhex("01ffffffffffffff")


@dataclass
class Pod:
    """ComfyUI's output folder, and the sync beside it."""

    root: Path
    config: BucketConfig | None
    prefix: str
    running: ExitStack
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / "output" / "ltx2"

    @property
    def environment(self) -> dict[str, str]:
        values = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TMPDIR": str(self.root),
            "COMFY_OUTPUT_DIR": str(self.root / "output"),
            "LTX2_OUTPUT_KEY": f"{self.prefix}{{job_id}}.{{ext}}",
        }
        if self.config is not None:
            values |= {
                "R2_ENDPOINT_URL": self.config.endpoint_url,
                "R2_BUCKET": self.config.bucket,
                "R2_ACCESS_KEY_ID": self.config.access_key_id,
                "R2_SECRET_ACCESS_KEY": self.config.secret_access_key,
            }
        return values | self.variables

    def start(self, *options: str) -> subprocess.Popen[str]:
        """A sync that looks ten times a second; it ends with the test."""
        log = str(self.root / "r2_sync.log")
        process = subprocess.Popen(
            [sys.executable, "-m", "ltx_worker.sync", "--every", "0.1", "--log", log, *options],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.enter_context(process)
        self.running.callback(process.kill)
        return process

    def status(self) -> tuple[int, dict[str, str], str]:
        """The status's exit code, its lines by their names, and all of it."""
        done = subprocess.run(
            [STATUS], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        lines = re.findall(r"^(\w[\w ]*?)  +(.*)$", done.stdout, re.MULTILINE)
        return done.returncode, dict(lines), done.stdout

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's events of that name."""
        path = self.root / "r2_sync.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def uploads(self) -> list[str]:
        """The files that were uploaded, in their order, as the log has them."""
        return [event["file"] for event in self.events("sync.uploaded")]

    def write(self, name: str, content: bytes, age_s: float = 0) -> Path:
        """A whole file, as if it were written so many seconds ago."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}")
        new.write_bytes(content)
        os.utime(new, (time.time() - age_s,) * 2)
        new.rename(path)
        return path

    def key_of(self, path: Path) -> str:
        day = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return f"{self.prefix}{day:%Y-%m-%d}/{path.relative_to(self.folder)}"


def wait_until(is_so: Callable[[], object]) -> None:
    give_up = time.monotonic() + 15
    while not is_so():
        assert time.monotonic() < give_up, "it does not happen"
        time.sleep(0.02)


def end(process: subprocess.Popen[str]) -> float:
    """End a sync as a container does; the seconds that it took."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    return time.monotonic() - started


@pytest.fixture(scope="module")
def storage() -> Generator[Storage]:
    with moto() as running:
        yield running


@pytest.fixture
def relay(storage: Storage) -> Generator[Wire]:
    """What stands between the sync and the storage, and sees each upload."""
    with wire(storage) as running:
        yield running


@pytest.fixture
def pod(tmp_path: Path, storage: Storage, relay: Wire) -> Generator[Pod]:
    with ExitStack() as running:
        yield Pod(tmp_path, storage.through(relay.url), f"{tmp_path.name}/", running)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video_file(ramp(24), sound_s=1)


@pytest.fixture(scope="module")
def web_clip() -> bytes:
    return video_file(ramp(24), kind="webm")


def test_a_file_that_is_being_written_is_uploaded_once_and_whole(
    pod: Pod, storage: Storage, relay: Wire, clip: bytes, web_clip: bytes
) -> None:
    """However long its writer pauses, and whether or not what is there passes for a clip."""
    pod.start()
    segment_at = web_clip.index(bytes.fromhex("18538067")) + 4
    unclosed = web_clip[:segment_at] + UNKNOWN_SIZE + web_clip[segment_at + 8 :]
    folder = pod.folder / "scene 1"
    folder.mkdir(parents=True)
    with (folder / "a.mp4").open("wb") as mp4, (folder / "b.webm").open("wb") as webm:
        for part in range(3):
            mp4.write(clip[part * len(clip) // 4 : (part + 1) * len(clip) // 4])
            webm.write(unclosed[part * len(unclosed) // 4 : (part + 1) * len(unclosed) // 4])
            mp4.flush()
            webm.flush()
            # What comes later is uploaded: the sync has seen the others twice.
            pod.write(f"later-{part}.png", b"png")
            wait_until(lambda: pod.uploads()[-1:] == [f"later-{part}.png"])  # noqa: B023
        mp4.write(clip[mp4.tell() :])
        webm.write(unclosed[webm.tell() :])
        webm.flush()
        mp4.flush()
        wait_until(lambda: "scene 1/a.mp4" in pod.uploads())
        pod.write("later-3.png", b"png")
        wait_until(lambda: "later-3.png" in pod.uploads())
        assert "scene 1/b.webm" not in pod.uploads()
        webm.seek(segment_at)
        webm.write(web_clip[segment_at : segment_at + 8])
    wait_until(lambda: "scene 1/b.webm" in pod.uploads())
    for name, content, mime_type in (
        ("a.mp4", clip, "video/mp4"),
        ("b.webm", web_clip, "video/webm"),
    ):
        found = storage.client.get_object(Bucket=BUCKET, Key=pod.key_of(folder / name))
        assert found["ContentType"] == mime_type
        assert found["Body"].read() == content
    assert len(relay.requests("PUT")) == len(pod.uploads()) == 6
    assert not pod.events("sync.failed")
    code, lines, _ = pod.status()
    assert (code, lines["running"], lines["pending"], lines["failed"]) == (0, "yes", "0", "0")
    assert lines["last upload"].startswith("scene 1/b.webm, 20")
    assert lines["seconds behind"] == "0"


def test_a_sync_that_is_started_again_uploads_nothing_twice(
    pod: Pod, storage: Storage, relay: Wire, clip: bytes
) -> None:
    """Also after it was killed; what became finished meanwhile is pending until then."""
    first = pod.write("first.mp4", clip)
    process = pod.start()
    wait_until(lambda: pod.uploads() == ["first.mp4"])
    process.kill()
    process.wait()
    second = pod.write("second.mp4", clip, age_s=90)
    code, lines, _ = pod.status()
    assert (code, lines["running"], lines["pending"], lines["failed"]) == (1, "no", "1", "0")
    assert 90 <= int(lines["seconds behind"]) < 100
    again = pod.start()
    wait_until(lambda: pod.uploads() == ["first.mp4", "second.mp4"])
    assert end(again) < 2
    assert len(relay.requests("PUT")) == 2
    assert storage.content(pod.key_of(first)) == storage.content(pod.key_of(second)) == clip


def test_a_changed_file_is_uploaded_again_and_a_deleted_one_stays(
    pod: Pod, storage: Storage
) -> None:
    """The bucket has the latest version, and keeps what the pod does not."""
    pod.start()
    path = pod.write("still.png", b"first", age_s=5)
    wait_until(lambda: pod.uploads() == ["still.png"])
    key = pod.key_of(path)
    pod.write("still.png", b"other", age_s=3)
    wait_until(lambda: len(pod.uploads()) == 2)
    path.unlink()
    pod.write("next.png", b"next")
    wait_until(lambda: len(pod.uploads()) == 3)
    assert storage.content(key) == b"other"
    assert "still.png" not in (pod.folder.parent / ".ltx2-sync.json").read_text()


def test_a_storage_that_is_away_is_asked_again_until_it_is_back(pod: Pod) -> None:
    """The pauses double, status gives the reason, and then everything arrives."""
    port = free_port()
    assert pod.config is not None
    pod.config = replace(pod.config, endpoint_url=f"http://127.0.0.1:{port}")
    pod.write("a.png", b"a")
    pod.start()
    wait_until(lambda: len(pod.events("sync.failed")) == 2)
    code, lines, text = pod.status()
    assert (code, lines["pending"], lines["failed"]) == (1, "0", "1")
    assert "a.png: The upload failed: the storage could not be reached (2 tries, the last" in text
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        wait_until(lambda: pod.uploads() == ["a.png"])
    finally:
        server.stop()
    pauses = [event["again_in_s"] for event in pod.events("sync.failed")]
    assert pauses == [1.0, 2.0, 4.0][: len(pauses)]
    assert pod.status()[0] == 0


def test_wrong_credentials_are_shown_and_corrected_by_a_restart(pod: Pod, tmp_path: Path) -> None:
    """Status says what is wrong, and no part of the credentials."""
    bucket_folder = tmp_path / "bucket"
    bucket_folder.mkdir()
    with rclone(bucket_folder) as strict:
        pod.config = replace(strict.config, secret_access_key="canary-wrong-secret")
        path = pod.write("a.png", b"a")
        process = pod.start()
        wait_until(lambda: pod.events("sync.failed"))
        code, lines, text = pod.status()
        assert (code, lines["failed"]) == (1, "1")
        assert "the storage refuses the credentials" in text
        log = (pod.root / "r2_sync.log").read_text()
        assert not [word for word in ("canary", KEY_ID, SECRET, "http") if word in text + log]
        end(process)
        pod.config = strict.config
        pod.start()
        wait_until(lambda: pod.uploads() == ["a.png"])
        assert strict.content(pod.key_of(path)) == b"a"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "no bucket is set; set the R2_ variables and start the sync again"),
        ({"R2_BUCKET": "clips"}, "uploads also need R2_ACCOUNT_ID or R2_ENDPOINT_URL, R2_ACCESS"),
    ],
)
def test_missing_credentials_are_said_once(
    pod: Pod, variables: dict[str, str], reason: str
) -> None:
    """The sync stays, so that a pod without a bucket does not fail, and status says why."""
    pod.config, pod.variables = None, variables
    pod.write("a.png", b"a")
    process = pod.start()
    wait_until(lambda: pod.events("sync.no_bucket"))
    code, lines, _ = pod.status()
    assert (code, lines["running"], lines["pending"]) == (1, "yes", "1")
    assert lines["problem"].startswith(reason)
    assert end(process) < 2
    assert len(pod.events("sync.no_bucket")) == 1


def test_an_upload_that_hangs_does_not_keep_the_sync_from_ending(
    pod: Pod, storage: Storage, relay: Wire
) -> None:
    """SIGTERM amid a body that the storage does not take; the next sync uploads it."""
    with wire(storage, hold=threading.Event()) as stuck:
        pod.config = storage.through(stuck.url)
        pod.write("a.bin", bytes(3_000_000))
        process = pod.start()
        assert stuck.held.wait(15)
        assert end(process) < 2
    pod.config = storage.through(relay.url)
    pod.start()
    wait_until(lambda: pod.uploads() == ["a.bin"])


@pytest.mark.parametrize("is_deleted", [False, True], ids=["changed", "deleted"])
def test_a_file_that_changes_amid_its_upload_is_no_failure(
    pod: Pod, storage: Storage, is_deleted: bool
) -> None:
    """What it has become is uploaded; when it is gone, that is that."""
    with wire(storage, hold=threading.Event()) as slow:
        pod.config = storage.through(slow.url)
        path = pod.write("a.bin", bytes(3_000_000))
        pod.start()
        assert slow.held.wait(15)
        if is_deleted:
            path.unlink()
        else:
            pod.write("a.bin", b"shorter")
        assert slow.hold is not None
        slow.hold.set()
        pod.write("b.png", b"b")
        wait_until(lambda: "b.png" in pod.uploads())
        assert sorted(pod.uploads()) == (["b.png"] if is_deleted else ["a.bin", "b.png"])
        if not is_deleted:
            assert storage.content(pod.key_of(path)) == b"shorter"
    assert not pod.events("sync.failed")


def test_a_file_that_grows_between_two_looks_is_not_finished(pod: Pod, storage: Storage) -> None:
    """Also one of a kind that does not say how long it is."""
    path = pod.write("notes.txt", b"0")

    class Looks(StopSignal):
        """What happens between the looks, and what was in the bucket after each of them."""

        uploads: ClassVar[list[int]] = []

        def sleep(self, seconds: float) -> None:
            found = storage.client.list_objects_v2(Bucket=BUCKET, Prefix=pod.prefix)
            self.uploads.append(found["KeyCount"])
            if len(self.uploads) < 4:
                pod.write("notes.txt", path.read_bytes() + b"+")
            if len(self.uploads) == 6:
                self.cancel()
            self.check()

    stop = Looks(60)
    with pytest.raises(Cancelled):
        Sync(pod.folder, Bucket(storage.config), pod.prefix, stop).run(1)
    assert stop.uploads == [0, 0, 0, 0, 1, 1]
    assert storage.content(pod.key_of(path)) == b"0+++"


def test_a_second_sync_of_a_folder_does_not_start(pod: Pod) -> None:
    """It says so and ends; the first one goes on."""
    pod.start()
    wait_until(lambda: pod.events("sync.started"))
    second = pod.start()
    assert second.wait(10) == 1
    assert second.stderr is not None
    assert second.stderr.read() == "The sync cannot start: another one has this folder\n"
    pod.write("a.png", b"a")
    wait_until(lambda: pod.uploads() == ["a.png"])


def test_a_damaged_clip_does_not_hold_up_the_others(pod: Pod, clip: bytes) -> None:
    """It counts as failed, with its reason; a title in no known alphabet is no damage."""
    titled = video_file(ramp(2)).replace(b"isomiso2", b"\xff\xfe\xff\xfeiso2")
    pod.write("broken.mp4", clip[:-500], age_s=120)
    pod.write("strange.mp4", titled, age_s=110)
    pod.start()
    pod.write("whole.mp4", clip)
    pod.write("0123456789abcdef/clip.mp4", clip)
    wait_until(lambda: {"whole.mp4", "strange.mp4"} <= set(pod.uploads()))
    wait_until(lambda: pod.events("sync.failed"))
    code, lines, text = pod.status()
    assert (code, lines["failed"]) == (1, "1")
    assert "broken.mp4: the clip is not whole" in text
    # The folder of a job is the worker's to deliver.
    assert not [name for name in pod.uploads() if "0123456789abcdef" in name]


def test_a_state_that_cannot_be_read_or_written_costs_uploads_only(pod: Pod) -> None:
    """As on a volume that is full, or was cut off from its pod."""
    pod.write("a.png", b"a")
    (pod.folder.parent / ".ltx2-sync.json").write_text('{"files": {"a.p')
    (pod.folder.parent / ".ltx2-sync.new").mkdir()
    pod.start()
    wait_until(lambda: pod.uploads() == ["a.png"])
    assert len(pod.events("sync.state_unreadable")) == 1
    assert pod.events("sync.state_not_kept")


def test_a_volume_that_goes_away_and_returns_is_not_uploaded_again(pod: Pod) -> None:
    """Files that are not seen are not forgotten while the folder is not there."""
    pod.write("a.png", b"a")
    pod.start()
    wait_until(lambda: pod.uploads() == ["a.png"])
    away = pod.folder.rename(pod.root / "away")
    wait_until(lambda: pod.events("sync.folder_unreadable"))
    code, lines, _ = pod.status()
    assert (code, lines["problem"]) == (1, "the folder cannot be read: No such file or directory")
    away.rename(pod.folder)
    pod.write("b.png", b"b")
    wait_until(lambda: "b.png" in pod.uploads())
    assert pod.uploads() == ["a.png", "b.png"]
    assert len(pod.events("sync.folder_unreadable")) == 1


@pytest.mark.parametrize(
    ("variables", "options", "reason"),
    [
        ({"COMFY_OUTPUT_DIR": ""}, [], "name the folder, or set COMFY_OUTPUT_DIR or COMFYUI_DIR"),
        ({"LTX2_LOG_LEVEL": "loud"}, [], "LTX2_LOG_LEVEL: Input should be"),
        ({}, ["--log", "/proc/r2_sync.log"], "/proc/r2_sync.log: No such file or directory"),
    ],
)
def test_a_sync_that_cannot_start_says_why(
    pod: Pod, variables: dict[str, str], options: list[str], reason: str
) -> None:
    """In one line."""
    pod.variables = variables
    process = pod.start(*options)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    assert said.startswith(f"The sync cannot start: {reason}")
    assert said.count("\n") == 1


def test_hidden_empty_and_linked_files_are_left_out(tmp_path: Path) -> None:
    """And a name is text, whatever bytes it has."""
    folder = tmp_path / "output"
    (folder / ".hidden").mkdir(parents=True)
    for name in (".hidden/a.png", ".b.png", "c d.png"):
        (folder / name).write_bytes(b"x")
    (folder / "empty.png").touch()
    (folder / "link.png").symlink_to(folder / "c d.png")
    (folder / "folder").symlink_to(tmp_path)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"x")
    assert sorted(output.name for output in look(folder)) == ["\\xff.png", "c d.png"]
