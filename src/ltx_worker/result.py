"""The result contract: what a caller gets for a finished job."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OutputEntry(_Part):
    """One file of the job. The clip itself is in `video`, so it has no `data` here."""

    filename: str
    mime_type: str
    bytes: int = Field(description="Size of the file.")
    sha256: str = Field(description="Checksum of the file, in hex.")


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
    engine: str = Field(description="comfyui, or sandbox for a clip that no model made.")
    worker_version: str


class Timings(_Part):
    """Where the time went, in seconds."""

    inputs_s: float = Field(description="Reading the request and its media.")
    queue_s: float = Field(description="Waiting in ComfyUI's queue.")
    comfy_s: float | None = Field(description="ComfyUI's own time for the job, by its history.")
    stages: dict[str, float] = Field(description="ComfyUI's work, by the workflow's stages.")
    encode_s: float = Field(description="Fetching, checking and encoding the clip as base64.")
    upload_s: float
    total_s: float


class GenerateResult(_Part):
    """A finished job."""

    video: str = Field(description="The clip, as base64 without a data: prefix.")
    outputs: list[OutputEntry]
    metadata: Metadata
    timings: Timings
    warnings: list[str]
