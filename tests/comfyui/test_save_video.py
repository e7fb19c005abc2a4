"""The worker's save node in a real ComfyUI: the clip it writes, and none when it is interrupted."""

from __future__ import annotations

import base64
import subprocess
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.comfyui.tiny_engine import comfyui_dir
from tests.conftest import SMALL, executor_at, frames_of, picture, sound_of

from ltx_worker.comfy.client import ComfyClient
from ltx_worker.comfy.events import Executing
from ltx_worker.comfy.launch import comfyui_python
from ltx_worker.delivery.probe import probe
from ltx_worker.engines import Engine
from ltx_worker.errors import Cancelled
from ltx_worker.request_fields import ClipQuality
from ltx_worker.result import GenerateResult
from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker
from ltx_worker.workflow.bindings import Graph

NODE = "LTXWorkerSaveVideo"
# ITU-T H.273's number of BT.709, which ComfyUI's own save node does not write.
BT709 = 1
PACK = Path(__file__).parents[2] / "docker" / "custom_nodes"


def save(video: list[Any], **inputs: Any) -> dict[str, Any]:
    given = {"video": video, "format": "mp4", "quality": "high"} | inputs
    return {"class_type": NODE, "inputs": given}


def pictures_graph(image: str, frames: int, prefix: str, **inputs: Any) -> Graph:
    """A still picture, shown for so many frames, saved under `prefix`."""
    repeat = {"image": ["load", 0], "amount": frames}
    return {
        "load": {"class_type": "LoadImage", "inputs": {"image": image}},
        "repeat": {"class_type": "RepeatImageBatch", "inputs": repeat},
        "video": {"class_type": "CreateVideo", "inputs": {"images": ["repeat", 0], "fps": 12.5}},
        "save": save(["video", 0], filename_prefix=prefix, **inputs),
    }


def placed(engine: Engine, width: int, height: int) -> str:
    """The name of a picture in ComfyUI's input folder."""
    name = f"{uuid.uuid4().hex}.png"
    Path(engine.input_dir / name).write_bytes(base64.b64decode(picture(width, height)))
    return name


def run(engine: Engine, graph: Graph, node_id: str = "save") -> Path:
    """The file that a graph's save node reports."""
    history = executor_at(engine.url).execute(
        graph, str(uuid.uuid4()), StopSignal(120), lambda _: None
    )
    (file,) = [file for file in history.files if file.node_id == node_id]
    return engine.output_dir / file.subfolder / file.filename


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_pictures_become_a_clip(engine: Engine, container: str) -> None:
    prefix = f"saved/{uuid.uuid4().hex}"
    graph = pictures_graph(placed(engine, 192, 128), 10, prefix, format=container)
    path = run(engine, graph)

    assert path == engine.output_dir / f"{prefix}_00001_.{container}"
    assert [path.name] == [file.name for file in path.parent.glob(f"{Path(prefix).name}*")]
    facts = probe(path)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (192, 128, 10, 12.5)
    assert facts.audio_codec is None
    assert not facts.has_private_tags
    with av.open(str(path)) as clip:
        shown = next(clip.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    asked = np.linspace(0.2, 1.0, 192)[None, :, None] * np.array((200, 60, 30))
    assert np.abs(shown - asked).mean() < 2.5


def test_a_video_from_a_file_is_written_anew_with_its_sound(engine: Engine) -> None:
    source = engine.input_dir / f"{uuid.uuid4().hex}.mp4"
    sound = np.stack([0.3 * np.sin(np.arange(24_000) / 20)] * 2).astype(np.float32)
    with av.open(str(source), "w") as output:
        video = output.add_stream("h264", rate=Fraction(24))
        video.width, video.height, video.pix_fmt = 128, 64, "yuv420p"
        audio = output.add_stream("aac", rate=24_000, layout="stereo")
        for k in range(24):
            pixels = np.full((64, 128, 3), 20 + 8 * k, np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        block.sample_rate = 24_000
        output.mux([*audio.encode(block), *audio.encode(None)])
    graph: Graph = {
        "load": {"class_type": "LoadVideo", "inputs": {"file": source.name}},
        "save": save(["load", 0], filename_prefix=f"saved/{uuid.uuid4().hex}"),
    }
    clip = run(engine, graph).read_bytes()

    brightness = frames_of(clip).mean((1, 2, 3))
    assert np.abs(brightness - (20 + 8 * np.arange(24))).max() < 3
    heard, rate = sound_of(clip)
    assert rate == 24_000
    assert heard.shape[1] / rate == pytest.approx(1, abs=0.1)
    assert np.abs(heard).mean() == pytest.approx(np.abs(sound).mean(), rel=0.1)


def test_an_interrupt_ends_the_encoding_and_leaves_no_file(engine: Engine) -> None:
    """The job is cancelled when the save node has begun, with minutes of work before it."""
    folder = f"saved/{uuid.uuid4().hex}"
    graph = pictures_graph(
        placed(engine, 1280, 704), 300, f"{folder}/clip", format="webm", quality="maximum"
    )
    stop = StopSignal(120)

    def cancel_at_the_save_node(event: object) -> None:
        if isinstance(event, Executing) and event.node_id == "save":
            stop.cancel()

    prompt_id = str(uuid.uuid4())
    executor = executor_at(engine.url)
    with pytest.raises(Cancelled):
        executor.execute(graph, prompt_id, stop, cancel_at_the_save_node)
    history = ComfyClient(engine.url).history(prompt_id)
    assert history is not None
    assert history.message("execution_interrupted")
    assert list((engine.output_dir / folder).glob("*")) == []


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_the_workers_clips_are_written_by_it(
    worker: Worker, tmp_path: Path, container: str
) -> None:
    """Told by the matrix in the file, which ComfyUI's own save node leaves open."""
    output = {"format": container, "quality": "maximum"}
    result = worker.run({"id": uuid.uuid4().hex, "input": SMALL | {"output": output}})
    assert isinstance(result, GenerateResult)
    assert result.video is not None
    path = tmp_path / "clip"
    path.write_bytes(base64.b64decode(result.video))
    with av.open(str(path)) as clip:
        assert clip.streams.video[0].codec_context.colorspace == BT709
        assert ("webm" in clip.format.name) == (container == "webm")
    assert not [warning for warning in result.warnings if "quality" in warning]


def test_the_nodes_qualities_are_those_of_a_request(engine: Engine) -> None:
    inputs = ComfyClient(engine.url).node_info()[NODE]["input"]["required"]
    assert tuple(inputs["quality"][1]["options"]) == ClipQuality.__args__
    assert inputs["format"][1]["options"] == ["mp4", "webm"]


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_pictures_become_planes_as_bt709_says(tmp_path: Path, kind: str) -> None:
    """Against the same sums in double precision; what lies beyond 0 .. 1 is cut off."""
    images = np.random.default_rng(1).uniform(-0.1, 1.1, (3, 32, 48, 4))
    np.save(tmp_path / "images.npy", images)
    script = f"""
import sys, numpy, torch
sys.path.insert(0, {str(PACK)!r})
from ltx_worker_nodes.frames import plane_batches
images = torch.from_numpy(numpy.load("images.npy")).to(torch.{kind})
numpy.save("seen.npy", images.double().numpy())
numpy.save("planes.npy", numpy.concatenate(list(plane_batches(images))))
"""
    python = str(comfyui_python(comfyui_dir()))
    subprocess.run([python, "-c", script], check=True, cwd=tmp_path, timeout=60)

    seen = np.load(tmp_path / "seen.npy")[..., :3].clip(0, 1)
    red, blue = 0.2126, 0.0722
    luma = seen @ np.array([red, 1 - red - blue, blue])
    parts = [16 + 219 * luma.reshape(3, -1)]
    for index, weight in ((2, blue), (0, red)):
        difference = (seen[..., index] - luma) / (2 * (1 - weight))
        parts.append(128 + 224 * difference.reshape(3, 16, 2, 24, 2).mean((2, 4)).reshape(3, -1))
    exact = np.concatenate(parts, axis=1).reshape(3, 48, 48)
    made = np.load(tmp_path / "planes.npy")
    assert made.dtype == np.uint8
    assert np.abs(made - exact).max() <= 0.5 + 1e-3


def test_planes_are_nearer_to_the_pictures_than_swscales(tmp_path: Path) -> None:
    """Smooth colours, decoded again: the mean error of both ways, each with its own matrix."""
    x, y = np.meshgrid(np.linspace(0, 1, 192), np.linspace(0, 1, 128))
    images = np.stack([x, y, 0.5 + 0.4 * np.sin(6 * x + 4 * y)], -1).astype(np.float32)
    np.save(tmp_path / "images.npy", images[None])
    script = f"""
import sys, numpy, torch
sys.path.insert(0, {str(PACK)!r})
from ltx_worker_nodes.frames import planes_of
numpy.save("planes.npy", planes_of(torch.from_numpy(numpy.load("images.npy")))[0].numpy())
"""
    python = str(comfyui_python(comfyui_dir()))
    subprocess.run([python, "-c", script], check=True, cwd=tmp_path, timeout=60)
    ours = np.load(tmp_path / "planes.npy")
    pixels = (images * np.float32(255)).clip(0, 255).astype(np.uint8)
    stock = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
    assert error_of(ours, images, 0.2126, 0.0722) < error_of(
        stock.to_ndarray(), images, 0.299, 0.114
    )


def error_of(planes: np.ndarray, images: np.ndarray, red: float, blue: float) -> float:
    """The mean squared error of planes shown with the matrix of these weights."""
    luma = (planes[:128].astype(float) - 16) / 219
    chroma = (planes[128:].reshape(2, 64, 96) - 128.0) / 224
    chroma = chroma.repeat(2, 1).repeat(2, 2)
    r, b = luma + 2 * (1 - red) * chroma[1], luma + 2 * (1 - blue) * chroma[0]
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return float(((np.stack([r, g, b], -1) - images) ** 2).mean())
