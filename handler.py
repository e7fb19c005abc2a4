"""RunPod's entry point: an async, cancellable adapter around `Worker.run`.

The only importer of RunPod's SDK. The pipeline runs in a thread; a cancelled task tells it to stop
and waits until it has. Progress is sent from here, one update after the other and before the
result: the SDK's own call starts a thread for each, and those may overtake the result.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

import runpod
from runpod.http_client import (
    AsyncClientSession,  # pyright: ignore[reportUnknownVariableType]
)
from runpod.serverless.modules.rp_http import (
    send_result,  # pyright: ignore[reportUnknownVariableType]
)

from ltx_worker.errors import JobError
from ltx_worker.progress import JobProgress
from ltx_worker.settings import InvalidSettings, load_settings
from ltx_worker.worker import Worker

# Where RunPod takes progress; absent when the handler runs outside its platform.
_PROGRESS_URL_VARIABLE = "RUNPOD_WEBHOOK_POST_OUTPUT"
_PROGRESS_INTERVAL_S = 1.0


class Adapter:
    """Gives RunPod's jobs to a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._takes_progress = _PROGRESS_URL_VARIABLE in os.environ

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job: its result, or `{"error": ...}` with the contract's error as JSON."""
        stop = self._worker.new_stop_signal()
        progress = ProgressSender(job) if self._takes_progress else None
        run = asyncio.create_task(
            asyncio.to_thread(self._worker.run, job, stop, progress and progress.report)
        )
        try:
            result = await asyncio.shield(run)
            return result.model_dump(mode="json")
        except JobError as error:
            return {"error": error.to_json()}
        except asyncio.CancelledError:
            stop.cancel()
            await asyncio.wait([run])
            raise
        finally:
            if progress is not None:
                await progress.stop()


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
        stopped = asyncio.create_task(self._is_stopped.wait())
        session = AsyncClientSession()
        async with session:
            while not stopped.done():
                update = asyncio.create_task(self._updates.get())
                await asyncio.wait([update, stopped], return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    update.cancel()
                    return
                body = {"status": "IN_PROGRESS", "output": update.result()}
                await send_result(session, body, self._job)
                await asyncio.wait([stopped], timeout=_PROGRESS_INTERVAL_S)


def main() -> None:
    """Start the worker, then take jobs; ends with status 1 and one line when it cannot start."""
    try:
        settings = load_settings()
    except InvalidSettings as error:
        sys.exit(f"The worker cannot start: {error}")
    # The SDK has installed its own handler at import; without force this would do nothing.
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    try:
        worker = Worker(settings)
        worker.start()
    except JobError as error:
        sys.exit(f"The worker cannot start ({error.code}): {error.message}")
    runpod.serverless.start({"handler": Adapter(worker).handle})  # pyright: ignore[reportUnknownMemberType]


if __name__ == "__main__":
    main()
