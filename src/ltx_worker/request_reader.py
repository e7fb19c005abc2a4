"""From a job's input to a `GenerateRequest` with every default filled in.

`parse_request` raises one `InvalidRequest` that names every wrong field at once, and otherwise
says in `warnings` what it changed. Nothing here touches a network, a media file or ComfyUI: what
this worker can make comes in as an `Offer`.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from ltx_worker.errors import InvalidRequest
from ltx_worker.offer import Offer, WorkflowOffer
from ltx_worker.request import GenerateRequest, KeyframeUse
from ltx_worker.request_extent import Extent, Findings
from ltx_worker.request_fields import (
    Control,
    Keyframe,
    Mode,
    Quality,
    RequestFields,
    read_fields,
)
from ltx_worker.request_output import output_problems

# Longer clips than the models were made for are sampled in windows (20 s at 24 or 25 frames).
LONGEST_WHOLE_CLIP = 505
# The looping sampler makes no tile of fewer latents than its overlap and fails.
MIN_DETAILER_FRAMES = 25

# Fields that a workflow must have a place for; the others are the worker's own business.
_PLACED_FIELDS = (
    *("image", "last_image", "audio", "video", "keyframes", "image_strength", "fit"),
    *("control", "control_strength", "direction", "start_time", "end_time", "replace"),
    *("loras", "detailer", "spatial_upscale", "temporal_upscale", "enhance_prompt"),
    "generate_audio",
)
# Fields that are taken where a workflow binds something of another name, or by a mode as such.
_PLACES = {"image": {"fit"}, "keyframes": {"image", "last_image", "fit"}}
_OF_MODE: dict[str, set[str]] = {
    "v2v": {"control"},
    "extend": {"direction"},
    "retake": {"start_time", "end_time", "replace"},
}
# Options of a workflow and the catalogue role of the file that each needs beyond the usual.
_OPTION_ROLES = {"detailer": "detailer_lora", "temporal_upscale": "temporal_upscaler"}
_OPTIONS = ("generate_audio", "enhance_prompt", "spatial_upscale", "temporal_upscale", "detailer")
_MODEL_SUFFIXES: dict[str, Quality] = {"-fast": "fast", "-pro": "pro"}
_CAMERA_WORDS = Path(__file__).with_name("camera.toml")


def parse_request(job_input: Any, offer: Offer, default_seed: int = 0) -> GenerateRequest:
    """Read a job's `input`; raises `InvalidRequest` with every problem in `details`."""
    fields, problems = read_fields(job_input)
    if fields is None:
        raise InvalidRequest.listing(problems)
    request = _Reader(fields, offer, Findings(problems)).read(default_seed)
    if problems:
        raise InvalidRequest.listing(problems)
    return request


class _Reader:
    """Decides each value in turn and collects problems and warnings on the way."""

    def __init__(self, fields: RequestFields, offer: Offer, findings: Findings) -> None:
        self.fields = fields
        self.offer = offer
        self._refuse, self._warn = findings.problem, findings.warn
        self.findings = findings

    def read(self, default_seed: int) -> GenerateRequest:
        fields = self.fields
        family, quality = self._model()
        mode = _implied_mode(fields) if fields.mode is None else fields.mode
        variant = _variant(mode, fields)
        self._check_mode(mode, quality, variant)
        workflow = self.offer.workflows.get((mode, quality, variant))
        if workflow is None:
            workflow = WorkflowOffer(frozenset())
        else:
            self._check_places(mode, quality, workflow, family)
        extent = Extent(fields, self.offer.max_frames, self.findings)
        has_picture = fields.image is not None or mode in ("keyframes", *_OF_MODE)
        size, follow_image = extent.size(workflow.grid, has_picture)
        frames, follow_sound = extent.frames()
        prompt, camera_lora = self._camera(family, workflow)
        self.findings.problems += output_problems(
            fields.output, self.offer.video_format, has_bucket=self.offer.has_bucket
        )
        return GenerateRequest(
            mode=mode,
            family=family,
            quality=quality,
            prompt=prompt,
            negative_prompt=fields.negative_prompt,
            size=size,
            passes=workflow.passes,
            grid=workflow.grid,
            num_frames=frames,
            fps=fields.fps,
            seed=default_seed if fields.seed is None else fields.seed,
            variant=variant,
            **self._sources(mode, family),
            keyframes=self._keyframes(frames) if "keyframes" in workflow.takes else (),
            options=self._options(workflow, frames),
            loras=self._loras(),
            camera_lora=camera_lora,
            generate_audio=fields.generate_audio,
            follow_image=follow_image,
            follow_sound=follow_sound,
            output=fields.output,
            warnings=tuple(self.findings.warnings),
        )

    def _sources(self, mode: Mode, family: str) -> dict[str, Any]:
        """The media given, and what is to be done with them."""
        fields = self.fields
        return {
            "image": fields.image,
            "image_strength": fields.image_strength,
            "fit": fields.fit,
            "audio": fields.audio,
            "video": fields.video,
            "control": self._control(mode, family),
            "control_strength": fields.control_strength,
            "replace": fields.replace,
            "retake": self._retake(mode),
            "follow_video": mode in _OF_MODE and "fps" not in fields.model_fields_set,
            "follow_video_length": mode == "v2v" and not fields.given & {"duration", "num_frames"},
        }

    def _model(self) -> tuple[str, Quality]:
        """The family and the quality; a suffix of `model` may name the latter."""
        installed = self.offer.installed
        family = self.fields.model or (installed[0] if installed else self.offer.families[0])
        suffix = next((s for s in _MODEL_SUFFIXES if family.endswith(s)), None)
        quality = self.fields.quality
        if suffix is not None:
            family = family.removesuffix(suffix)
            if quality not in (None, _MODEL_SUFFIXES[suffix]):
                self._refuse("quality", f"is {quality}, but model asks for {suffix[1:]}")
            quality = _MODEL_SUFFIXES[suffix]
        if family not in self.offer.families:
            self._refuse("model", f"must be one of {', '.join(self.offer.families)}")
        elif family not in installed:
            here = ", ".join(installed) or "none"
            self._refuse("model", f"{family} is not installed in this worker (installed: {here})")
        return family, quality or "fast"

    def _check_mode(self, mode: Mode, quality: Quality, variant: str) -> None:
        """Refuse a mode, or a quality of it, that has no workflow."""
        qualities = self.offer.qualities(mode, variant)
        if not qualities:
            offered = ", ".join(self.offer.modes)
            how = "is" if self.fields.mode else "is not given and the media imply"
            self._refuse("mode", f"{how} {mode}, which this worker does not offer ({offered})")
        elif quality not in qualities:
            offered = ", ".join(qualities)
            self._refuse("quality", f"is {quality}, which mode {mode} does not offer ({offered})")

    def _check_places(
        self, mode: Mode, quality: Quality, workflow: WorkflowOffer, family: str
    ) -> None:
        """Refuse what the workflow has no place for, and what it cannot do without."""
        given, takes = self.fields.given, workflow.takes
        takes = takes.union(
            *(_PLACES[name] for name in _PLACES if name in takes), _OF_MODE.get(mode, ())
        )
        for name in _PLACED_FIELDS:
            if name in given and name not in takes:
                self._refuse(name, f"is not taken by mode {mode} at quality {quality}")
        for name in workflow.requires - given:
            self._refuse(name, f"is required for mode {mode}")
        for option, role in _OPTION_ROLES.items():
            if option in given and role not in self.offer.roles.get(family, ()):
                self._refuse(option, f"is not possible: no such file is published for {family}")
        if self.fields.negative_prompt and "negative_prompt" not in takes:
            self._warn(
                f"negative_prompt has no effect at quality {quality}, which uses no guidance"
            )

    def _options(self, workflow: WorkflowOffer, frames: int) -> frozenset[str]:
        """The workflow's options that are on."""
        options = {name for name in _OPTIONS if getattr(self.fields, name)}
        refined = 2 * frames - 1 if "temporal_upscale" in options else frames
        if "detailer" in options and refined < MIN_DETAILER_FRAMES:
            self._refuse("detailer", f"needs a clip of at least {MIN_DETAILER_FRAMES} frames")
        if frames > LONGEST_WHOLE_CLIP and "long_video" in workflow.takes:
            options.add("long_video")
            self._warn(
                f"a clip of more than {LONGEST_WHOLE_CLIP} frames is made in overlapping windows"
            )
        return frozenset(options & workflow.takes)

    def _control(self, mode: Mode, family: str) -> Control | None:
        """How a source controls the clip; a LoRA for it has to be published for the family."""
        control = self.fields.control
        if mode != "v2v" or control in (None, "restyle"):
            return None
        roles = self.offer.roles.get(family, frozenset())
        if not {f"control_{control}", "control_union"} & roles:
            self._refuse("control", f"is {control}, for which {family} has no LoRA")
        return control

    def _retake(self, mode: Mode) -> tuple[float, float] | None:
        """From when to when a part is made anew, in seconds."""
        start, end = self.fields.start_time, self.fields.end_time
        if mode != "retake":
            return None
        for name, value in (("start_time", start), ("end_time", end)):
            if value is None:
                self._refuse(name, "is required for mode retake")
        if start is None or end is None:
            return None
        if end <= start:
            self._refuse("end_time", "must be after start_time")
        return start, end

    def _loras(self) -> tuple[tuple[str, float], ...]:
        """The LoRA files asked for, by the names under which ComfyUI lists them."""
        found: list[tuple[str, float]] = []
        for index, lora in enumerate(self.fields.loras):
            names = (lora.name, f"{lora.name}.safetensors")
            name = next((n for n in names if n in self.offer.loras), None)
            if name is None:
                listed = ", ".join(self.offer.loras) or "none"
                self._refuse(f"loras.{index}.name", f"is not installed (installed: {listed})")
            else:
                found.append((name, lora.strength))
        return tuple(found)

    def _camera(self, family: str, workflow: WorkflowOffer) -> tuple[str, tuple[str, float] | None]:
        """The prompt, and the camera LoRA's role; words where no LoRA is published."""
        prompt, motion = self.fields.prompt, self.fields.camera_motion
        if motion is None:
            if self.fields.camera_strength is not None:
                self._refuse("camera_strength", "needs a camera_motion")
            return prompt, None
        role = f"camera_{motion}"
        if role in self.offer.roles.get(family, ()) and "loras" in workflow.takes:
            strength = self.fields.camera_strength
            return prompt, (role, 1.0 if strength is None else strength)
        self._warn(
            f"no camera LoRA for {motion} is published for {family}; "
            "the movement was added to the prompt in words"
        )
        return f"{prompt.rstrip()} {_camera_words()[motion]}", None

    def _keyframes(self, frames: int) -> tuple[KeyframeUse, ...]:
        """All pictures with their frames, in order: image, keyframes, last_image."""
        fields = self.fields
        uses = [
            KeyframeUse(
                field=f"keyframes.{index}.image",
                source=keyframe.image,
                frame=self._frame_of(keyframe, index, frames),
                strength=keyframe.strength,
            )
            for index, keyframe in enumerate(fields.keyframes)
        ]
        if fields.image is not None:
            uses.insert(0, KeyframeUse("image", fields.image, 0, 1.0))
        if fields.last_image is not None:
            uses.append(KeyframeUse("last_image", fields.last_image, frames - 1, 1.0))
        if not uses:
            self._refuse("keyframes", "are required for mode keyframes, or image or last_image")
        taken = [use.frame for use in uses]
        if len(set(taken)) != len(taken):
            self._refuse("keyframes", "must be at different frames")
        return tuple(sorted(uses, key=lambda use: use.frame))

    def _frame_of(self, keyframe: Keyframe, index: int, frames: int) -> int:
        """The frame of a keyframe that says a frame or a time."""
        if (keyframe.frame is None) == (keyframe.time is None):
            self._refuse(f"keyframes.{index}", "must have either frame or time")
            return index
        name = "frame" if keyframe.time is None else "time"
        frame = keyframe.frame
        if frame is None:
            frame = round((keyframe.time or 0) * self.fields.fps)
        if frame >= frames:
            last = f"{frames - 1} ({(frames - 1) / self.fields.fps:.2f} s)"
            self._refuse(f"keyframes.{index}.{name}", f"is after the clip's last frame, {last}")
        return frame


@cache
def _camera_words() -> dict[str, str]:
    return tomllib.loads(_CAMERA_WORDS.read_text(encoding="utf-8"))


def _variant(mode: Mode, fields: RequestFields) -> str:
    """Which of a mode's workflows: without a control a video is restyled."""
    if mode == "v2v":
        return "restyle" if fields.control in (None, "restyle") else ""
    return "backward" if mode == "extend" and fields.direction == "backward" else ""


def _implied_mode(fields: RequestFields) -> Mode:
    if fields.video is not None:
        return "v2v"
    if fields.audio is not None:
        return "a2v" if fields.image is None else "lipsync"
    if fields.keyframes or fields.last_image is not None:
        return "keyframes"
    return "i2v" if fields.image is not None else "t2v"
