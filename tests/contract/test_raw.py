"""A caller's own graph, from its request to its files, on the engine under test."""

from __future__ import annotations

import base64
import hashlib
import io
import uuid
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.conftest import picture

from ltx_worker import engines
from ltx_worker.comfy.client import ComfyClient, History, OutputFile
from ltx_worker.comfy.execution import Executor
from ltx_worker.comfy.server import RemoteComfy
from ltx_worker.delivery.job_delivery import JobDelivery
from ltx_worker.delivery.kept import KeptResults
from ltx_worker.errors import JobError
from ltx_worker.generation import Generation
from ltx_worker.health import Health
from ltx_worker.job import Job
from ltx_worker.job_files import JobFiles
from ltx_worker.progress import JobProgress, OnProgress
from ltx_worker.raw_job import run_raw
from ltx_worker.raw_result import RawResult, collect_raw, mime_type_of
from ltx_worker.request_fields import OutputOptions
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal

RunRaw = Callable[..., RawResult]
Node = dict[str, Any]


@pytest.fixture(scope="module")
def client(engine: engines.Engine) -> Generator[ComfyClient]:
    """A connection to the engine."""
    client = ComfyClient(engine.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def node_info(client: ComfyClient) -> dict[str, Any]:
    """What the engine offers."""
    return client.node_info()


@pytest.fixture
def run(
    engine: engines.Engine, client: ComfyClient, node_info: dict[str, Any]
) -> Generator[RunRaw]:
    """Run a raw job; afterwards nothing of it is in the shared folders or in the queue."""

    def run_job(
        graph: Any,
        images: dict[str, str] | None = None,
        *,
        shared: bool = True,
        max_bytes: int = 10_000_000,
        on_progress: OnProgress | None = None,
    ) -> RawResult:
        listed = [{"name": name, "image": data} for name, data in (images or {}).items()]
        folders = (engine.input_dir, engine.output_dir) if shared else (None, None)
        job_input = {"workflow": graph, "images": listed}
        job = Job(str(uuid.uuid4()), job_input, StopSignal(60), on_progress)
        executor = Executor(RemoteComfy(engine.url, engine.folders, 5, 30))
        generation = Generation(executor, Health())
        delivery = JobDelivery(
            job.id, job_input, max_bytes, "{job_id}", None, KeptResults(Path(), 0), job.stop
        )
        with JobFiles(client, *folders) as files:
            try:
                return run_raw(
                    *(generation, files, job, node_info, Settings(max_media_bytes=max_bytes)),
                    lambda draft, found: delivery.deliver(draft, found, OutputOptions()),
                )
            finally:
                client.forget(job.prompt_id)
                assert client.queue_state(job.prompt_id) is None

    before = files_of(engine)
    yield run_job
    assert files_of(engine) == before


def files_of(engine: engines.Engine) -> set[Path]:
    """Every file in the folders that engine and worker share."""
    folders = (engine.input_dir, engine.output_dir)
    return {path for folder in folders for path in folder.rglob("*") if path.is_file()}


def node(class_type: str, **inputs: Any) -> Node:
    """A node of a graph in API format."""
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": f"My {class_type}"}}


def graph_of(name: Any, *saves: tuple[int, str]) -> dict[str, Node]:
    """Load the picture `name` as node 1, then scale it to each width and save it as the prefix."""
    graph = {"1": node("LoadImage", image=name)}
    for width, prefix in saves:
        size = {"width": width, "height": 16, "upscale_method": "bilinear", "crop": "disabled"}
        scale, save = (str(len(graph) + offset) for offset in (1, 2))
        graph[scale] = node("ImageScale", image=["1", 0], **size)
        graph[save] = node("SaveImage", filename_prefix=prefix, images=[scale, 0])
    return graph


def size_of(data: str) -> tuple[int, int]:
    """Width and height of a picture in base64."""
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        image.load()
        return image.size


def failure_of(run: RunRaw, graph: Any, images: dict[str, str] | None = None) -> JobError:
    """The error of a job that must fail."""
    with pytest.raises(JobError) as failure:
        run(graph, images)
    return failure.value


def test_a_picture_goes_in_and_comes_out_in_the_form_of_the_generic_worker(run: RunRaw) -> None:
    """The uploaded picture is loaded, scaled, saved and returned with its facts."""
    graph = graph_of("pasted/image (1).png", (48, "shots/first"))
    result = run(graph, {"pasted/image (1).png": picture(64, 64)})
    (image,), (output,) = result.images, result.outputs
    content = base64.b64decode(image.data)
    assert image.model_dump().keys() == {"filename", "type", "data"}
    assert (image.filename, image.type) == ("first_00001_.png", "base64")
    assert size_of(image.data) == (48, 16)
    assert output.model_dump() == {
        "node_id": "3",
        "kind": "images",
        "filename": "first_00001_.png",
        "subfolder": "",
        "mime_type": "image/png",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "data": None,
        "url": None,
    }
    assert result.texts == {}
    assert result.timings.total_s > 0


def test_two_outputs_of_one_prefix_both_come_back(run: RunRaw) -> None:
    """Files of several nodes have names and contents of their own."""
    graph = graph_of("a.png", (32, "same"), (64, "same"))
    result = run(graph, {"a.png": f"data:image/png;base64,{picture(64, 64)}"})
    assert {size_of(image.data) for image in result.images} == {(32, 16), (64, 16)}
    assert len({image.filename for image in result.images}) == 2
    assert {output.node_id for output in result.outputs} == {"3", "5"}


def test_files_of_an_engine_without_shared_folders_are_not_mixed_up(
    run: RunRaw, engine: engines.Engine
) -> None:
    """Over HTTP, too, every file is its own; such an engine keeps its copies."""
    before = files_of(engine)
    graph = graph_of("a.png", (32, "x"), (64, "x"))
    result = run(graph, {"a.png": picture(64, 64)}, shared=False)
    kept = files_of(engine) - before
    for path in kept:
        path.unlink()
    assert len(kept) == 3
    assert {size_of(image.data) for image in result.images} == {(32, 16), (64, 16)}


def test_progress_names_the_nodes_and_guesses_no_time(run: RunRaw) -> None:
    """Stages follow the graph; nobody knows how long each takes."""
    seen: list[JobProgress] = []
    run(graph_of("a.png", (40, "x")), {"a.png": picture(64, 64)}, on_progress=seen.append)
    assert [progress["name"] for progress in seen][-1] == "My SaveImage (3)"
    assert all(p["stages"] == 3 and p["remaining_s"] is None for p in seen)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../a.png", "a.png [output]", "b.png", {"__value__": "/etc/passwd"}],
)
def test_a_hostile_name_never_reaches_the_engine(run: RunRaw, name: Any) -> None:
    """The refusal names title, class and input."""
    error = failure_of(run, graph_of(name, (32, "x")), {"a.png": picture(64, 64)})
    assert error.code == "invalid_request"
    assert error.details[0].field == "workflow.1.inputs.image"
    assert "'My LoadImage' (LoadImage)" in error.message


def test_a_prefix_that_leads_elsewhere_stays_in_the_jobs_folder(run: RunRaw) -> None:
    """The file comes back under the last part of its name, and nothing is left of it."""
    graph = graph_of("a.png", (32, "../../outside/%date%"))
    result = run(graph, {"a.png": picture(64, 64)})
    assert result.images[0].filename == "_date__00001_.png"


def test_a_node_that_would_end_the_engines_thread_is_refused(run: RunRaw) -> None:
    """A node without inputs beside a good graph is named, and the engine runs the next job."""
    graph = graph_of("a.png", (36, "x"))
    error = failure_of(run, {**graph, "7": {"class_type": "ImageScale"}}, {"a.png": picture(8, 8)})
    assert error.code == "invalid_request"
    assert error.details[0].field == "workflow.7"
    assert len(run(graph, {"a.png": picture(64, 64)}).images) == 1


def test_missing_models_are_named_before_anything_runs(run: RunRaw) -> None:
    """All of them in one error, with the folder they belong in."""
    error = failure_of(
        run,
        {
            "1": node("CheckpointLoaderSimple", ckpt_name="absent.safetensors"),
            "2": node("LatentUpscaleModelLoader", model_name="gone.safetensors"),
            "3": node("VAEDecode", vae=["1", 2], samples=["5", 0]),
            "4": node("SaveImage", filename_prefix="x", images=["3", 0]),
            "5": node(
                "LTXVLatentUpsampler", samples=["6", 0], upscale_model=["2", 0], vae=["1", 2]
            ),
            "6": node("EmptyLTXVLatentVideo", width=64, height=64, length=9, batch_size=1),
        },
    )
    assert error.code == "model_missing"
    assert "absent.safetensors (folder checkpoints)" in error.message
    assert "gone.safetensors (folder latent_upscale_models)" in error.message


def test_unknown_classes_are_named(run: RunRaw) -> None:
    """A graph made with other node packs says which nodes this engine lacks."""
    error = failure_of(run, {"1": node("FancyPack"), "2": node("OtherPack")})
    assert error.code == "invalid_request"
    assert "FancyPack" in error.message
    assert "OtherPack" in error.message


def test_a_graph_of_which_one_output_is_invalid_is_refused(run: RunRaw) -> None:
    """ComfyUI would run the rest and call it a success."""
    graph = graph_of("a.png", (32, "good"), (10_000_000, "bad"))
    error = failure_of(run, graph, {"a.png": picture(64, 64)})
    assert error.code == "comfy_rejected"
    assert "'My ImageScale' (ImageScale): input 'width'" in error.message


def test_a_file_that_is_no_picture_fails_at_its_node(run: RunRaw) -> None:
    """What was uploaded is passed on as it is; the node that cannot read it is named."""
    text = base64.b64encode(b"no picture").decode()
    error = failure_of(run, graph_of("a.png", (32, "x")), {"a.png": text})
    assert error.code == "comfy_failed"
    assert "My LoadImage" in error.message
    assert "ltx2" not in error.message


def test_results_over_the_limit_are_refused_together(run: RunRaw) -> None:
    """Files that would fit one by one are too large as one answer."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, format="PNG")
    noise = base64.b64encode(buffer.getvalue()).decode()
    graph = graph_of("a.png") | {
        "2": node("SaveImage", filename_prefix="x", images=["1", 0]),
        "3": node("SaveImage", filename_prefix="y", images=["1", 0]),
    }
    sizes = [len(image.data) for image in run(graph, {"a.png": noise}).images]
    assert len(sizes) == 2
    # One of them and the rest of the answer.
    limit = sizes[0] + 5_000
    with pytest.raises(JobError) as failure:
        run(graph, {"a.png": noise}, max_bytes=limit)
    assert failure.value.code == "output_too_large"
    assert "2 files" in failure.value.message


def test_texts_and_previews_count_as_results(engine: engines.Engine, client: ComfyClient) -> None:
    """Texts suffice, previews give way to files, no file comes twice, and nothing is an error."""
    with JobFiles(client, engine.input_dir, engine.output_dir) as files:
        folder = engine.output_dir / files.subfolder / "set"
        folder.mkdir(parents=True)
        (folder / "a.flac").write_bytes(b"fLaC")
        saved = OutputFile("1", "audio", "a.flac", f"{files.subfolder}/set", "output")
        preview = OutputFile("2", "images", "gone.png", "", "temp")
        found = collect_raw(_history(saved, preview, replace(saved, node_id="3")), files)
        assert [(one.filename, one.subfolder) for one in found.outputs] == [("a.flac", "set")]
        assert [file.path.read_bytes() for file in found.files] == [b"fLaC"]
        assert found.images == []
        only_text = collect_raw(_history(texts={"5": ("a", "b")}), files)
        assert only_text.texts == {"5": ["a", "b"]}
        with pytest.raises(JobError, match="does not exist"):
            collect_raw(_history(preview), files)
        with pytest.raises(JobError, match="without any file"):
            collect_raw(_history(), files)


def _history(*files: OutputFile, texts: dict[str, tuple[str, ...]] | None = None) -> History:
    return History(completed=True, files=files, texts=texts or {}, messages=())


@pytest.mark.parametrize(
    ("head", "name", "mime_type"),
    [
        (b"\0\0\0\x20ftypisom", "clip.png", "video/mp4"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm", "clip", "video/webm"),
        (b"ID3\x04", "sound", "audio/mpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "x.png", "image/webp"),
        (b"plain words", "notes.txt", "text/plain"),
        (b"", "what", "application/octet-stream"),
    ],
)
def test_the_type_of_a_file_is_told_by_its_content(head: bytes, name: str, mime_type: str) -> None:
    """A name is asked only where the content says nothing."""
    assert mime_type_of(head, name) == mime_type
