"""The result contract: what a caller gets for a finished job."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ltx_worker.delivery.handover import HandedOver, ResultFile


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OutputEntry(_Part):
    """One file of the job, the clip first; the clip's base64 is in `video` and not in `data`."""

    filename: str
    mime_type: str
    bytes: int = Field(description="Size of the file.")
    sha256: str = Field(description="Checksum of the file, in hex.")
    data: str | None = Field(default=None, description="The file as base64.")
    url: str | None = Field(default=None, description="A link to the file.")

    @classmethod
    def of(cls, file: ResultFile) -> OutputEntry:
        """The entry of a file that is not handed over yet: where its base64 goes is empty."""
        return cls(
            filename=file.filename,
            mime_type=file.mime_type,
            bytes=file.bytes,
            sha256=file.sha256,
            data="" if file.part else None,
        )


class Metadata(_Part):
    """What was made, as read from the clip; sizes in pixels, rates per second."""

    seed: int
    mode: str
    model: str = Field(description="The model family.")
    variant: str = Field(description="fp8 or fp16: the precision of the checkpoint.")
    quality: str
    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float
    has_audio: bool
    enhanced_prompt: str | None = Field(description="What the prompt was enhanced to, if asked.")
    audio_sample_rate: int | None
    gpu: str | None = Field(description="The GPU's name; null without one.")
    engine: str = Field(description="comfyui, or sandbox for a clip that no model made.")
    worker_version: str


class PageCacheTimings(_Part):
    """How far the weights were read into memory while ComfyUI started."""

    read_bytes: int
    resident_bytes: int = Field(description="What was in memory already.")
    seconds: float
    is_whole: bool = Field(description="Whether nothing was left to read.")


class WarmUpTimings(_Part):
    """The clip that nobody got, made before the first job."""

    seconds: float
    stages: dict[str, float] = Field(description="ComfyUI's work, by the workflow's stages.")
    problem: str | None = Field(description="The error's code, where it failed.")


class BootTimings(_Part):
    """Where the worker's start went, in seconds. Parts may have run beside each other."""

    code_s: float = Field(
        description="From the process's beginning, the start script's where that was replaced by "
        "the worker, until the code that starts ComfyUI was loaded."
    )
    gpu_s: float = Field(description="Asking for the GPU, and choosing by it.")
    engine_from_s: float = Field(
        description="From the process's beginning until ComfyUI was started."
    )
    engine_s: float = Field(description="ComfyUI, from its start until it listed its nodes.")
    load_s: float = Field(description="Loading the workflows, beside ComfyUI's start.")
    wait_s: float = Field(description="Waiting for ComfyUI, once all else was loaded.")
    check_s: float = Field(description="Checking workflows and models against ComfyUI.")
    page_cache: PageCacheTimings | None
    warm_up: WarmUpTimings | None
    ready_s: float = Field(description="From the process's beginning until jobs were taken.")


class Timings(_Part):
    """Where the time went, in seconds."""

    inputs_s: float = Field(description="Reading the request and its media.")
    queue_s: float = Field(
        description="Waiting for ComfyUI: for the jobs before this one, and in its queue."
    )
    comfy_s: float | None = Field(description="ComfyUI's own time for the job, by its history.")
    stages: dict[str, float] = Field(description="ComfyUI's work, by the workflow's stages.")
    encode_s: float = Field(description="Fetching, checking and encoding the clip as base64.")
    upload_s: float = Field(description="Uploading to the bucket, and checking what is there.")
    total_s: float
    boot: BootTimings | None = Field(
        default=None, description="The worker's start; in the first job's result alone."
    )

    def after(self, handed: HandedOver) -> Timings:
        """The timings of a job, with those of the hand-over that came last."""
        spent_s = handed.encode_s + handed.upload_s
        return self.model_copy(
            update={
                "encode_s": round(self.encode_s + handed.encode_s, 4),
                "upload_s": round(handed.upload_s, 4),
                "total_s": round(self.total_s + spent_s, 4),
            }
        )


class GenerateResult(_Part):
    """A finished job: exactly one of `video` and `video_url` is the clip."""

    video: str | None = Field(
        default=None, description="The clip, as base64 without a data: prefix."
    )
    video_url: str | None = Field(default=None, description="A link to the clip.")
    outputs: list[OutputEntry]
    metadata: Metadata
    timings: Timings
    warnings: list[str]

    @model_validator(mode="after")
    def _has_one_clip(self) -> GenerateResult:
        if (self.video is None) == (self.video_url is None):
            raise ValueError("must have either video or video_url")
        return self

    def delivered(self, handed: HandedOver) -> GenerateResult:
        """The result with its files, which were left empty in this one."""
        clip, *others = handed.files
        first, *rest = self.outputs
        entries = [first.model_copy(update={"url": clip.url})]
        for entry, file in zip(rest, others, strict=True):
            entries.append(entry.model_copy(update={"data": file.data, "url": file.url}))
        return self.model_copy(
            update={
                "video": clip.data,
                "video_url": clip.url,
                "outputs": entries,
                "timings": self.timings.after(handed),
            }
        )
