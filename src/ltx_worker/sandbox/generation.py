"""Nodes of the sandbox that load models, condition, make latents and sample them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, TypeVar

from PIL import Image

from ltx_worker.catalog import load_catalog
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.context import Context, Inputs, get
from ltx_worker.sandbox.draw import fit

# The upscaler's factor in each direction.
_UPSCALING = 2

# Hz, of each family's vocoder; a checkpoint that the catalogue does not know counts as LTX-2.
_VOCODER_RATES = {"ltx-2": 24_000, "ltx-2.3": 48_000}


def checkpoint(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """CheckpointLoaderSimple: the model, no text encoder, the video autoencoder."""
    name = get(inputs, "ckpt_name", str)
    # The second slot is the text encoder, which these checkpoints do not hold.
    return v.Model(name), None, v.Vae(name)


def audio_vae(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVAudioVAELoader: the audio autoencoder with the vocoder of the checkpoint's family."""
    name = get(inputs, "ckpt_name", str)
    return (v.AudioVae(name, _VOCODER_RATES[_family(name) or "ltx-2"]),)


def _family(checkpoint: str) -> str | None:
    """The model family of a checkpoint; None for one that the catalogue does not know."""
    files = load_catalog().files
    return next((file.family for file in files if file.name == checkpoint), None)


def lora(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LoraLoaderModelOnly and LoraLoader; the text encoder is passed on as it is."""
    name, strength = get(inputs, "lora_name", str), get(inputs, "strength_model", float)
    model = get(inputs, "model", v.Model).with_lora(name, strength)
    return model, inputs.get("clip")


def text(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """CLIPTextEncode."""
    return (v.Conditioning(get(inputs, "clip", v.TextEncoder), get(inputs, "text", str)),)


def zero_out(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """ConditioningZeroOut."""
    return (replace(get(inputs, "conditioning", v.Conditioning), zeroed=True),)


def frame_rate(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVConditioning: both conditionings with a frame rate."""
    rate = get(inputs, "frame_rate", float)
    return tuple(
        replace(get(inputs, name, v.Conditioning), frame_rate=rate)
        for name in ("positive", "negative")
    )


def empty_video(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """EmptyLTXVLatentVideo: sizes floored to 32 pixels, the length to 8k+1 frames."""
    columns, rows = (get(inputs, name, int) // v.PIXELS_PER_LATENT for name in ("width", "height"))
    length = (get(inputs, "length", int) - 1) // v.FRAMES_PER_LATENT + 1
    return (v.VideoLatent(columns, rows, length),)


def empty_audio(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVEmptyLatentAudio: as many latents as the frames last, rounded up."""
    get(inputs, "audio_vae", v.AudioVae)
    seconds = get(inputs, "frames_number", int) / get(inputs, "frame_rate", int)
    return (v.AudioLatent(math.ceil(seconds * v.AUDIO_LATENTS_PER_S)),)


def join(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVConcatAVLatent."""
    video = get(inputs, "video_latent", v.VideoLatent)
    return (v.AVLatent(video, get(inputs, "audio_latent", v.AudioLatent)),)


def separate(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVSeparateAVLatent: the video latent, the audio latent."""
    latent = get(inputs, "av_latent", v.AVLatent)
    return latent.video, latent.audio


def image_in_place(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVImgToVideoInplace: the image becomes frame 0, cut to the latent's shape."""
    latent = get(inputs, "latent", v.VideoLatent)
    if inputs.get("bypass"):
        return (latent,)
    image, strength = get(inputs, "image", v.Still), get(inputs, "strength", float)
    method = Image.Resampling.BILINEAR
    pixels = fit(image.pixels, latent.width, latent.height, method, crop=True)
    return (replace(latent, first=v.Still.of(pixels), strength=strength),)


def upsample(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVLatentUpsampler: twice as wide and high."""
    get(inputs, "upscale_model", v.Upscaler)
    get(inputs, "vae", v.Vae)
    latent = get(inputs, "samples", v.VideoLatent)
    columns, rows = latent.columns * _UPSCALING, latent.rows * _UPSCALING
    return (replace(latent, columns=columns, rows=rows),)


def manual_sigmas(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """ManualSigmas: the numbers in the text."""
    numbers = re.findall(r"[-+]?\d*\.?\d+", get(inputs, "sigmas", str))
    return (v.Sigmas(tuple(float(number) for number in numbers)),)


def scheduler(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVScheduler: even steps, shifted by the number of tokens, then stretched."""
    latent = inputs.get("latent")
    video = latent.video if isinstance(latent, v.AVLatent) else latent
    tokens = video.columns * video.rows * video.length if video else 4096
    base, most = get(inputs, "base_shift", float), get(inputs, "max_shift", float)
    shift = math.exp(base + (most - base) * (tokens - 1024) / (4096 - 1024))
    steps = get(inputs, "steps", int)
    even = [1 - step / steps for step in range(steps)]
    sigmas = [shift / (shift + 1 / sigma - 1) for sigma in even]
    if inputs["stretch"] and sigmas[-1] < 1:
        factor = (1 - get(inputs, "terminal", float)) / (1 - sigmas[-1])
        sigmas = [1 - (1 - sigma) * factor for sigma in sigmas]
    return (v.Sigmas((*sigmas, 0.0)),)


def guider(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """CFGGuider."""
    positive, negative = (get(inputs, name, v.Conditioning) for name in ("positive", "negative"))
    model = get(inputs, "model", v.Model)
    return (v.Guider(model, positive, negative, get(inputs, "cfg", float)),)


def sample(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """SamplerCustomAdvanced: one more pass over a latent; both slots hold the result.

    Raises RuntimeError when the text was encoded for a model of another family.
    """
    sigmas = get(inputs, "sigmas", v.Sigmas)
    done = v.Pass(
        get(inputs, "noise", v.Noise),
        get(inputs, "sampler", v.Sampler),
        sigmas,
        get(inputs, "guider", v.Guider),
    )
    _require_one_family(done.guider)
    latent = inputs["latent_image"]
    if not isinstance(latent, v.AVLatent):
        latent = get(inputs, "latent_image", v.VideoLatent)
    for step in range(sigmas.steps):
        context.step(step + 1, sigmas.steps)
    if not sigmas.steps:
        sampled = latent
    elif isinstance(latent, v.AVLatent):
        sampled = v.AVLatent(_passed(latent.video, done), _passed(latent.audio, done))
    else:
        sampled = _passed(latent, done)
    return sampled, sampled


def _require_one_family(guider: v.Guider) -> None:
    model = guider.model.checkpoint
    for conditioning in (guider.positive, guider.negative):
        encoder = conditioning.encoder.checkpoint
        if len({_family(model), _family(encoder)} - {None}) > 1:
            raise RuntimeError(f"{model} cannot read a text that was encoded for {encoder}")


_Sampled = TypeVar("_Sampled", v.VideoLatent, v.AudioLatent)


def _passed(latent: _Sampled, done: v.Pass) -> _Sampled:
    return replace(latent, passes=(*latent.passes, done))
