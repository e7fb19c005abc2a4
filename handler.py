"""RunPod's entry point: an async, cancellable adapter around `Worker.run`.

The only importer of RunPod's SDK. The pipeline runs in a thread; a cancelled task tells it to stop
and waits until it has. Progress is sent from here one update after the other and before the
result, so that none can overtake it.
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
from ltx_worker.settings import Settings
from ltx_worker.worker import Worker

# Where RunPod takes progress; absent when the handler runs outside its platform.
_PROGRESS_URL_VARIABLE = "RUNPOD_WEBHOOK_POST_OUTPUT"


class Adapter:
    """Gives RunPod's jobs to a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._takes_progress = _PROGRESS_URL_VARIABLE in os.environ

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job: its result, or `{"error": ...}` with the contract's error as JSON."""
        stop = self._worker.new_stop_signal()
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[JobProgress | None] = asyncio.Queue()

        def report(progress: JobProgress | None) -> None:
            loop.call_soon_threadsafe(updates.put_nowait, progress)

        sender = asyncio.create_task(_send_progress(job, updates)) if self._takes_progress else None
        run = asyncio.create_task(
            asyncio.to_thread(self._worker.run, job, stop, report if sender else None)
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
            if sender is not None:
                updates.put_nowait(None)
                await asyncio.wait([sender])


async def _send_progress(job: dict[str, Any], updates: asyncio.Queue[JobProgress | None]) -> None:
    """Send each update before the next; None ends it."""
    session = AsyncClientSession()  # pyright: ignore[reportUnknownVariableType]
    async with session:
        while (progress := await updates.get()) is not None:
            await send_result(session, {"status": "IN_PROGRESS", "output": progress}, job)


def main() -> None:
    """Start the worker, then take jobs; ends with status 1 and one line when it cannot start."""
    settings = Settings()
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
