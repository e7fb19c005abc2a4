"""Pictures out of a finished clip: one that stands for it, and its last frame to go on from."""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame

from ltx_worker.errors import ComfyFailed

_THUMBNAIL_SIDE = 512
_JPEG_QUALITY = 85


def thumbnail(path: Path) -> bytes:
    """The first frame at or after a third of the clip, as JPEG of at most 512 pixels a side.

    Raises `ComfyFailed` when the clip cannot be read.
    """
    with _opened(path) as container:
        third_s = (container.duration or 0) / 3 / av.time_base
        frame = _frame_from(container, third_s, lambda frame: (frame.time or 0) >= third_s)
        image = frame.to_image()
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def last_frame(path: Path) -> bytes:
    """The clip's last frame as PNG, pixel for pixel.

    Decodes from the last key frame on: of a clip that has only one, everything. Raises
    `ComfyFailed` when the clip cannot be read.
    """
    with _opened(path) as container:
        end_s = (container.duration or 0) / av.time_base
        image = _frame_from(container, end_s, lambda _: False).to_image()
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@contextmanager
def _opened(path: Path) -> Generator[InputContainer]:
    try:
        with av.open(str(path)) as container:
            yield container
    except (FFmpegError, OSError) as error:
        raise ComfyFailed("The clip cannot be read for its pictures") from error


def _frame_from(
    container: InputContainer, time_s: float, is_it: Callable[[VideoFrame], bool]
) -> VideoFrame:
    """The first frame that `is_it` from the key frame before `time_s` on, else the last one."""
    if not container.streams.video:
        raise ComfyFailed("The clip has no picture")
    container.streams.video[0].thread_type = "AUTO"
    container.seek(int(time_s * av.time_base), backward=True)
    frame = None
    for frame in container.decode(video=0):
        if is_it(frame):
            break
    if frame is None:
        raise ComfyFailed("The clip has no frame that can be read")
    return frame
