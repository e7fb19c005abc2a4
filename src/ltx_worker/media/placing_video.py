"""A source clip put where ComfyUI finds it, and what a mode does with its frames and its sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ltx_worker.errors import InputRejected, InvalidRequest, Problem
from ltx_worker.geometry import MIN_FRAMES, snap_frames_down
from ltx_worker.job_files import JobFiles
from ltx_worker.media.audio import Sound, write_clip_sound, write_wav
from ltx_worker.media.fetch import FetchRules, read_media
from ltx_worker.media.video import Clip, read_clip_facts, write_clip
from ltx_worker.request import ClipSpec, GenerateRequest
from ltx_worker.request_fields import MAX_FPS, MediaSource
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.timeline import Extension, Window, extend, window
from ltx_worker.workflow.values import Placed

_SILENCE_RATE = 48_000


@dataclass(frozen=True)
class SourceClip:
    """A source in ComfyUI's folder: `num_frames` at `fps`, whether it sounds, names by binding."""

    num_frames: int
    fps: float
    has_sound: bool
    names: Mapping[str, str]

    def seconds(self, frames: int) -> float:
        """The length of so many frames."""
        return frames / self.fps


@dataclass(frozen=True)
class VideoPlacer:
    """Reads the source of one request into the files of one job."""

    settings: Settings
    files: JobFiles
    stop: StopSignal
    fetch_rules: FetchRules

    def place(
        self, request: GenerateRequest, source: MediaSource
    ) -> tuple[GenerateRequest, Placed]:
        """The request with what follows from its source, and what the workflow gets.

        Raises `InputRejected`, `InputUnavailable`, and `InvalidRequest` for a time outside the
        source.
        """
        request, clip = self._write(request, source)
        match request.mode:
            case "extend":
                return _extend(request, clip)
            case "retake":
                return _retake(request, clip)
            case _:
                return _redraw(request, clip)

    def _write(
        self, request: GenerateRequest, source: MediaSource
    ) -> tuple[GenerateRequest, SourceClip]:
        """Normalise the source: the request's size, rate and no more frames than can be used."""
        data = read_media(
            source, "video", self.settings.max_media_bytes, self.stop, self.fetch_rules
        )
        facts = read_clip_facts(data, "video", self.stop)
        request = request.fitted_to(facts.size)
        if request.follow_video:
            request = replace(request, fps=min(round(facts.fps, 3), float(MAX_FPS)))
        path = self.files.input_path("video.mp4")
        most = snap_frames_down(self.settings.max_frames)
        if request.mode == "v2v":
            # Sampled as a whole, so cut to the grid; the others keep frames beyond it.
            wanted = facts.duration_s * request.fps
            if not request.follow_video_length:
                wanted = min(wanted, request.num_frames)
            most = min(most, max(MIN_FRAMES, snap_frames_down(round(wanted))))
        clip = self._normalise(request, data, path, most)
        if request.mode == "v2v" and clip.num_frames >= MIN_FRAMES and clip.num_frames % 8 != 1:
            clip = self._normalise(request, data, path, snap_frames_down(clip.num_frames))
        names = {"video": self.files.publish(path)}
        sound = self._sound(data, clip, request.mode == "extend")
        if sound is not None:
            names["audio"] = self.files.publish(sound)
        return request, SourceClip(clip.num_frames, request.fps, sound is not None, names)

    def _sound(self, data: bytes, clip: Clip, or_silence: bool) -> Path | None:
        """The clip's sound as a file as long as its picture, if it has one."""
        path = self.files.input_path("audio.wav")
        duration_s = clip.duration_s
        if write_clip_sound(data, "video", path, clip.start_s, duration_s, self.stop):
            return path
        if not or_silence:
            return None
        # Silence to go on from: the clip's track is then as long as its picture.
        write_wav(Sound(np.zeros((2, 0), np.float32), _SILENCE_RATE), path, duration_s)
        return path

    def _normalise(
        self, request: GenerateRequest, data: bytes, path: Path, max_frames: int
    ) -> Clip:
        return write_clip(
            data,
            "video",
            path,
            size=request.size,
            fps=request.fps,
            max_frames=max_frames,
            edges=request.control == "canny",
            stop=self.stop,
        )


def _redraw(request: GenerateRequest, clip: SourceClip) -> tuple[GenerateRequest, Placed]:
    """v2v: the clip is as long as the source, and keeps its sound."""
    frames = _whole(clip)
    if frames < request.num_frames and not request.follow_video_length:
        request = request.warned(f"the clip has the source's {frames} frames")
    options = {"keep_audio"} if clip.has_sound and request.generate_audio else set[str]()
    request = replace(request, num_frames=frames)
    return request, Placed(clip.names, options=frozenset(options))


def _extend(request: GenerateRequest, clip: SourceClip) -> tuple[GenerateRequest, Placed]:
    forward = request.variant != "backward"
    extension = extend(clip.num_frames, request.num_frames - 1, forward=forward)
    if extension is None:
        raise _too_short()
    values = _extension_values(extension, clip)
    made = ClipSpec(request.size, extension.total, request.fps, request.generate_audio)
    request = replace(request, num_frames=extension.num_frames, expected=made)
    return request, Placed({**clip.names, **values}, options=_source_sound(request, clip))


def _extension_values(extension: Extension, clip: SourceClip) -> dict[str, Any]:
    context_start = extension.source - extension.context
    return {
        "context_start": context_start,
        "context_length": extension.context,
        "new_start": extension.context,
        "new_length": extension.new,
        "context_start_time": clip.seconds(context_start),
        "context_duration": clip.seconds(extension.context),
        "new_duration": clip.seconds(extension.new),
        "source_duration": clip.seconds(extension.source),
    }


def _retake(request: GenerateRequest, clip: SourceClip) -> tuple[GenerateRequest, Placed]:
    length_s = clip.seconds(clip.num_frames)
    start_s, end_s = request.retake or (0.0, length_s)
    freed = window(start_s, end_s, clip.fps, _whole(clip))
    if freed is None:
        message = f"and end_time are outside the source of {length_s:.2f} s"
        raise InvalidRequest.listing([Problem("start_time", message)])
    # Frames beyond the grid cannot be made anew; they are part of the tail.
    freed = replace(freed, num_frames=clip.num_frames)
    got = (clip.seconds(freed.start), clip.seconds(freed.end))
    if max(abs(got[0] - start_s), abs(got[1] - min(end_s, length_s))) > 1 / clip.fps:
        request = request.warned(
            f"the retake of {start_s:g} to {end_s:g} s was widened to "
            f"{got[0]:.2f} to {got[1]:.2f} s"
        )
    new_sound = request.generate_audio and request.replace != "video"
    has_sound = new_sound or (clip.has_sound and request.generate_audio)
    made = ClipSpec(request.size, clip.num_frames, request.fps, has_sound)
    options = set(_source_sound(request, clip)) | _retake_options(request, freed)
    if not new_sound:
        request = replace(request, options=request.options - {"generate_audio"})
    request = replace(request, num_frames=_whole(clip), expected=made)
    values = _retake_values(request, freed, clip, new_sound=new_sound)
    return request, Placed({**clip.names, **values}, options=frozenset(options))


def _retake_options(request: GenerateRequest, freed: Window) -> set[str]:
    wanted = {
        "keep_video": request.replace == "audio",
        "head": freed.has_head,
        "tail": freed.has_tail,
    }
    return {name for name, is_on in wanted.items() if is_on}


def _retake_values(
    request: GenerateRequest, freed: Window, clip: SourceClip, *, new_sound: bool
) -> dict[str, Any]:
    return {
        "window_start": freed.start,
        "window_length": freed.length,
        "window_end": freed.end,
        "start_time": clip.seconds(freed.start),
        "end_time": clip.seconds(freed.end),
        "window_duration": clip.seconds(freed.length),
        "source_duration": clip.seconds(freed.num_frames),
        "mask_video": request.replace != "audio",
        "mask_audio": new_sound,
    }


def _source_sound(request: GenerateRequest, clip: SourceClip) -> frozenset[str]:
    has_sound = clip.has_sound and request.generate_audio
    return frozenset({"source_audio"} if has_sound else set[str]())


def _whole(clip: SourceClip) -> int:
    """The source's frames on the 8k+1 grid."""
    if clip.num_frames < MIN_FRAMES:
        raise _too_short()
    return snap_frames_down(clip.num_frames)


def _too_short() -> InputRejected:
    return InputRejected.of("video", f"has fewer than {MIN_FRAMES} frames")
