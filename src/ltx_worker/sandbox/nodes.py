"""What each node class does in the sandbox: it turns descriptions into descriptions.

Sizes, lengths, rates, prompts and seeds come from the graph and nothing else, and are floored as
ComfyUI floors them. Only the save nodes draw. A class that is not listed here cannot run.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltx_worker.sandbox import audio, generation, guides, masks, media, sampling, text
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.cache import Entry
from ltx_worker.sandbox.context import Context, Inputs
from ltx_worker.sandbox.folders import Folders

_SEMANTICS: Mapping[str, Callable[[Inputs, Context], tuple[Any, ...] | Entry]] = {
    "AudioConcat": audio.concatenate,
    "CFGGuider": sampling.cfg_guider,
    "CheckpointLoaderSimple": generation.checkpoint,
    "CLIPTextEncode": text.encode,
    "ComfySwitchNode": lambda inputs, _: (inputs[_chosen(inputs)],),
    "ConditioningZeroOut": generation.zero_out,
    "CreateVideo": media.create_video,
    "EmptyAudio": audio.silence,
    "EmptyLTXVLatentVideo": generation.empty_video,
    "GetICLoRAParameters": guides.ic_lora_parameters,
    "GetVideoComponents": media.components,
    "GuiderParameters": sampling.guider_parameters,
    "ImageBatch": media.batch_images,
    "ImageFromBatch": media.images_from_batch,
    "ImageScale": media.scale,
    "ImageScaleBy": media.scale_by,
    "KSamplerSelect": lambda inputs, _: (v.Sampler(inputs["sampler_name"]),),
    "LatentUpscaleModelLoader": lambda inputs, _: (v.Upscaler(inputs["model_name"]),),
    "LoadAudio": audio.load,
    "LoadImage": media.load_image,
    "LoadVideo": media.load_video,
    "LoraLoader": generation.lora,
    "LoraLoaderModelOnly": generation.lora,
    "LTXAVTextEncoderLoader": lambda inputs, _: (
        v.TextEncoder(inputs["text_encoder"], inputs["ckpt_name"]),
    ),
    "LTXVAddGuide": guides.add_guide,
    "LTXVAudioVAEDecode": audio.decode,
    "LTXVAudioVAEEncode": audio.encode,
    "LTXVAudioVAELoader": generation.audio_vae,
    "LTXVConcatAVLatent": generation.join,
    "LTXVConditioning": generation.frame_rate,
    "LTXVContextWindows": generation.context_windows,
    "LTXVCropGuides": guides.crop_guides,
    "LTXVEmptyLatentAudio": generation.empty_audio,
    "LTXVImgToVideoInplace": guides.image_in_place,
    "LTXVLatentUpsampler": generation.upsample,
    "LTXVLoopingSampler": sampling.sample_looping,
    "LTXVPreprocess": media.compress,
    "LTXVScheduler": generation.scheduler,
    "LTXVSeparateAVLatent": generation.separate,
    "LTXVSetAudioVideoMaskByTime": masks.set_by_time,
    "LTXVSpatioTemporalTiledVAEDecode": media.decode_in_tiles,
    "LTXVTiledVAEDecode": media.decode_in_tiles,
    "ManualSigmas": generation.manual_sigmas,
    "MultimodalGuider": sampling.multimodal_guider,
    "PreviewAny": text.preview,
    "RandomNoise": lambda inputs, _: (v.Noise(inputs["noise_seed"]),),
    "ResizeImageMaskNode": media.resize,
    "SamplerCustomAdvanced": sampling.sample,
    "SaveImage": media.save_image,
    "SaveVideo": media.save_video,
    "SetLatentNoiseMask": masks.set_noise_mask,
    "SolidMask": masks.solid,
    "TextGenerateLTX2Prompt": text.enhance,
    "TrimAudioDuration": audio.trim,
    "VAEDecode": media.decode,
    "VAEDecodeTiled": media.decode_tiled,
    "VAEEncode": media.encode,
    "VAEEncodeTiled": media.encode,
}

# The input that names a file.
_FILE_INPUTS = {"LoadImage": "image", "LoadAudio": "audio", "LoadVideo": "file"}


def evaluate(class_type: str, inputs: Inputs, context: Context) -> Entry:
    """Run one node.

    Raises NotImplementedError naming a class that the sandbox does not know, TypeError for a
    value that the node cannot take, and whatever goes wrong with files.
    """
    if class_type not in _SEMANTICS:
        raise NotImplementedError(f"the sandbox cannot run a {class_type} node")
    result = _SEMANTICS[class_type](inputs, context)
    return result if isinstance(result, Entry) else Entry(result)


def lazy_input(class_type: str, inputs: Inputs) -> str | None:
    """The lazy input that a node needs after all; None for a class without such."""
    return _chosen(inputs) if class_type == "ComfySwitchNode" else None


def _chosen(inputs: Inputs) -> str:
    return "on_true" if inputs["switch"] else "on_false"


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
    """What a node's result depends on beside its inputs: the file that it loads.

    As in ComfyUI, pictures and sounds are told by their content, and videos by when they were
    written. A file that cannot be read is never the same twice, so its node is never taken from
    cache.
    """
    name = inputs.get(_FILE_INPUTS.get(class_type, ""))
    if not isinstance(name, str):
        return None
    try:
        return _told_apart(class_type, folders.source(name))
    except OSError:
        return uuid.uuid4().hex


def _told_apart(class_type: str, path: Path) -> str:
    if class_type == "LoadVideo":
        return str(path.stat().st_mtime_ns)
    return hashlib.sha256(path.read_bytes()).hexdigest()
