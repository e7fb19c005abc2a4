"""The worker's node that decodes and saves, in a real ComfyUI: its clips are those of the chain of
ComfyUI's own nodes, whether frames come whole or in tiles, and none is left when it is stopped."""

from __future__ import annotations

import io
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
from PIL import Image
from tests.conftest import SMALL, clip_of, executor_at, frames_of, sound_of

from ltx_worker.comfy.client import ComfyClient
from ltx_worker.comfy.events import Executing
from ltx_worker.delivery.probe import probe
from ltx_worker.engines import Engine
from ltx_worker.errors import Cancelled
from ltx_worker.repertoire import Repertoire
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.values import Placed

NODE = "LTXWorkerDecodeVideo"
ENCODING = {"CreateVideo", "SaveVideo"}
STOCK_CHAIN = {"VAEDecodeTiled", *ENCODING}
# Levels of 256: what encoding loses of the noise that random weights make, at the sharpness of
# chroma (seen: 3.6; 12.7 in ComfyUI's own clip, and 33 for another seed's).
TOLERANCE = 5
TILES = {"tile_size": 64, "overlap": 0, "temporal_size": 4096, "temporal_overlap": 4}
OUT_OF_MEMORY = {
    "fault": "decode_error",
    "exception_type": "torch.OutOfMemoryError",
    "message": "CUDA out of memory. Tried to allocate 2.00 GiB.",
}


@pytest.fixture(scope="module")
def stock(engine: Engine) -> Repertoire:
    """What renders jobs for a ComfyUI without the worker's nodes."""
    node_info = ComfyClient(engine.url).node_info()
    repertoire = Repertoire(Settings())
    repertoire.learn({k: v for k, v in node_info.items() if not k.startswith("LTXWorker")})
    return repertoire


@pytest.fixture
def short_of_memory(engine: Engine) -> Generator[None]:
    """The next decoding of a video, or of a tile of one, runs out of memory."""
    url = f"{engine.url}/sandbox/faults"
    requests.post(url, json=OUT_OF_MEMORY, timeout=5).raise_for_status()
    yield
    requests.delete(url, timeout=5).raise_for_status()


def rendered(repertoire: Repertoire, **fields: Any) -> Graph:
    """A job's graph, its clip under a name of its own."""
    asked = SMALL | {"output": {"quality": "maximum"}} | fields
    request = repertoire.parse(asked, default_seed=1)
    return repertoire.render(request, Placed(), f"decoded/{uuid.uuid4().hex}", ())[1]


def classes(graph: Graph) -> set[str]:
    return {node["class_type"] for node in graph.values()}


def in_tiles(graph: Graph) -> Graph:
    """The graph with tiles so small that their borders show, where it comes to that."""
    for node in graph.values():
        if node["class_type"] in (NODE, "VAEDecodeTiled"):
            node["inputs"].update(TILES)
    return graph


def files_from(engine: Engine, graph: Graph) -> list[Path]:
    """The files that a graph gives."""
    history = executor_at(engine.url).execute(
        graph, str(uuid.uuid4()), StopSignal(120), lambda _: None
    )
    return [engine.output_dir / file.subfolder / file.filename for file in history.files]


def clip_from(engine: Engine, graph: Graph) -> bytes:
    """The one file that a graph gives."""
    (path,) = files_from(engine, graph)
    return path.read_bytes()


def pictures_from(engine: Engine, graph: Graph) -> np.ndarray:
    """What ComfyUI's own nodes of a graph decode, before anything is encoded."""
    kept = {k: node for k, node in graph.items() if node["class_type"] not in ENCODING}
    (decoder,) = [k for k, node in kept.items() if node["class_type"] == "VAEDecodeTiled"]
    inputs = {"images": [decoder, 0], "filename_prefix": f"decoded/{uuid.uuid4().hex}"}
    kept["pictures"] = {"class_type": "SaveImage", "inputs": inputs}
    files = sorted(files_from(engine, kept))
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])


def decoded_sound_from(engine: Engine, graph: Graph) -> tuple[np.ndarray, int]:
    """The same of its sound: float samples of shape (channels, samples), and the rate in Hz."""
    kept = {k: n for k, n in graph.items() if n["class_type"] not in STOCK_CHAIN}
    (decoder,) = [k for k, node in kept.items() if node["class_type"] == "LTXVAudioVAEDecode"]
    inputs = {"audio": [decoder, 0], "filename_prefix": f"decoded/{uuid.uuid4().hex}"}
    kept["sound"] = {"class_type": "SaveAudio", "inputs": inputs}
    (path,) = files_from(engine, kept)
    to_floats = av.AudioResampler(format="fltp")
    with av.open(str(path)) as clip:
        frames = [one for frame in clip.decode(audio=0) for one in to_floats.resample(frame)]
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1), frames[0].sample_rate


def likeness(heard: np.ndarray, sound: np.ndarray) -> float:
    """The correlation of two sounds that begin together; a codec adds silence at the end."""
    length = min(heard.shape[1], sound.shape[1])
    assert length > 0.95 * sound.shape[1]
    return float(np.corrcoef(heard[:, :length].ravel(), sound[:, :length].ravel())[0, 1])


def difference(clip: bytes, pictures: np.ndarray) -> float:
    """How far a clip lies from these pictures in the mean, in levels of 256; chroma of a clip has
    one value for two by two pixels, so that these are compared."""
    frames = frames_of(clip)
    assert frames.shape == pictures.shape
    count, height, width, _ = frames.shape
    apart = (frames.astype(float) - pictures).reshape(count, height // 2, 2, width // 2, 2, 3)
    return float(np.abs(apart.mean((2, 4))).mean())


def test_a_job_decodes_and_saves_in_one_node(worker: Worker, stock: Repertoire) -> None:
    assert NODE in classes(rendered(worker.repertoire))
    assert not classes(rendered(worker.repertoire)) & (STOCK_CHAIN | {"LTXWorkerSaveVideo"})
    assert classes(rendered(stock)) >= STOCK_CHAIN
    assert NODE not in classes(rendered(stock))


@pytest.mark.parametrize("has_sound", [True, False], ids=["with sound", "without"])
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_the_clip_has_what_was_asked_for(
    worker: Worker, engine: Engine, tmp_path: Path, container: str, has_sound: bool
) -> None:
    output = {"format": container, "quality": "low"}
    fields = {"num_frames": 17, "fps": 12, "generate_audio": has_sound, "output": output}
    graph = rendered(worker.repertoire, **fields)
    assert NODE in classes(graph)
    path = tmp_path / "clip"
    path.write_bytes(clip_from(engine, graph))
    facts = probe(path)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (256, 128, 17, 12)
    assert facts.audio_codec == ({"mp4": "aac", "webm": "opus"}[container] if has_sound else None)
    assert not facts.has_private_tags
    with av.open(str(path)) as clip:
        assert ("webm" in clip.format.name) == (container == "webm")
    if has_sound:
        heard, rate = sound_of(path.read_bytes())
        assert heard.shape[1] / rate == pytest.approx(17 / 12, abs=0.1)
        assert np.abs(heard).mean() > 1e-3


@pytest.mark.parametrize("model", ["ltx-2", "ltx-2.3"])
def test_the_clip_is_that_of_comfyuis_own_nodes(
    worker: Worker, stock: Repertoire, engine: Engine, model: str
) -> None:
    """At the same seed the pictures are theirs, encoded no worse, and so is the sound; another
    seed tells that this means something."""
    pictures = pictures_from(engine, rendered(stock, model=model))
    ours = clip_from(engine, rendered(worker.repertoire, model=model))
    theirs = clip_from(engine, rendered(stock, model=model))
    other = clip_from(engine, rendered(worker.repertoire, model=model, seed=2))
    assert difference(ours, pictures) < TOLERANCE
    assert difference(ours, pictures) < difference(theirs, pictures)
    assert difference(other, pictures) > 4 * TOLERANCE
    sound, rate = decoded_sound_from(engine, rendered(stock, model=model))
    heard, theirs_heard, other_heard = (sound_of(clip) for clip in (ours, theirs, other))
    assert heard[1] == theirs_heard[1] == rate
    # Random weights make much the same noise from every seed, and encoding costs noise a lot.
    like = likeness(heard[0], sound)
    assert like > max(0.75, likeness(theirs_heard[0], sound), likeness(other_heard[0], sound))


@pytest.mark.usefixtures("short_of_memory")
def test_without_memory_for_whole_frames_the_clip_is_decoded_in_tiles(
    worker: Worker, stock: Repertoire, engine: Engine
) -> None:
    """It is the clip of ComfyUI's own tiles, whose borders a clip of whole frames has not."""
    ours = clip_from(engine, in_tiles(rendered(worker.repertoire)))
    whole = clip_from(engine, in_tiles(rendered(worker.repertoire)))
    tiles = pictures_from(engine, in_tiles(rendered(stock)))
    assert difference(ours, tiles) < TOLERANCE
    assert difference(whole, tiles) > 2 * TOLERANCE
    assert sound_of(ours)[0].shape == sound_of(whole)[0].shape


@pytest.mark.usefixtures("short_of_memory")
def test_a_job_that_is_short_of_memory_has_its_clip(worker: Worker) -> None:
    """The caller sees nothing of it."""
    result = worker.run({"id": uuid.uuid4().hex, "input": SMALL | {"seed": 11}})
    answer = {"status": "COMPLETED", "output": result.model_dump()}
    with av.open(io.BytesIO(clip_of(answer))) as clip:
        assert clip.streams.video[0].frames == SMALL["num_frames"]


def test_another_failure_of_the_decoder_fails_the_job_and_leaves_no_file(
    worker: Worker, engine: Engine
) -> None:
    fault = {"fault": "decode_error", "exception_type": "ValueError", "message": "odd latents"}
    requests.post(f"{engine.url}/sandbox/faults", json=fault, timeout=5).raise_for_status()
    graph = rendered(worker.repertoire, seed=12)
    with pytest.raises(Exception, match="odd latents"):
        clip_from(engine, graph)
    assert left_by(engine, graph) == []


def test_a_cancelled_job_leaves_no_file(worker: Worker, engine: Engine) -> None:
    """Cancelled when the node has begun, with much to encode before it."""
    output = {"format": "webm", "quality": "maximum"}
    fields = {"resolution": "768x512", "num_frames": 97, "seed": 13, "output": output}
    graph = rendered(worker.repertoire, **fields)
    (node_id,) = [key for key, node in graph.items() if node["class_type"] == NODE]
    stop = StopSignal(200)

    def cancel_at_the_node(event: object) -> None:
        if isinstance(event, Executing) and event.node_id == node_id:
            stop.cancel()

    prompt_id = str(uuid.uuid4())
    with pytest.raises(Cancelled):
        executor_at(engine.url).execute(graph, prompt_id, stop, cancel_at_the_node)
    history = ComfyClient(engine.url).history(prompt_id)
    assert history is not None
    assert history.message("execution_interrupted")
    assert left_by(engine, graph) == []


def left_by(engine: Engine, graph: Graph) -> list[str]:
    """The names of the files that a graph has left under its clip's name, whole or in part."""
    (prefix,) = [node["inputs"]["filename_prefix"] for node in graph.values() if is_saving(node)]
    folder, _, name = prefix.rpartition("/")
    return [path.name for path in (engine.output_dir / folder).glob(f"{name}*")]


def is_saving(node: dict[str, Any]) -> bool:
    return "filename_prefix" in node["inputs"]
