"""The clip that a run has made: fetched, read for what it is, with its pictures beside it.

Invariant 1: what ComfyUI calls a success is one only if the file is what was asked for.
"""

from __future__ import annotations

from pathlib import Path

from ltx_worker.comfy.client import History
from ltx_worker.delivery.handover import ResultFile
from ltx_worker.delivery.probe import ClipFacts, check, probe, without_private_tags
from ltx_worker.delivery.stills import last_frame, thumbnail
from ltx_worker.delivery.transcode import to_webm
from ltx_worker.errors import ComfyFailed
from ltx_worker.job_files import JobFiles
from ltx_worker.request import GenerateRequest


def collect_clip(
    history: History, output_id: str, request: GenerateRequest, container: str, files: JobFiles
) -> tuple[ClipFacts, list[ResultFile]]:
    """The clip of the node `output_id` as `container` (mp4 or webm), first of the job's files.

    Raises `ComfyFailed` when there is none, or it is not what `request` asked for.
    """
    reported = next((file for file in history.files if file.node_id == output_id), None)
    if reported is None:
        raise ComfyFailed("ComfyUI reported success without a clip")
    path = files.collect(reported)
    # ComfyUI's own save node knows only mp4; the worker's writes either.
    if container == "webm" and not reported.filename.endswith(".webm"):
        mp4, path = path, files.scratch_path("clip.webm")
        to_webm(mp4, path)
    facts = probe(path)
    if facts.has_private_tags:
        path = without_private_tags(path, files.scratch_path(f"clean.{container}"))
        facts = probe(path)
    check(facts, request.made)
    name = f"ltx2-{request.mode}-{request.seed}"
    clip = ResultFile(path, f"{name}.{container}", f"video/{container}", facts.bytes, facts.sha256)
    return facts, [clip, *_pictures(path, name, request, files)]


def _pictures(clip: Path, name: str, request: GenerateRequest, files: JobFiles) -> list[ResultFile]:
    made: list[ResultFile] = []
    if request.output.thumbnail:
        path = files.scratch_path("thumbnail.jpg")
        path.write_bytes(thumbnail(clip))
        made.append(ResultFile.of(path, f"{name}-thumbnail.jpg", "image/jpeg", "thumbnail"))
    if request.output.last_frame:
        path = files.scratch_path("last-frame.png")
        path.write_bytes(last_frame(clip))
        made.append(ResultFile.of(path, f"{name}-last-frame.png", "image/png", "last-frame"))
    return made
