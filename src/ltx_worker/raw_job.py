"""A raw workflow, from its request to its result: the worker's five steps for a caller's graph.

    request → screened graph → files in ComfyUI's input folder → run → every output collected

Everything is judged before ComfyUI or a network is touched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

from ltx_worker.errors import InvalidRequest
from ltx_worker.generation import Generation
from ltx_worker.job import Job
from ltx_worker.job_files import JobFiles
from ltx_worker.media.fetch import FetchRules, read_media
from ltx_worker.media.memory_limit import ample_memory
from ltx_worker.progress import JobProgress, OnProgress, ProgressTracker
from ltx_worker.raw_request import RawImage, parse_raw_request
from ltx_worker.raw_result import DeliverRaw, RawResult, collect_raw
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.workflow.bindings import Graph
from ltx_worker.workflow.node_inputs import NodeInfo, link_of
from ltx_worker.workflow.screening import screen
from ltx_worker.workflow.template import Stage, title_of


def run_raw(
    generation: Generation,
    files: JobFiles,
    job: Job,
    node_info: NodeInfo,
    settings: Settings,
    deliver: DeliverRaw,
) -> RawResult:
    """Run the graph of the job's input; raises only `JobError`.

    `node_info` is what this ComfyUI offers, `deliver` hands the files over. The caller owns `files`
    and, as for any job, takes its prompt out of ComfyUI's history afterwards.
    """
    request = parse_raw_request(job.input)
    names = {image.name: _file_name(i, image) for i, image in enumerate(request.images, 1)}
    graph = _screened(request.graph, node_info, names, files)
    _place(request.images, names, files, job.stop, settings)
    inputs_s = job.age_s
    on_progress = job.on_progress and _without_guess(job.on_progress)
    tracker = ProgressTracker(_stages(graph), on_progress)
    history = generation.run(job, graph, tracker, files.is_whole)
    made = time.monotonic()
    with ample_memory():
        found = collect_raw(history, files)
    draft = RawResult(
        images=found.images,
        outputs=found.outputs,
        texts=found.texts,
        timings=tracker.timings(history, inputs_s, time.monotonic() - made, job.age_s),
        warnings=list(request.warnings),
    )
    result = deliver(draft, found.files)
    tracker.finish()
    return result


def _file_name(number: int, image: RawImage) -> str:
    """The name on disk, which is ours but for the suffix that loaders go by."""
    return f"input-{number}{PurePosixPath(image.name).suffix}"


def _screened(
    graph: Graph, node_info: NodeInfo, names: Mapping[str, str], files: JobFiles
) -> Graph:
    """The graph as it may be submitted; raises `InvalidRequest` or `ModelMissing`."""
    offered = {name: f"{files.subfolder}/{on_disk}" for name, on_disk in names.items()}
    screened = screen(graph, node_info, offered, files.subfolder)
    if screened.problems:
        raise InvalidRequest.listing(screened.problems)
    screened.check_models()
    return screened.graph


def _place(
    images: tuple[RawImage, ...],
    names: Mapping[str, str],
    files: JobFiles,
    stop: StopSignal,
    settings: Settings,
) -> None:
    """Put the job's files where ComfyUI finds them, byte for byte: masks are in their alpha."""
    for index, image in enumerate(images):
        stop.check()
        path = files.input_path(names[image.name])
        field, rules = f"images.{index}.image", FetchRules.of(settings)
        path.write_bytes(read_media(image.source, field, settings.max_media_bytes, stop, rules))
        files.publish(path)


def _stages(graph: Graph) -> list[Stage]:
    """One stage a node, in an order ComfyUI may run them in; none for a graph with a circle."""
    sources = {
        node_id: {
            link[0] for value in node["inputs"].values() if (link := link_of(value)) is not None
        }
        for node_id, node in graph.items()
    }
    try:
        order = list(TopologicalSorter(sources).static_order())
    except CycleError:
        return []
    return [
        Stage(f"{title_of(graph[node_id])} ({node_id})", 1.0, frozenset({node_id}))
        for node_id in order
        if node_id in graph
    ]


def _without_guess(on_progress: OnProgress) -> OnProgress:
    """Progress without the time that remains: nobody knows how long each node of a graph takes."""

    def report(progress: JobProgress) -> None:
        honest = progress.copy()
        honest["remaining_s"] = None
        on_progress(honest)

    return report
