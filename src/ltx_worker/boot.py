"""The worker's start: what runs beside what, and where its time went.

ComfyUI takes the longest. It is started first, with the little that this needs, and the weights are
read into the page cache meanwhile; the rest of the worker is loaded and checked beside both.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ltx_worker.catalog import load_catalog
from ltx_worker.comfy.connect import server_of
from ltx_worker.comfy.server import ComfyServer
from ltx_worker.errors import ComfyUnavailable, JobError
from ltx_worker.gpu import decision_for, read_system_memory, room_for_weights
from ltx_worker.logs import get_logger
from ltx_worker.page_cache import PageCacheReader, default_files, fitting
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal, in_daemon_thread

if TYPE_CHECKING:
    from ltx_worker.comfy.execution import Executor
    from ltx_worker.raw_result import RawResult
    from ltx_worker.repertoire import Repertoire
    from ltx_worker.result import BootTimings, GenerateResult
    from ltx_worker.warm_up import Forget, OpenFiles, WarmUpFindings

AnyResult = TypeVar("AnyResult", "GenerateResult", "RawResult")

_log = get_logger(__name__)

_MIB = 2**20
# How long the thread that starts ComfyUI may take to notice that the worker closes.
_LEAVE_S = 5.0
_POLL_S = 0.2


class Boot:
    """One start of the worker of `settings`. Its parts are timed from the process's beginning."""

    def __init__(
        self, settings: Settings, on_given_up: Callable[[str], None] | None = None
    ) -> None:
        """Look at the GPU and choose; raises `GpuUnfit`.

        `on_given_up` gets the cause when the worker's own ComfyUI cannot be started again.
        """
        self._seconds: dict[str, float] = {"code_s": process_age_s()}
        with self.timed("gpu_s"):
            self.decision = decision_for(settings)
        if self.decision is not None:
            frames = min(settings.max_frames, self.decision.max_frames)
            settings = settings.model_copy(update={"max_frames": frames})
        self.settings = settings
        self._server = self._make_server(on_given_up)
        self._nodes: Future[Mapping[str, Any]] | None = None
        self._page_cache: PageCacheReader | None = None
        self._warm_up: WarmUpFindings | None = None
        self._report: BootTimings | None = None
        self._telling = threading.Lock()

    @property
    def server(self) -> ComfyServer:
        """The ComfyUI of the settings; raises `ComfyUnavailable` when they name none."""
        if isinstance(self._server, ComfyUnavailable):
            raise self._server
        return self._server

    def begin(self) -> None:
        """Start ComfyUI and the reading of its weights, once; returns at once.

        What hinders the start of ComfyUI is raised by `nodes`.
        """
        if self._nodes is not None or isinstance(self._server, ComfyUnavailable):
            return
        for reason in self.decision.reasons if self.decision else ():
            _log.info("gpu.decided", reason=reason)
        self._seconds["engine_from_s"] = process_age_s()
        self._nodes = in_daemon_thread(self._start_engine)
        if self.server.is_own and self.settings.read_ahead and self.server.folders.models_dirs:
            self._page_cache = self._reader()
            self._page_cache.start()

    def nodes(self) -> Mapping[str, Any]:
        """ComfyUI's nodes, once it is up; raises `ComfyUnavailable`."""
        if isinstance(self._server, ComfyUnavailable):
            raise self._server
        self.begin()
        assert self._nodes is not None
        with self.timed("wait_s"):
            return self._nodes.result()

    @contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Take down the seconds of a part, by its name in the report."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] = time.monotonic() - started

    def warm_up(
        self, executor: Executor, repertoire: Repertoire, open_files: OpenFiles, forget: Forget
    ) -> None:
        """Make a clip that nobody gets, where that is asked for: the first job is then a warm one.

        It is asked for on a GPU of ours, unless the settings say otherwise.
        """
        has_own_gpu = self.decision is not None
        wanted = self.settings.warm_up
        if wanted == "false" or (wanted == "auto" and not has_own_gpu):
            return
        # A worker without a GPU need not load it.
        from ltx_worker.warm_up import WarmUp  # noqa: PLC0415

        self._warm_up = WarmUp(
            executor,
            repertoire,
            open_files,
            forget,
            self.server.replace,
            models_dirs=self.server.folders.models_dirs,
            data=boot_data()["warm_up"],
            megapixel_frames=self.decision and self.decision.megapixel_frames,
        ).run(self.settings.warm_up_timeout_s)
        if self._warm_up.problem is not None:
            self._wait_for_engine()
        if self._page_cache is not None:
            # All of it has been read by now.
            self._page_cache.stop()

    def finish(self) -> BootTimings:
        """The worker is ready: what its start took."""
        # Loaded by now; the start of ComfyUI does not wait for it.
        from ltx_worker.result import BootTimings, PageCacheTimings, WarmUpTimings  # noqa: PLC0415

        seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        read, made = self._page_cache and self._page_cache.findings, self._warm_up
        report = BootTimings(
            **seconds,
            page_cache=read and PageCacheTimings.model_validate(asdict(read)),
            warm_up=made and WarmUpTimings.model_validate(asdict(made)),
            ready_s=round(process_age_s(), 3),
        )
        with self._telling:
            self._report = report
        # What is loaded stays: a full collection would walk all of it, some 60 ms, within a job.
        gc.freeze()
        return report

    def tell(self, draft: AnyResult) -> AnyResult:
        """The draft of a result; the first one tells how the start went."""
        with self._telling:
            report = self._report
        if report is None:
            return draft
        return draft.model_copy(
            update={"timings": draft.timings.model_copy(update={"boot": report})}
        )

    def told(self) -> None:
        """A result has been delivered: the next ones say nothing of the start."""
        with self._telling:
            self._report = None

    def close(self) -> None:
        """End the worker's own ComfyUI, or close the connections to another's."""
        if self._page_cache is not None:
            self._page_cache.stop()
        if not isinstance(self._server, ComfyUnavailable):
            self._server.stop()
        if self._nodes is not None:
            # One that is just being started is ended by the thread that starts it.
            wait([self._nodes], _LEAVE_S)

    def _wait_for_engine(self) -> None:
        """Wait for a ComfyUI that did not survive the warm-up: what checks the worker asks it."""
        stop = StopSignal(self.settings.comfy_start_timeout_s)
        try:
            while True:
                self.server.wait_ready(stop)
                with suppress(ComfyUnavailable):
                    self.server.client.system_stats()
                    return
                stop.sleep(_POLL_S)
        except JobError as error:
            _log.warning("warm_up.engine_lost", reason=error.message)

    def _make_server(
        self, on_given_up: Callable[[str], None] | None
    ) -> ComfyServer | ComfyUnavailable:
        """The server, or why there is none: a workflow that is wrong is told before that."""
        gpu_args = self.decision.comfy_args if self.decision else ()
        keeps_all = not set(boot_data()["preload"]["flags"]).isdisjoint(gpu_args)
        preload = self._preloaded if keeps_all and self.settings.read_ahead else None
        try:
            return server_of(self.settings, gpu_args, on_given_up, preload)
        except ComfyUnavailable as error:
            return error

    def _start_engine(self) -> Mapping[str, Any]:
        with self.timed("engine_s"):
            return self.server.start()

    def _reader(self) -> PageCacheReader:
        data = boot_data()["page_cache"]
        return PageCacheReader(self._weights, data["threads"], data["block_mib"] * _MIB)

    def _weights(self) -> list[Path]:
        """The files that are worth reading: those of the default job, as far as memory holds."""
        files = self._default_files(self.server.folders.models_dirs)
        return fitting(files, room_for_weights(read_system_memory()))

    def _preloaded(self, models_dirs: Sequence[Path]) -> list[Path]:
        folders = boot_data()["preload"]["folders"]
        return [path for path in self._default_files(models_dirs) if path.parent.name in folders]

    def _default_files(self, models_dirs: Sequence[Path]) -> list[Path]:
        """What a job without wishes needs, in the order of its use."""
        return default_files(
            load_catalog(),
            models_dirs,
            self.settings.variant,
            self.decision and self.decision.variant,
            boot_data()["page_cache"],
        )


def process_age_s() -> float:
    """Seconds since this process began, interpreter and imports counted in.

    A script that was replaced by the interpreter (`exec`) was the same process: its time counts.
    0 where the system does not tell.
    """
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


@cache
def boot_data() -> dict[str, Any]:
    """The tables of `boot.toml`."""
    return tomllib.loads(Path(__file__).with_name("boot.toml").read_text(encoding="utf-8"))
