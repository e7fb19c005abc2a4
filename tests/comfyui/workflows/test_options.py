"""What a job can add to text to video and image to video, or leave out, on a real ComfyUI.

Random weights draw noise, so the clips are judged by what they are: size, frames, rate, sound, and
which of them are equal.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import executor_at, frames_of, picture, sound_of

from ltx_worker.catalog import Inventory, load_catalog
from ltx_worker.comfy.client import ComfyClient, History
from ltx_worker.delivery.probe import ClipFacts, probe
from ltx_worker.engines import Engine
from ltx_worker.geometry import Size
from ltx_worker.recipes import load_recipe
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.nodes import explain, validate
from ltx_worker.workflow.template import Choices, Graph, Template, load_templates, title_of

pytestmark = pytest.mark.timeout(300)

TEMPLATES = {
    template.name: template
    for (mode, _, variant), template in load_templates(Settings().workflows_dir).items()
    if mode in ("t2v", "i2v") and not variant
}
FAMILIES = load_catalog().families
SIZE = Size(128, 128)
FRAMES = 25
FPS = 24.0
IMAGE = "options.png"
SOUND = "generate_audio"
AUDIO_CLASSES = {
    "LTXVAudioVAELoader",
    "LTXVEmptyLatentAudio",
    "LTXVConcatAVLatent",
    "LTXVSeparateAVLatent",
    "LTXVAudioVAEDecode",
    "SetLatentNoiseMask",
}

every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda t: t.name)
every_family = pytest.mark.parametrize("family", FAMILIES)


def role_of(family: str, quality: str, binding: str) -> str:
    """The catalogue's role behind a model binding.

    No detailer is published for LTX-2.3: another LoRA of its own stands in.
    """
    if binding == "detailer_lora" and family == "ltx-2.3":
        return "distilled_lora"
    return load_recipe(family, quality).models.get(binding, binding)


@dataclass(frozen=True)
class Run:
    """A job that ComfyUI has finished."""

    graph: Graph
    history: History
    clip: bytes
    facts: ClipFacts

    @property
    def classes(self) -> set[str]:
        return {node["class_type"] for node in self.graph.values()}


class Bench:
    """Renders workflows with the tiny models' names and runs them."""

    def __init__(self, engine: Engine, client: ComfyClient) -> None:
        self.engine = engine
        self.client = client
        self.node_info = client.node_info()
        self.inventory = Inventory.from_node_info(load_catalog(), self.node_info)

    def lora(self, family: str) -> str:
        return self.inventory.choose(family, "distilled_lora").name

    def render(
        self,
        template: Template,
        family: str,
        options: Iterable[str],
        loras: Sequence[tuple[str, float]] = (),
        **changes: Any,
    ) -> Graph:
        """The graph of a job; `changes` are bindings of its own."""
        options = frozenset(options)
        output_fps = FPS * 2 if "temporal_upscale" in options else FPS
        models = {
            binding: self.inventory.choose(family, role_of(family, template.quality, binding)).name
            for binding in template.targets
            if role_of(family, template.quality, binding) in load_catalog().roles(family)
        }
        values = dict(load_recipe(family, template.quality).values) | models
        values |= {
            "prompt": "a cat in the rain",
            "image": IMAGE,
            "width": SIZE.width,
            "height": SIZE.height,
            "first_pass_width": SIZE.width // 2,
            "first_pass_height": SIZE.height // 2,
            "num_frames": FRAMES,
            "audio_frames": FRAMES,
            "audio_frame_rate": int(FPS),
            "fps": FPS,
            "output_fps": output_fps,
            "seed": 1,
            "second_pass_seed": 2,
            "third_pass_seed": 3,
            # The tiny model's last block; the recipe's are of models with 48. More steps are no
            # other work.
            "skip_blocks": "1",
            "steps": 2,
            "filename_prefix": f"options/{uuid.uuid4().hex}",
        }
        values |= changes
        graph = template.render(
            {name: value for name, value in values.items() if name in template.targets},
            Choices(options=options, loras=loras),
        )
        for node in graph.values():
            if node["class_type"] == "TextGenerateLTX2Prompt":
                node["inputs"]["max_length"] = 12
        return graph

    def run(self, template: Template, graph: Graph) -> Run:
        """Run a graph and read the clip that it saved."""
        history = executor_at(self.client.base_url).execute(
            graph, str(uuid.uuid4()), StopSignal(240), lambda _event: None
        )
        (file,) = [file for file in history.files if file.node_id == template.output_id]
        path = self.engine.output_dir / file.subfolder / file.filename
        run = Run(graph, history, path.read_bytes(), probe(path))
        path.unlink()
        return run

    def make(self, template: Template, family: str, options: Iterable[str], **changes: Any) -> Run:
        return self.run(template, self.render(template, family, options, **changes))


@pytest.fixture(scope="module")
def bench(engine: Engine) -> Generator[Bench]:
    client = ComfyClient(engine.url)
    (engine.input_dir / IMAGE).write_bytes(base64.b64decode(picture(320, 320)))
    yield Bench(engine, client)
    (engine.input_dir / IMAGE).unlink()
    client.close()


def sound_of_template(template: Template) -> set[str]:
    """The option that asks for sound, where the workflow can do without."""
    return {SOUND} & set(template.options)


def subsets(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    names = sorted(names)
    for count in range(len(names) + 1):
        yield from combinations(names, count)


def assert_is_what_was_asked(run: Run, options: Iterable[str], *, has_audio: bool) -> None:
    """Size, frames, rate and sound of a clip follow from its options."""
    options = set(options)
    scale = 2 if "spatial_upscale" in options else 1
    is_doubled = "temporal_upscale" in options
    facts = run.facts
    assert (facts.width, facts.height) == (SIZE.width * scale, SIZE.height * scale)
    assert facts.num_frames == (2 * FRAMES - 1 if is_doubled else FRAMES)
    assert facts.fps == (2 * FPS if is_doubled else FPS)
    assert (facts.audio_codec is not None) == has_audio
    if facts.audio_duration_s is not None:
        assert abs(facts.audio_duration_s - facts.duration_s) < 0.15


# ---- shapes -------------------------------------------------------------------------------------


@every_family
@every_template
def test_comfyui_takes_every_combination_of_options(
    bench: Bench, template: Template, family: str
) -> None:
    """Whatever a job asks for, ComfyUI's validation accepts the graph, LoRAs included."""
    for options in subsets(template.options):
        for loras in ((), ((bench.lora(family), 0.5), (bench.lora(family), 1.0))):
            graph = bench.render(template, family, options, loras)
            result = validate(graph, bench.node_info)
            assert explain(result.error, result.node_errors, graph) == [], options
            assert template.output_id in result.good_outputs


@every_template
def test_a_job_without_options_has_two_passes_and_nothing_else(
    bench: Bench, template: Template
) -> None:
    """What a job does not ask for costs no node and loads no file."""
    graph = bench.render(template, "ltx-2", sound_of_template(template))
    assert [n["class_type"] for n in graph.values()].count("SamplerCustomAdvanced") == 2
    assert [n["class_type"] for n in graph.values()].count("LatentUpscaleModelLoader") == 1
    loras = {n["inputs"]["lora_name"] for n in graph.values() if "lora_name" in n["inputs"]}
    assert loras == (set() if template.quality == "fast" else {bench.lora("ltx-2")})
    extra = {"LTXVLoopingSampler", "LTXVContextWindows", "TextGenerateLTX2Prompt", "PreviewAny"}
    assert not extra & {node["class_type"] for node in graph.values()}


@every_template
def test_every_pass_samples_with_the_loras_in_their_order(bench: Bench, template: Template) -> None:
    """Each guider's model comes out of the whole chain of LoRAs, last one last."""
    loras = [("first.safetensors", 0.5), ("second.safetensors", 1.0)]
    graph = bench.render(template, "ltx-2", template.options, loras)
    sampling = {"CFGGuider", "MultimodalGuider", "LTXVLoopingSampler"}
    models = [n["inputs"]["model"][0] for n in graph.values() if n["class_type"] in sampling]
    assert len(models) == 5
    for model in models:
        last = graph[model]["inputs"]
        first = graph[last["model"][0]]["inputs"]
        assert (last["lora_name"], last["strength_model"]) == loras[1]
        assert (first["lora_name"], first["strength_model"]) == loras[0]


# ---- clips --------------------------------------------------------------------------------------


@every_family
@every_template
def test_each_option_alone_makes_the_clip_it_says(
    bench: Bench, template: Template, family: str
) -> None:
    """No option, then one at a time: the clip has the size, frames, rate and sound asked for."""
    for option in (None, "spatial_upscale", "temporal_upscale", "detailer"):
        options = sound_of_template(template) | ({option} if option else set())
        run = bench.make(template, family, options)
        assert_is_what_was_asked(run, options, has_audio=True)


@every_family
@every_template
def test_all_options_together_make_one_clip(bench: Bench, template: Template, family: str) -> None:
    """Every option at once, windows and a LoRA too, with sound and, where possible, without."""
    for sound in {frozenset(sound_of_template(template)), frozenset[str]()}:
        options = {*template.options} - {SOUND} | sound
        run = bench.make(template, family, options, loras=[(bench.lora(family), 0.5)])
        has_audio = bool(sound) or SOUND not in template.options
        assert_is_what_was_asked(run, options, has_audio=has_audio)


@every_family
@pytest.mark.parametrize("name", [n for n, t in TEMPLATES.items() if SOUND in t.options])
def test_a_clip_without_sound_takes_less_work(bench: Bench, name: str, family: str) -> None:
    """Without sound there are fewer nodes, none of them of sound, and the clip is silent."""
    template = TEMPLATES[name]
    silent = bench.make(template, family, set())
    sounding = bench.make(template, family, {SOUND})
    assert len(silent.graph) < len(sounding.graph)
    assert not AUDIO_CLASSES & silent.classes
    assert_is_what_was_asked(silent, set(), has_audio=False)
    assert_is_what_was_asked(sounding, set(), has_audio=True)


@every_family
@pytest.mark.parametrize("quality", ["fast", "pro", "quality"])
def test_a_lora_at_strength_0_is_none_and_at_1_shows(
    bench: Bench, quality: str, family: str
) -> None:
    """Frame for frame, strength 0 gives the clip without LoRA and strength 1 another."""
    template = TEMPLATES[f"t2v_{quality}"]
    options = sound_of_template(template)
    without, at_0, at_1 = (
        frames_of(bench.make(template, family, options, loras=loras).clip)
        for loras in ([], [(bench.lora(family), 0.0)], [(bench.lora(family), 1.0)])
    )
    assert np.array_equal(without, at_0)
    assert np.abs(without.astype(int) - at_1).mean() > 1


@every_family
@pytest.mark.parametrize("quality", ["fast", "pro", "quality"])
def test_added_passes_leave_the_sound_as_it_was(bench: Bench, quality: str, family: str) -> None:
    """Sample for sample the sound is that of the clip without them, and the picture is not."""
    template = TEMPLATES[f"t2v_{quality}"]
    plain = bench.make(template, family, sound_of_template(template))
    sound, rate = sound_of(plain.clip)
    assert np.abs(sound).max() > 0.01
    for added in (["spatial_upscale"], ["temporal_upscale"], ["spatial_upscale", "detailer"]):
        run = bench.make(template, family, sound_of_template(template) | {*added})
        other, other_rate = sound_of(run.clip)
        # Doubling the frames ends the clip half a frame earlier; the codec's last packets differ.
        common = min(sound.shape[1], other.shape[1]) - 3 * 1024
        assert other_rate == rate
        assert common > rate / 2
        assert np.array_equal(sound[:, :common], other[:, :common])
        assert not np.array_equal(frames_of(plain.clip), frames_of(run.clip))


@every_family
def test_the_detailer_takes_clips_of_several_tiles(bench: Bench, family: str) -> None:
    """A clip longer than a tile keeps its length and differs from the clip without details."""
    template, options = TEMPLATES["i2v_fast"], {SOUND, "detailer"}
    length = {"num_frames": 65, "audio_frames": 65}
    detailed = bench.make(template, family, options, **length)
    plain = bench.make(template, family, {SOUND}, **length)
    assert detailed.facts.num_frames == plain.facts.num_frames == 65
    assert not np.array_equal(frames_of(detailed.clip), frames_of(plain.clip))


@every_family
@pytest.mark.parametrize("name", ["t2v_fast", "i2v_pro", "t2v_quality"])
def test_a_long_clip_is_sampled_in_windows(bench: Bench, name: str, family: str) -> None:
    """Windows change a clip that is longer than one of them, and leave a shorter one alone."""
    template = TEMPLATES[name]
    options = sound_of_template(template)
    for frames, is_equal in ((FRAMES, True), (161, False)):
        length = {"num_frames": frames, "audio_frames": frames}
        whole = bench.make(template, family, options, **length)
        windowed = bench.make(template, family, options | {"long_video"}, **length)
        assert windowed.facts.num_frames == frames
        assert windowed.facts.audio_codec is not None
        assert np.array_equal(frames_of(whole.clip), frames_of(windowed.clip)) == is_equal


@pytest.mark.parametrize(("name", "family"), [("t2v_fast", "ltx-2"), ("i2v_quality", "ltx-2.3")])
def test_an_enhanced_prompt_is_used_and_told(bench: Bench, name: str, family: str) -> None:
    """The text comes back, depends on the seed, and makes another clip than the literal prompt."""
    template = TEMPLATES[name]
    sound = sound_of_template(template)
    one, two = (
        bench.make(template, family, sound | {"enhance_prompt"}, seed=seed) for seed in (1, 2)
    )
    texts = [run.history.texts[template.texts["enhanced_prompt"]][0] for run in (one, two)]
    assert texts[0]
    assert texts[0] != texts[1]
    literal = bench.make(template, family, sound, seed=1)
    assert literal.history.texts == {}
    assert not np.array_equal(frames_of(one.clip), frames_of(literal.clip))


@every_family
@pytest.mark.parametrize("quality", ["fast", "pro", "quality"])
@pytest.mark.parametrize("is_larger", [True, False])
def test_the_picture_stays_the_first_frame_through_added_passes(
    bench: Bench, quality: str, family: str, is_larger: bool
) -> None:
    """After each added pass the first latent frame is the picture's encoding at that size."""
    template = TEMPLATES[f"i2v_{quality}"]
    options = {"temporal_upscale", "detailer"} | ({"spatial_upscale"} if is_larger else set())
    graph = bench.render(template, family, options | sound_of_template(template))
    ids = {title_of(node): node_id for node_id, node in graph.items()}
    pixels = [ids["Compress double size image" if is_larger else "Compress image"], 0]
    graph["encode"] = {
        "class_type": "VAEEncode",
        "inputs": {"pixels": pixels, "vae": [ids["Checkpoint"], 2]},
    }
    sources = {"asked": "encode", "temporal": ids["Temporal pass result"]}
    if is_larger:
        sources["third"] = ids["Third pass result"]
    for key, node_id in sources.items():
        inputs = {"samples": [node_id, 0], "filename_prefix": f"options/{key}"}
        graph[key] = {"class_type": "SaveLatent", "inputs": inputs}
    bench.run(template, graph)
    latents: dict[str, np.ndarray] = {}
    for key in sources:
        (path,) = (bench.engine.output_dir / "options").glob(f"{key}_*.latent")
        latents[key] = load_file(path)["latent_tensor"]
        path.unlink()
    side = 8 if is_larger else 4
    asked = latents.pop("asked")
    assert asked.shape == (1, 128, 1, side, side)
    assert latents["temporal"].shape == (1, 128, 7, side, side)
    for made in latents.values():
        assert np.abs(made[:, :, 0] - asked[:, :, 0]).max() < 1e-5
        assert np.abs(made[:, :, 1] - asked[:, :, 0]).mean() > 0.1
