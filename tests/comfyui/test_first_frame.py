"""The picture given to image to video is what the clip's first frame starts from.

Random weights draw noise, so this is measured where it is exact: the second pass's first latent
frame against the picture's own encoding, both saved by ComfyUI.
"""

from __future__ import annotations

import base64
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import SMALL, executor_at, picture

from ltx_worker.catalog import Inventory, load_catalog
from ltx_worker.comfy.client import ComfyClient
from ltx_worker.engines import Engine
from ltx_worker.offer import Offer
from ltx_worker.recipes import load_recipe
from ltx_worker.request_reader import parse_request
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.template import load_templates, title_of
from ltx_worker.workflow.values import Placed, render


def id_of(graph: Graph, title: str) -> str:
    (found,) = [node_id for node_id, node in graph.items() if title_of(node) == title]
    return found


def save_latent(graph: Graph, key: str, samples: list[Any]) -> None:
    """Add a node that writes `samples` to a file named after `key`."""
    inputs = {"samples": samples, "filename_prefix": f"latents/{key}"}
    graph[key] = {"class_type": "SaveLatent", "inputs": inputs}


def read_latent(engine: Engine, key: str) -> np.ndarray:
    """The latent saved under `key`: (batch, channels, frames, height, width)."""
    (path,) = (engine.output_dir / "latents").glob(f"{key}_*.latent")
    latent = load_file(path)["latent_tensor"]
    path.unlink()
    return latent


@pytest.mark.parametrize("family", ["ltx-2", "ltx-2.3"])
@pytest.mark.parametrize("quality", ["fast", "pro"])
def test_the_first_latent_frame_is_the_picture(engine: Engine, family: str, quality: str) -> None:
    """After both passes the first latent frame is the picture's encoding, to float rounding."""
    client = ComfyClient(engine.url)
    template = load_templates(Settings().workflows_dir)["i2v", quality, ""]
    catalog = load_catalog()
    offer = Offer(
        {("i2v", quality, ""): template.offer},
        catalog.families,
        catalog.families,
        max_frames=505,
        roles={},
    )
    image = picture(256, 128)
    Path(engine.input_dir / "first.png").write_bytes(base64.b64decode(image))
    fields = SMALL | {"model": family, "quality": quality, "image": image}
    graph = render(
        template,
        parse_request(fields, offer),
        load_recipe(family, quality),
        Inventory.from_node_info(catalog, client.node_info()),
        f"latents/{uuid.uuid4().hex}",
        Placed({"image": "first.png"}),
    )
    pixels, vae = [id_of(graph, "Compress image"), 0], [id_of(graph, "Checkpoint"), 2]
    graph["encode"] = {"class_type": "VAEEncode", "inputs": {"pixels": pixels, "vae": vae}}
    save_latent(graph, "asked", ["encode", 0])
    save_latent(graph, "made", [id_of(graph, "Second pass result"), 0])

    executor_at(client.base_url).execute(graph, str(uuid.uuid4()), StopSignal(120), lambda _: None)

    asked, made = read_latent(engine, "asked"), read_latent(engine, "made")
    client.close()
    (engine.input_dir / "first.png").unlink()
    assert made.shape == (1, 128, 2, 4, 8)
    assert np.abs(made[:, :, 0] - asked[:, :, 0]).max() < 1e-5
    assert np.abs(made[:, :, 1] - asked[:, :, 0]).mean() > 0.1
