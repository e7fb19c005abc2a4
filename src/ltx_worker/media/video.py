"""A caller's clip as a file of ours: one size, one frame rate, upright, free of metadata.

Frames are decoded, fitted and encoded one after another, so that memory does not grow with the
clip.
"""

# The stubs of PyAV leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from ltx_worker.errors import InputRejected
from ltx_worker.geometry import MAX_PIXELS, Size
from ltx_worker.media.container import PICTURE_CODECS, decoded, opened, sound_stream, surveyed
from ltx_worker.media.edges import edges_of
from ltx_worker.stop import StopSignal

_MAX_DURATION_S = 600.0
# All that ten minutes hold at the highest rate; a frame that repeats its neighbour takes few bytes.
_MAX_SOURCE_FRAMES = 36_000
# A fifth more than the largest clip that the model makes: 4K as cameras write it, any way round.
_MAX_SOURCE_PIXELS = int(MAX_PIXELS * 1.2)

# Each thread holds frames of its own: 15 MB each at the largest size.
_DECODER_THREADS = 4
# Visually lossless and quick to write; the file is read once by ComfyUI and then deleted. Looking
# ahead would double the memory. The output depends on x264's threads, so their number is fixed.
_ENCODER = {
    "crf": "8",
    "flags": "+cgop",
    "preset": "veryfast",
    "tune": "zerolatency",
    "threads": "4",
}
_CONTAINER = {"fflags": "+bitexact"}
# Older PyAV takes every clip for BT.601 and newer ones believe its tag: this is right for both.
_MATRIX = int(Colorspace.ITU601)
_TO_SDR = ":out_transfer=bt709:out_primaries=bt709:intent=perceptual"
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
_TURNS = ("", "transpose=cclock", "hflip,vflip", "transpose=clock")
# Pixels that are not square: 2 for anamorphic lenses, less for television. More is a mistake.
_MAX_PIXEL_RATIO = 4


@dataclass(frozen=True)
class SourceFacts:
    """A clip as it came: size as displayed, mean frames a second, seconds, sound or none."""

    size: Size
    fps: float
    duration_s: float
    has_sound: bool


@dataclass(frozen=True)
class Clip:
    """A clip as it was written; `start_s` is when its picture begins on its source's clock."""

    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float
    start_s: float


@dataclass(frozen=True)
class _Source:
    """A clip as it came: what callers see of it, its pixels' width / height, its first time."""

    facts: SourceFacts
    pixel_ratio: Fraction
    start_s: float


def read_clip_facts(data: bytes, field: str, stop: StopSignal) -> SourceFacts:
    """Read what a clip is; raises `InputRejected` naming `field` for what cannot be used.

    That is: no video, no frame, more than 10 minutes or 36,000 frames, more than 1.2 x 3840 x 2176
    pixels.
    """
    return _examined(data, field, stop).facts


def write_clip(
    data: bytes,
    field: str,
    path: Path,
    *,
    size: Size,
    fps: float,
    max_frames: int,
    stop: StopSignal,
    edges: bool = False,
) -> Clip:
    """Write a clip as mp4: `size` (even sides), constant `fps`, at most `max_frames` frames.

    It is scaled to cover `size` and cut about the middle. With `edges` its edges are written,
    white on black. Raises `InputRejected` naming `field` for what `read_clip_facts` refuses.
    """
    source = _examined(data, field, stop)
    rate = Fraction(fps).limit_denominator(1001)
    fitter = _Fitter(size, source.pixel_ratio, field, grey=edges)
    with closing(_frames(data, field, stop)) as frames:
        pictures = _fitted(_constant_rate(frames, rate, max_frames), fitter)
        num_frames = _write(path, pictures, size, rate)
    duration_s = float(num_frames / rate)
    return Clip(size.width, size.height, float(rate), num_frames, duration_s, source.start_s)


def _examined(data: bytes, field: str, stop: StopSignal) -> _Source:
    with surveyed(data, field) as container:
        stream = _picture(container, field)
        has_sound = sound_stream(container) is not None
        pixel_ratio = _pixel_ratio(stream)
        fps, duration_s = _measured(container, stream, field, stop)
    if duration_s > _MAX_DURATION_S:
        raise InputRejected.of(
            field, f"lasts {duration_s:.0f} s; at most {_MAX_DURATION_S:g} s are possible"
        )
    with closing(_frames(data, field, stop)) as frames:
        first = next(frames, None)
    if first is None or not fps:
        raise InputRejected.of(field, "has no frame that can be read")
    size = Size(round(first.width * pixel_ratio), first.height)
    if _quarter_turns(first) % 2:
        size = Size(size.height, size.width)
    facts = SourceFacts(size, round(fps, 3), duration_s, has_sound)
    return _Source(facts, pixel_ratio, first.time)


def _picture(container: InputContainer, field: str) -> VideoStream:
    """The stream with the moving picture, which a song's cover is not."""
    for stream in container.streams.video:
        is_cover = stream.disposition & Disposition.attached_pic
        if stream.codec_context and not is_cover and stream.codec_context.name in PICTURE_CODECS:
            _check_pixels(stream.width, stream.height, field)
            return stream
    raise InputRejected.of(field, "has no video that can be read")


def _check_pixels(width: int, height: int, field: str) -> None:
    if width * height > _MAX_SOURCE_PIXELS:
        most = f"{_MAX_SOURCE_PIXELS / 1e6:.1f} megapixels"
        raise InputRejected.of(field, f"is {width}x{height}; at most {most} are possible")


def _pixel_ratio(stream: VideoStream) -> Fraction:
    ratio = Fraction(stream.sample_aspect_ratio or 1)
    return ratio if 1 / _MAX_PIXEL_RATIO <= ratio <= _MAX_PIXEL_RATIO else Fraction(1)


def _quarter_turns(frame: VideoFrame) -> int:
    """How often a frame is to be turned left by 90 degrees to stand upright, 0 to 3."""
    return round(frame.rotation / 90) % 4


def _measured(
    container: InputContainer, stream: VideoStream, field: str, stop: StopSignal
) -> tuple[float, float]:
    """Mean frames a second, and seconds, from the packets: headers may be absent or wrong."""
    count = 0
    first, last, end = math.inf, -math.inf, 0
    for packet in container.demux():
        stop.check()
        time = packet.dts if packet.pts is None else packet.pts
        if (
            packet.stream_index != stream.index
            or time is None
            or not packet.size
            or packet.is_discard
        ):
            continue
        count += 1
        if count > _MAX_SOURCE_FRAMES:
            raise InputRejected.of(field, f"has more than {_MAX_SOURCE_FRAMES:,} frames")
        first, last = min(first, time), max(last, time)
        end = max(end, time + (packet.duration or 0))
    if not count or not stream.time_base:
        return 0.0, 0.0
    step = (last - first) / max(1, count - 1)
    seconds = (end - first if end > last else last + step - first) * float(stream.time_base)
    fps = count / seconds if seconds else 0.0
    # Times in a file are rounded; the rate in its header is exact where it is right.
    said = float(stream.average_rate or 0)
    if said and abs(said - fps) < 0.01 * fps:
        return said, count / said
    return fps, seconds


def _frames(data: bytes, field: str, stop: StopSignal) -> Generator[VideoFrame]:
    """A clip's frames as they are stored; those of which nobody knows the time are left out."""
    with opened(data, field) as container:
        stream = _picture(container, field)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _DECODER_THREADS
        frame: VideoFrame
        for frame in decoded(container.demux(stream), stop):
            _check_pixels(frame.width, frame.height, field)
            if frame.pts is not None:
                yield frame


def _constant_rate(
    frames: Iterator[VideoFrame], rate: Fraction, max_frames: int
) -> Iterator[VideoFrame]:
    """Frame n is the one nearest to n / `rate` seconds; one is repeated while no other is due.

    A clip of d seconds becomes round(d x rate) frames, at least 1 and at most `max_frames`.
    """
    period_s = float(1 / rate)
    shown = next(frames)
    start_s = since_s = shown.time
    gap_s = period_s
    index = 0
    for frame in frames:
        if frame.time <= since_s:
            continue
        # Half a step early, so that rounded times do not repeat one frame and skip the next. A
        # frame that lasts gives way no more than half a period early.
        gap_s = frame.time - since_s
        due_s = frame.time - min(gap_s, period_s) / 2 - start_s
        while index < max_frames and index * period_s < due_s:
            yield shown
            index += 1
        if index == max_frames:
            return
        shown, since_s = frame, frame.time
    lasts_s = float(shown.duration * shown.time_base) if shown.time_base else 0.0
    count = round((since_s - start_s + (lasts_s or gap_s)) * rate)
    for _ in range(index, min(max(1, count), max_frames)):
        yield shown


class _Fitter:
    """Turns, crops and scales frames to one size, grey or 4:2:0, in BT.601 of limited range.

    A stream may change its form midway, hence one filter graph per form. HDR becomes SDR.
    """

    def __init__(self, size: Size, pixel_ratio: Fraction, field: str, *, grey: bool) -> None:
        self._size = size
        self._pixel_ratio = pixel_ratio
        self._field = field
        self.grey = grey
        self._form: tuple[object, ...] = ()
        self._graph: Graph | None = None

    def fit(self, frame: VideoFrame) -> VideoFrame:
        """A frame of the fitter's size and format; raises `InputRejected` if there is no way."""
        hdr = frame.color_trc in _HDR
        if not hdr:
            # The scaler refuses the reserved values that some files have.
            frame.color_trc = ColorTrc.UNSPECIFIED
            frame.color_primaries = ColorPrimaries.UNSPECIFIED
        colours = (frame.colorspace, frame.color_range, hdr)
        form = (frame.width, frame.height, frame.format.name, _quarter_turns(frame), *colours)
        try:
            if self._graph is None or form != self._form:
                self._form, self._graph = form, self._graph_for(frame, hdr=hdr)
            self._graph.vpush(frame)
            return self._graph.vpull()
        except FFmpegError as error:
            raise InputRejected.of(self._field, "has a form of picture unknown here") from error

    def _graph_for(self, frame: VideoFrame, *, hdr: bool) -> Graph:
        """The filters for frames like `frame`."""
        turns = _quarter_turns(frame)
        width, height, ratio = frame.width, frame.height, self._pixel_ratio
        if turns % 2:
            width, height, ratio = height, width, 1 / ratio
        # The part, in the source's pixels, that has the target's shape.
        shape = Fraction(self._size.width, self._size.height) / ratio
        crop_width = max(1, round(min(width, height * shape)))
        crop_height = max(1, round(min(height, width / shape)))
        colours = "out_range=pc" if self.grey else "out_range=tv:out_color_matrix=bt601"
        steps = [
            *(step for step in _TURNS[turns].split(",") if step),
            f"crop={crop_width}:{crop_height}:exact=1",
            f"scale={self._size.width}:{self._size.height}:flags=lanczos",
            # After scaling, since HDR is slow to convert.
            f"scale={colours}{_TO_SDR if hdr else ''}",
            f"format={'gray' if self.grey else 'yuv420p'}",
        ]
        graph = Graph()
        source = graph.add(
            "buffer",
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
            f":colorspace={frame.colorspace}:range={frame.color_range}",
        )
        nodes = [graph.add(*step.split("=", 1)) for step in steps]
        graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
        return graph


def _fitted(frames: Iterable[VideoFrame], fitter: _Fitter) -> Iterator[VideoFrame]:
    """Each frame fitted, and a repeated one only once; grey ones as edges."""
    before: VideoFrame | None = None
    picture: VideoFrame | None = None
    for frame in frames:
        if picture is None or frame is not before:
            before, picture = frame, fitter.fit(frame)
            if fitter.grey:
                picture = edges_of(picture)
        yield picture


def _write(path: Path, pictures: Iterable[VideoFrame], size: Size, rate: Fraction) -> int:
    """Encode pictures of `size`, one per 1 / `rate` seconds; returns how many there were."""
    count = 0
    with av.open(path, "w", format="mp4", container_options=_CONTAINER) as output:
        video = output.add_stream("libx264", rate=rate, options=_ENCODER)
        video.width, video.height, video.pix_fmt = size.width, size.height, "yuv420p"
        video.colorspace, video.color_range = _MATRIX, ColorRange.MPEG
        for picture in pictures:
            picture.pts, picture.time_base = count, 1 / rate
            # Or x264 would repeat the source's choice of key frames.
            picture.pict_type = PictureType.NONE
            output.mux(video.encode(picture))
            count += 1
        output.mux(video.encode(None))
    return count
