"""Nodes of the sandbox that say which parts of a latent may change."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace
from typing import Any

from ltx_worker.sandbox import latents as la
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.context import Context, Inputs, get


def solid(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """SolidMask; its size does not matter, since it is stretched to the latent."""
    return (v.Mask(get(inputs, "value", float)),)


def set_noise_mask(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """SetLatentNoiseMask: the mask in place of any that was there."""
    latent, value = inputs["samples"], get(inputs, "mask", v.Mask).value
    if not isinstance(latent, la.AudioLatent):
        latent = get(inputs, "samples", la.VideoLatent)
    return (replace(latent, mask=(value,) * latent.length),)


def set_by_time(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVSetAudioVideoMaskByTime: free from a time to a time, rounded inwards to whole latents.

    A video mask that is there is kept to beside it; a sound mask is replaced. The coefficients in
    the last two slots do not slope. That the node also changes the latent it was given, for any
    node that takes the same, is not imitated.
    """
    latent = get(inputs, "av_latent", la.AVLatent)
    told = [get(inputs, name, v.Conditioning) for name in ("positive", "negative")]
    start_s, end_s = get(inputs, "start_time", float), get(inputs, "end_time", float)
    video = range(0)
    if inputs["mask_video"]:
        video = _video_latents(latent.video, start_s, end_s, get(inputs, "video_fps", float))
    sound = range(0)
    if inputs["mask_audio"]:
        first = round(start_s * la.AUDIO_LATENTS_PER_S)
        sound = range(first, round(end_s * la.AUDIO_LATENTS_PER_S) + 1)
    kept_video, kept_sound = (
        get(inputs, f"mask_init_value_{name}", float) for name in ("video", "audio")
    )
    before = latent.video.mask or (1.0,) * latent.video.length
    video_mask = tuple(
        noise * (1.0 if index in video else kept_video) for index, noise in enumerate(before)
    )
    sound_mask = tuple(1.0 if i in sound else kept_sound for i in range(latent.audio.length))
    masked = la.AVLatent(
        replace(latent.video, mask=video_mask), replace(latent.audio, mask=sound_mask)
    )
    if not latent.video.mask:
        note = _note(f"{start_s:g}-{end_s:g} s", video, in_video=inputs["mask_video"])
        masked = replace(masked, video=masked.video.noted(note))
    frames = [video_mask[la.latent_of(frame)] for frame in range(latent.video.frames)]
    return *told, masked, list(video_mask), frames


def _video_latents(latent: la.VideoLatent, start_s: float, end_s: float, fps: float) -> range:
    """The latent frames that lie wholly in the window, and none that only reach into it."""
    starts = [0, *range(1, latent.frames + la.FRAMES_PER_LATENT, la.FRAMES_PER_LATENT)]
    first = bisect_left(starts, round(start_s * fps))
    return range(first, min(bisect_right(starts, round(end_s * fps)) - 1, latent.length))


def _note(window: str, freed: range, *, in_video: bool) -> str:
    if not in_video:
        return f"retake of the sound, {window}"
    first = la.frames_of(freed.start) if freed.start else 0
    what = f"frames {first}-{la.frames_of(freed.stop) - 1}" if freed else "nothing freed"
    return f"retake {window} ({what})"
