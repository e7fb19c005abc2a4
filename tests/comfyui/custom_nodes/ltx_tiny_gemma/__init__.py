"""Test-only ComfyUI node package: the core LTX-2 text encoder loader reads its sizes from the file.

`LTXAVTextEncoderLoader` builds Gemma 3 12B and a text projection of fixed width whatever the file
holds. With this package loaded it builds the sizes found in the two state dicts instead, so that a
Gemma 3 of any size loads through the ordinary node. Nothing else changes, and no node is added.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.text_encoders.llama as llama
import comfy.text_encoders.lt as lt
import torch

NODE_CLASS_MAPPINGS: dict[str, type] = {}

StateDict = Mapping[str, torch.Tensor]

VISION_HEAD_WIDTH = 72
SINGLE_PROJECTION = "text_embedding_projection.aggregate_embed.weight"
DUAL_PROJECTION = "text_embedding_projection.{}_aggregate_embed.weight"


def _rows(tensors: StateDict, name: str) -> int:
    return tensors[name].shape[0]


def _count(tensors: StateDict, prefix: str) -> int:
    """Number of consecutively numbered blocks below `prefix`."""
    numbers = {
        int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix)
    }
    return len(numbers)


def _vision_config(tensors: StateDict) -> dict[str, Any]:
    """Sizes of the image tower, or those of the published model when the file has none."""
    published = dict(llama.GEMMA3_VISION_CONFIG)
    patches = tensors.get("vision_model.embeddings.position_embedding.weight")
    if patches is None:
        return published
    patch_size = tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    width = patches.shape[1]
    return published | {
        "hidden_size": width,
        "image_size": round(patches.shape[0] ** 0.5) * patch_size,
        "patch_size": patch_size,
        "intermediate_size": _rows(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight"),
        "num_attention_heads": max(1, width // VISION_HEAD_WIDTH),
        "num_hidden_layers": _count(tensors, "vision_model.encoder.layers."),
    }


def gemma_config(tensors: StateDict) -> Any:
    """The Gemma 3 configuration that fits the tensors of one text encoder file."""
    attention = "model.layers.0.self_attn.{}.weight"
    head_width = _rows(tensors, attention.format("q_norm"))
    vocabulary, width = tensors["model.embed_tokens.weight"].shape
    config = llama.Gemma3_12B_Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_rows(tensors, "model.layers.0.mlp.gate_proj.weight"),
        num_hidden_layers=_count(tensors, "model.layers."),
        num_attention_heads=_rows(tensors, attention.format("q_proj")) // head_width,
        num_key_value_heads=_rows(tensors, attention.format("k_proj")) // head_width,
    )
    config.head_dim = head_width
    config.vision_config = _vision_config(tensors)
    return config


@contextmanager
def _gemma_sizes(config: Any) -> Iterator[None]:
    """Let every Gemma 3 12B built inside the block take `config`."""
    published = llama.Gemma3_12B_Config
    llama.Gemma3_12B_Config = lambda **_: config
    try:
        yield
    finally:
        llama.Gemma3_12B_Config = published


def _projection(kind: str, tensors: StateDict, **placement: Any) -> torch.nn.Module:
    """The projection from Gemma's stacked layers to the width the transformer takes."""
    if kind == "single_linear":
        out_width, in_width = tensors[SINGLE_PROJECTION].shape
        linear = placement.pop("operations").Linear
        return linear(in_width, out_width, bias=False, **placement)
    video, in_width = tensors[DUAL_PROJECTION.format("video")].shape
    audio = _rows(tensors, DUAL_PROJECTION.format("audio"))
    return lt.DualLinearProjection(in_width, video, audio, **placement)


class SizedTextEncoder(lt.LTXAVTEModel):
    """ComfyUI's LTX-2 text encoder with the sizes of its files.

    The parent builds no projection for a type it does not know, so it is given none and the one
    that fits is added afterwards.
    """

    def __init__(
        self, *, gemma: StateDict, checkpoint: StateDict, kind: str, **options: Any
    ) -> None:
        with _gemma_sizes(gemma_config(gemma)):
            super().__init__(text_projection_type="sized", **options)
        self.text_projection_type = kind
        self.text_embedding_projection = _projection(
            kind,
            checkpoint,
            dtype=options.get("dtype"),
            device=options.get("device", "cpu"),
            operations=self.gemma3_12b.operations,
        )


def _sized_text_encoder(
    dtype_llama: torch.dtype | None = None,
    llama_quantization_metadata: dict[str, Any] | None = None,
    text_projection_type: str = "single_linear",
    tensors: Sequence[StateDict] = (),
) -> Callable[..., SizedTextEncoder]:
    """Stand in for `ltxav_te`, which returns something that builds the model."""
    gemma = next(part for part in tensors if "model.embed_tokens.weight" in part)
    checkpoint = next(part for part in tensors if part is not gemma)

    def build(
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> SizedTextEncoder:
        options = dict(model_options or {})
        if llama_quantization_metadata is not None:
            options["llama_quantization_metadata"] = llama_quantization_metadata
        return SizedTextEncoder(
            gemma=gemma,
            checkpoint=checkpoint,
            kind=text_projection_type,
            dtype_llama=dtype_llama,
            device=device,
            dtype=dtype_llama or dtype,
            model_options=options,
        )

    return build


def _detect_with_tensors(
    detect: Callable[..., dict[str, Any]], tensors: Sequence[StateDict], prefix: str = ""
) -> dict[str, Any]:
    """Add the state dicts to what the loader hands on, so that their shapes can be read."""
    return detect(tensors, prefix) | {"tensors": tensors}


lt.sd_detect = partial(_detect_with_tensors, lt.sd_detect)
lt.ltxav_te = _sized_text_encoder
