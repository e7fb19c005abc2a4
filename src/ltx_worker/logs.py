"""The log: one line an event, JSON for a platform and text for a terminal.

An event has a constant name and values: `job`, bound while a job runs, and what the place knows,
times in seconds. Prompts, media, links and tokens are never among them (invariant 7).
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

from ltx_worker.settings import LogFormat

if TYPE_CHECKING:
    from structlog.typing import Processor

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
]
# Libraries that tell of every request at INFO or DEBUG, with its address.
_QUIET = ("urllib3", "botocore", "boto3", "s3transfer", "websocket", "PIL", "aiohttp")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A module's logger: `log.info("event.name", seconds=1.2)`."""
    return structlog.stdlib.get_logger(name)


def configure_logging(level: str, form: LogFormat) -> None:
    """Send this package's events and the libraries' messages to stderr in one form."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(form),
            ],
        )
    )
    # RunPod's SDK installs a handler of its own when it is imported: force replaces it.
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def bound_job(job_id: str) -> Any:
    """A context in which every event carries the job's id."""
    return structlog.contextvars.bound_contextvars(job=job_id)


def _rendering(form: LogFormat) -> list[Processor]:
    if form == "text" or (form == "auto" and sys.stderr.isatty()):
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
