"""Audio to video, lip sync and keyframes on a real ComfyUI: the sound is kept, the pictures too.

Random weights draw noise and attend everywhere alike, so a keyframe does not show around its frame
more than elsewhere. It is measured where it is exact: the frame that the model is told for each
guide, and the guides' latents before they are cropped off, against the pictures' own encodings.
"""

from __future__ import annotations

import ast
import base64
import io
import re
import shutil
import uuid
import wave
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import executor_at, frames_of, picture, sound_of

from ltx_worker.catalog import Inventory, load_catalog
from ltx_worker.comfy.client import ComfyClient
from ltx_worker.engines import Engine
from ltx_worker.errors import ComfyFailed
from ltx_worker.recipes import load_recipe
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.nodes import explain, validate
from ltx_worker.workflow.template import Choices, Graph, Template, load_template, title_of

WORKFLOWS = Settings().workflows_dir
WIDTH, HEIGHT, FRAMES, FPS = 256, 128, 25, 24.0
LATENT_FRAMES = (FRAMES - 1) // 8 + 1
SOUND_RATE = 48_000
FOLDER = "sound_and_keyframes"
# For what does not depend on the number of steps.
FEW_STEPS = 2
KEYFRAMES: dict[str, tuple[int, int, int]] = {
    "red.png": (220, 40, 30),
    "green.png": (30, 200, 60),
    "blue.png": (20, 40, 220),
    "grey.png": (128, 128, 128),
}

every_quality = pytest.mark.parametrize("quality", ["fast", "pro"])
every_family = pytest.mark.parametrize("family", ["ltx-2", "ltx-2.3"])


def workflow(mode: str, quality: str) -> Template:
    return load_template(WORKFLOWS / f"{mode}_{quality}.toml")


def ids_of(graph: Graph, title: str) -> list[str]:
    """The nodes of a title; copies of a repeated node in their order."""
    return [node_id for node_id, node in graph.items() if title_of(node) == title]


def output_of(graph: Graph, title: str, slot: int = 0) -> list[Any]:
    (node_id,) = ids_of(graph, title)
    return [node_id, slot]


def add_encoding(graph: Graph, key: str, pixels: list[Any], half: bool = False) -> list[Any]:
    """Add the VAE's encoding of a picture, at half its size if asked."""
    if half:
        size = {"width": WIDTH // 2, "height": HEIGHT // 2, "crop": "center"}
        inputs = {"image": pixels, "upscale_method": "bilinear", **size}
        graph[f"{key}-half"] = {"class_type": "ImageScale", "inputs": inputs}
        pixels = [f"{key}-half", 0]
    inputs = {"pixels": pixels, "vae": output_of(graph, "Checkpoint", 2)}
    graph[key] = {"class_type": "VAEEncode", "inputs": inputs}
    return [key, 0]


def keyframes(*frames: int, strength: float = 1.0) -> list[dict[str, Any]]:
    """A picture of its own at each frame."""
    return [
        {"image": name, "frame": frame, "strength": strength}
        for name, frame in zip(KEYFRAMES, frames, strict=False)
    ]


@dataclass(frozen=True)
class Made:
    """What a run left: the clip, the latents that were asked for, the nodes' texts."""

    clip: bytes
    latents: Mapping[str, np.ndarray]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """Renders the workflows with production values and runs them on the engine."""

    engine: Engine
    client: ComfyClient
    node_info: dict[str, Any] = field(repr=False)

    @property
    def inventory(self) -> Inventory:
        return Inventory.from_node_info(load_catalog(), self.node_info)

    def lora(self, family: str) -> str:
        """A LoRA's file name; any that fits the family's transformer."""
        found = self.inventory.find(family, "distilled_lora")
        assert found is not None
        return found.name

    def values(self, template: Template, family: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """A binding's value for every binding of the workflow."""
        recipe = load_recipe(family, template.quality)
        roles = {name: recipe.models.get(name, name) for name in template.targets}
        files = {name: self.inventory.find(family, role) for name, role in roles.items()}
        values = dict(recipe.values) | {name: file.name for name, file in files.items() if file}
        values |= {"prompt": "a cat in the rain", "seed": 5, "second_pass_seed": 6}
        values |= {"width": WIDTH, "first_pass_width": WIDTH // 2}
        values |= {"height": HEIGHT, "first_pass_height": HEIGHT // 2}
        values |= {"num_frames": FRAMES, "audio_frames": FRAMES, "audio_frame_rate": int(FPS)}
        values |= {"fps": FPS, "output_fps": FPS, "audio": "sound.wav", "image": "red.png"}
        values |= {"format": "mp4", "filename_prefix": f"{FOLDER}/{uuid.uuid4().hex}"}
        values |= changes
        assert set(template.targets) <= set(values)
        return {name: value for name, value in values.items() if name in template.targets}

    def render(
        self,
        template: Template,
        family: str,
        *options: str,
        items: Sequence[Mapping[str, Any]] = (),
        loras: Sequence[tuple[str, float]] = (),
        **changes: Any,
    ) -> Graph:
        """The workflow's graph as a job of `family` would run it."""
        repeats = {"keyframes": items} if items else {}
        choices = Choices(options=frozenset(options), repeats=repeats, loras=loras)
        return template.render(self.values(template, family, changes), choices)

    def run(
        self, template: Template, graph: Graph, keep: Mapping[str, list[Any]] | None = None
    ) -> Made:
        """Run a graph; `keep` maps names to the latents that are wanted beside the clip."""
        run = uuid.uuid4().hex
        for name, samples in (keep or {}).items():
            inputs = {"samples": samples, "filename_prefix": f"{FOLDER}/{run}/{name}"}
            graph[f"keep-{name}"] = {"class_type": "SaveLatent", "inputs": inputs}
        history = executor_at(self.client.base_url).execute(
            graph, str(uuid.UUID(run)), StopSignal(300), lambda _: None
        )
        (clip,) = [file for file in history.files if file.node_id == template.output_id]
        content = io.BytesIO()
        assert self.client.download(clip, content)
        latents = {name: self._latent(run, name) for name in keep or {}}
        texts = {node_id: "".join(parts) for node_id, parts in history.texts.items()}
        return Made(content.getvalue(), latents, texts)

    def _latent(self, run: str, name: str) -> np.ndarray:
        """A saved latent: (batch, channels, frames, height, width), or (…, times, bins)."""
        (path,) = (self.engine.output_dir / FOLDER / run).glob(f"{name}_*.latent")
        return load_file(path)["latent_tensor"]


@pytest.fixture(scope="module")
def bench(engine: Engine) -> Generator[Bench]:
    """The engine with pictures and sounds in its input folder."""
    names = ["sound.wav", "other.wav", *KEYFRAMES]
    for name, color in KEYFRAMES.items():
        content = base64.b64decode(picture(300, 200, color))
        (engine.input_dir / name).write_bytes(content)
    write_sound(engine.input_dir / "sound.wav", sweep(200, 2_000), sweep(3_000, 500))
    write_sound(engine.input_dir / "other.wav", sweep(4_000, 100), sweep(100, 4_000))
    client = ComfyClient(engine.url)
    yield Bench(engine, client, client.node_info())
    client.close()
    for name in names:
        (engine.input_dir / name).unlink()
    shutil.rmtree(engine.output_dir / FOLDER)


# ---- sound --------------------------------------------------------------------------------------


def sweep(first_hz: float, last_hz: float) -> np.ndarray:
    """A tone that glides from one pitch to another, exactly as long as the clip."""
    times = np.arange(round(FRAMES / FPS * SOUND_RATE)) / SOUND_RATE
    pitch = first_hz + (last_hz - first_hz) * times / times[-1] / 2
    return 0.5 * np.sin(2 * np.pi * pitch * times)


def write_sound(path: Path, *channels: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((np.stack(channels, axis=1) * 32_767).astype("<i2").tobytes())


def alike(heard: np.ndarray, given: np.ndarray) -> tuple[float, int]:
    """The correlation of two sounds where they fit best, and by how many samples that is off."""
    size = heard.size + given.size
    fit = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(given, size).conj(), size)
    shift = int(np.argmax(fit))
    shift -= size if shift > size // 2 else 0
    heard, given = heard[max(shift, 0) :], given[max(-shift, 0) :]
    shared = min(heard.size, given.size)
    return float(np.corrcoef(heard[:shared], given[:shared])[0, 1]), shift


@every_quality
@every_family
@pytest.mark.parametrize("mode", ["a2v", "lipsync"])
def test_the_clip_carries_the_callers_own_sound(
    bench: Bench, mode: str, family: str, quality: str
) -> None:
    """Both channels come back, and both passes leave the sound's latent alone, to rounding."""
    template = workflow(mode, quality)
    graph = bench.render(template, family)
    keep = {
        "given": output_of(graph, "Encode audio"),
        "first": output_of(graph, "First pass result", 1),
        "second": output_of(graph, "Second pass result", 1),
    }

    made = bench.run(template, graph, keep)

    assert frames_of(made.clip).shape == (FRAMES, HEIGHT, WIDTH, 3)
    samples, rate = sound_of(made.clip)
    assert rate == SOUND_RATE
    assert samples.shape[0] == 2
    assert abs(samples.shape[1] / rate - FRAMES / FPS) < 0.05
    for heard, given in zip(samples, (sweep(200, 2_000), sweep(3_000, 500)), strict=True):
        correlation, shift = alike(heard, given)
        assert correlation > 0.98
        assert abs(shift) / rate < 1 / FPS
    given = made.latents["given"]
    assert given.std() > 0.01
    for after in ("first", "second"):
        assert made.latents[after].shape == given.shape
        assert np.abs(made.latents[after] - given).max() < 1e-5


@every_quality
@every_family
def test_another_sound_makes_another_picture(bench: Bench, family: str, quality: str) -> None:
    """The model hears the frozen sound: the same seed draws something else to another one."""
    template = workflow("a2v", quality)
    videos: list[np.ndarray] = []
    for name in ("sound.wav", "other.wav"):
        graph = bench.render(template, family, audio=name, steps=FEW_STEPS)
        keep = {"video": output_of(graph, "Second pass result")}
        videos.append(bench.run(template, graph, keep).latents["video"])
    assert np.abs(videos[0] - videos[1]).max() > 0.01


@every_quality
@every_family
def test_lipsync_starts_from_the_picture(bench: Bench, family: str, quality: str) -> None:
    """After both passes the first latent frame is the picture's encoding, to float rounding."""
    template = workflow("lipsync", quality)
    graph = bench.render(template, family)
    picture_latent = add_encoding(graph, "encode", output_of(graph, "Compress image"))
    keep = {"asked": picture_latent, "made": output_of(graph, "Second pass result")}

    latents = bench.run(template, graph, keep).latents

    made, asked = latents["made"], latents["asked"]
    assert made.shape == (1, 128, LATENT_FRAMES, HEIGHT // 32, WIDTH // 32)
    assert np.abs(made[:, :, 0] - asked[:, :, 0]).max() < 1e-5
    assert np.abs(made[:, :, 1] - asked[:, :, 0]).mean() > 0.1


# ---- keyframes ----------------------------------------------------------------------------------


CONDITIONS = ("positive", "negative")


def show_frames(graph: Graph) -> None:
    """Add nodes that print the conditioning that each pass is guided by."""
    for title, name in product(("First pass guider", "Second pass guider"), CONDITIONS):
        (node_id,) = ids_of(graph, title)
        source = graph[node_id]["inputs"][name]
        graph[f"{title} {name}"] = {"class_type": "PreviewAny", "inputs": {"source": source}}


def frames_told(text: str, guides: int) -> list[int]:
    """The frame at which each guide's tokens begin, from a printed conditioning."""
    (found,) = re.findall(r"'keyframe_idxs': tensor\((\[{4}.*?\]{4})", text, re.DOTALL)
    starts = np.array(ast.literal_eval(found))[0, 0, :, 0].reshape(guides, -1)
    assert (starts == starts[:, :1]).all()
    return starts[:, 0].tolist()


@every_quality
@every_family
@pytest.mark.parametrize(
    ("asked", "told"),
    [((13,), [13]), ((0, -1), [0, FRAMES - 1]), ((16, 0, 24, -6), [16, 0, 24, 19])],
    ids=["one", "first-and-last", "four"],
)
def test_each_keyframe_guides_both_passes_at_its_frame(
    bench: Bench, family: str, quality: str, asked: tuple[int, ...], told: list[int]
) -> None:
    """Every picture is a guide of its own frame in both passes, and none is left in the clip."""
    template = workflow("keyframes", quality)
    graph = bench.render(template, family, "generate_audio", items=keyframes(*asked))
    keep = {
        "first": output_of(graph, "First pass result"),
        "second": output_of(graph, "Second pass result"),
        "cropped": output_of(graph, "First pass crop", 2),
        "decoded": output_of(graph, "Second pass crop", 2),
    }
    fitted = ids_of(graph, "Compress keyframe")
    assert len(fitted) == len(asked)
    for index, node_id in enumerate(fitted):
        keep[f"half-{index}"] = add_encoding(graph, f"half-{index}", [node_id, 0], half=True)
        keep[f"full-{index}"] = add_encoding(graph, f"full-{index}", [node_id, 0])
    show_frames(graph)

    made = bench.run(template, graph, keep)

    assert frames_of(made.clip).shape == (FRAMES, HEIGHT, WIDTH, 3)
    samples, rate = sound_of(made.clip)
    assert abs(samples.shape[1] / rate - FRAMES / FPS) < 0.15
    for name in CONDITIONS:
        assert frames_told(made.texts[f"First pass guider {name}"], len(asked)) == told
        assert frames_told(made.texts[f"Second pass guider {name}"], len(asked)) == told
    for sampled, rest, size in (("first", "cropped", "half"), ("second", "decoded", "full")):
        latent = made.latents[sampled]
        assert latent.shape[2] == LATENT_FRAMES + len(asked)
        assert np.array_equal(made.latents[rest], latent[:, :, :LATENT_FRAMES])
        for index in range(len(asked)):
            guide = latent[:, :, LATENT_FRAMES + index]
            assert np.abs(guide - made.latents[f"{size}-{index}"][:, :, 0]).max() < 1e-5
    encodings = [made.latents[f"full-{index}"] for index in range(len(asked))]
    assert all(np.abs(a - encodings[0]).mean() > 0.05 for a in encodings[1:])


@every_quality
@every_family
def test_a_keyframe_works_through_its_frame_alone(bench: Bench, family: str, quality: str) -> None:
    """-1 is the last frame, the list's order is nothing, and another frame is another clip."""
    template = workflow("keyframes", quality)
    first, last = keyframes(0, FRAMES - 1)
    lists = {
        "asked": [first, last],
        "counted back": [first, last | {"frame": -1}],
        "turned round": [last, first],
        "moved": [first, last | {"frame": 8}],
        "weaker": [first, last | {"strength": 0.4}],
        "swapped": [first | {"frame": FRAMES - 1}, last | {"frame": 0}],
    }
    videos: dict[str, np.ndarray] = {}
    for name, items in lists.items():
        graph = bench.render(template, family, "generate_audio", items=items, steps=FEW_STEPS)
        keep = {"video": output_of(graph, "Second pass crop", 2)}
        videos[name] = bench.run(template, graph, keep).latents["video"]
    apart = {name: float(np.abs(v - videos["asked"]).max()) for name, v in videos.items()}
    assert apart["counted back"] == 0
    assert apart["turned round"] < 1e-3
    assert min(apart["moved"], apart["weaker"], apart["swapped"]) > 0.01


@every_quality
def test_a_keyframe_beyond_the_end_is_an_error(bench: Bench, quality: str) -> None:
    """ComfyUI refuses the frame after the last one, and not the last one."""
    template = workflow("keyframes", quality)
    graph = bench.render(template, "ltx-2", items=keyframes(FRAMES - 1), steps=FEW_STEPS)
    assert len(frames_of(bench.run(template, graph).clip)) == FRAMES
    graph = bench.render(template, "ltx-2", items=keyframes(FRAMES))
    with pytest.raises(ComfyFailed, match=r"First pass keyframe.*exceed the length"):
        bench.run(template, graph)


def test_comfyui_counts_earlier_keyframes_into_the_length(bench: Bench) -> None:
    """Behind n keyframes it takes 8n frames too many, so the worker itself has to refuse them."""
    template = workflow("keyframes", "fast")
    graph = bench.render(template, "ltx-2", items=keyframes(0, FRAMES + 7))
    show_frames(graph)
    made = bench.run(template, graph)
    assert frames_told(made.texts["Second pass guider positive"], 2) == [0, FRAMES + 7]
    assert len(frames_of(made.clip)) == FRAMES
    graph = bench.render(template, "ltx-2", items=keyframes(0, FRAMES + 8))
    with pytest.raises(ComfyFailed, match=r"First pass keyframe.*exceed the length"):
        bench.run(template, graph)


@every_quality
@every_family
def test_keyframes_without_sound(bench: Bench, family: str, quality: str) -> None:
    """With the option off the clip has no sound, and no node of the graph deals with any."""
    template = workflow("keyframes", quality)
    graph = bench.render(template, family, items=keyframes(0, -1, strength=0.6))
    classes = {node["class_type"] for node in graph.values()}
    assert not {name for name in classes if "Audio" in name or "AVLatent" in name}
    made = bench.run(template, graph)
    assert frames_of(made.clip).shape == (FRAMES, HEIGHT, WIDTH, 3)
    with av.open(io.BytesIO(made.clip)) as container:
        assert not container.streams.audio


def test_every_keyframe_gets_its_own_values_and_the_clips_size(bench: Bench) -> None:
    """Picture, frame and strength are the item's; size and compression are the job's."""
    template = workflow("keyframes", "fast")
    items = [
        {"image": "red.png", "frame": 0, "strength": 1.0},
        {"image": "blue.png", "frame": 8, "strength": 0.5},
        {"image": "grey.png", "frame": -1, "strength": 0.25},
    ]
    graph = bench.render(template, "ltx-2.3", items=items)

    def all_of(title: str, *names: str) -> list[tuple[Any, ...]]:
        nodes = [graph[node_id]["inputs"] for node_id in ids_of(graph, title)]
        return [tuple(inputs[name] for name in names) for inputs in nodes]

    guided = [(item["frame"], item["strength"]) for item in items]
    assert all_of("Keyframe", "image") == [(item["image"],) for item in items]
    assert all_of("Fit keyframe", "width", "height") == [(WIDTH, HEIGHT)] * 3
    assert all_of("Compress keyframe", "img_compression") == [(18,)] * 3
    assert all_of("First pass keyframe", "frame_idx", "strength") == guided
    assert all_of("Second pass keyframe", "frame_idx", "strength") == guided


# ---- what all three share -----------------------------------------------------------------------

MODES = ("a2v", "lipsync", "keyframes")


def subsets(names: Iterable[str]) -> list[list[str]]:
    chosen: list[list[str]] = [[]]
    for name in names:
        chosen += [[*few, name] for few in chosen]
    return chosen


@every_quality
@every_family
@pytest.mark.parametrize("mode", MODES)
def test_comfyui_would_accept_every_shape(
    bench: Bench, mode: str, family: str, quality: str
) -> None:
    """All options, list lengths and LoRA counts give graphs that fit the live node classes."""
    template = workflow(mode, quality)
    lists = [keyframes(*range(0, 8 * count, 8)) for count in range(5)]
    lists = lists if "keyframes" in template.repeats else lists[:1]
    for options, items, count in product(subsets(template.options), lists, (0, 2)):
        loras = [(bench.lora(family), 0.5)] * count
        graph = bench.render(template, family, *options, items=items, loras=loras)
        result = validate(graph, bench.node_info)
        assert explain(result.error, result.node_errors, graph) == []
        outputs = {template.output_id}
        outputs |= set(template.texts.values()) if "enhance_prompt" in options else set()
        assert set(result.good_outputs) == outputs


def test_what_a_job_must_give() -> None:
    """Audio to video needs a sound and lip sync a picture as well; keyframes have their list."""
    for quality in ("fast", "pro"):
        assert workflow("a2v", quality).requires == {"audio"}
        assert workflow("lipsync", quality).requires == {"image", "audio"}
        assert workflow("keyframes", quality).requires == set()
        assert {"keyframes", "generate_audio"} <= workflow("keyframes", quality).takes
        assert "generate_audio" not in workflow("a2v", quality).takes


def model_chain(graph: Graph, title: str) -> list[Any]:
    """The LoRA strengths between a guider and its checkpoint, the checkpoint's side first."""
    (node_id,) = ids_of(graph, title)
    strengths: list[Any] = []
    while "model" in graph[node_id]["inputs"]:
        node_id, _ = graph[node_id]["inputs"]["model"]
        strengths.append(graph[node_id]["inputs"].get("strength_model"))
    assert graph[node_id]["class_type"] == "CheckpointLoaderSimple"
    return strengths[-2::-1]


@every_quality
@pytest.mark.parametrize("mode", MODES)
def test_loras_work_in_both_passes(bench: Bench, mode: str, quality: str) -> None:
    """The caller's LoRAs follow one another in both passes, and change what the first one draws."""
    template = workflow(mode, quality)
    family, name = "ltx-2", bench.lora("ltx-2")
    videos: list[np.ndarray] = []
    for loras in ([], [(name, 0.9), (name, 0.3)]):
        graph = bench.render(template, family, items=keyframes(0), loras=loras, steps=FEW_STEPS)
        given = [strength for _, strength in loras]
        distilled = load_recipe(family, quality).values["distilled_lora_strength"]
        own = [distilled] if quality == "pro" else []
        assert model_chain(graph, "First pass guider") == given
        assert model_chain(graph, "Second pass guider") == own + given
        keep = {"video": output_of(graph, "First pass", 0)} if mode == "keyframes" else {}
        keep = keep or {"video": output_of(graph, "First pass result")}
        videos.append(bench.run(template, graph, keep).latents["video"])
    assert np.abs(videos[0] - videos[1]).max() > 0.01


@every_quality
@pytest.mark.parametrize("mode", MODES)
def test_an_enhanced_prompt_is_used_and_told(bench: Bench, mode: str, quality: str) -> None:
    """With the option on the text encoder's own words are the prompt, and the result has them."""
    template = workflow(mode, quality)
    videos: list[bytes] = []
    for options in ([], ["enhance_prompt"]):
        graph = bench.render(template, "ltx-2", *options, items=keyframes(0), steps=FEW_STEPS)
        prompt = graph[ids_of(graph, "Prompt")[0]]["inputs"]
        if options:
            assert prompt["text"] == output_of(graph, "Enhance prompt")
            # Random weights never end their answer.
            graph[prompt["text"][0]]["inputs"]["max_length"] = 8
        else:
            assert prompt["text"] == "a cat in the rain"
            assert not ids_of(graph, "Enhance prompt")
        made = bench.run(template, graph)
        assert bool(made.texts.get(template.texts["enhanced_prompt"])) == bool(options)
        videos.append(frames_of(made.clip).tobytes())
    assert videos[0] != videos[1]


@every_quality
@pytest.mark.parametrize("mode", MODES)
def test_the_containers_rate_is_apart_from_the_models(
    bench: Bench, mode: str, quality: str
) -> None:
    """What the model is told of time and what the clip is played at are two bindings."""
    template = workflow(mode, quality)
    graph = bench.render(template, "ltx-2", items=keyframes(0), output_fps=30.0, steps=FEW_STEPS)
    assert graph[ids_of(graph, "Conditioning")[0]]["inputs"]["frame_rate"] == FPS
    with av.open(io.BytesIO(bench.run(template, graph).clip)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 30
        assert sum(1 for _ in container.decode(stream)) == FRAMES
