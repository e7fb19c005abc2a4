"""The official distilled pipeline beside ours: Lightricks' `ltx-pipelines`, timed part by part.

Runs with a Python that has torch, on a checkout of Lightricks/LTX-2 and a models folder with the
catalogue's file names (random weights will do: they decide no time but the encoder's):

    python bench/official_pipeline.py --ltx2 DIR --models DIR --size 1280x704x121 --json FILE

What is not theirs: the prompt's embeddings are random numbers of the right shape (no text encoder
is loaded and none is timed). Weights stay on the device between calls, which their pipeline does
only when it is told to. Everything else on the way is as their code has it.

With --encode each clip ends as a file of their `encode_video`. Random weights decode to noise, the
worst case for x264; --content natural hands the encoder camera-like frames of the same size in the
decoded ones' stead, after these have been decoded.

Without a GPU it runs too, for LTX-2 only: their vocoder of LTX-2.3 computes in a precision that
torch's automatic casts have on CUDA alone.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from official_inputs import (
    ModelFiles,
    embedding_widths,
    instead,
    natural_like,
    prompts_of,
    transformer_config,
)
from official_packages import Official, Uninitialized, load_official
from official_timing import PARTS, Stopwatch, Timed, TimedStages, timed_frames

FPS = 24
QUANTIZATIONS = ("none", "fp8-cast", "fp8-scaled-mm")

Record = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A clip: width and height in pixels, and its frames."""

    width: int
    height: int
    frames: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """`1280x704x121`; the sides must divide by 64, the frames be 8n + 1."""
        width, height, frames = (int(number) for number in text.split("x"))
        if width % 64 or height % 64 or frames % 8 != 1:
            raise argparse.ArgumentTypeError(f"{text}: sides by 64, frames 8n + 1")
        return cls(width, height, frames)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


@dataclass(frozen=True)
class Row:
    """One way to run the pipeline."""

    quantization: str
    compiled: bool
    trim: str

    def __str__(self) -> str:
        precision = "bf16" if self.quantization == "none" else self.quantization
        parts = [precision, "compiled" if self.compiled else "eager"]
        return ", ".join([*parts, "memory kept"] if self.trim == "defer" else parts)


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("TQDM_DISABLE", "1")
    uninitialized = Uninitialized()
    logging.getLogger("ltx_core").addHandler(uninitialized)
    official = load_official(arguments.ltx2)
    record = describe(official, arguments)
    print(json.dumps(record, indent=2), flush=True)
    with official.torch.inference_mode():
        for row in rows_of(arguments):
            record["rows"].append(measured(official, row, arguments, uninitialized))
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record["rows"]))
    sys.exit(any("error" in row for row in record["rows"]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ltx2", type=Path, required=True, help="checkout of Lightricks/LTX-2")
    parser.add_argument("--revision", help="the checkout's commit, for the record")
    parser.add_argument("--models", type=Path, required=True, help="folder with checkpoints/ …")
    parser.add_argument("--family", default="ltx-2", help="the catalogue's family")
    parser.add_argument("--size", type=Size.parse, action="append", help="WIDTHxHEIGHTxFRAMES")
    parser.add_argument("--calls", type=int, default=5, help="measured calls of each size")
    parser.add_argument("--warm-up", type=int, default=1, help="calls before them")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, action="append")
    compiling = parser.add_mutually_exclusive_group()
    compiling.add_argument("--compile", action="store_true", help="a compiled row for each eager")
    compiling.add_argument("--only-compiled", action="store_true", help="no eager rows")
    parser.add_argument(
        "--trim",
        choices=("trim", "defer"),
        action="append",
        help="device memory given back after each part (their default), or kept",
    )
    parser.add_argument("--encode", action="store_true", help="end each clip as an mp4 file")
    parser.add_argument("--content", choices=("decoded", "natural"), default="decoded")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    arguments.size = arguments.size or [Size(1280, 704, 121)]
    return arguments


def rows_of(arguments: argparse.Namespace) -> Iterator[Row]:
    """Eager before compiled, for each precision and allocator strategy asked for."""
    compiled = [True] if arguments.only_compiled else [False, True][: 1 + arguments.compile]
    choices = itertools.product(
        arguments.quantization or ["none"], arguments.trim or ["trim"], compiled
    )
    for quantization, trim, is_compiled in choices:
        yield Row(quantization, is_compiled, trim)


def describe(official: Official, arguments: argparse.Namespace) -> Record:
    """What was measured where, to be written beside the figures."""
    cuda = official.torch.cuda
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": cuda.get_device_name() if cuda.is_available() else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": official.torch.__version__,
        "packages": official.versions | {"revision": arguments.revision},
        "attention": official.attention,
        "replaced": official.replaced,
        "family": arguments.family,
        "fps": FPS,
        "ends_as": "mp4" if arguments.encode else "frames on the device",
        "content": arguments.content if arguments.encode else None,
        "rows": [],
    }


def measured(
    official: Official, row: Row, arguments: argparse.Namespace, uninitialized: Uninitialized
) -> Record:
    """All sizes of one row; an error ends the row, not the run."""
    figures: Record = {"name": str(row), **asdict(row), "sizes": []}
    registry = official.registry.ModelRegistry(cache_models=True, cache_weights=True)
    try:
        files = ModelFiles(arguments.models, arguments.family)
        bench = Bench(official, row, files, registry)
        figures["checkpoint"] = bench.checkpoint.name
        # Making it looks for the part that guesses durations, which later families have.
        uninitialized.found.clear()
        for size in arguments.size:
            clip = None
            if arguments.encode and arguments.content == "natural":
                clip = bench.natural_like(size)
            of_size = bench.measure(size, arguments, clip)
            print(json.dumps({str(row): of_size}), flush=True)
            figures["sizes"].append(of_size)
    except Exception as error:  # noqa: BLE001 - the other rows' figures are worth having
        traceback.print_exc()
        figures["error"] = f"{type(error).__name__}: {error}"[:800]
    if uninitialized.found:
        figures.setdefault("error", "the checkpoint lacks tensors")
        figures["missing"] = [message[:800] for message in uninitialized.found[:3]]
    registry.clear()
    gc.collect()
    if official.torch.cuda.is_available():
        official.torch.cuda.empty_cache()
    return figures


class Bench:
    """The pipeline of one row, with its parts timed."""

    def __init__(self, official: Official, row: Row, files: ModelFiles, registry: Any) -> None:
        self._official = official
        self._torch = official.torch
        # Only the published fp8 file has the scales that products of fp8 numbers need.
        variant = "fp8" if row.quantization == "fp8-scaled-mm" else "fp16"
        self.checkpoint = files.path("distilled_checkpoint", variant)
        self._watch = Stopwatch(self._synchronize)
        self._pipeline = self._build(row, str(files.path("spatial_upscaler")), registry)
        self._time_parts()
        self._sample: Any = None

    def _synchronize(self) -> None:
        if self._torch.cuda.is_available():
            self._torch.cuda.synchronize()

    def _build(self, row: Row, upscaler: str, registry: Any) -> Any:
        """Their pipeline, with random embeddings for prompts and the row's options."""
        distilled, checkpoint = self._official.distilled, str(self.checkpoint)
        widths = embedding_widths(transformer_config(self.checkpoint))
        distilled.PromptEncoder = prompts_of(self._torch, widths)
        policy = None
        if row.quantization != "none":
            kind = self._official.quantization.QuantizationKind(row.quantization)
            policy = kind.to_policy(checkpoint)
        return distilled.DistilledPipeline(
            distilled.ModelPaths.from_monolith(checkpoint),
            upscaler,
            loras=[],
            quantization=policy,
            registry=registry,
            compilation_config=distilled.CompilationConfig() if row.compiled else None,
            alloc_trim_strategy=distilled.AllocatorTrimStrategy(row.trim),
        )

    def _time_parts(self) -> None:
        pipeline, watch = self._pipeline, self._watch
        loop = self._official.blocks.euler_denoising_loop
        pipeline.stage = TimedStages(pipeline.stage, watch, loop)
        pipeline.image_conditioner = Timed(pipeline.image_conditioner, "images", watch)
        pipeline.upsampler = Timed(pipeline.upsampler, "upsample", watch)
        pipeline.video_decoder = Timed(pipeline.video_decoder, "decode_video", watch)
        pipeline.audio_decoder = Timed(pipeline.audio_decoder, "decode_audio", watch)

    def natural_like(self, size: Size) -> Any:
        """Camera-like frames of a size, on the pipeline's device."""
        device = self._pipeline.device
        return natural_like(self._torch, size.width, size.height, size.frames, device)

    def measure(self, size: Size, arguments: argparse.Namespace, clip: Any) -> Record:
        """Median seconds of warm calls, each with its own seed, and the device's memory.

        `clip`: frames for the encoder in place of the decoded ones, or None.
        """
        seeds = itertools.count()
        warm_up = [
            self._call(size, next(seeds), arguments.encode, clip) for _ in range(arguments.warm_up)
        ]
        cuda = self._torch.cuda if self._torch.cuda.is_available() else None
        if cuda:
            cuda.reset_peak_memory_stats()
        each = [
            self._call(size, next(seeds), arguments.encode, clip) for _ in range(arguments.calls)
        ]
        memory = (cuda.max_memory_allocated(), cuda.max_memory_reserved()) if cuda else (0, 0)
        seconds = {name: [round(call[name], 4) for call in each] for name in each[0]}
        return {
            "size": str(size),
            "clip_s": round(size.frames / FPS, 3),
            "calls": arguments.calls,
            "warm_up_s": [round(call["total"], 2) for call in warm_up],
            "median_s": {name: round(statistics.median(of), 4) for name, of in seconds.items()},
            "peak_allocated_gb": round(memory[0] / 1e9, 2),
            "peak_reserved_gb": round(memory[1] / 1e9, 2),
            "decoded": self._decoded(),
            "each_s": seconds,
        }

    def _call(self, size: Size, seed: int, encode: bool, clip: Any) -> dict[str, float]:
        """Seconds of one clip, from the prompt to its frames or its file."""
        with self._watch.span("total"):
            video, audio, frames, tiling = self._pipeline(
                prompt="",
                seed=seed,
                height=size.height,
                width=size.width,
                frame_rate=float(FPS),
                images=[],
                num_frames=size.frames,
            )
            chunks = self._sampled(timed_frames(video, self._watch))
            if encode:
                number = self._official.distilled.get_video_chunks_number(frames, tiling)
                self._write(chunks if clip is None else instead(chunks, clip), audio, number)
            else:
                for _ in chunks:
                    pass
        return self._watch.take()

    def _sampled(self, chunks: Iterable[Any]) -> Iterator[Any]:
        """The chunks, with a few pixels of each kept to be looked at later."""
        for chunk in chunks:
            self._sample = chunk[:1, ::8, ::8].clone()
            yield chunk

    def _decoded(self) -> Record:
        """What random weights decode to: figures of the last chunk's first frame, of 1."""
        sample = self._sample.float()
        return {
            "finite": bool(self._torch.isfinite(sample).all()),
            "mean": round(float(sample.mean()), 3),
            "deviation": round(float(sample.std()), 3),
        }

    def _write(self, chunks: Iterable[Any], audio: Any, number: int) -> None:
        """Their file of the clip, in a folder that is removed."""
        with tempfile.TemporaryDirectory(prefix="official-") as folder:
            path = str(Path(folder) / "clip.mp4")
            with self._watch.span("encode"):
                self._official.distilled.encode_video(iter(chunks), FPS, audio, path, number)


def table(rows: list[Record]) -> str:
    """Medians in seconds, a line for each row and size."""
    names = ["stage_1", "stage_1_loop", "stage_2", "stage_2_loop"]
    names = [*names, *(part for part in PARTS if part not in names), "between", "total"]
    lines = [["row", "size", *names, "GB"]]
    for row in rows:
        for of_size in row["sizes"]:
            medians = of_size["median_s"]
            seconds = [f"{medians[name]:.3f}" if name in medians else "" for name in names]
            memory = f"{of_size['peak_reserved_gb']:.1f}"
            lines.append([row["name"], of_size["size"], *seconds, memory])
        if "error" in row:
            lines.append([row["name"], row["error"].partition("\n")[0]])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
