# pyright: basic, reportMissingImports=false
"""What the files of random weights hold: every tensor's shape, number format and kind of values.

Shapes come from ComfyUI's own classes on the meta device, so that nothing is allocated. Import it
with ComfyUI importable, as `full_size_weights.py` does.
"""

from __future__ import annotations

import json
import math
import struct
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import full_size_sizes as sizes  # first: it says where the tiny ones are
import tiny_weights as tiny
import torch

CATALOG = sizes.ROOT / "src" / "ltx_worker" / "catalog.toml"
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
# Weights drawn for fp8 reach its largest value at five sigma; activations are taken to stay below
# 28, which a real file's calibration would say of each layer.
_FP8_SIGMA = FP8_MAX / 5
_INPUT_SCALE = 1 / 16
_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    FP8: "F8_E4M3",
    torch.uint8: "U8",
}

Plan = dict[str, "Planned"]
Metadata = dict[str, str]


@dataclass(frozen=True)
class Planned:
    """A tensor to write: `exact`, or normal numbers of standard deviation `sigma`."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    sigma: float = 0.0
    exact: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class File:
    """One file below the models folder."""

    path: str
    published_bytes: int
    tensors: Plan
    metadata: Metadata

    def header(self) -> bytes:
        """The safetensors header; the widest numbers come first, so that all are aligned."""
        entries: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        offset = 0
        for name, tensor in self.ordered():
            entries[name] = {
                "dtype": _DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + tensor.bytes],
            }
            offset += tensor.bytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def ordered(self) -> list[tuple[str, Planned]]:
        return sorted(self.tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))

    @property
    def bytes(self) -> int:
        return len(self.header()) + sum(tensor.bytes for tensor in self.tensors.values())


def planned(module: torch.nn.Module, prefix: str = "", norm_weight: float = 1.0) -> Plan:
    """Every tensor of a module that may lie on the meta device; names decide values."""
    return {
        prefix + name: _planned(name, tensor, norm_weight)
        for name, tensor in module.state_dict().items()
    }


def _planned(name: str, tensor: torch.Tensor, norm_weight: float) -> Planned:
    shape = tuple(tensor.shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "learnable_registers":
        return Planned(shape, sigma=1.0)
    if tensor.dim() >= 2 and leaf not in {"filter", "kernel", "forward_basis", "mel_basis"}:
        return Planned(shape, sigma=tiny.fan_in(name, tensor.shape) ** -0.5)
    if tensor.is_meta:
        tensor = torch.empty(shape)
    return Planned(shape, exact=tiny.fill("", name, tensor, norm_weight))


def transformer(family: sizes.Family) -> Plan:
    """The diffusion model and the connectors of the text embeddings."""
    model = tiny.comfy("ldm.lightricks.av_model").LTXAVModel(
        **family.config["transformer"],
        dtype=torch.bfloat16,
        device="meta",
        operations=tiny.comfy("ops").disable_weight_init,
    )
    return planned(model, "model.diffusion_model.")


def text_projection(family: sizes.Family) -> Plan:
    """The layer from all of Gemma's hidden states to the transformer's captions."""
    prefix = "text_embedding_projection."
    outputs = {"aggregate_embed": sizes.GEMMA_WIDTH}
    if family.config["transformer"].get("caption_proj_before_connector"):
        outputs = {
            "video_aggregate_embed": sizes.VIDEO_WIDTH,
            "audio_aggregate_embed": sizes.AUDIO_WIDTH,
        }
    tensors: Plan = {}
    for name, width in outputs.items():
        shape = (width, sizes.GEMMA_STATES)
        tensors[f"{prefix}{name}.weight"] = Planned(shape, sigma=sizes.GEMMA_STATES**-0.5)
        if len(outputs) > 1:
            tensors[f"{prefix}{name}.bias"] = Planned((width,), exact=torch.zeros(width))
    return tensors


def autoencoders(family: sizes.Family) -> Plan:
    """The video autoencoder, the audio autoencoder and the vocoder."""
    config = family.config
    with torch.device("meta"):
        vae_module = tiny.comfy("ldm.lightricks.vae.causal_video_autoencoder")
        vae = vae_module.VideoVAE(config=config["vae"])
    # Small, and it has filters whose values are its own.
    audio = tiny.comfy("ldm.lightricks.vae.audio_vae").AudioVAE({"config": json.dumps(config)})
    vocoder = planned(audio.vocoder, "vocoder.")
    for name in (name for name in vocoder if name.endswith("conv_post.weight")):
        vocoder[name] = replace(vocoder[name], sigma=vocoder[name].sigma * family.loudness)
    return planned(vae, "vae.") | planned(audio.autoencoder, "audio_vae.") | vocoder


def quantised(
    tensors: Mapping[str, Planned], is_quantised: Callable[[str], bool], *, has_input_scales: bool
) -> tuple[Plan, list[str]]:
    """The same with the chosen linear layers in fp8, scaled per tensor, and these layers' names."""
    result: Plan = {}
    layers: list[str] = []
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(tensor.shape) != 2 or not is_quantised(layer):
            result[name] = tensor
            continue
        layers.append(layer)
        scale = torch.tensor(tensor.sigma / _FP8_SIGMA)
        result[name] = replace(tensor, dtype=FP8, sigma=_FP8_SIGMA)
        result[f"{layer}.weight_scale"] = Planned((), torch.float32, exact=scale)
        if has_input_scales:
            input_scale = torch.tensor(_INPUT_SCALE)
            result[f"{layer}.input_scale"] = Planned((), torch.float32, exact=input_scale)
    return result, layers


def quantisation_metadata(layers: Iterable[str]) -> Metadata:
    """The metadata in which ComfyUI looks for a checkpoint's quantised layers."""
    formats = {layer: {"format": "float8_e4m3fn"} for layer in layers}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": formats})}


def checkpoint(family: sizes.Family, role: str, variant: str) -> tuple[Plan, Metadata]:
    """Transformer, text projection and autoencoders in one file, as they are published."""
    tensors = transformer(family)
    metadata = tiny.as_metadata(family.config)
    if variant == "fp8":
        kept = {str(number) for number in family.blocks_in_16_bits[role]}
        blocks = "model.diffusion_model.transformer_blocks."

        def is_quantised(layer: str) -> bool:
            return layer.startswith(blocks) and layer[len(blocks) :].partition(".")[0] not in kept

        tensors, layers = quantised(tensors, is_quantised, has_input_scales=True)
        metadata |= quantisation_metadata(layers)
    return tensors | text_projection(family) | autoencoders(family), metadata


def upscaler(config: sizes.Config) -> tuple[Plan, Metadata]:
    """A latent upscaler and the configuration it is loaded with."""
    with torch.device("meta"):
        model = tiny.comfy("ldm.lightricks.latent_upsampler").LatentUpsampler.from_config(config)
    return planned(model), tiny.as_metadata(config)


def text_encoder(variant: str) -> tuple[Plan, Metadata]:
    """Gemma 3 12B with its image tower, and a tokenizer of few pieces, whose ids are in range."""
    llama = tiny.comfy("text_encoders.llama")
    with torch.device("meta"):
        model = llama.Gemma3_12B({}, torch.bfloat16, "meta", tiny.comfy("ops").disable_weight_init)
    # Gemma's norms add one to their weights; those of the image tower do not.
    tensors = planned(model, norm_weight=0.0)
    image_tower = {name: tensor for name, tensor in planned(model).items() if "vision" in name}
    tensors |= image_tower
    if variant == "fp8":

        def is_quantised(layer: str) -> bool:
            return ".layers." in layer and layer.endswith(("_proj", ".fc1", ".fc2"))

        tensors, layers = quantised(tensors, is_quantised, has_input_scales=False)
        mark = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        tensors |= {
            f"{layer}.comfy_quant": Planned(tuple(mark.shape), torch.uint8, exact=mark)
            for layer in layers
        }
    pieces = tiny.tokenizer_model()
    tensors["spiece_model"] = Planned(tuple(pieces.shape), torch.uint8, exact=pieces)
    return tensors, {}


def files(families: list[str], variants: list[str], roles: list[str]) -> Iterator[File]:
    """The catalogue's files of these families, variants (fp8, fp16) and roles, one at a time."""
    for entry in tomllib.loads(CATALOG.read_text())["files"]:
        role, variant = entry["role"], entry.get("variant", "")
        if role not in roles or (variant and variant not in variants):
            continue
        if entry["family"] not in (*families, "any"):
            continue
        if role == "text_encoder":
            tensors, metadata = text_encoder(variant)
        elif role.endswith("_checkpoint"):
            tensors, metadata = checkpoint(sizes.FAMILIES[entry["family"]], role, variant)
        else:
            config = (
                sizes.SPATIAL_UPSCALER if role == "spatial_upscaler" else sizes.TEMPORAL_UPSCALER
            )
            tensors, metadata = upscaler(config)
        path = f"{entry['folder']}/{Path(entry['path']).name}"
        yield File(path, entry["bytes"], tensors, metadata)
