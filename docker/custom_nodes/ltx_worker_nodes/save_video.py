"""The node that writes a clip: what ComfyUI's own save node does, on all cores and in one pass."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io, ui

from .encoding import ClipEncoder, Samples
from .encoding_settings import default_quality, formats, qualities
from .frames import change_of, plane_batches, planes_of

_CHANNELS = (1, 2, 6)
# Frames from whose changes it is told how restless a clip is.
_LOOK = 9


class LTXWorkerSaveVideo(io.ComfyNode):
    """Saves a video to the output folder as mp4 or webm, with no word about how it was made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXWorkerSaveVideo",
            display_name="Save Video (LTX worker)",
            category="video",
            description="Encodes on all cores, writes the sound in the same pass and no metadata.",
            inputs=[
                io.Video.Input("video"),
                io.String.Input("filename_prefix", default="video/ComfyUI"),
                io.Combo.Input("format", options=list(formats()), default=formats()[0]),
                io.Combo.Input("quality", options=list(qualities()), default=default_quality()),
            ],
            outputs=[io.Video.Output("video")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, video: Any, filename_prefix: str, format: str, quality: str) -> io.NodeOutput:
        components = video.get_components()
        images = components.images
        _, height, width, _ = images.shape
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        file = f"{name}_{counter:05}_.{format}"
        sound = None if components.audio is None else samples_of(components.audio["waveform"])
        rate = 0 if components.audio is None else int(components.audio["sample_rate"])
        save(Path(folder, file), images, components.frame_rate, format, quality, sound, rate)
        saved = ui.SavedResult(file, subfolder, io.FolderType.output)
        return io.NodeOutput(video, ui=ui.PreviewVideo([saved]))


def save(
    path: Path,
    images: torch.Tensor,
    frame_rate: Fraction,
    container: str,
    quality: str,
    sound: Samples | None,
    sound_rate: int,
) -> None:
    """Write pictures (frames, height, width, channels) and sound (channels, samples) to a file.

    Raises ComfyUI's interruption when the job is no longer wanted, and what `ClipEncoder` raises;
    there is no file then.
    """
    frames, height, width, _ = images.shape
    announced = None if sound is None else (sound_rate, len(sound))
    change = change_of(planes_of(images[:_LOOK]))
    with ClipEncoder(
        path,
        width,
        height,
        frames,
        frame_rate,
        container=container,
        quality=quality,
        sound=announced,
        change=change,
    ) as clip:
        if sound is not None:
            clip.add_sound(sound)
        for planes in plane_batches(images):
            throw_exception_if_processing_interrupted()
            clip.add(planes)
        clip.finish(throw_exception_if_processing_interrupted)


def samples_of(waveform: torch.Tensor) -> Samples:
    """The first sound of (batch, channels, samples); mono where no player knows the channels."""
    samples = waveform[0].float().cpu().numpy()
    if len(samples) in _CHANNELS:
        return samples
    return samples.mean(axis=0, keepdims=True, dtype=np.float32)
