# pyright: basic, reportMissingImports=false
"""Passes whose steps are repeated from what one of them left, against passes that run each step.

Run with ComfyUI's own Python in ComfyUI's folder; prints one JSON object. There are no CUDA graphs
on a CPU: a repeated step runs its operations again where a graph would, on the tensors that a graph
reads. Kernels run in Triton's interpreter (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import json
import sys
import uuid
from typing import Any

import comfyui_on_cpu  # noqa: F401 - sets up ComfyUI

# isort: split
import speed
import torch
import transformer_equality

try:
    from speed import graphs, transformer
except ImportError:
    graphs = None

SMALL, LARGE = (2, 2, 3), (3, 2, 3)
STEPS = (0.9, 0.7, 0.5, 0.3)


class Captured:
    """In place of the capture of a CUDA graph; counts captures and repeated steps."""

    def __init__(self) -> None:
        self.count = 0
        self.repeats = 0

    def __call__(self, model: Any, addresses: Any, inputs: Any, run: Any) -> Any:
        self.count += 1
        step = graphs._Graph(addresses, inputs, graphs._text_tensors(model))
        step.result = step.inputs[0]

        def replay() -> None:
            self.repeats += 1
            run(step.inputs)

        step.replay = replay
        return step


class Issued:
    """In place of the GPU's work: done or not, as it is set."""

    is_slow = False

    def mark(self) -> None:
        pass

    def is_done(self) -> bool:
        return not self.is_slow


@torch.no_grad()
def passed(
    model: Any, size: tuple[int, int, int], seed: int, is_on: bool, guided: bool
) -> list[torch.Tensor]:
    """Video and sound after a pass with a text of its own; guided by a node's own means or not."""
    speed.switches.graphs = is_on
    draw = torch.Generator().manual_seed(seed)
    latents = [torch.randn(1, 128, *size, generator=draw), torch.randn(1, 8, 6, 16, generator=draw)]
    text = torch.randn(1, 16, model.caption_channels * 2, generator=draw)
    options: dict[str, Any] = {"uuids": [uuid.uuid4()], "cond_or_uncond": [0]}
    if guided:
        options["ptb_index"] = 0
    for sigma in STEPS:
        velocities = model(
            [latent.clone() for latent in latents],
            torch.tensor([sigma]), text.clone(), None, 24.0, dict(options),
        )  # fmt: skip
        latents = [
            latent - 0.2 * velocity for latent, velocity in zip(latents, velocities, strict=True)
        ]
    return latents


def moved(model: Any) -> None:
    """One weight at another address, changed: as when ComfyUI loads a model again, with a LoRA."""
    layer = model.transformer_blocks[1].attn1.to_q
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 1.5, requires_grad=False)


def patched(model: Any) -> None:
    """A LoRA that is applied whenever the weight is used."""
    model.transformer_blocks[0].ff.net[2].weight_function = [lambda weight: weight * 1.5]


def main() -> None:
    if graphs is None:
        sys.stdout.write(json.dumps({"triton": False}))
        return
    config = transformer_equality.tiny_sizes.TRANSFORMER
    model = transformer_equality.model_of(config, torch.float32)
    transformer.is_roomy = lambda: True
    graphs._fits = lambda _, options: speed.switches.graphs and graphs._are_plain(options)
    captured = Captured()
    issued = Issued()
    steps = graphs._Steps(captured, issued)
    stock = transformer_equality.av_model.LTXAVModel
    rows = []
    plan = [
        ("the GPU is slower", SMALL, 1, None),
        ("the GPU waits", SMALL, 1, None),
        ("another text", SMALL, 2, None),
        ("another size", LARGE, 1, None),
        ("back at the first size", SMALL, 3, None),
        ("guided by a node's own means", SMALL, 4, None),
        ("a weight has moved", SMALL, 1, moved),
        ("a weight changes as it is used", SMALL, 3, patched),
    ]
    install_with(steps, stock)
    for name, size, seed, change in plan:
        if change is not None:
            change(model)
        issued.is_slow = name == "the GPU is slower"
        guided = name == "guided by a node's own means"
        expected = passed(model, size, seed, is_on=False, guided=guided)
        before = captured.count
        found = passed(model, size, seed, is_on=True, guided=guided)
        is_equal = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        captures, repeats = captured.count - before, captured.repeats
        captured.repeats = 0
        rows.append({"pass": name, "is_equal": is_equal, "captures": captures, "repeats": repeats})
    sys.stdout.write(json.dumps({"triton": True, "passes": rows}))


def install_with(steps: Any, model: Any) -> None:
    """`graphs.install` with other steps, in place of what the package installed."""
    model._process_transformer_blocks = model._process_transformer_blocks.__wrapped__
    graphs._Steps = lambda *_: steps
    graphs._Issued = Issued
    graphs.install()


if __name__ == "__main__":
    main()
