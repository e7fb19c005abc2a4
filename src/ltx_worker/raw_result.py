"""The result of a raw workflow: every file and text that its nodes reported.

Invariant 1: a run without any file or text is a failure, not a success. What ComfyUI reports as
`images`, which includes the clips of its SaveVideo, is in `images` where clients of RunPod's
generic ComfyUI worker look for it; every other file carries its data in `outputs`.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ltx_worker.comfy.client import History, OutputFile
from ltx_worker.delivery.inline import encode
from ltx_worker.errors import ComfyFailed, OutputTooLarge
from ltx_worker.job_files import JobFiles
from ltx_worker.result import Timings

# How files begin, by type; a name may say anything.
_SIGNATURES: Sequence[tuple[re.Pattern[bytes], str]] = [
    (re.compile(pattern, re.DOTALL), mime_type)
    for pattern, mime_type in (
        (rb"\x89PNG", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8", "image/gif"),
        (rb"RIFF....WEBP", "image/webp"),
        (rb"RIFF....WAVE", "audio/wav"),
        (rb"....ftypavi", "image/avif"),
        (rb"....ftypqt", "video/quicktime"),
        (rb"....ftypM4A", "audio/mp4"),
        (rb"....ftyp", "video/mp4"),
        (rb"\x1aE\xdf\xa3.{0,40}webm", "video/webm"),
        (rb"\x1aE\xdf\xa3", "video/x-matroska"),
        (rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "audio/mpeg"),
        (rb"fLaC", "audio/flac"),
        (rb"OggS", "audio/ogg"),
    )
]
_HEAD_BYTES = 64


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RawImageData(_Part):
    """A file of the answer, as RunPod's generic ComfyUI worker gives it."""

    filename: str
    type: Literal["base64"] = "base64"
    data: str = Field(description="The file, as base64 without a data: prefix.")


class RawOutput(_Part):
    """A file that a node reported."""

    node_id: str
    kind: str = Field(description="ComfyUI's name for the output: images, audio, gifs ...")
    filename: str
    subfolder: str = Field(description="Where the graph put it; empty for most nodes.")
    mime_type: str
    bytes: int
    sha256: str
    data: str | None = Field(description="As base64; null when the file is in `images`.")


class RawResult(_Part):
    """A finished raw workflow."""

    images: list[RawImageData]
    outputs: list[RawOutput]
    texts: dict[str, list[str]] = Field(description="What nodes reported as text, by node id.")
    timings: Timings
    warnings: list[str]


@dataclass(frozen=True)
class RawOutputs:
    """The part of a `RawResult` that comes from ComfyUI's history."""

    images: list[RawImageData]
    outputs: list[RawOutput]
    texts: dict[str, list[str]]


def collect_raw(history: History, files: JobFiles, max_response_bytes: int) -> RawOutputs:
    """Fetch and encode what a run reported.

    Previews (files of type temp) are left out unless there is no other file. Raises `ComfyFailed`
    when there is nothing at all, and `OutputTooLarge`.
    """
    # ComfyUI runs equal nodes once and reports their file for each of them.
    files_once = {(f.type, f.subfolder, f.filename): f for f in reversed(history.files)}
    reported = list(reversed(files_once.values()))
    saved = [file for file in reported if file.type != "temp"] or reported
    texts = {node_id: list(lines) for node_id, lines in history.texts.items()}
    if not saved and not texts:
        raise ComfyFailed("ComfyUI reported success without any file or text")
    paths = [files.collect(file) for file in saved]
    encoded = _encode(paths, texts, max_response_bytes)
    images: list[RawImageData] = []
    outputs: list[RawOutput] = []
    for file, path, data in zip(saved, paths, encoded, strict=True):
        is_image = file.kind == "images"
        if is_image:
            images.append(RawImageData(filename=file.filename, data=data))
        outputs.append(_output(file, path, files.subfolder, None if is_image else data))
    return RawOutputs(images, outputs, texts)


def _encode(paths: list[Path], texts: Mapping[str, object], max_response_bytes: int) -> list[str]:
    """Each file as base64; together with the texts they have to fit the answer."""
    left = max_response_bytes - len(json.dumps(texts))
    encoded: list[str] = []
    try:
        for path in paths:
            encoded.append(encode(path, left))
            left -= len(encoded[-1])
    except OutputTooLarge as error:
        raise _too_large(paths, max_response_bytes) from error
    if left < 0:
        raise _too_large(paths, max_response_bytes)
    return encoded


def _too_large(paths: list[Path], max_response_bytes: int) -> OutputTooLarge:
    total = sum(path.stat().st_size for path in paths)
    return OutputTooLarge(
        f"The workflow's {len(paths)} files have {total / 1e6:.1f} MB and more as base64, with its "
        f"texts; an answer may have {max_response_bytes / 1e6:.1f} MB",
        hint="Save fewer or smaller files.",
    )


def _output(file: OutputFile, path: Path, own_folder: str, data: str | None) -> RawOutput:
    content = path.read_bytes()
    return RawOutput(
        node_id=file.node_id,
        kind=file.kind,
        filename=file.filename,
        subfolder=file.subfolder.removeprefix(own_folder).strip("/"),
        mime_type=mime_type_of(content[:_HEAD_BYTES], file.filename),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        data=data,
    )


def mime_type_of(head: bytes, filename: str) -> str:
    """The type of a file by its first bytes, else by its name."""
    for signature, mime_type in _SIGNATURES:
        if signature.match(head):
            return mime_type
    return mimetypes.guess_type(filename)[0] or "application/octet-stream"
