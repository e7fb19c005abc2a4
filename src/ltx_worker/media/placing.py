"""A job's media, fetched, normalised and put where ComfyUI finds them.

What sound and video need is imported by the first job that brings some: it takes a tenth of a
second, which a worker's start does not have to wait for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltx_worker.geometry import Size
from ltx_worker.job_files import JobFiles
from ltx_worker.media.fetch import FetchRules, read_media
from ltx_worker.media.memory_limit import ample_memory
from ltx_worker.media.normalise import contained, read_picture, write_picture
from ltx_worker.request import GenerateRequest
from ltx_worker.request_fields import MediaSource
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.values import Placed

# Lengths closer than this are the same to a listener, and warn nobody.
_SAME_LENGTH_S = 0.05


@dataclass(frozen=True)
class Placer:
    """Reads the media of one request into the files of one job."""

    settings: Settings
    files: JobFiles
    stop: StopSignal

    def place(self, request: GenerateRequest) -> tuple[GenerateRequest, Placed]:
        """The request with what follows from its media, and the files' names.

        Raises `InputRejected` and `InputUnavailable`.
        """
        values: dict[str, str] = {}
        if request.image is not None and request.mode != "keyframes":
            request, values["image"] = self._image(request, request.image, "image", "image.png")
        if request.audio is not None:
            request, values["audio"] = self._sound(request, request.audio)
        if request.video is not None:
            from ltx_worker.media.placing_video import VideoPlacer  # noqa: PLC0415 - see above

            placer = VideoPlacer(self.settings, self.files, self.stop, self._fetch_rules)
            return placer.place(request, request.video)
        repeats: dict[str, list[dict[str, object]]] = {}
        if request.keyframes:
            request, repeats["keyframes"] = self._keyframes(request)
        return request, Placed(values, repeats)

    @property
    def _fetch_rules(self) -> FetchRules:
        return FetchRules.of(self.settings)

    def _read(self, source: MediaSource, field: str, max_bytes: int) -> bytes:
        return read_media(source, field, max_bytes, self.stop, self._fetch_rules)

    def _image(
        self, request: GenerateRequest, source: MediaSource, field: str, file_name: str
    ) -> tuple[GenerateRequest, str]:
        """Write a picture; a clip without a size takes its ratio."""
        data = self._read(source, field, self.settings.max_image_bytes)
        path = self.files.input_path(file_name)
        with ample_memory():
            picture = read_picture(data, field)
            request = request.fitted_to(Size(*picture.size))
            if request.fit == "contain":
                picture = contained(picture, request.made.size)
            write_picture(picture, path)
        return request, self.files.publish(path)

    def _keyframes(
        self, request: GenerateRequest
    ) -> tuple[GenerateRequest, list[dict[str, object]]]:
        items: list[dict[str, object]] = []
        for index, keyframe in enumerate(request.keyframes):
            request, name = self._image(
                request, keyframe.source, keyframe.field, f"keyframe_{index}.png"
            )
            items.append({"image": name, "frame": keyframe.frame, "strength": keyframe.strength})
            if index == 0:
                request = replace(request, follow_image=None)
        return request, items

    def _sound(self, request: GenerateRequest, source: MediaSource) -> tuple[GenerateRequest, str]:
        """Write the sound exactly as long as the clip, which follows it where nobody said."""
        from ltx_worker.media.audio import read_sound, write_wav  # noqa: PLC0415 - see above

        data = self._read(source, "audio", self.settings.max_media_bytes)
        sound = read_sound(data, "audio", self.settings.max_media_s, self.stop)
        request = request.timed_by(sound.duration_s, self.settings.max_frames)
        request = _warn_of_length(request, sound.duration_s)
        path = self.files.input_path("audio.wav")
        write_wav(sound, path, request.duration_s)
        return request, self.files.publish(path)


def _warn_of_length(request: GenerateRequest, sound_s: float) -> GenerateRequest:
    difference_s = sound_s - request.duration_s
    if abs(difference_s) <= _SAME_LENGTH_S:
        return request
    change = "cut to" if difference_s > 0 else "filled with silence to"
    return request.warned(
        f"audio of {sound_s:.2f} s was {change} the clip's {request.duration_s:.2f} s"
    )
