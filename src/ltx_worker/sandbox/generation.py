"""Nodes of the sandbox that load models, condition, and make, join and upsample latents."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from ltx_worker.catalog import load_catalog
from ltx_worker.sandbox import latents as la
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.context import Context, Inputs, get

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
    return (v.AudioVae(name, _VOCODER_RATES[family(name) or "ltx-2"]),)


def family(checkpoint: str) -> str | None:
    """The model family of a checkpoint; None for one that the catalogue does not know."""
    files = load_catalog().files
    return next((file.family for file in files if file.name == checkpoint), None)


def lora(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LoraLoaderModelOnly and LoraLoader; the text encoder is passed on as it is."""
    name, strength = get(inputs, "lora_name", str), get(inputs, "strength_model", float)
    model = get(inputs, "model", v.Model).with_lora(name, strength)
    return model, inputs.get("clip")


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
    columns, rows = (get(inputs, name, int) // la.PIXELS_PER_LATENT for name in ("width", "height"))
    length = la.latents_of(get(inputs, "length", int))
    return (la.VideoLatent(columns, rows, length),)


def empty_audio(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVEmptyLatentAudio: as many latents as the frames last, rounded up."""
    get(inputs, "audio_vae", v.AudioVae)
    seconds = get(inputs, "frames_number", int) / get(inputs, "frame_rate", int)
    return (la.AudioLatent(math.ceil(seconds * la.AUDIO_LATENTS_PER_S)),)


def join(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVConcatAVLatent."""
    video = get(inputs, "video_latent", la.VideoLatent)
    return (la.AVLatent(video, get(inputs, "audio_latent", la.AudioLatent)),)


def separate(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVSeparateAVLatent: the video latent, the audio latent."""
    latent = get(inputs, "av_latent", la.AVLatent)
    return latent.video, latent.audio


def upsample(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVLatentUpsampler: twice or, by its name, 1.5 times as wide and high, or twice as many
    frames. The noise mask is lost, and guides that were not cropped are frames like any other."""
    name = get(inputs, "upscale_model", v.Upscaler).name
    get(inputs, "vae", v.Vae)
    latent = replace(get(inputs, "samples", la.VideoLatent), mask=None)
    if "temporal" in name:
        layers, length = (*latent.layers, la.Doubled()), 2 * latent.length - 1
        return (replace(latent, layers=layers, length=length).noted("temporal x2"),)
    factor = 1.5 if "x1.5" in name else 2
    columns, rows = math.ceil(latent.columns * factor), math.ceil(latent.rows * factor)
    larger = replace(latent, columns=columns, rows=rows)
    # Between two passes it is nothing to speak of.
    return (larger if latent.passes else larger.noted(f"spatial x{factor:g}"),)


def context_windows(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVContextWindows: noted, but not imitated."""
    return (replace(get(inputs, "model", v.Model), windowed=True),)


def manual_sigmas(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """ManualSigmas: the numbers in the text."""
    numbers = re.findall(r"[-+]?\d*\.?\d+", get(inputs, "sigmas", str))
    return (v.Sigmas(tuple(float(number) for number in numbers)),)


def scheduler(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVScheduler: even steps, shifted by the number of tokens, then stretched."""
    latent = inputs.get("latent")
    video = latent.video if isinstance(latent, la.AVLatent) else latent
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
