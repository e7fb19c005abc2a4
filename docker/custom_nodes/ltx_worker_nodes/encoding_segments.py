"""Segments of a clip: how many, and the encoder of each.

A segment's encoder starts afresh, so its packets stand for themselves; one segment's packets after
the other's, with their times moved, are one stream. That needs equal settings in all of them and
only one key frame that resets a decoder, the first (H.264 7.4.3: two such frames in a row must
have different numbers, and each encoder starts to count anew).
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import numpy.typing as npt
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from .encoding_settings import Encoding, SegmentRules

Planes = npt.NDArray[np.uint8]
if TYPE_CHECKING:
    Packets = list[Packet[Any]]

# ITU-T H.273's numbers: BT.709 for the matrix, the primaries and the transfer; limited range.
_BT709 = 1
_LIMITED = 1
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Plan:
    """How a clip is cut: each segment's (first frame, frames), and how many run at a time."""

    segments: tuple[tuple[int, int], ...]
    at_a_time: int
    threads: int


def plan_for(num_frames: int, cores: int, rules: SegmentRules) -> Plan:
    """Segments of equal length, as many as the cores can work on and the rules allow."""
    at_a_time = max(1, round(cores / rules.cores))
    fewest = math.ceil(num_frames / rules.max_frames)
    most = max(1, num_frames // rules.min_frames)
    count = max(fewest, min(most, at_a_time * math.ceil(fewest / at_a_time)))
    bounds = [num_frames * index // count for index in range(count + 1)]
    at_a_time = min(at_a_time, count)
    threads = math.ceil(min(rules.cores, cores / at_a_time) * rules.threads_per_core)
    segments = tuple((a, b - a) for a, b in pairwise(bounds))
    return Plan(segments, at_a_time, threads)


def usable_cores() -> int:
    """The cores that this process may use: those of its affinity, within its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


class Segment:
    """Encodes the frames put into it, in its own thread (`run`), until all are there."""

    def __init__(
        self,
        stream: VideoStream,
        context: VideoCodecContext,
        first_frame: int,
        num_frames: int,
        is_stopped: Callable[[], bool],
        picture_filter: Mapping[str, str] | None = None,
    ) -> None:
        self.first_frame = first_frame
        self.num_frames = num_frames
        self.context = context
        self._stream = stream
        self._is_stopped = is_stopped
        self._picture_filter = picture_filter
        self._waiting: SimpleQueue[Planes | None] = SimpleQueue()

    def put(self, planes: Planes) -> None:
        """Queue the segment's next frame."""
        self._waiting.put(planes)

    def stop(self) -> None:
        """Wake `run` where it waits for frames that will not come."""
        self._waiting.put(None)

    def run(self) -> Packets:
        """The segment's packets in decoding order, with times counted from its first frame.

        Empty when it was stopped. Raises what the encoder raises.
        """
        packets: Packets = []
        for index in range(self.num_frames):
            planes = self._waiting.get()
            if planes is None or self._is_stopped():
                return []
            frame = av.VideoFrame.from_numpy_buffer(planes, format="yuv420p")
            frame.pts, frame.time_base = index, self.context.time_base
            packets += self.context.encode(frame)
        packets += self.context.encode(None)
        packets = self._filtered(packets)
        if len(packets) != self.num_frames:
            raise RuntimeError(f"{len(packets)} packets came of {self.num_frames} frames")
        return packets

    def _filtered(self, packets: Packets) -> Packets:
        if self._picture_filter is None:
            return packets
        through = BitStreamFilterContext(
            self._picture_filter["filter"], self._picture_filter["codec"]
        )
        filtered: Packets = []
        for packet in packets:
            filtered += through.filter(packet)
        return filtered

    @staticmethod
    def delay_of(packets: Packets) -> int:
        """By how many frames the decoding of these packets runs ahead of showing them."""
        first = packets[0]
        assert first.pts is not None
        assert first.dts is not None
        return first.pts - first.dts

    def place(self, packets: Packets, delay: int) -> Packets:
        """Move packets to the segment's place in the clip.

        `delay` is by how many frames decoding runs ahead of showing, the same for the whole clip.
        """
        for index, packet in enumerate(packets):
            assert packet.pts is not None
            packet.pts += self.first_frame
            packet.dts = self.first_frame + index - delay
            packet.duration = 1
            packet.time_base = self.context.time_base
            packet.stream = self._stream
        return packets


def set_up(
    context: VideoCodecContext,
    encoding: Encoding,
    size: tuple[int, int],
    rate: Fraction,
    threads: int,
) -> None:
    """Give an encoder its size (width, height), rate in frames a second, colours and options."""
    context.width, context.height = size
    context.pix_fmt = "yuv420p"
    context.framerate, context.time_base = rate, 1 / rate
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED
    # PyAV's default lets x264 cut each frame into slices, which costs size and scales badly.
    context.thread_count, context.thread_type = threads, "FRAME"
    context.options = dict(encoding.video_options)
