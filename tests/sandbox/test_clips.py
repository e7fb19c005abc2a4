"""The clips that the sandbox draws: real files, of the size, length and sound of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tests.sandbox.graphs import Studio
from tests.sandbox.probe import Probe, node_of, sandbox, small_graph

from ltx_worker.catalog import load_catalog
from ltx_worker.sandbox.caption import caption_height

WORKFLOWS = ["t2v_fast", "t2v_pro", "i2v_fast", "i2v_pro"]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with sandbox(tmp_path_factory.mktemp("clips"), "--speed", "0") as running:
        rows, columns = np.indices((300, 500), dtype=np.float32)
        pixels = np.stack([columns / 2, rows * 0.8, 255 - columns / 2], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(running.input_dir / "example.png")
        yield running


def clip(probe: Probe, graph: dict[str, Any]) -> Path:
    entry = probe.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    return probe.file(entry)


def frames_of(file: Path) -> np.ndarray:
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def samples_of(file: Path) -> np.ndarray:
    with av.open(file) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_workflow_gives_the_clip_it_describes(probe: Probe, workflow: str) -> None:
    """Size, frames and rate of the graph, H.264 and stereo AAC, as long as each other."""
    file = clip(probe, small_graph(workflow, filename_prefix=f"{workflow}/clip"))
    assert file == probe.output_dir / workflow / "clip_00001_.mp4"
    with av.open(file) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec.name, video.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.frames) == (256, 128, 9)
        assert video.average_rate == 24
        assert (audio.codec.name, audio.channels, audio.sample_rate) == ("aac", 2, 24_000)
        duration_s = audio.duration * audio.time_base
        assert abs(duration_s - Fraction(9, 24)) <= Fraction(1024, 24_000)
        assert "comment" not in container.metadata | video.metadata


def test_sizes_and_lengths_are_floored(probe: Probe) -> None:
    """Widths to 32 pixels a pass, lengths to 8k+1 frames, as the latents of the model."""
    graph = small_graph()
    inputs = graph[node_of(graph, "EmptyLTXVLatentVideo")]["inputs"]
    inputs |= {"width": 100, "height": 90, "length": 24}
    assert frames_of(clip(probe, graph)).shape == (17, 128, 192, 3)


def test_rates_are_kept_to_a_thousandth(probe: Probe) -> None:
    """23.976 frames a second are 2997/125; the sound is cut to the picture."""
    graph = small_graph(fps=23.976)
    graph[node_of(graph, "LTXVEmptyLatentAudio")]["inputs"]["frame_rate"] = 12
    with av.open(clip(probe, graph)) as container:
        assert container.streams.video[0].average_rate == Fraction(2997, 125)
        audio = container.streams.audio[0]
        assert abs(audio.duration * audio.time_base - 9 / 23.976) <= 1024 / 24_000


def test_short_sound_leaves_a_short_track(probe: Probe) -> None:
    """Fewer audio latents than the picture lasts give sound for as long as they last."""
    graph = small_graph(length=25)
    graph[node_of(graph, "LTXVEmptyLatentAudio")]["inputs"]["frames_number"] = 5
    with av.open(clip(probe, graph)) as container:
        audio = container.streams.audio[0]
        assert abs(audio.duration * audio.time_base - 6 / 25) <= 1024 / 24_000


def test_a_graph_without_audio_gives_a_silent_file(probe: Probe) -> None:
    """CreateVideo without sound writes no sound stream."""
    graph = small_graph()
    del graph[node_of(graph, "CreateVideo")]["inputs"]["audio"]
    with av.open(clip(probe, graph)) as container:
        assert not container.streams.audio


def test_the_sample_rate_is_that_of_the_family(probe: Probe) -> None:
    """LTX-2.3's vocoder gives 48 kHz, and its files are read from the catalogue."""
    catalog = load_catalog()
    checkpoint = catalog.candidates("ltx-2.3", "distilled_checkpoint", "fp8")[0]
    upscaler = catalog.candidates("ltx-2.3", "spatial_upscaler", "fp8")[0]
    graph = small_graph(ckpt_name=checkpoint.name, model_name=upscaler.name)
    with av.open(clip(probe, graph)) as container:
        assert container.streams.audio[0].sample_rate == 48_000


def test_a_text_encoded_for_another_family_fails(probe: Probe) -> None:
    """A workflow that names one family's checkpoint in one loader and the other's elsewhere."""
    checkpoint = load_catalog().candidates("ltx-2.3", "distilled_checkpoint", "fp8")[0]
    graph = small_graph()
    graph[node_of(graph, "LTXAVTextEncoderLoader")]["inputs"]["ckpt_name"] = checkpoint.name
    kind, data = probe.run(graph)["status"]["messages"][-1]
    assert (kind, data["exception_type"]) == ("execution_error", "RuntimeError")
    assert data["node_type"] == "SamplerCustomAdvanced"


def test_equal_inputs_give_equal_files(probe: Probe) -> None:
    """Byte for byte, with the nodes run again for a file of another name."""
    first = clip(probe, small_graph(filename_prefix="equal/a"))
    probe.post("/free", {"free_memory": True})
    assert clip(probe, small_graph(filename_prefix="equal/b")).read_bytes() == first.read_bytes()


def test_another_seed_prompt_or_lora_gives_another_picture(probe: Probe) -> None:
    """Frames differ clearly outside of the caption, and so does the sound of another seed."""
    strip = caption_height(256, 128)
    seen = [
        clip(probe, small_graph("t2v_pro", **changes))
        for changes in ({}, {"noise_seed": 7}, {"text": "a train"}, {"strength_model": 0.5})
    ]
    pictures = [frames_of(file)[4, :-strip].astype(float) for file in seen]
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(one - other).mean() > 10
    assert np.abs(samples_of(seen[0]) - samples_of(seen[1])).max() > 0.01


def test_the_picture_moves_and_is_heard(probe: Probe) -> None:
    """First and last frame differ, and the sound is neither silent nor clipped."""
    file = clip(probe, small_graph(length=33, frames_number=33))
    frames = frames_of(file).astype(float)
    assert np.abs(frames[0] - frames[-1]).mean() > 5
    assert 0.02 < np.abs(samples_of(file)).max() < 0.9


@pytest.mark.parametrize("workflow", ["i2v_fast", "i2v_pro"])
def test_the_first_frame_is_the_picture_given(probe: Probe, workflow: str) -> None:
    """Cut about its middle to the clip's shape, recognisable outside of the caption."""
    frames = frames_of(clip(probe, small_graph(workflow, length=17, noise_seed=5))).astype(float)
    with Image.open(probe.input_dir / "example.png") as image:
        cut = image.crop((0, 25, 500, 275)).resize((256, 128), Image.Resampling.LANCZOS)
    shown = slice(0, 128 - caption_height(256, 128))
    assert np.abs(frames[0] - np.asarray(cut))[shown].mean() < 12
    assert np.abs(frames[-1] - frames[0])[shown].mean() > 5


def test_a_weaker_picture_is_kept_to_less(probe: Probe) -> None:
    """The strength of the last in-place node tells how far the clip drifts from the picture."""
    drifts = []
    for strength in (1.0, 0.2):
        graph = small_graph("i2v_fast", length=17, noise_seed=6, strength=strength)
        frames = frames_of(clip(probe, graph)).astype(float)
        drifts.append(np.abs(frames[-1] - frames[0]).mean())
    assert drifts[1] > 1.2 * drifts[0]


def test_pictures_can_be_saved_too(probe: Probe) -> None:
    """SaveImage writes a file for each frame, numbered on from those that are there."""
    graph = small_graph()
    graph[node_of(graph, "SaveVideo")] = {
        "class_type": "SaveImage",
        "inputs": {
            "images": [node_of(graph, "VAEDecodeTiled"), 0],
            "filename_prefix": "pictures/%width%",
        },
    }
    del graph[node_of(graph, "CreateVideo")]
    (saved,) = probe.run(graph)["outputs"].values()
    names = [image["filename"] for image in saved["images"]]
    assert names == [f"256_{number:05}_.png" for number in range(1, 10)]
    with Image.open(probe.output_dir / "pictures" / names[-1]) as image:
        assert image.size == (256, 128)


def test_an_enhanced_prompt_is_used_and_shown(probe: Probe) -> None:
    """TextGenerateLTX2Prompt's text reaches the picture, and PreviewAny's output as `text`."""
    texts = []
    for seed in (1, 2, 1):
        studio = Studio()
        heat = {"temperature": 0.7, "top_k": 64, "top_p": 0.95, "min_p": 0.05}
        heat |= {"repetition_penalty": 1.05, "seed": seed, "presence_penalty": 0.0}
        options = {f"sampling_mode.{name}": value for name, value in heat.items()}
        asked = {"prompt": "A train.", "max_length": 64, "sampling_mode": "on", **options}
        text = studio.add("TextGenerateLTX2Prompt", clip=studio.clip, **asked)[0]
        studio.add("PreviewAny", source=text)
        video = studio.sample(studio.empty(64, 64, 9), studio.guider(studio.text(text)))
        entry = probe.run(studio.save(studio.decode(video)))
        (shown,) = [found["text"] for found in entry["outputs"].values() if "text" in found]
        texts += shown
        assert probe.file(entry).exists()
    assert texts[0].startswith("A train. ")
    assert texts[0] == texts[2] != texts[1]
