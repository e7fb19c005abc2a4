"""The sandbox's other routes, its refusals, its command line and its end."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.probe import Probe, node_of, sandbox, small_graph


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with sandbox(tmp_path_factory.mktemp("sandbox"), "--speed", "0") as running:
        yield running


def test_the_client_may_choose_the_id_of_its_prompt(probe: Probe) -> None:
    """A canonical UUID is kept; any other spelling is refused and nothing is queued."""
    chosen = str(uuid.uuid4())
    assert probe.submit(small_graph(), prompt_id=chosen) == chosen
    probe.wait(chosen)
    for bad in (chosen.upper(), chosen.replace("-", ""), "", 5):
        answer = probe.post("/prompt", {"prompt": small_graph(), "prompt_id": bad})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_prompt_id"


def test_a_missing_picture_is_refused_before_it_is_queued(probe: Probe) -> None:
    """ComfyUI's own check of LoadImage answers, not the list of files."""
    answer = probe.post("/prompt", {"prompt": small_graph("i2v_fast", image="none.png")})
    (found,) = answer.json()["node_errors"].values()
    assert answer.status_code == 400
    assert [problem["type"] for problem in found["errors"]] == ["custom_validation_failed"]
    assert found["errors"][0]["details"] == "image - Invalid image file: none.png"


def test_a_prefix_outside_the_output_folder_fails(probe: Probe) -> None:
    """The save node refuses it; nothing is written."""
    entry = probe.run(small_graph(filename_prefix="../elsewhere/clip"))
    kind, data = entry["status"]["messages"][-1]
    assert (kind, data["node_type"]) == ("execution_error", "SaveVideo")
    assert data["exception_type"] == "Exception"
    assert not (probe.output_dir.parent / "elsewhere").exists()


def test_a_class_the_sandbox_cannot_run_is_named(probe: Probe) -> None:
    """It passes validation, as in ComfyUI, and fails when it is reached."""
    graph = small_graph()
    decode = node_of(graph, "VAEDecodeTiled")
    graph["canny"] = {
        "class_type": "Canny",
        "inputs": {"image": [decode, 0], "low_threshold": 0.4, "high_threshold": 0.8},
    }
    graph[node_of(graph, "CreateVideo")]["inputs"]["images"] = ["canny", 0]
    kind, data = probe.run(graph)["status"]["messages"][-1]
    assert (kind, data["exception_type"]) == ("execution_error", "NotImplementedError")
    assert "Canny" in data["exception_message"]


def test_files_are_uploaded_and_viewed(probe: Probe) -> None:
    """Equal names get a number unless told to overwrite; what lies outside is refused."""

    def upload(content: bytes, **form: str) -> Any:
        files = {"image": ("a.png", content, "image/png")}
        return probe.session.post(f"{probe.url}/upload/image", data=form, files=files, timeout=10)

    assert upload(b"one").json() == {"name": "a.png", "subfolder": "", "type": "input"}
    assert upload(b"two", subfolder="").json()["name"] == "a (1).png"
    assert upload(b"one", subfolder="").json()["name"] == "a.png"
    assert upload(b"three", overwrite="true").json()["name"] == "a.png"
    assert upload(b"four", subfolder="sub").json()["subfolder"] == "sub"
    assert upload(b"five", subfolder="../..").status_code == 400
    view = {"filename": "a.png", "type": "input"}
    assert probe.get("/view", **view).content == b"three"
    assert probe.get("/api/view", **view, subfolder="sub").content == b"four"
    assert probe.get("/view", **view, subfolder="../..").status_code == 403
    assert probe.get("/view", filename="../a.png").status_code == 400
    assert probe.get("/view", filename="none.png").status_code == 404


def test_it_says_what_it_is(probe: Probe) -> None:
    """The version is ComfyUI's, the engine's name its own, and the device a CPU."""
    stats = probe.get("/system_stats").json()
    assert stats["system"]["comfyui_version"] == "0.27.0"
    assert stats["system"]["engine"] == "sandbox"
    assert [device["type"] for device in stats["devices"]] == ["cpu"]


def test_loaders_offer_the_installed_families(tmp_path: Path) -> None:
    """The lists hold the catalogue's files of the families and the variant asked for."""
    with sandbox(tmp_path, "--families", "ltx-2.3", "--variant", "fp16") as probe:
        answer = probe.get("/object_info/CheckpointLoaderSimple").json()
    (names, _) = answer["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
    assert names == ["ltx-2.3-22b-distilled-1.1.safetensors", "ltx-2.3-22b-dev.safetensors"]


def test_history_is_listed_and_forgotten(tmp_path: Path) -> None:
    """The last entries on request, one or all of them dropped."""
    with sandbox(tmp_path, "--speed", "0") as probe:
        ids = [probe.submit(small_graph()) for _ in range(3)]
        probe.wait(ids[-1])
        assert list(probe.get("/history").json()) == ids
        assert list(probe.get("/history", max_items=2).json()) == ids[1:]
        assert list(probe.get("/history", max_items=1, offset=0).json()) == ids[:1]
        probe.post("/history", {"delete": ids[:1]})
        assert list(probe.get("/history").json()) == ids[1:]
        probe.post("/history", {"clear": True})
        assert probe.get("/history").json() == {}


def test_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    """In the middle of a prompt too, and by the signal itself."""
    with sandbox(tmp_path, "--speed", "100") as probe:
        probe.until_running(probe.submit(small_graph()))
        probe.child.terminate()
        assert probe.child.wait(timeout=2) == -signal.SIGTERM


def test_a_family_it_does_not_know_is_named(tmp_path: Path) -> None:
    """The command line is refused with the families that there are."""
    with pytest.raises(AssertionError), sandbox(tmp_path, "--families", "ltx-9"):
        pass
