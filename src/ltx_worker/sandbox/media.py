"""Nodes of the sandbox that load, scale, decode and save pictures, sound and clips."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.cache import Entry
from ltx_worker.sandbox.context import Context, Inputs, get
from ltx_worker.sandbox.draw import fit
from ltx_worker.sandbox.encode import stills, write_clip, write_png

_RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def load_image(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """LoadImage: the picture, upright and opaque."""
    with Image.open(context.folders.source(get(inputs, "image", str))) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return v.Still.of(np.asarray(upright)), None


def scale(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """ImageScale; a width or height of 0 follows from the other."""
    image = inputs["image"]
    width, height = get(inputs, "width", int), get(inputs, "height", int)
    if not width and not height:
        return (image,)
    width = width or max(1, round(image.width * height / image.height))
    height = height or max(1, round(image.height * width / image.width))
    if isinstance(image, v.Footage):
        return (replace(image, width=width, height=height),)
    pixels = get(inputs, "image", v.Still).pixels
    method = _RESAMPLING[inputs["upscale_method"]]
    return (v.Still.of(fit(pixels, width, height, method, crop=inputs["crop"] == "center")),)


def compress(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVPreprocess: its cut to even sizes; the loss of detail is not imitated."""
    image = get(inputs, "image", v.Still)
    if not get(inputs, "img_compression", int):
        return (image,)
    return (v.Still.of(image.pixels[: image.height // 2 * 2, : image.width // 2 * 2]),)


def decode(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """VAEDecode, which takes the video out of a joint latent."""
    latent = inputs["samples"]
    if isinstance(latent, v.AVLatent):
        return decode_tiled({**inputs, "samples": latent.video}, context)
    return decode_tiled(inputs, context)


def decode_tiled(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """VAEDecodeTiled, which takes no joint latent."""
    get(inputs, "vae", v.Vae)
    latent = get(inputs, "samples", v.VideoLatent)
    size = latent.width, latent.height, latent.frames
    return (v.Footage(*size, latent.passes, latent.first, latent.strength),)


def decode_audio(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVAudioVAEDecode, which takes the sound out of a joint latent."""
    rate = get(inputs, "audio_vae", v.AudioVae).sample_rate
    latent = inputs["samples"]
    latent = (
        latent.audio if isinstance(latent, v.AVLatent) else get(inputs, "samples", v.AudioLatent)
    )
    return (v.Sound(latent.seconds, rate, latent.passes),)


def _footage(inputs: Inputs) -> v.Footage:
    images = inputs["images"]
    if isinstance(images, v.Still):
        return v.Footage(images.width, images.height, 1, (), images)
    return get(inputs, "images", v.Footage)


def create_video(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """CreateVideo; the rate is kept to a thousandth."""
    sound = None if inputs.get("audio") is None else get(inputs, "audio", v.Sound)
    rate = Fraction(round(get(inputs, "fps", float) * 1000), 1000)
    return (v.Clip(_footage(inputs), rate, sound),)


def save_video(inputs: Inputs, context: Context) -> Entry:
    """SaveVideo: draws the clip and writes it."""
    clip = get(inputs, "video", v.Clip)
    prefix = get(inputs, "filename_prefix", str)
    target = context.folders.save_target(prefix, clip.footage.width, clip.footage.height)
    name = target.file_name(".mp4")
    write_clip(target.directory / name, clip)
    saved = {"filename": name, "subfolder": target.subfolder, "type": "output"}
    return Entry((clip,), {"images": [saved], "animated": (True,)})


def save_image(inputs: Inputs, context: Context) -> Entry:
    """SaveImage: a file for each picture."""
    images = inputs["images"]
    prefix = get(inputs, "filename_prefix", str)
    target = context.folders.save_target(prefix, images.width, images.height)
    pictures = [images.pixels] if isinstance(images, v.Still) else stills(_footage(inputs))
    saved: list[dict[str, str]] = []
    for offset, pixels in enumerate(pictures):
        name = target.file_name(".png", offset)
        write_png(target.directory / name, pixels)
        saved.append({"filename": name, "subfolder": target.subfolder, "type": "output"})
    return Entry((images,), {"images": saved})
