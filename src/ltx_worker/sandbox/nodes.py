"""What each node class does in the sandbox: it turns descriptions into descriptions.

Sizes, lengths, rates, prompts and seeds come from the graph and nothing else, and are floored as
ComfyUI floors them. Only the save nodes draw. A class that is not listed here cannot run.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ltx_worker.sandbox import generation, media
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.cache import Entry
from ltx_worker.sandbox.context import Context, Inputs
from ltx_worker.sandbox.folders import Folders

_SEMANTICS: Mapping[str, Callable[[Inputs, Context], tuple[Any, ...] | Entry]] = {
    "CFGGuider": generation.guider,
    "CheckpointLoaderSimple": generation.checkpoint,
    "CLIPTextEncode": generation.text,
    "ConditioningZeroOut": generation.zero_out,
    "CreateVideo": media.create_video,
    "EmptyLTXVLatentVideo": generation.empty_video,
    "ImageScale": media.scale,
    "KSamplerSelect": lambda inputs, _: (v.Sampler(inputs["sampler_name"]),),
    "LatentUpscaleModelLoader": lambda inputs, _: (v.Upscaler(inputs["model_name"]),),
    "LoadImage": media.load_image,
    "LoraLoader": generation.lora,
    "LoraLoaderModelOnly": generation.lora,
    "LTXAVTextEncoderLoader": lambda inputs, _: (
        v.TextEncoder(inputs["text_encoder"], inputs["ckpt_name"]),
    ),
    "LTXVAudioVAEDecode": media.decode_audio,
    "LTXVAudioVAELoader": generation.audio_vae,
    "LTXVConcatAVLatent": generation.join,
    "LTXVConditioning": generation.frame_rate,
    "LTXVEmptyLatentAudio": generation.empty_audio,
    "LTXVImgToVideoInplace": generation.image_in_place,
    "LTXVLatentUpsampler": generation.upsample,
    "LTXVPreprocess": media.compress,
    "LTXVScheduler": generation.scheduler,
    "LTXVSeparateAVLatent": generation.separate,
    "ManualSigmas": generation.manual_sigmas,
    "RandomNoise": lambda inputs, _: (v.Noise(inputs["noise_seed"]),),
    "SamplerCustomAdvanced": generation.sample,
    "SaveImage": media.save_image,
    "SaveVideo": media.save_video,
    "VAEDecode": media.decode,
    "VAEDecodeTiled": media.decode_tiled,
}


def evaluate(class_type: str, inputs: Inputs, context: Context) -> Entry:
    """Run one node.

    Raises NotImplementedError naming a class that the sandbox does not know, TypeError for a
    value that the node cannot take, and whatever goes wrong with files.
    """
    if class_type not in _SEMANTICS:
        raise NotImplementedError(f"the sandbox cannot run a {class_type} node")
    result = _SEMANTICS[class_type](inputs, context)
    return result if isinstance(result, Entry) else Entry(result)


def file_checks(folders: Folders) -> dict[str, Callable[..., bool | str]]:
    """The checks of the loader classes that look for their file before a prompt is queued."""

    def load_image(image: str) -> bool | str:
        return folders.source(image).exists() or f"Invalid image file: {image}"

    def load_video(file: str) -> bool | str:
        return folders.source(file).exists() or f"Invalid video file: {file}"

    def load_audio(audio: str) -> bool | str:
        return folders.source(audio).exists() or f"Invalid audio file: {audio}"

    return {"LoadImage": load_image, "LoadVideo": load_video, "LoadAudio": load_audio}


def fingerprint(class_type: str, inputs: Inputs, folders: Folders) -> str | None:
    """What a node's result depends on beside its inputs: the content of the picture it loads.

    A picture that cannot be read is never the same twice, so its node is never taken from cache.
    """
    name = inputs.get("image")
    if class_type != "LoadImage" or not isinstance(name, str):
        return None
    try:
        return hashlib.sha256(folders.source(name).read_bytes()).hexdigest()
    except OSError:
        return uuid.uuid4().hex
