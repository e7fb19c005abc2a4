"""Weights that are read the pack's way are ComfyUI's own, byte for byte, and held no longer."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.comfyui.tiny_engine import TINY_MODELS, comfyui_dir, tiny_comfyui, tiny_options
from tests.conftest import SMALL, settings_for

from ltx_worker.comfy.launch import comfyui_python
from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker

pytestmark = pytest.mark.timeout(300)

SCRIPT = Path(__file__).with_name("weights_equality.py")
CHECKPOINT = TINY_MODELS / "checkpoints" / "ltx-2-19b-distilled-fp8.safetensors"
TEXT_ENCODER = TINY_MODELS / "text_encoders" / "gemma_3_12B_it_fp8_scaled.safetensors"

Report = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What the script found, in ComfyUI's Python."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_options(folder)
    places = {"comfyui": comfyui_dir(), "models": TINY_MODELS, "folder": folder}
    options = [part for name, path in places.items() for part in (f"--{name}", str(path))]
    done = subprocess.run(
        [str(comfyui_python(comfyui_dir())), str(SCRIPT), *options],
        env=os.environ | {"LTX2_WEIGHTS_DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_every_tensor_has_the_bytes_of_the_file_at_an_aligned_address(report: Report) -> None:
    """Whatever the blocks that it is read in."""
    assert len(report["files_read_in_blocks"]) == 7
    assert all(report["files_read_in_blocks"].values()), report["files_read_in_blocks"]


def test_what_a_node_reads_is_no_inference_tensor(report: Report) -> None:
    """Threads write to it, and those are not in the node's inference mode."""
    assert report["read_by_a_node"] == {"inference": False, "same": True}


def test_a_file_that_is_cut_off_or_not_known_is_refused(report: Report) -> None:
    faults = report["faulty_files"]
    assert faults["header"] == faults["empty"] == "the header is cut off"
    assert faults["short"].endswith("lies outside the file")
    assert "F99" in faults["dtype"]
    assert faults["shrunk"] == "the file ends early"


def test_models_have_the_same_weights_as_comfyui_gives_them(report: Report) -> None:
    """Transformer, both autoencoders and text encoder, in full precision and with float8."""
    assert len(report["models_built"]) == 9
    assert all(report["models_built"].values()), report["models_built"]


def test_what_was_read_ahead_belongs_to_the_loader_that_takes_it(report: Report) -> None:
    """Each loader of the same checkpoint takes its own part; another load reads anew."""
    taken = report["taken_ahead"]
    assert taken["same"]
    assert taken["text encoder"]
    assert taken["metadata"]
    assert taken["held by the taker, then by nobody"]
    assert taken["held when all is taken"] == 0
    assert taken["read anew"]
    assert not any(group.startswith(("vae", "audio_vae", "vocoder")) for group in taken["groups"])


def test_what_nobody_took_is_given_back(report: Report) -> None:
    assert report["released"] == {"before": True, "after": 0, "taken": False}


def test_nothing_is_held_past_the_first_prompt_or_when_memory_is_short(report: Report) -> None:
    assert report["released_in_time"] == {"plenty": True, "short": False, "prompt": False}


def test_a_file_that_changed_since_is_read_again(report: Report) -> None:
    assert report["changed_files"]["new"]


def test_other_files_and_devices_are_left_to_comfyui(report: Report) -> None:
    left = report["left_to_comfyui"]
    for case in ("mixed", "missing", "cut off", "other device", "off"):
        assert left[case] == "stock", case
    assert left["replaced"]
    assert left["default"] == "nothing"


def clip_of_a_new_comfyui(folder: Path) -> tuple[str, str]:
    """The digest of a clip, and the log of the ComfyUI that made it."""
    folder.mkdir()
    with tiny_comfyui(folder) as engine:
        worker = Worker(settings_for(engine))
        worker.start()
        result = worker.run({"id": "weights", "input": SMALL}, StopSignal(120), lambda _: None)
        worker.close()
        clip = base64.b64decode(result.video)
        return hashlib.sha256(clip).hexdigest(), "\n".join(engine.process.log_tail)


def test_a_clip_of_weights_read_ahead_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read while ComfyUI imports, and not again by its loaders."""
    stock, silent = clip_of_a_new_comfyui(tmp_path / "stock")
    monkeypatch.setenv("LTX2_WEIGHTS_DEVICE", "cpu")
    monkeypatch.setenv("LTX2_PRELOAD", os.pathsep.join(map(str, (TEXT_ENCODER, CHECKPOINT))))
    ahead, log = clip_of_a_new_comfyui(tmp_path / "ahead")
    reading = re.compile(r"ltx_worker_nodes: (\S+): [\d.]+ GB read in")
    imported = log.index("Import times for custom nodes")
    assert reading.findall(log, 0, imported) == [TEXT_ENCODER.name, CHECKPOINT.name]
    # The connectors are the text encoder's and the transformer's: whose they are not, reads them.
    assert set(reading.findall(log, imported)) <= {CHECKPOINT.name}
    assert not reading.search(silent)
    assert ahead == stock
