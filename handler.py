"""RunPod's entry point: an async, cancellable adapter around `Worker.run`.

The only importer of RunPod's SDK, and only once ComfyUI is on its way up: the SDK takes seconds to
load. The pipeline runs in a thread; a cancelled task tells it to stop
and waits until it has. Progress is sent from here, one update after the other and before the
result: the SDK's own call starts a thread for each, and those may overtake the result.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing
from types import FrameType
from typing import TYPE_CHECKING, Any

from ltx_worker.boot import Boot
from ltx_worker.delivery.handover import body_bytes
from ltx_worker.errors import DeadlineExceeded, JobError, OutputTooLarge
from ltx_worker.logs import configure_logging, get_logger
from ltx_worker.settings import InvalidSettings, Settings, load_settings
from ltx_worker.stop import StopSignal, in_daemon_thread, worker_stops

if TYPE_CHECKING:
    from ltx_worker.progress import JobProgress
    from ltx_worker.worker import Worker

# Where RunPod gives jobs and takes progress; absent when the handler runs outside its platform.
_JOBS_URL_VARIABLE = "RUNPOD_WEBHOOK_GET_JOB"
_PROGRESS_URL_VARIABLE = "RUNPOD_WEBHOOK_POST_OUTPUT"
_PROGRESS_INTERVAL_S = 1.0
_FIRST_PROGRESS_S = 0.25
# How long after its deadline a job may still be on its way out; then it is left behind.
_OVERTIME_S = 1.8
# How long an answer that has the worker replaced waits for jobs whose clips are being delivered.
_OTHERS_S = 30.0
# How long a cancelled job, whose answer nobody waits for, may take to stop.
_CANCEL_S = 15.0
_LEAVE_POLL_S = 0.05

_log = get_logger(__name__)


class Adapter:
    """Gives RunPod's jobs to a worker."""

    def __init__(self, worker: Worker, max_response_bytes: int) -> None:
        self._worker = worker
        self._max_response_bytes = max_response_bytes
        self._takes_progress = _PROGRESS_URL_VARIABLE in os.environ
        self._running: set[StopSignal] = set()
        self._is_stopping = False

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job: its result, or `{"error": ...}` with the contract's error as JSON.

        An answer that has the worker replaced is the last one: it waits for the other jobs' ends.
        """
        stop = self._worker.new_stop_signal()
        self._running.add(stop)
        if self._is_stopping:
            stop.cancel(worker_stops)
        progress = ProgressSender(job) if self._takes_progress else None
        on_progress = progress and progress.report
        run = asyncio.wrap_future(
            in_daemon_thread(lambda: self._worker.run(job, stop, on_progress))
        )
        try:
            await asyncio.wait([run], timeout=stop.remaining_s + _OVERTIME_S)
            if not run.done():
                raise _stuck(job)
            return self._checked((await run).model_dump(mode="json"))
        except JobError as error:
            if error.replace_worker:
                self._running.discard(stop)
                await self._see_others_off(min(_OTHERS_S, stop.remaining_s))
            return _failure(error)
        except asyncio.CancelledError:
            stop.cancel()
            await asyncio.wait([run], timeout=_CANCEL_S)
            raise
        finally:
            self._running.discard(stop)
            if progress is not None:
                await progress.stop()

    def stop_jobs(self) -> None:
        """Stop every job that runs or is still to come; each is answered as retryable."""
        self._is_stopping = True
        for stop in self._running:
            stop.cancel(worker_stops)

    async def _see_others_off(self, seconds: float) -> None:
        """Let the other jobs end, for so long; those that are not over then are stopped."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + seconds
        while self._running and loop.time() < give_up + _OVERTIME_S:
            if loop.time() >= give_up:
                self.stop_jobs()
            await asyncio.sleep(_LEAVE_POLL_S)

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, which RunPod takes: of one over the limit it would only log the refusal."""
        size = body_bytes(answer)
        if size > self._max_response_bytes:
            raise OutputTooLarge(
                f"The answer has {size / 1e6:.2f} MB; it may have "
                f"{self._max_response_bytes / 1e6:.2f} MB"
            )
        return answer


class ProgressSender:
    """Sends a job's latest progress to RunPod, at most once a second.

    What is newer replaces what waits to be sent. After `stop` nothing is under way any more.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[JobProgress] = asyncio.Queue(maxsize=1)
        self._is_stopped = asyncio.Event()
        self._task = asyncio.create_task(self._send_updates())

    def report(self, progress: JobProgress) -> None:
        """Take in the progress; called from the job's thread."""
        self._loop.call_soon_threadsafe(self._replace, progress)

    async def stop(self) -> None:
        """Let an update that is on its way arrive, and send no other."""
        self._is_stopped.set()
        await asyncio.wait([self._task])

    def _replace(self, progress: JobProgress) -> None:
        if self._updates.full():
            self._updates.get_nowait()
        self._updates.put_nowait(progress)

    async def _send_updates(self) -> None:
        from runpod.http_client import (  # noqa: PLC0415
            AsyncClientSession,  # pyright: ignore[reportUnknownVariableType]
        )
        from runpod.serverless.modules.rp_http import (  # noqa: PLC0415
            send_result,  # pyright: ignore[reportUnknownVariableType]
        )

        stopped = asyncio.create_task(self._is_stopped.wait())
        # The job's way to ComfyUI goes before: this would slow it down.
        await asyncio.wait([stopped], timeout=_FIRST_PROGRESS_S)
        if stopped.done():
            return
        async with AsyncClientSession() as session:
            while not stopped.done():
                update = asyncio.create_task(self._updates.get())
                await asyncio.wait([update, stopped], return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    update.cancel()
                    return
                body = {"status": "IN_PROGRESS", "output": update.result()}
                await send_result(session, body, self._job)
                await asyncio.wait([stopped], timeout=_PROGRESS_INTERVAL_S)


class Departure:
    """Leaves in order when the platform says so: jobs stopped and answered, ComfyUI ended.

    The SDK would let a running job go on to its end, and wait out its request for the next one.
    """

    def __init__(self, adapter: Adapter, jobs_at_once: int) -> None:
        self._adapter = adapter
        self._jobs_at_once = jobs_at_once
        self._is_installed = False

    def concurrency(self, _current: int) -> int:
        """How many jobs to take at a time.

        The SDK asks in its loop before it takes a job, after it has installed signal handlers of
        its own: ours goes in front of them.
        """
        if not self._is_installed:
            self._is_installed = True
            for number in (signal.SIGTERM, signal.SIGINT):
                of_the_sdk = signal.getsignal(number)
                asyncio.get_running_loop().add_signal_handler(
                    number, self._begin, number, of_the_sdk
                )
        return self._jobs_at_once

    def _begin(self, number: int, of_the_sdk: Any) -> None:
        _log.info("worker.stopping", signal=signal.Signals(number).name)
        # It takes no further job after this.
        of_the_sdk(number, None)
        self._adapter.stop_jobs()
        self._task = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        from runpod.serverless.modules.worker_state import JobsProgress  # noqa: PLC0415

        while JobsProgress().get_job_count():  # noqa: ASYNC110 - the SDK has no event for it
            await asyncio.sleep(_LEAVE_POLL_S)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


def _failure(error: JobError) -> dict[str, Any]:
    answer: dict[str, Any] = {"error": error.to_json()}
    return answer | {"refresh_worker": True} if error.replace_worker else answer


def _stuck(job: Mapping[str, Any]) -> JobError:
    _log.error("job.stuck", job=job.get("id"))
    return DeadlineExceeded("The job's time is up and it could not be stopped", replace_worker=True)


def main() -> None:
    """Start the worker, then take jobs; ends with status 1 and one line when it cannot start."""
    # Until the loop runs, and again when RunPod's local server has ended: leave by the way below.
    signal.signal(signal.SIGTERM, _exit)
    try:
        settings = load_settings()
    except InvalidSettings as error:
        sys.exit(f"The worker cannot start: {error}")
    configure_logging(settings.log_level, settings.log_format)
    lost: list[str] = []
    try:
        boot = Boot(settings, lambda cause: _leave_for(cause, lost))
    except JobError as error:
        sys.exit(_cannot_start(error))
    try:
        with closing(boot):
            boot.begin()
            with closing(_worker(boot)) as worker:
                serve(worker, settings)
    except asyncio.CancelledError:
        _log.info("worker.stopped")
    finally:
        if lost:
            sys.exit(f"The worker ends: ComfyUI cannot be started again, {lost[0]}")


def _worker(boot: Boot) -> Worker:
    """The worker, made while ComfyUI starts; ends the process when it cannot be."""
    from ltx_worker.worker import Worker  # noqa: PLC0415 - ComfyUI's start does not wait for it

    try:
        return Worker(boot.settings, boot=boot)
    except InvalidSettings as error:
        sys.exit(f"The worker cannot start: {error}")
    except JobError as error:
        sys.exit(_cannot_start(error))


def serve(worker: Worker, settings: Settings) -> None:
    """Check the worker's fitness, then take jobs until told to stop."""
    import runpod  # noqa: PLC0415 - it takes seconds, in which ComfyUI starts

    from ltx_worker.fitness import report, require_fit  # noqa: PLC0415

    _quieten_sdk(settings)

    def ltx_worker() -> None:
        try:
            worker.start()
            require_fit(report(settings, worker))
        except JobError as error:
            # The SDK ends the process at once when a check fails: nothing runs after this.
            worker.close()
            raise RuntimeError(_cannot_start(error)) from None

    if _JOBS_URL_VARIABLE in os.environ:
        runpod.serverless.register_fitness_check(ltx_worker)  # pyright: ignore[reportUnknownMemberType]
    else:
        try:
            ltx_worker()
        except RuntimeError as error:
            sys.exit(str(error))
    adapter = Adapter(worker, settings.max_response_bytes)
    departure = Departure(adapter, settings.concurrency)
    runpod.serverless.start(  # pyright: ignore[reportUnknownMemberType]
        {"handler": adapter.handle, "concurrency_modifier": departure.concurrency}
    )


def _cannot_start(error: JobError) -> str:
    hint = f" {error.hint}" if error.hint else ""
    return f"The worker cannot start ({error.code}): {error.message}.{hint}"


def _quieten_sdk(settings: Settings) -> None:
    """Have the SDK log as the worker does: it has just set up handlers of its own."""
    from runpod.serverless.modules.rp_logger import RunPodLogger  # noqa: PLC0415

    configure_logging(settings.log_level, settings.log_format)
    if "RUNPOD_LOG_LEVEL" not in os.environ:
        # At its own default the SDK prints every job's output.
        RunPodLogger().level = "INFO"


def _leave_for(cause: str, lost: list[str]) -> None:
    """Leave as when the platform says so: a worker without ComfyUI has nothing to wait for."""
    lost.append(cause)
    os.kill(os.getpid(), signal.SIGTERM)


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
