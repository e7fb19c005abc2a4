"""Sounds and clips as callers might send them, and what is in files that the worker wrote."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import wave
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace
from PIL import Image

from ltx_worker.geometry import Size
from ltx_worker.media.audio import Samples

Pixels = npt.NDArray[np.uint8]

SOUND_KINDS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "mp4": ("mp4", "aac"),
    "webm": ("webm", "libopus"),
    "mkv": ("matroska", "flac"),
}
CLIP_KINDS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "libx264"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx-vp9"),
    "avi": ("avi", "mpeg4"),
}
TONE_HZ = 440
IN_OPEN = 0x20
SIZE = Size(128, 64)
RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)


def tone(seconds: float, rate: int, channels: int = 2, loudness: float = 0.5) -> Samples:
    wave_form = loudness * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave_form.astype(np.float32), (channels, 1))


def audio_file(
    kind: str = "wav",
    seconds: float = 0.5,
    rate: int = 48_000,
    layout: str = "stereo",
    loudness: float = 0.5,
) -> bytes:
    container_format, codec = SOUND_KINDS[kind]
    channels = av.AudioLayout(layout).nb_channels
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if seconds:
            samples = tone(seconds, rate, channels, loudness)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def plain_wav(channels: int, seconds: float) -> bytes:
    """A WAV that says how many channels it has, but not which."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes((tone(seconds, 48_000, channels).T * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def float_wav(samples: Samples, rate: int) -> bytes:
    """A WAV of 32-bit floats, in which any number can stand, and a title in Latin-1."""
    data = samples.T.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 2, rate, rate * 8, 8, 32)
    title = b"LIST" + struct.pack("<I", 16) + b"INFOINAM" + struct.pack("<I", 4) + b"caf\xe9"
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + title
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def samples_of(path: Path) -> Samples:
    """What a file of 16-bit stereo holds."""
    with wave.open(str(path)) as file:
        levels = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return levels.reshape(-1, 2).T.astype(np.float32) / 32767


def loudness_of(samples: Samples) -> float:
    """Root mean square of what lies well inside a sound."""
    inner = samples[:, samples.shape[1] // 4 : -samples.shape[1] // 4]
    return float(np.sqrt(np.mean(inner**2)))


def is_opened(path: Path, act: Callable[[], object]) -> bool:
    """Whether the file at `path` is opened while `act` runs (by inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) > 0
    try:
        act()
        return bool(os.read(watch, 4096))
    except BlockingIOError:
        return False
    finally:
        os.close(watch)


def grey(level: int, size: Size = SIZE) -> Pixels:
    return np.full((size.height, size.width, 3), level, np.uint8)


def halves(left: tuple[int, ...], right: tuple[int, ...], size: Size = SIZE) -> Pixels:
    picture = np.empty((size.height, size.width, 3), np.uint8)
    picture[:, : size.width // 2], picture[:, size.width // 2 :] = left, right
    return picture


def ramp(count: int, size: Size = SIZE) -> list[Pixels]:
    """Pictures that get lighter, so that each is known by its level."""
    return [grey(20 + 200 * index // max(1, count - 1), size) for index in range(count)]


def video_file(
    pictures: Iterable[Pixels],
    rate: Fraction | int = 24,
    kind: str = "mp4",
    *,
    times_ms: Iterable[int] | None = None,
    pix_fmt: str = "yuv420p",
    codec: str | None = None,
    rotation: int = 0,
    pixel_ratio: Fraction | None = None,
    sound_s: float = 0,
    matrix: Colorspace | None = None,
) -> bytes:
    """A clip of RGB pictures, at a rate or at times of their own."""
    container_format, usual_codec = CLIP_KINDS[kind]
    buffer = io.BytesIO()
    pictures = list(pictures)
    with av.open(buffer, "w", format=container_format) as output:
        stream = output.add_stream(codec or usual_codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2] if pictures else (64, 128)
        stream.pix_fmt, stream.bit_rate = pix_fmt, 2_000_000
        stream.options = {"crf": "12", "preset": "ultrafast", "cpu-used": "8"}
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if pixel_ratio:
            stream.codec_context.sample_aspect_ratio = pixel_ratio
        if matrix:
            stream.colorspace = matrix
        if rotation:
            stream.set_display_rotation(rotation)
        track = output.add_stream("aac", rate=48_000, layout="stereo") if sound_s else None
        times = list(times_ms) if times_ms is not None else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if matrix:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix)
            frame.pts = times[index] if times else index
            frame.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if track:
            samples = tone(sound_s, 48_000)
            block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            block.sample_rate, block.pts, block.time_base = 48_000, 0, Fraction(1, 48_000)
            output.mux(track.encode(block))
            output.mux(track.encode(None))
    return buffer.getvalue()


def joined(*files: bytes) -> bytes:
    """The packets of several files behind one another, in the first one's container."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output, av.open(io.BytesIO(files[0])) as head:
        stream = output.add_stream_from_template(head.streams.video[0])
        index = 0
        for data in files:
            with av.open(io.BytesIO(data)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packet.time_base = Fraction(1, 24)
                        packet.pts = packet.dts = index
                        packet.duration = 1
                        index += 1
                        output.mux(packet)
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (64, 64), level) for level in (0, 255)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def song_with_cover() -> bytes:
    """An mp3 whose ID3 tag holds a picture, which FFmpeg shows as a video stream."""
    picture = b"\0image/png\0\3\0" + png()
    frame = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + audio_file("mp3")


def frames_of(path: Path) -> list[Pixels]:
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def levels_of(path: Path) -> list[int]:
    return [int(np.median(picture)) for picture in frames_of(path)]
