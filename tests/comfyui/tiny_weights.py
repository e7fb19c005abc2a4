"""Write a ComfyUI models folder of tiny random LTX-2 and LTX-2.3 weights.

Run it with ComfyUI's own Python:

    python tiny_weights.py --comfyui DIR --models DEST

The files carry the names of the published ones, so that workflows and catalogues find them, and
the sizes of each model go into the `config` metadata from which ComfyUI's core nodes read them.
Every tensor is drawn from a generator seeded by its own name: a second run writes the same bytes.
The text encoder needs the `ltx_tiny_gemma` node package beside this script.
"""

import argparse
import hashlib
import importlib
import io
import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import sentencepiece
import tiny_sizes as sizes
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Metadata = dict[str, str]

STAMP = "tiny_weights.json"
LORA_RANK = 4
LORA_GAIN = 0.5

log = logging.getLogger("tiny_weights")


def comfy(name: str) -> ModuleType:
    """A module of ComfyUI's `comfy` package, importable once `main` knows the checkout."""
    return importlib.import_module(f"comfy.{name}")


def draw(seed: str, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Normal numbers that depend on nothing but the seed text and the shape."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def fan_in(name: str, shape: torch.Size) -> float:
    """Inputs summed into one output; a transposed convolution has its inputs first."""
    if ".ups." in name:
        return shape[0] * 2.0
    return float(math.prod(shape[1:]))


def stft_bases(filter_length: int, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windowed Fourier rows (real, then imaginary) and an even split of them into mel bins."""
    frequencies = filter_length // 2 + 1
    angle = torch.arange(frequencies)[:, None] * torch.arange(filter_length)[None, :]
    turn = angle.double() * (2 * math.pi / filter_length)
    window = torch.hann_window(filter_length, dtype=torch.float64)
    rows = torch.cat([turn.cos(), -turn.sin()]) * window
    bin_of = torch.arange(frequencies) * bins // frequencies
    mel = torch.nn.functional.one_hot(bin_of, bins).T.float()
    return rows.float()[:, None], mel / mel.sum(dim=1, keepdim=True)


def fill(seed: str, name: str, tensor: torch.Tensor, norm_weight: float) -> torch.Tensor:
    """The value of one tensor, chosen by what its name says it is."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in {"filter", "kernel"}:
        return tensor.clone()
    if leaf == "std-of-means":
        return torch.ones_like(tensor)
    if leaf in {"mean-of-means", "bias", "alpha", "beta"}:
        return torch.zeros_like(tensor)
    if leaf == "forward_basis":
        return stft_bases(tensor.shape[-1], 64)[0]
    if leaf == "mel_basis":
        return stft_bases(2 * (tensor.shape[1] - 1), tensor.shape[0])[1]
    if leaf == "learnable_registers":
        return draw(f"{seed}/{name}", tensor.shape)
    if tensor.dim() < 2:
        return torch.full_like(tensor, norm_weight)
    return draw(f"{seed}/{name}", tensor.shape) * fan_in(name, tensor.shape) ** -0.5


def fill_module(
    seed: str, module: torch.nn.Module, prefix: str = "", norm_weight: float = 1.0
) -> Tensors:
    """Values for every tensor that ComfyUI's own class wants to load."""
    return {
        prefix + name: fill(seed, name, tensor, norm_weight)
        for name, tensor in module.state_dict().items()
    }


def transformer(family: sizes.Family, variant: str) -> Tensors:
    """The diffusion model and, with it, the connectors of the text embeddings."""
    model = comfy("ldm.lightricks.av_model").LTXAVModel(
        **family.config["transformer"],
        dtype=torch.float32,
        device="cpu",
        operations=comfy("ops").disable_weight_init,
    )
    return fill_module(f"{family.name}/{variant}", model, "model.diffusion_model.")


def text_projection(family: sizes.Family) -> Tensors:
    """The layer from Gemma's hidden states to the transformer's captions."""
    prefix = "text_embedding_projection."
    outputs = {"aggregate_embed": sizes.CAPTION_WIDTH}
    if family.config["transformer"].get("caption_proj_before_connector"):
        outputs = {
            "video_aggregate_embed": sizes.VIDEO_WIDTH,
            "audio_aggregate_embed": sizes.AUDIO_WIDTH,
        }
    tensors: Tensors = {}
    for name, width in outputs.items():
        weight = draw(f"{family.name}/{name}", (width, sizes.GEMMA_STATES))
        tensors[f"{prefix}{name}.weight"] = weight * sizes.GEMMA_STATES**-0.5
        if len(outputs) > 1:
            tensors[f"{prefix}{name}.bias"] = torch.zeros(width)
    return tensors


def autoencoders(family: sizes.Family, config: sizes.Config) -> Tensors:
    """The video autoencoder, the audio autoencoder and the vocoder."""
    vae = comfy("ldm.lightricks.vae.causal_video_autoencoder").VideoVAE(config=config["vae"])
    audio = comfy("ldm.lightricks.vae.audio_vae").AudioVAE({"config": json.dumps(config)})
    vocoder = fill_module(family.name, audio.vocoder, "vocoder.")
    for name in (name for name in vocoder if name.endswith("conv_post.weight")):
        vocoder[name] *= family.loudness
    return {
        **fill_module(family.name, vae, "vae."),
        **fill_module(family.name, audio.autoencoder, "audio_vae."),
        **vocoder,
    }


def lora(file_name: str, base: Tensors) -> Tensors:
    """A low-rank change of every linear layer in the transformer's blocks, drawn by file name."""
    tensors: Tensors = {}
    for key, weight in base.items():
        if ".transformer_blocks." not in key or weight.dim() != 2 or not key.endswith(".weight"):
            continue
        name = key.removeprefix("model.").removesuffix(".weight")
        down = draw(f"{file_name}/{name}/A", (LORA_RANK, weight.shape[1]))
        up = draw(f"{file_name}/{name}/B", (weight.shape[0], LORA_RANK))
        tensors[f"{name}.lora_A.weight"] = down * weight.shape[1] ** -0.5
        tensors[f"{name}.lora_B.weight"] = up * LORA_GAIN * LORA_RANK**-0.5
    return tensors


def lora_metadata(file_name: str) -> Metadata | None:
    """What ComfyUI reads of a control LoRA: how many times smaller than the clip its guide is."""
    return {"reference_downscale_factor": "2"} if sizes.HALF_SIZE_GUIDE in file_name else None


def upscaler(family: sizes.Family, sizes_of: sizes.Config) -> tuple[Tensors, Metadata]:
    """A latent upscaler and the configuration it is loaded with."""
    model = comfy("ldm.lightricks.latent_upsampler").LatentUpsampler.from_config(sizes_of)
    return fill_module(family.name, model), as_metadata(sizes_of)


def tokenizer_model() -> torch.Tensor:
    """A sentencepiece model with Gemma's ids for padding, start and the turn markers."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sizes.TOKENIZER_TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=sizes.TOKENIZER_PIECES,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=[f"<unused{number}>" for number in range(101)]
        + ["<start_of_turn>", "<end_of_turn>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def text_encoder() -> Tensors:
    """Gemma 3 with its image tower and its tokenizer."""
    llama = comfy("text_encoders.llama")
    config = llama.Gemma3_12B_Config(**sizes.GEMMA)
    config.head_dim = sizes.GEMMA_HEAD_WIDTH
    config.vision_config = llama.GEMMA3_VISION_CONFIG | sizes.GEMMA_VISION
    ops = comfy("ops").disable_weight_init
    language = llama.Llama2_(config, device="cpu", dtype=torch.float32, ops=ops)
    projector = llama.Gemma3MultiModalProjector(config, torch.float32, "cpu", ops)
    vision = comfy("clip_model").CLIPVision(config.vision_config, torch.float32, "cpu", ops)
    tensors = fill_module("gemma", language, "model.", norm_weight=0.0)
    tensors["model.embed_tokens.weight"][sizes.END_OF_TURN] *= sizes.END_OF_TURN_GAIN
    return {
        "spiece_model": tokenizer_model(),
        **tensors,
        **fill_module("gemma", projector, "multi_modal_projector.", norm_weight=0.0),
        **fill_module("gemma", vision, "vision_model."),
    }


def as_metadata(config: sizes.Config) -> Metadata:
    """The metadata in which ComfyUI looks for a model's sizes."""
    return {"config": json.dumps(config, sort_keys=True)}


def files() -> Iterator[tuple[str, Tensors, Metadata | None]]:
    """Each file's path below the models folder, its tensors and its metadata."""
    yield f"text_encoders/{sizes.TEXT_ENCODER}", text_encoder(), None
    for family in sizes.FAMILIES:
        config = family.config | {"vae": sizes.VIDEO_VAE, "audio_vae": sizes.AUDIO_VAE}
        shared = text_projection(family) | autoencoders(family, config)
        tensors: Tensors = {}
        for variant, name in family.checkpoints.items():
            tensors = transformer(family, variant)
            yield f"checkpoints/{name}", tensors | shared, as_metadata(config)
        for name in family.loras:
            yield f"loras/{name}", lora(name, tensors), lora_metadata(name)
        folder = "latent_upscale_models"
        yield f"{folder}/{family.upscaler}", *upscaler(family, sizes.UPSCALER)
        yield f"{folder}/{family.temporal_upscaler}", *upscaler(family, sizes.TEMPORAL_UPSCALER)


def write(path: Path, tensors: Tensors, metadata: Metadata | None) -> None:
    """Put one safetensors file in place whole; its metadata has one key, for a stable order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.replace(path)


def comfyui_version(comfyui: Path) -> str:
    """The version that ComfyUI's checkout states."""
    found = re.search(r'__version__ = "([^"]+)"', (comfyui / "comfyui_version.py").read_text())
    return found[1] if found else "unknown"


def source_digest() -> str:
    """Hash of everything here that decides what is written."""
    sources = (Path(__file__), Path(sizes.__file__))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def is_current(models: Path, stamp: dict[str, str]) -> bool:
    """Whether the folder holds every file that a run with this stamp wrote."""
    path = models / STAMP
    if not path.is_file():
        return False
    written = json.loads(path.read_text())
    names = written.pop("files")
    return written == stamp and all(
        (models / name).is_file() and (models / name).stat().st_size == size
        for name, size in names.items()
    )


def main() -> None:
    """Write the folder unless it is current."""
    parser = argparse.ArgumentParser(description="Write tiny random LTX-2 weights for ComfyUI.")
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's checkout")
    parser.add_argument("--models", type=Path, required=True, help="models folder to write")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    stamp = {"source": source_digest(), "comfyui": comfyui_version(options.comfyui)}
    if is_current(options.models, stamp):
        log.info("current: %s", options.models)
        return
    sys.path.insert(0, str(options.comfyui.resolve()))
    comfy("cli_args").args.cpu = True
    written: dict[str, int] = {}
    for name, tensors, metadata in files():
        write(options.models / name, tensors, metadata)
        written[name] = (options.models / name).stat().st_size
        log.info("wrote %s (%.1f MB)", name, written[name] / 1e6)
    (options.models / STAMP).write_text(json.dumps(stamp | {"files": written}, indent=2) + "\n")


if __name__ == "__main__":
    main()
