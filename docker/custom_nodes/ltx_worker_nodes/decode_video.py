"""The node that decodes a latent and writes the clip while it decodes.

Frames go to the encoder as the decoder gives them, so that the GPU decodes the next ones while the
processor encodes: the clip is there a moment after its last frame, and its float frames never lie
in memory as a whole.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import comfy.model_management as management
import folder_paths
import torch
from comfy_api.latest import io, ui

from .encoding import ClipEncoder
from .encoding_settings import default_quality, formats, qualities
from .frames import change_of, planes_of, send
from .save_video import samples_of, save
from .speed.decoder import decode_stream

_log = logging.getLogger(__name__)

_TURN_S = 0.0005


class LTXWorkerDecodeVideo(io.ComfyNode):
    """Decodes a video latent and saves it with its sound, as it comes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXWorkerDecodeVideo",
            display_name="Decode and Save Video (LTX worker)",
            category="video",
            description="Encodes each frame as soon as it is decoded. Decodes in tiles only where "
            "the GPU's memory does not suffice for whole frames.",
            inputs=[
                io.Latent.Input("samples"),
                io.Vae.Input("vae"),
                io.Audio.Input("audio", optional=True),
                io.Float.Input("fps", default=24.0, min=1.0, max=120.0),
                io.String.Input("filename_prefix", default="video/ComfyUI"),
                io.Combo.Input("format", options=list(formats()), default=formats()[0]),
                io.Combo.Input("quality", options=list(qualities()), default=default_quality()),
                io.Int.Input("tile_size", default=768, min=64, max=4096, step=32),
                io.Int.Input("overlap", default=64, min=0, max=4096, step=32),
                io.Int.Input("temporal_size", default=4096, min=8, max=4096, step=4),
                io.Int.Input("temporal_overlap", default=4, min=4, max=4096, step=4),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        samples: dict[str, torch.Tensor],
        vae: Any,
        fps: float,
        filename_prefix: str,
        format: str,
        quality: str,
        audio: dict[str, Any] | None = None,
        **tiles: int,
    ) -> io.NodeOutput:
        latent = samples["samples"]
        _, _, frames, height, width = vae.first_stage_model.decode_output_shape(latent.shape)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        file = f"{name}_{counter:05}_.{format}"
        sound = None if audio is None else samples_of(audio["waveform"])
        rate = 0 if audio is None else int(audio["sample_rate"])
        path = Path(folder, file)
        if not _streams(vae, latent) or not _save_streaming(
            path, vae, latent, (width, height, frames), fps, format, quality, sound, rate
        ):
            images = _tiled(vae, latent, tiles)
            save(path, images, Fraction(fps), format, quality, sound, rate)
        saved = ui.SavedResult(file, subfolder, io.FolderType.output)
        return io.NodeOutput(ui=ui.PreviewVideo([saved]))


def _streams(vae: Any, latent: torch.Tensor) -> bool:
    """Whether this is LTX's decoder, for one clip, with memory for its whole frame."""
    if not getattr(vae.first_stage_model, "comfy_has_chunked_io", False) or len(latent) != 1:
        return False
    needed = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    return management.get_total_memory(vae.device) > needed


def _save_streaming(
    path: Path,
    vae: Any,
    latent: torch.Tensor,
    extent: tuple[int, int, int],
    fps: float,
    container: str,
    quality: str,
    sound: Any,
    rate: int,
) -> bool:
    """Decode into the encoder; False where the GPU's memory did not suffice, and no file then."""
    width, height, frames = extent
    announced = None if sound is None else (rate, len(sound))
    with ExitStack() as stack:
        stack.enter_context(_quick_turns())
        stack.enter_context(management.cuda_device_context(vae.device))
        try:
            pieces = _pieces(vae, latent)
            first = next(pieces)
            clip = ClipEncoder(
                path, width, height, frames, fps, container=container, quality=quality,
                sound=announced, change=change_of(first),
            )  # fmt: skip
            stack.enter_context(clip)
            if sound is not None:
                clip.add_sound(sound)
            with _Feeder(clip) as feeder:
                for planes in itertools.chain([first], pieces):
                    management.throw_exception_if_processing_interrupted()
                    feeder.put(planes)
        except Exception as error:  # noqa: BLE001 - passed on, but for what memory did not suffice for
            management.raise_non_oom(error)
            _log.warning("Not enough memory to decode whole frames; decoding in tiles")
            return False
        clip.finish(management.throw_exception_if_processing_interrupted)
    return True


def _pieces(vae: Any, latent: torch.Tensor) -> Iterator[torch.Tensor]:
    """The clip's frames as planes on the GPU, some at a time, in display order."""
    needed = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    management.load_models_gpu(
        [vae.patcher], memory_required=needed, force_full_load=vae.disable_offload
    )
    latent = latent.to(device=vae.device, dtype=vae.vae_dtype)
    for piece in decode_stream(vae.first_stage_model, latent):
        images = vae.process_output(piece.to(vae.vae_output_dtype(), copy=True))
        yield planes_of(images[0].movedim(0, -1))


@contextmanager
def _quick_turns() -> Generator[None]:
    """Let threads take turns more often: Python's own 5 ms are more than an encoder's frame takes,
    and the decoder, which launches the GPU's work, would keep each frame waiting as long.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _tiled(vae: Any, latent: torch.Tensor, tiles: dict[str, int]) -> torch.Tensor:
    import nodes  # noqa: PLC0415 - ComfyUI's, which imports this package

    (images,) = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, **tiles)
    return images


class _Feeder(AbstractContextManager["_Feeder"]):
    """Waits for frames on their way from the GPU, so that what launches its work need not."""

    def __init__(self, clip: ClipEncoder) -> None:
        self._clip = clip
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="frames")
        self._coming: list[Future[None]] = []

    def put(self, planes: torch.Tensor) -> None:
        """Send frames on; raises what earlier ones met."""
        self._raise_failures()
        sent = send(planes)
        self._coming.append(self._pool.submit(lambda: self._clip.add(sent.arrived())))

    def _raise_failures(self) -> None:
        for done in [one for one in self._coming if one.done()]:
            self._coming.remove(done)
            done.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            self._raise_failures()
