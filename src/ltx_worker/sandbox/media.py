"""Nodes of the sandbox that load, cut, scale, encode, decode and save pictures and clips."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from ltx_worker.sandbox import latents as la
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.cache import Entry
from ltx_worker.sandbox.context import Context, Inputs, get
from ltx_worker.sandbox.draw import fit
from ltx_worker.sandbox.encode import stills, write_clip, write_png
from ltx_worker.sandbox.footage import (
    Footage,
    Joined,
    Still,
    file_frames,
    part_of,
    scaled_to,
)
from ltx_worker.sandbox.sound import Sound, file_sound


def load_image(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """LoadImage: the picture, upright and opaque."""
    with Image.open(context.folders.source(get(inputs, "image", str))) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return Still.of(np.asarray(upright)), None


def load_video(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """LoadVideo, which does not look into the file."""
    return (v.VideoFile(context.folders.source(get(inputs, "file", str))),)


def _clip(inputs: Inputs) -> v.Clip:
    """A video's frames, read when they are needed, its rate, and its last sound."""
    if not isinstance(inputs["video"], v.VideoFile):
        return get(inputs, "video", v.Clip)
    path = get(inputs, "video", v.VideoFile).path
    frames = file_frames(path)
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate or Fraction(1)
    return v.Clip(frames, rate, file_sound(path, last_stream=True))


def components(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """GetVideoComponents: frames, sound or None, rate, and a depth of 8 bits."""
    clip = _clip(inputs)
    return clip.footage, clip.sound, float(clip.fps), 8


def images_from_batch(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """ImageFromBatch: as many as there are from an index on; a negative one counts from the end."""
    pictures, start = get(inputs, "image", Footage), get(inputs, "batch_index", int)
    start = start + pictures.frames if start < 0 else start
    start = max(0, min(pictures.frames - 1, start))
    count = min(pictures.frames - start, get(inputs, "length", int))
    return (part_of(pictures, start, count),)


def batch_images(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """ImageBatch: one after the other, the second at the size of the first."""
    first, second = (get(inputs, name, Footage) for name in ("image1", "image2"))
    second = scaled_to(second, first.width, first.height, "bilinear", crop=True)
    frames = first.frames + second.frames
    return (Joined(first.width, first.height, frames, first, second),)


def scale(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """ImageScale; a width or height of 0 follows from the other."""
    image = get(inputs, "image", Footage)
    width, height = get(inputs, "width", int), get(inputs, "height", int)
    if not width and not height:
        return (image,)
    width = width or max(1, round(image.width * height / image.height))
    height = height or max(1, round(image.height * width / image.width))
    method, crop = get(inputs, "upscale_method", str), inputs["crop"] == "center"
    if isinstance(image, Still):
        return (Still.of(fit(image.pixels, width, height, method, crop=crop)),)
    return (scaled_to(image, width, height, method, crop=crop),)


def scale_by(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """ImageScaleBy."""
    image, factor = get(inputs, "image", Footage), get(inputs, "scale_by", float)
    size = {"width": round(image.width * factor), "height": round(image.height * factor)}
    return scale({**inputs, **size, "crop": "disabled"}, context)


def resize(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """ResizeImageMaskNode, for pictures: to a size, by a factor, or to that of other pictures.

    Raises NotImplementedError for its other ways.
    """
    image, way = get(inputs, "input", Footage), get(inputs, "resize_type", str)
    given = {"image": image, "upscale_method": inputs["scale_method"]}
    given |= {"crop": inputs.get("resize_type.crop", "disabled")}
    match way:
        case "scale dimensions":
            size = {name: inputs[f"resize_type.{name}"] for name in ("width", "height")}
        case "match size":
            other = get(inputs, "resize_type.match", Footage)
            size = {"width": other.width, "height": other.height}
        case "scale by multiplier":
            return scale_by({**given, "scale_by": inputs["resize_type.multiplier"]}, context)
        case _:
            raise NotImplementedError(f"the sandbox cannot resize by {way!r}")
    return scale({**given, **size}, context)


def compress(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVPreprocess: its cut to even sizes; the loss of detail is not imitated."""
    image = get(inputs, "image", Footage)
    if not get(inputs, "img_compression", int):
        return (image,)
    if isinstance(image, Still):
        return (Still.of(image.pixels[: image.height // 2 * 2, : image.width // 2 * 2]),)
    even = image.width // 2 * 2, image.height // 2 * 2
    return (scaled_to(image, *even, "bilinear", crop=True),)


def encode(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """VAEEncode and VAEEncodeTiled: sizes floored to 32 pixels, the length to 8k+1 frames."""
    get(inputs, "vae", v.Vae)
    pixels = get(inputs, "pixels", Footage)
    columns, rows = (side // la.PIXELS_PER_LATENT for side in (pixels.width, pixels.height))
    count = la.latents_of(pixels.frames)
    given = la.Given(part_of(pixels, 0, la.frames_of(count)), 0, count)
    return (la.VideoLatent(columns, rows, count, (given,)),)


def decode(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """VAEDecode, which takes the video out of a joint latent."""
    get(inputs, "vae", v.Vae)
    latent = inputs["samples"]
    if isinstance(latent, la.AVLatent):
        return (la.Drawn.of(latent.video),)
    return (la.Drawn.of(get(inputs, "samples", la.VideoLatent)),)


def decode_tiled(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """VAEDecodeTiled, which takes no joint latent."""
    get(inputs, "vae", v.Vae)
    return (la.Drawn.of(get(inputs, "samples", la.VideoLatent)),)


def decode_in_tiles(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVTiledVAEDecode and LTXVSpatioTemporalTiledVAEDecode, which take no joint latent.

    Raises ValueError when tiles overlap by more than their length.
    """
    get(inputs, "vae", v.Vae)
    if inputs.get("temporal_tile_length", 2) < inputs.get("temporal_overlap", 0) + 1:
        raise ValueError("temporal_tile_length must be more than temporal_overlap")
    return (la.Drawn.of(get(inputs, "latents", la.VideoLatent)),)


def create_video(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """CreateVideo; the rate is kept to a thousandth."""
    sound = None if inputs.get("audio") is None else get(inputs, "audio", Sound)
    rate = Fraction(round(get(inputs, "fps", float) * 1000), 1000)
    return (v.Clip(get(inputs, "images", Footage), rate, sound),)


def save_video(inputs: Inputs, context: Context) -> Entry:
    """SaveVideo: draws the clip and writes it; a file is encoded anew, with a caption."""
    clip = _clip(inputs)
    prefix = get(inputs, "filename_prefix", str)
    target = context.folders.save_target(prefix, clip.footage.width, clip.footage.height)
    name = target.file_name(".mp4")
    write_clip(target.directory / name, clip)
    saved = {"filename": name, "subfolder": target.subfolder, "type": "output"}
    return Entry((clip,), {"images": [saved], "animated": (True,)})


def save_image(inputs: Inputs, context: Context) -> Entry:
    """SaveImage: a file for each picture."""
    images = get(inputs, "images", Footage)
    prefix = get(inputs, "filename_prefix", str)
    target = context.folders.save_target(prefix, images.width, images.height)
    pictures = [images.pixels] if isinstance(images, Still) else stills(images)
    saved: list[dict[str, str]] = []
    for offset, pixels in enumerate(pictures):
        name = target.file_name(".png", offset)
        write_png(target.directory / name, pixels)
        saved.append({"filename": name, "subfolder": target.subfolder, "type": "output"})
    return Entry((images,), {"images": saved})
