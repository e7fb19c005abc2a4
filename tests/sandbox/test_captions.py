"""What the caption of a clip says of the graph that it came from."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.sandbox.films import write_video
from tests.sandbox.graphs import (
    SECOND_SIGMAS,
    TEMPORAL,
    Graph,
    Link,
    Studio,
    controlled,
    extended,
    keyframed,
    retaken,
)

from ltx_worker.sandbox.caption import facts
from ltx_worker.sandbox.context import Context
from ltx_worker.sandbox.folders import Folders
from ltx_worker.sandbox.nodes import evaluate
from ltx_worker.sandbox.values import Clip
from ltx_worker.workflow.node_inputs import link_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    write_video(folder / "source.mp4", 49, sound=True)
    for name in ("one", "two", "three"):
        Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def clip_of(graph: Graph, folder: Path) -> Clip:
    """What the graph's last node but the one that saves gives; each node is after its sources."""
    context = Context(Folders(folder, folder, folder), lambda _value, _total: None)
    outputs: dict[str, tuple[Any, ...]] = {}
    for node_id, node in graph.items():
        if node["class_type"] == "SaveVideo":
            break
        links = {name: link_of(value) for name, value in node["inputs"].items()}
        inputs = {
            name: outputs[link[0]][link[1]] if (link := links[name]) else value
            for name, value in node["inputs"].items()
        }
        outputs[node_id] = evaluate(node["class_type"], inputs, context).outputs
    (clip,) = list(outputs.values())[-1]
    return clip


def text_to_video(studio: Studio) -> Link:
    video = studio.sample(studio.empty(64, 64, 25), studio.guider(studio.text()))
    return studio.upsample(video)


def restyled(studio: Studio) -> Link:
    video = studio.encode(studio.footage("source.mp4")[0])
    return studio.sample(video, studio.guider(studio.text()), "0.725, 0.421875, 0")


def slowed(studio: Studio) -> Link:
    video = studio.upsample(studio.encode(studio.footage("source.mp4")[0]), TEMPORAL)
    return studio.sample(video, studio.guider(studio.text()), SECOND_SIGMAS)


def with_sound(studio: Studio) -> Link:
    audio = studio.freeze(studio.encode_audio(studio.footage("source.mp4")[1]))
    latent = studio.join(studio.empty(64, 64, 49), audio)
    return studio.split(studio.sample(latent, studio.guider(studio.text())))[0]


def between(studio: Studio) -> Link:
    guides, video = keyframed(studio, studio.text(), studio.empty(64, 64, 33))
    return studio.crop(guides, studio.sample(video, studio.guider(guides)))


NOTES: dict[str, tuple[Callable[[Studio], Link], list[str]]] = {
    "t2v": (text_to_video, []),
    "a2v": (with_sound, ["sound given"]),
    "keyframes": (between, ["keyframes at 0, 12, 32"]),
    "restyle": (restyled, ["restyle"]),
    "extend": (lambda studio: extended(studio, 17, 24), ["extended by 24 frames"]),
    "retake": (lambda studio: retaken(studio, 0.5, 1.4)[0], ["retake 0.5-1.4 s (frames 17-32)"]),
    "retake of nothing": (
        lambda studio: retaken(studio, 0.7, 0.9)[0],
        ["retake 0.7-0.9 s (nothing freed)"],
    ),
    "temporal": (slowed, ["temporal x2"]),
}


@pytest.mark.parametrize("name", NOTES)
def test_the_caption_says_what_was_done(folder: Path, name: str) -> None:
    """Before the size, the rate, the seed and the prompt."""
    draw, notes = NOTES[name]
    studio = Studio()
    clip = clip_of(studio.save(studio.decode(draw(studio))), folder)
    said = facts(clip.footage, Fraction(24))
    assert said[: len(notes)] == notes
    size = f"{clip.footage.width}x{clip.footage.height}"
    assert said[len(notes) : len(notes) + 3] == [size, "24 fps", "seed 42"]


def test_a_controlled_clip_names_its_lora(folder: Path) -> None:
    """The control, and the LoRA that makes the model follow it."""
    studio = Studio()
    control = studio.frames(studio.footage("source.mp4")[0], 0, 25)
    clip = clip_of(studio.save(controlled(studio, control)), folder)
    lora = "ltx-2-19b-ic-lora-union-control-ref0.5"
    assert facts(clip.footage, Fraction(24))[:2] == ["control", lora]
