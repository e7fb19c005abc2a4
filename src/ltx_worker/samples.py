"""Media to try the worker with: a picture, a sound and a clip, drawn here and owned by nobody."""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import base64
import io
import wave
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_RATE = 48_000
_SIZE = (768, 432)
_FPS = 24
# Colours of the sky.
_DAWN, _NOON, _NIGHT = (236, 150, 80), (90, 160, 90), (60, 90, 160)
_NOTES_HZ = (261.6, 329.6, 392.0, 523.3, 392.0, 329.6)


def sample_request(mode: str) -> dict[str, Any]:
    """The fields, beside a prompt, that a job of `mode` needs."""
    return {"mode": mode} | _media(mode)


def _media(mode: str) -> dict[str, Any]:
    match mode:
        case "i2v":
            return {"image": picture(_DAWN)}
        case "a2v":
            return {"audio": sound(4.0)}
        case "lipsync":
            return {"image": picture(_DAWN), "audio": sound(4.0)}
        case "keyframes":
            middle = {"image": picture(_NOON), "time": 2.5}
            return {
                "image": picture(_DAWN),
                "keyframes": [middle],
                "last_image": picture(_NIGHT),
            }
        case "v2v":
            return {"video": clip(3.0), "control": "canny"}
        case "extend":
            return {"video": clip(3.0), "duration": 2}
        case "retake":
            return {"video": clip(4.0), "start_time": 1.0, "end_time": 2.5}
        case _:
            return {}


def picture(sky: tuple[int, int, int]) -> str:
    """A hill with a sun under a sky of this colour, as a PNG in base64."""
    buffer = io.BytesIO()
    _scene(sky, 0.35).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def sound(seconds: float) -> str:
    """A few notes, as a WAV in base64."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes((_melody(seconds) * 32767).astype("<i2").tobytes())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def clip(seconds: float) -> str:
    """The sun crossing the sky, with sound, as an mp4 in base64."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=_FPS, options={"preset": "veryfast"})
        video.width, video.height = _SIZE
        video.pix_fmt = "yuv420p"
        audio = output.add_stream("aac", rate=_RATE, layout="mono")
        frames = round(seconds * _FPS)
        for index in range(frames):
            scene = np.asarray(_scene((120, 170, 220), index / frames))
            output.mux(video.encode(av.VideoFrame.from_ndarray(scene, format="rgb24")))
        output.mux(video.encode(None))
        samples = _melody(frames / _FPS).astype(np.float32)[None, :]
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate, block.time_base = _RATE, Fraction(1, _RATE)
        output.mux(audio.encode(block))
        output.mux(audio.encode(None))
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _scene(sky: tuple[int, int, int], sun: float) -> Image.Image:
    """A landscape; `sun` is how far it has crossed the sky, from 0 to 1."""
    width, height = _SIZE
    fade = np.linspace(0.6, 1.2, height)[:, None, None] * np.array(sky)[None, None, :]
    pixels = np.broadcast_to(np.clip(fade, 0, 255), (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    x, y = round(width * (0.1 + 0.8 * sun)), round(height * (0.45 - 0.9 * sun * (1 - sun)))
    draw.ellipse((x - 36, y - 36, x + 36, y + 36), fill=(255, 236, 170))
    hill = [(0, height), (0, 300), (width * 0.35, 240), (width * 0.7, 330), (width, 270)]
    draw.polygon([*hill, (width, height)], fill=(46, 70, 52))
    return image


def _melody(seconds: float) -> npt.NDArray[np.float64]:
    """Notes of half a second, each dying away: samples from -1 to 1."""
    time = np.arange(round(seconds * _RATE)) / _RATE
    pitch = np.array(_NOTES_HZ)[(time / 0.5).astype(int) % len(_NOTES_HZ)]
    since = time % 0.5
    return 0.3 * np.sin(2 * np.pi * pitch * since) * np.exp(-3 * since)
