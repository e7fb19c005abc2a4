"""Writes a clip while its frames are still being made: H.264 with AAC (mp4), VP9 with Opus (webm).

Frames come in display order, in batches of any size, as 8-bit YUV 4:2:0 in BT.709 and limited
range, and the file says so. They are encoded in segments side by side, on all cores; sound is
encoded beside them and all of it is written at the end, under a temporary name. So there is either
the whole file or none. Neither torch nor ComfyUI is needed here.
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import heapq
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from .encoding_segments import Plan, Planes, Segment, plan_for, set_up, usable_cores
from .encoding_settings import Encoding, default_quality, encoding_for

if TYPE_CHECKING:
    from .encoding_segments import Packets

Samples = npt.NDArray[np.float32]

# How often the caller's `check` is asked while encoders are waited for.
_CHECK_EVERY_S = 0.1
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# A rate given as a decimal number means the fraction that is used for it (23.976: 24000/1001).
_MAX_RATE_DENOMINATOR = 1001


class ClipEncoder:
    """Use as a context manager: `add` frames, `add_sound`, then `finish`; else there is no file.

    with ClipEncoder(path, 1280, 704, 121, Fraction(24), sound=(48_000, 2)) as clip:
        clip.add_sound(samples)
        for planes in batches:
            clip.add(planes)
        clip.finish()
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        num_frames: int,
        frame_rate: Fraction | float,
        *,
        container: str = "mp4",
        quality: str | None = None,
        sound: tuple[int, int] | None = None,
        change: float = 0.0,
        encoding: Encoding | None = None,
        plan: Plan | None = None,
    ) -> None:
        """Start a clip of `num_frames` frames of `width` x `height` pixels.

        `frame_rate` is in frames a second, `container` mp4 or webm, `quality` one of
        `encoding.toml`'s. `sound` is the rate in Hz and the number of channels of what `add_sound`
        will be given. `change` is how much the frames change from one to the next (`change_of`), by
        which the work is divided. `encoding` and `plan` replace what follows from these, for
        measurements. Raises `ValueError` for what cannot be encoded, `OSError` where the file
        cannot be made.
        """
        if width % 2 or height % 2 or min(width, height, num_frames) < 1:
            raise ValueError(f"{num_frames} frames of {width}x{height}: sides must be even")
        self.path = path
        self.num_frames = num_frames
        self._shape = (height * 3 // 2, width)
        self._rate = Fraction(frame_rate).limit_denominator(_MAX_RATE_DENOMINATOR)
        self._encoding = encoding or encoding_for(container, quality or default_quality())
        plan = plan or plan_for(num_frames, usable_cores(), self._encoding.rules_for(change))
        self._stopped = threading.Event()
        self._added = 0
        self._jobs: list[Future[Packets]] = []
        self._sound: Future[Packets] | None = None
        self._sound_rate = sound[0] if sound else 0
        self._open(plan, (width, height), sound)
        self._pool = ThreadPoolExecutor(plan.at_a_time + 1, thread_name_prefix="encode")

    def add(self, planes: Planes) -> None:
        """Take the next frames: uint8 of shape (frames, height * 3 / 2, width), Y over U and V.

        Each frame holds its planes one after the other, as FFmpeg's yuv420p does. The array is
        kept until its frames are encoded and must not change. Returns at once. Raises `ValueError`
        for another shape or too many frames, and what an encoder has raised.
        """
        if planes.dtype != np.uint8 or planes.ndim != 3 or planes.shape[1:] != self._shape:
            raise ValueError(f"frames must be uint8 of {self._shape}, not {planes.shape}")
        if self._added + len(planes) > self.num_frames:
            raise ValueError(f"the clip has {self.num_frames} frames; more were added")
        self._raise_failures()
        for frame in planes:
            segment = self._segment_of(self._added)
            segment.put(np.ascontiguousarray(frame))
            self._added += 1

    def add_sound(self, samples: Samples) -> None:
        """Take the whole sound: float samples of shape (channels, samples), in -1 .. 1.

        What is longer than the picture is left out. Raises `ValueError` where no sound was
        announced, or of other channels.
        """
        if self._audio is None or self._sound is not None:
            raise ValueError("the clip has no sound, or has it already")
        if samples.ndim != 2 or len(samples) != self._audio.codec_context.channels:
            raise ValueError(f"sound must be (channels, samples), not {samples.shape}")
        longest = math.ceil(self._sound_rate * self.num_frames / self._rate)
        self._sound = self._pool.submit(self._encode_sound, samples[:, :longest])

    def finish(self, check: Callable[[], None] | None = None) -> Path:
        """Wait for the encoders and write the file; returns its path.

        `check` is called several times a second meanwhile; what it raises ends the clip. Raises
        `ValueError` when frames or the sound are missing, what an encoder has raised, and `OSError`
        where the file cannot be written. After any of these there is no file.
        """
        try:
            self._require_all()
            self._wait(check)
            self._write()
        except BaseException:
            self.abort()
            raise
        self._pool.shutdown()
        self._partial.replace(self.path)
        return self.path

    def abort(self) -> None:
        """End the encoders and remove what was written. Does nothing after `finish`."""
        self._stopped.set()
        for segment in self._segments:
            segment.stop()
        self._pool.shutdown(cancel_futures=True)
        self._discard()

    def __enter__(self) -> ClipEncoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _open(self, plan: Plan, size: tuple[int, int], sound: tuple[int, int] | None) -> None:
        """Make the file and its streams; leaves no file where that fails."""
        self._partial = self.path.with_name(f"{self.path.name}.part")
        # FFmpeg would make the file only when it has something to write.
        self._partial.touch()
        encoding = self._encoding
        self._output = av.open(
            str(self._partial), "w", format=encoding.muxer, options=dict(encoding.muxer_options)
        )
        try:
            self._segments = self._make_segments(plan, size)
            self._audio = self._add_audio(*sound) if sound else None
        except BaseException:
            self._discard()
            raise

    def _make_segments(self, plan: Plan, size: tuple[int, int]) -> list[Segment]:
        """One encoder for each segment; the first one's is the stream's own."""
        codec = self._encoding.video_codec
        stream = cast("VideoStream", self._output.add_stream(codec, rate=self._rate))
        flags = stream.codec_context.flags
        segments: list[Segment] = []
        for first_frame, count in plan.segments:
            context = stream.codec_context
            if segments:
                context = cast("VideoCodecContext", av.CodecContext.create(codec, "w"))
                context.flags = flags
            set_up(context, self._encoding, size, self._rate, plan.threads)
            segments.append(
                Segment(
                    stream,
                    context,
                    first_frame,
                    count,
                    self._stopped.is_set,
                    self._encoding.picture_filter,
                )
            )
        return segments

    def _add_audio(self, rate: int, channels: int) -> AudioStream:
        if channels not in _LAYOUTS:
            raise ValueError(f"sound must have 1, 2 or 6 channels, not {channels}")
        encoding = self._encoding
        stream = self._output.add_stream(
            encoding.sound_codec,
            rate=encoding.sound_rate(rate),
            layout=_LAYOUTS[channels],
            options=dict(encoding.sound_options),
        )
        return cast("AudioStream", stream)

    def _encode_sound(self, samples: Samples) -> Packets:
        assert self._audio is not None
        block = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, np.float32),
            format="fltp",
            layout=_LAYOUTS[len(samples)],
        )
        block.sample_rate, block.pts = self._sound_rate, 0
        return [*self._audio.encode(block), *self._audio.encode(None)]

    def _segment_of(self, frame: int) -> Segment:
        """The segment of a frame; its encoder starts with its first one."""
        if len(self._jobs) < len(self._segments):
            coming = self._segments[len(self._jobs)]
            if frame == coming.first_frame:
                self._jobs.append(self._pool.submit(coming.run))
        return self._segments[len(self._jobs) - 1]

    def _raise_failures(self) -> None:
        """Raise what an encoder has raised; the clip is then over."""
        for job in (*self._jobs, *([self._sound] if self._sound else [])):
            if job.done() and (error := job.exception()) is not None:
                self.abort()
                raise error

    def _require_all(self) -> None:
        """Raise `ValueError` when something that was announced was not added."""
        if self._added != self.num_frames:
            raise ValueError(f"{self._added} of the clip's {self.num_frames} frames were added")
        if self._audio is not None and self._sound is None:
            raise ValueError("the clip's sound was not added")

    def _wait(self, check: Callable[[], None] | None) -> None:
        """Wait for all encoders; raises the first failure of one, and what `check` raises."""
        left: Iterable[Future[Packets]] = [
            *self._jobs,
            *([self._sound] if self._sound else []),
        ]
        while left:
            timeout_s = _CHECK_EVERY_S if check else None
            _, left = wait(left, timeout_s, return_when=FIRST_EXCEPTION)
            self._raise_failures()
            if check is not None:
                check()

    def _write(self) -> None:
        """Write the packets of all encoders in the order of their times, and close the file."""
        coded: list[Packets] = [job.result() for job in self._jobs]
        if len({segment.context.extradata for segment in self._segments}) != 1:
            raise RuntimeError("the segments' encoders do not agree on the stream's parameters")
        delay = max(Segment.delay_of(packets) for packets in coded)
        pictures = [
            packet
            for segment, packets in zip(self._segments, coded, strict=True)
            for packet in segment.place(packets, delay)
        ]
        sound = self._sound.result() if self._sound else []
        self._mux(heapq.merge(pictures, sound, key=_decoding_time))

    def _mux(self, packets: Iterable[Packet[Any]]) -> None:
        for packet in packets:
            self._output.mux(packet)
        self._output.close()

    def _discard(self) -> None:
        """Close and remove the partial file, where there still is one."""
        # Where it cannot be written to its end, it is removed all the same.
        with contextlib.suppress(OSError):
            self._output.close()
        self._partial.unlink(missing_ok=True)


def _decoding_time(packet: Packet[Any]) -> Fraction:
    return (packet.dts or 0) * packet.time_base
