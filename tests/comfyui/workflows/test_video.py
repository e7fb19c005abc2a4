"""Video to video, extend and retake on a real ComfyUI: what is kept is kept, what is new is new.

Random weights draw noise, so likeness is measured where it is exact: in latents that ComfyUI saves
on the way, and in frames and samples that the source gave.
"""

from __future__ import annotations

import uuid
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import executor_at, frames_of, sound_of

from ltx_worker.catalog import Inventory, load_catalog
from ltx_worker.comfy.client import ComfyClient
from ltx_worker.engines import Engine
from ltx_worker.recipes import load_recipe
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.nodes import explain, validate
from ltx_worker.workflow.template import Choices, Graph, Template, load_template, title_of

pytestmark = pytest.mark.timeout(300)

# The sides are multiples of 128, which a control LoRA of factor 2 needs.
WIDTH, HEIGHT, FPS, RATE = 256, 128, 24, 24000
FRAMES = 33
WORKFLOWS = ["v2v_fast", "v2v_fast_restyle", "extend_fast", "extend_fast_backward", "retake_fast"]
SIZE = {"first_pass_width": WIDTH // 2, "first_pass_height": HEIGHT // 2}
# Mean difference of an 8-bit sample between two encodings of the same frames.
CODEC_LOSS = 4.0
# The most by which a latent that a mask keeps differs after sampling.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Run:
    """What a job made: frames, sound (None without a track) and the latents asked for."""

    frames: np.ndarray
    sound: np.ndarray | None
    rate: int
    fps: Fraction
    latents: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Bench:
    """The running ComfyUI with one family's files."""

    engine: Engine
    client: ComfyClient
    node_info: Mapping[str, Any]
    family: str

    def file(self, role: str) -> str:
        """The name of the family's file for a catalogue role."""
        inventory = Inventory.from_node_info(load_catalog(), self.node_info)
        found = inventory.find(self.family, role)
        assert found, f"the tiny models have no {role} of {self.family}"
        return found.name

    def render(
        self, template: Template, values: Mapping[str, Any], choices: Choices
    ) -> tuple[Graph, list[str]]:
        """A graph of the family's files, and what the running ComfyUI's schema says against it."""
        files = {
            "checkpoint": self.file("distilled_checkpoint"),
            "text_encoder": self.file("text_encoder"),
            "spatial_upscaler": self.file("spatial_upscaler"),
            "control_lora": self.file("control_union"),
        }
        given = {**load_recipe(self.family, "fast").values, **files, **SIZE, "video": "source.mp4"}
        given |= {"audio": "source.wav", "fps": float(FPS), "output_fps": float(FPS)}
        given |= {"audio_frame_rate": FPS, **values}
        graph = template.render(
            {key: value for key, value in given.items() if key in template.targets}, choices
        )
        checked = validate(graph, self.node_info)
        return graph, explain(checked.error, checked.node_errors, graph)

    def run(
        self,
        workflow: str,
        values: Mapping[str, Any],
        options: Sequence[str] = (),
        loras: Sequence[str] = (),
        save: Mapping[str, tuple[str, int]] | None = None,
    ) -> Run:
        """Render, check against the live schema, run; `save` names latents by node and slot."""
        name = uuid.uuid4().hex
        graph, problems = self.render(
            template_of(workflow),
            {"filename_prefix": f"video/{name}", **values},
            Choices(frozenset(options), loras=[(lora, 1.0) for lora in loras]),
        )
        assert problems == []
        ids = {title_of(node): node_id for node_id, node in graph.items()}
        for key, (title, slot) in (save or {}).items():
            inputs = {"samples": [ids[title], slot], "filename_prefix": f"latents/{name}-{key}"}
            graph[f"save {key}"] = {"class_type": "SaveLatent", "inputs": inputs}
        executor_at(self.client.base_url).execute(
            graph, str(uuid.uuid4()), StopSignal(200), lambda _: None
        )
        return self._read(name, save or {})

    def _read(self, name: str, keys: Iterable[str]) -> Run:
        (path,) = (self.engine.output_dir / "video").glob(f"{name}_*.mp4")
        latents: dict[str, np.ndarray] = {}
        for key in keys:
            (file,) = (self.engine.output_dir / "latents").glob(f"{name}-{key}_*.latent")
            latents[key] = load_file(file)["latent_tensor"]
        with av.open(str(path)) as container:
            fps = container.streams.video[0].average_rate
            has_sound = bool(container.streams.audio)
        assert fps is not None
        clip = path.read_bytes()
        sound, rate = sound_of(clip) if has_sound else (None, 0)
        return Run(frames_of(clip), sound, rate, fps, latents)


@pytest.fixture(scope="module")
def media(engine: Engine) -> Iterator[np.ndarray]:
    """A source of moving colours and its sound as files; gives the frames as they decode."""
    clips = {"source.mp4": (0.0, FRAMES), "control.mp4": (0.0, 9), "other.mp4": (2.5, 9)}
    for name, (phase, frames) in clips.items():
        write_clip(engine.input_dir / name, phase, frames)
    with wave.open(str(engine.input_dir / "source.wav"), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        samples = tone(FRAMES / FPS, RATE)
        file.writeframes((np.repeat(samples[:, None], 2, 1) * 32767).astype("<i2").tobytes())
    yield frames_of((engine.input_dir / "source.mp4").read_bytes())
    for name in [*clips, "source.wav"]:
        (engine.input_dir / name).unlink()


@pytest.fixture(params=["ltx-2", "ltx-2.3"])
def bench(engine: Engine, media: np.ndarray, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The bench for each family, with the source in place."""
    client = ComfyClient(engine.url)
    yield Bench(engine, client, client.node_info(), request.param)
    client.close()


def template_of(workflow: str) -> Template:
    """One of the product's workflows."""
    return load_template(Settings().workflows_dir / f"{workflow}.toml")


def write_clip(path: Path, phase: float, frames: int) -> None:
    """A clip whose colours move with time."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 64
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            waves = [np.sin(x + y * n + phase + index / (6 + n)) for n in range(3)]
            pixels = (np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def tone(seconds: float, rate: int) -> np.ndarray:
    """The source's sound: a tone that rises."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * (300 + 150 * time) * time)


def likeness(run: Run, start_s: float, end_s: float) -> float:
    """How much of the sound between two times is the source's, -1 to 1."""
    assert run.sound is not None
    start, end = (round(time * run.rate) for time in (start_s, end_s))
    heard = run.sound[0, start:end]
    return float(np.corrcoef(heard, tone(FRAMES / FPS, run.rate)[start : start + len(heard)])[0, 1])


def loudness(run: Run, start_s: float, end_s: float) -> float:
    """The mean size of the sound's samples between two times."""
    assert run.sound is not None
    start, end = (round(time * run.rate) for time in (start_s, end_s))
    return float(np.abs(run.sound[:, start:end]).mean())


def length_s(run: Run) -> float:
    """How long the sound lasts."""
    assert run.sound is not None
    return run.sound.shape[1] / run.rate


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The mean difference of each pair of frames, in 8-bit steps."""
    return np.abs(a.astype(float) - b.astype(float)).mean(axis=(1, 2, 3))


def is_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two latents differ by nothing but float rounding."""
    return a.shape == b.shape and bool(np.abs(a - b).max() < ROUNDING)


def has_shape(run: Run, frames: int) -> bool:
    """Whether the clip has this many frames of the asked size and rate."""
    return run.frames.shape == (frames, HEIGHT, WIDTH, 3) and run.fps == FPS


# ---- every workflow ---------------------------------------------------------------------------


def test_the_tiny_models_play_every_role_of_the_family(bench: Bench) -> None:
    """No test goes without a file that the catalogue publishes for the family."""
    for role in load_catalog().roles(bench.family):
        assert bench.file(role)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_choice_of_options_passes_the_running_schema(bench: Bench, workflow: str) -> None:
    """With and without other LoRAs, ComfyUI would accept each combination of a file's options."""
    template = template_of(workflow)
    values = {"seed": 2**53 - 1, "format": "mp4", "filename_prefix": "video/a"}
    for count in range(len(template.options) + 1):
        for options in combinations(template.options, count):
            for loras in ([], [(bench.file("distilled_lora"), 0.5)] * 2):
                graph, problems = bench.render(
                    template, values, Choices(frozenset(options), loras=loras)
                )
                assert problems == []
                assert template.output_id in graph
                assert ("enhance_prompt" in options) == any(
                    node["class_type"] == "PreviewAny" for node in graph.values()
                )


# ---- video to video ---------------------------------------------------------------------------


def control(**values: Any) -> dict[str, Any]:
    """The values of a job of 9 frames along a control clip."""
    return {"num_frames": 9, "audio_frames": 9, "video": "control.mp4", **values}


def test_a_controlled_clip_has_new_sound_the_sources_or_none(bench: Bench) -> None:
    """generate_audio and keep_audio choose the sound; kept sound passes through both."""
    silent = bench.run("v2v_fast", control())
    new = bench.run("v2v_fast", control(), ["generate_audio"])
    muxed = bench.run("v2v_fast", control(), ["keep_audio"])
    audio = {"asked": ("Encode audio", 0), "1": ("First pass result", 1)}
    audio["2"] = ("Second pass result", 1)
    kept = bench.run("v2v_fast", control(), ["keep_audio", "generate_audio"], save=audio)

    assert all(has_shape(run, 9) for run in (silent, new, muxed, kept))
    assert silent.sound is None
    assert abs(likeness(new, 0, 9 / FPS)) < 0.5
    assert likeness(kept, 0, 9 / FPS) > 0.98
    assert likeness(muxed, 0, 9 / FPS) > 0.98
    assert is_same(kept.latents["1"], kept.latents["asked"])
    assert is_same(kept.latents["2"], kept.latents["asked"])
    assert difference(kept.frames, muxed.frames).max() > 0
    assert np.array_equal(silent.frames, muxed.frames)


def test_the_control_lora_and_the_control_clip_both_shape_the_clip(bench: Bench) -> None:
    """Another strength, another control clip and another LoRA each change the first pass."""
    save = {"made": ("First pass crop", 2)}
    runs = [
        bench.run("v2v_fast", control(**values), loras=loras, save=save)
        for values, loras in [
            ({}, []),
            ({"control_strength": 0.0}, []),
            ({"video": "other.mp4"}, []),
            ({}, [bench.file("distilled_lora")]),
            ({"video": "other.mp4"}, [bench.file("distilled_lora")]),
        ]
    ]
    made = [run.latents["made"] for run in runs]
    assert made[0].shape == (1, 128, 2, HEIGHT // 64, WIDTH // 64)
    for first, second in [(0, 1), (0, 2), (0, 3), (3, 4)]:
        assert np.abs(made[first] - made[second]).mean() > 0.01


@pytest.mark.parametrize("loras", [[], ["distilled_lora"]], ids=["alone", "with another LoRA"])
def test_a_half_size_control_lora_takes_a_guide_of_half_the_size(
    bench: Bench, loras: list[str]
) -> None:
    """Every other latent pixel of the guide is set, whatever LoRA follows the control LoRA."""
    run = bench.run(
        "v2v_fast",
        control(),
        loras=[bench.file(role) for role in loras],
        save={"guided": ("First pass control", 2), "made": ("First pass", 0)},
    )
    guide = run.latents["guided"][:, :, 2:]
    assert run.latents["made"].shape == run.latents["guided"].shape
    assert guide.shape[2] == 2
    assert np.abs(guide[..., ::2, ::2]).min(axis=1).max() > 0
    assert not guide[..., 1::2, :].any()
    assert not guide[..., :, 1::2].any()


def test_every_control_lora_runs(bench: Bench) -> None:
    """Each control LoRA of the family makes a clip, whether its guide is of full or half size."""
    roles = sorted(r for r in load_catalog().roles(bench.family) if r.startswith("control_"))
    made = [
        bench.run(
            "v2v_fast",
            control(control_lora=bench.file(role)),
            save={"made": ("First pass crop", 2)},
        ).latents["made"]
        for role in roles
    ]
    assert len(made) == {"ltx-2": 4, "ltx-2.3": 2}[bench.family]
    assert all(np.abs(made[0] - other).mean() > 0.01 for other in made[1:])


def test_restyling_keeps_less_of_the_source_the_more_noise_it_starts_from(bench: Bench) -> None:
    """The result's distance from the source's own latents grows with the first sigma."""
    save = {"source": ("Encode video", 0), "made": ("Restyle result", 0)}
    runs = [
        bench.run("v2v_fast_restyle", {"restyle_sigmas": s}, ["generate_audio"], save=save)
        for s in ("0.05, 0.0", "0.421875, 0.0", "0.725, 0.421875, 0.0")
    ]
    far = [np.abs(run.latents["made"] - run.latents["source"]).mean() for run in runs]
    assert far[0] < far[1] < far[2]
    assert far[0] < 0.25 * np.abs(runs[0].latents["source"]).mean()
    assert all(has_shape(run, FRAMES) for run in runs)


def test_a_restyled_clip_has_new_sound_the_sources_or_none(bench: Bench) -> None:
    """New sound comes from its own pass and stays as that left it; kept sound is the source's."""
    frames = {"audio_frames": FRAMES}
    silent = bench.run("v2v_fast_restyle", frames)
    audio = {"1": ("Sound pass result", 1), "2": ("Restyle result", 1)}
    audio |= {"small": ("Encode small video", 0), "beside": ("Sound pass result", 0)}
    new = bench.run("v2v_fast_restyle", frames, ["generate_audio"], save=audio)
    kept = bench.run("v2v_fast_restyle", frames, ["generate_audio", "keep_audio"])
    muxed = bench.run("v2v_fast_restyle", frames, ["keep_audio"])

    assert all(has_shape(run, FRAMES) for run in (silent, new, kept, muxed))
    assert silent.sound is None
    assert is_same(new.latents["1"], new.latents["2"])
    assert is_same(new.latents["small"], new.latents["beside"])
    assert abs(likeness(new, 0, FRAMES / FPS)) < 0.5
    assert loudness(new, 0, FRAMES / FPS) > 1e-4
    assert likeness(kept, 0, FRAMES / FPS) > 0.98
    assert likeness(muxed, 0, FRAMES / FPS) > 0.98


# ---- extend -----------------------------------------------------------------------------------

# 9 frames of context at the source's end, 16 new ones.
FORWARD: dict[str, Any] = {
    "context_start": FRAMES - 9,
    "context_length": 9,
    "new_start": 9,
    "new_length": 16,
    "num_frames": 25,
    "audio_frames": 25,
    "source_duration": FRAMES / FPS,
    "context_start_time": (FRAMES - 9) / FPS,
    "context_duration": 9 / FPS,
    "new_duration": 16 / FPS,
}
# 8 frames of context at the source's start, 17 new ones.
BACKWARD: dict[str, Any] = {
    "context_length": 8,
    "new_length": 17,
    "num_frames": 25,
    "audio_frames": 25,
    "context_duration": 8 / FPS,
    "new_duration": 17 / FPS,
}
SEAM = FRAMES / FPS
LONGER = (FRAMES + 16) / FPS


@pytest.mark.parametrize("lora", [[], ["distilled_lora"]], ids=["plain", "with a LoRA"])
def test_frames_go_on_from_the_sources_last_ones(
    bench: Bench, media: np.ndarray, lora: list[str]
) -> None:
    """The source's frames are untouched, 16 follow, and the context stays through both passes."""
    save = {"1": ("First pass context", 0), "2": ("First pass", 0)}
    save |= {"3": ("Second pass context", 0), "4": ("Second pass", 0)}
    loras = [bench.file(role) for role in lora]
    run = bench.run("extend_fast", FORWARD, loras=loras, save=save)

    assert has_shape(run, FRAMES + 16)
    assert difference(run.frames[:FRAMES], media).max() < CODEC_LOSS
    assert difference(run.frames[FRAMES:], media[-16:]).min() > 2 * CODEC_LOSS
    assert run.sound is None
    for before, after in [("1", "2"), ("3", "4")]:
        kept, made = run.latents[before], run.latents[after]
        assert is_same(kept[:, :, :2], made[:, :, :2])
        assert np.abs(kept[:, :, 2:] - made[:, :, 2:]).mean() > 0.1


def test_sound_goes_on_from_the_sources(bench: Bench) -> None:
    """The source's samples come first; what the model heard of them stays through both passes."""
    save = {"asked": ("Encode audio", 0), "1": ("First pass result", 1)}
    save["2"] = ("Second pass result", 1)
    run = bench.run("extend_fast", FORWARD, ["generate_audio", "source_audio"], save=save)

    assert has_shape(run, FRAMES + 16)
    assert likeness(run, 0, SEAM) > 0.98
    assert loudness(run, SEAM, LONGER) > 1e-4
    assert LONGER - 0.05 < length_s(run) < LONGER + 0.05
    heard = round(9 / FPS * 25)
    asked, made = run.latents["asked"], run.latents["2"]
    assert asked.shape[2] >= round(25 / FPS * 25)
    assert is_same(run.latents["1"][:, :, :heard], asked[:, :, :heard])
    assert is_same(made[:, :, :heard], asked[:, :, :heard])
    assert np.abs(made - asked)[:, :, heard:].mean(axis=(0, 1, 3)).min() > 0.01


def test_a_silent_source_goes_on_with_sound_or_without(bench: Bench) -> None:
    """New sound follows silence; a source's sound without new sound ends where the source does."""
    new = bench.run("extend_fast", FORWARD, ["generate_audio"])
    old = bench.run("extend_fast", FORWARD, ["source_audio"])

    assert loudness(new, 0, SEAM - 0.1) < 1e-4 < loudness(new, SEAM, LONGER)
    assert LONGER - 0.08 < length_s(new) < LONGER + 0.05
    assert likeness(old, 0, SEAM) > 0.98
    assert length_s(old) < SEAM + 0.1
    assert has_shape(new, FRAMES + 16)
    assert has_shape(old, FRAMES + 16)


def test_a_second_job_with_another_prompt_keeps_its_context(bench: Bench) -> None:
    """LTXVideo's mask node writes into a cached latent, which must not reach the next job."""
    save = {"1": ("First pass context", 0), "2": ("First pass result", 0)}
    save |= {"asked": ("Encode audio", 0), "3": ("First pass result", 1)}
    for prompt in ("a fox in the snow", "a harbour at dawn"):
        values = {**FORWARD, "prompt": prompt}
        run = bench.run("extend_fast", values, ["generate_audio", "source_audio"], save=save)
        assert is_same(run.latents["1"][:, :, :2], run.latents["2"][:, :, :2])
        assert is_same(run.latents["asked"][:, :, :9], run.latents["3"][:, :, :9])


@pytest.mark.parametrize("lora", [[], ["distilled_lora"]], ids=["plain", "with a LoRA"])
def test_frames_lead_into_the_sources_first_ones(
    bench: Bench, media: np.ndarray, lora: list[str]
) -> None:
    """17 frames come before the source's, and the guide of 8 frames never becomes frames."""
    save = {"1": ("First pass context", 2), "2": ("First pass", 0), "3": ("Second pass crop", 2)}
    loras = [bench.file(role) for role in lora]
    run = bench.run("extend_fast_backward", BACKWARD, loras=loras, save=save)

    assert has_shape(run, 17 + FRAMES)
    assert difference(run.frames[17:], media).max() < CODEC_LOSS
    assert difference(run.frames[:17], media[:17]).min() > 2 * CODEC_LOSS
    assert run.sound is None
    kept, made = run.latents["1"], run.latents["2"]
    assert kept.shape[2] == made.shape[2] == 4 + 1
    assert is_same(kept[:, :, 4:], made[:, :, 4:])
    assert run.latents["3"].shape == (1, 128, 4, HEIGHT // 32, WIDTH // 32)


def test_sound_leads_into_the_sources(bench: Bench) -> None:
    """New samples, then the source's; without new sound silence takes their place."""
    start, end = 17 / FPS, (17 + FRAMES) / FPS
    save = {"asked": ("Encode audio", 0), "1": ("Second pass result", 1)}
    options = ["generate_audio", "source_audio"]
    both = bench.run("extend_fast_backward", BACKWARD, options, save=save)
    new = bench.run("extend_fast_backward", BACKWARD, ["generate_audio"])
    old = bench.run("extend_fast_backward", BACKWARD, ["source_audio"])

    assert loudness(both, 0, start) > 1e-4
    assert loudness(old, 0, start - 0.1) < 1e-4
    for run in (both, old):
        assert run.sound is not None
        shifted = replace(run, sound=run.sound[:, round(start * run.rate) :])
        assert likeness(shifted, 0, SEAM) > 0.98
        assert end - 0.05 < length_s(run) < end + 0.05
    assert start - 0.1 < length_s(new) < start + 0.1
    freed = round(start * 25) + 1
    asked, made = both.latents["asked"], both.latents["1"]
    assert is_same(made[:, :, freed:], asked[:, :, freed:])
    assert np.abs(made - asked)[:, :, :freed].mean(axis=(0, 1, 3)).min() > 0.01


# ---- retake -----------------------------------------------------------------------------------


def window(first: int, last: int, **values: Any) -> dict[str, Any]:
    """The values that free the latents `first` to `last`."""
    return {**window_of_frames(max(0, 8 * first - 7), 8 * last + 1), **values}


def window_of_frames(start: int, end: int) -> dict[str, Any]:
    """The values of a window in frames, whether or not whole latents fit it."""
    return {
        "window_start": start,
        "window_end": end,
        "window_length": end - start,
        "start_time": start / FPS,
        "end_time": end / FPS,
        "window_duration": (end - start) / FPS,
        "source_duration": FRAMES / FPS,
        "mask_video": True,
        "mask_audio": True,
    }


RETAKEN = {"source": ("Encode video", 0), "made": ("Retake result", 0)}


@pytest.mark.parametrize(
    ("first", "last", "options"),
    [(2, 3, ["head", "tail"]), (0, 1, ["tail"]), (3, 4, ["head"]), (0, 4, [])],
    ids=["middle", "start", "end", "all"],
)
def test_only_the_window_is_made_anew(
    bench: Bench, media: np.ndarray, first: int, last: int, options: list[str]
) -> None:
    """Latents, frames and samples outside the window are the source's; all inside are new."""
    run = bench.run(
        "retake_fast",
        window(first, last),
        ["generate_audio", "source_audio", *options],
        save=RETAKEN,
    )
    values = window(first, last)
    start, end = values["window_start"], values["window_end"]
    inside = np.zeros(FRAMES, bool)
    inside[start:end] = True
    freed = np.zeros(5, bool)
    freed[first : last + 1] = True

    assert has_shape(run, FRAMES)
    change = np.abs(run.latents["made"] - run.latents["source"]).mean(axis=(0, 1, 3, 4))
    assert (change[~freed] < ROUNDING).all()
    assert (change[freed] > 0.1).all()
    apart = difference(run.frames, media)
    assert (apart[~inside] < CODEC_LOSS).all()
    assert (apart[inside] > 2 * CODEC_LOSS).all()
    assert abs(likeness(run, start / FPS + 0.02, end / FPS - 0.02)) < 0.7
    if start:
        assert likeness(run, 0, start / FPS - 0.02) > 0.98
    if end < FRAMES:
        assert likeness(run, end / FPS + 0.02, FRAMES / FPS) > 0.98


def test_picture_or_sound_alone_can_be_made_anew(bench: Bench, media: np.ndarray) -> None:
    """What is kept is the source's all the way, also in the model's latents."""
    options = ["source_audio", "head", "tail"]
    picture = bench.run("retake_fast", window(2, 3, mask_audio=False), options, save=RETAKEN)
    sound = bench.run(
        "retake_fast", window(2, 3, mask_video=False), [*options, "keep_video", "generate_audio"]
    )
    assert likeness(picture, 0, FRAMES / FPS) > 0.98
    assert difference(picture.frames, media)[9:25].min() > 2 * CODEC_LOSS
    assert difference(sound.frames, media).max() < CODEC_LOSS
    assert abs(likeness(sound, 9 / FPS + 0.02, 25 / FPS - 0.02)) < 0.7
    assert likeness(sound, 0, 9 / FPS - 0.02) > 0.98


def test_a_silent_source_can_be_retaken_with_sound_or_without(bench: Bench) -> None:
    """New sound stands between silences; without it there is no track."""
    values = window(2, 3)
    new = bench.run("retake_fast", values, ["generate_audio", "head", "tail"])
    none = bench.run("retake_fast", {**values, "mask_audio": False}, ["head", "tail"])
    assert none.sound is None
    assert loudness(new, 0, 9 / FPS - 0.1) < 1e-4 < loudness(new, 9 / FPS, 25 / FPS)
    assert loudness(new, 25 / FPS + 0.1, FRAMES / FPS) < 1e-4


def test_a_window_between_latents_frees_nothing_and_still_succeeds(bench: Bench) -> None:
    """The trap that the worker avoids: ComfyUI rounds a window inwards to whole latents."""
    run = bench.run("retake_fast", window_of_frames(18, 24), ["head", "tail"], save=RETAKEN)
    assert is_same(run.latents["made"], run.latents["source"])


def test_windows_of_jobs_in_a_row_do_not_mix(bench: Bench) -> None:
    """LTXVideo's mask node writes into a cached latent; the next job's window is still its own."""
    for first, last in ((1, 1), (3, 3), (1, 1)):
        run = bench.run("retake_fast", window(first, last), ["head", "tail"], save=RETAKEN)
        change = np.abs(run.latents["made"] - run.latents["source"]).mean(axis=(0, 1, 3, 4))
        assert [i for i, value in enumerate(change) if value > ROUNDING] == [first]
