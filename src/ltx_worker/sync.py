"""A pod's outputs on their way to the bucket: `python -m ltx_worker.sync [FOLDER]`.

Uploads what is finished in a folder until SIGTERM: a file that two looks found the same and that,
being a clip, has all its frames. A version of a file is uploaded once, also when the sync is
started again; what is deleted here stays in the bucket. `--status` says how it goes.

The folder is looked at every second: inotify, and what builds on it, tells nothing of what others
write on a network volume. The log names files, keys and reasons, and no links (invariant 7).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import logging
import math
import mimetypes
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as NotYet
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import NoReturn

from ltx_worker.delivery.bucket import Bucket
from ltx_worker.delivery.bucket_config import bucket_config
from ltx_worker.delivery.keys import key_prefix
from ltx_worker.errors import Cancelled, DeliveryFailed
from ltx_worker.logs import configure_logging, get_logger
from ltx_worker.settings import InvalidSettings, Settings, load_settings
from ltx_worker.stop import StopSignal, in_daemon_thread
from ltx_worker.sync_files import NotWhole, Output, checksum_of, look, output_at
from ltx_worker.sync_state import load_state, report_on, save_state

_log = get_logger(__name__)

_LOG_PATH = Path("/var/log/r2_sync.log")
# After a file's failures it is left alone for 1, 2, 4 … and at most 60 seconds.
_MAX_PAUSE_S = 60.0
# An encoder may be silent for so long before a clip that is not whole counts as a failure.
_STALLED_S = 60.0
# boto3's own tries of one request; the pauses here are longer.
_ATTEMPTS = 2
_LOCK_WAIT_S = 0.5
_WAKE_S = 0.1
# What the work, and then an upload's parts, may take to stop: together less than two seconds.
_LEAVE_S = 0.7
_NO_BUCKET = "no bucket is set; set the R2_ variables and start the sync again"


class Sync:
    """Uploads what becomes finished in `folder`, under keys that begin with `prefix`."""

    def __init__(self, folder: Path, bucket: Bucket, prefix: str, stop: StopSignal) -> None:
        self._folder = folder
        self._bucket = bucket
        self._prefix = prefix
        self._stop = stop
        self._state = load_state(folder)
        self._state.problem = None
        self._seen_at: dict[Output, float] = {}
        self._not_before: dict[Output, float] = {}
        self._is_blind = False

    def run(self, every_s: float) -> NoReturn:
        """Look every `every_s` seconds, until `stop` raises."""
        save_state(self._folder, self._state)
        while True:
            for output in self._ready():
                self._stop.check()
                if not self._try(output):
                    break
            self._stop.sleep(every_s)

    def _ready(self) -> list[Output]:
        """The unchanged files that are to be tried now, those first that have not failed."""
        try:
            outputs = look(self._folder)
        except OSError as error:
            if not self._is_blind:
                _log.warning("sync.folder_unreadable", reason=error.strerror)
            self._is_blind = True
            return []
        self._is_blind = False
        now = time.monotonic()
        self._seen_at = {output: self._seen_at.get(output, now) for output in outputs}
        self._not_before = {o: at for o, at in self._not_before.items() if o in self._seen_at}
        names = {output.name for output in outputs}
        self._state.files = {n: r for n, r in self._state.files.items() if n in names}
        due = {
            output: self._not_before.get(output, 0.0)
            for output, seen_at in self._seen_at.items()
            if seen_at < now and not self._state.is_uploaded(output)
        }
        ready = [output for output, at in due.items() if at <= now]
        return sorted(ready, key=lambda output: (due[output], output.mtime_ns))

    def _try(self, output: Output) -> bool:
        """Upload a file; whether the next one may be tried at once: not after a failure."""
        key = output.key(self._prefix)
        mime_type = mimetypes.guess_type(output.name)[0] or "application/octet-stream"
        try:
            sha256 = checksum_of(output.path)
            if self._has_changed(output):
                return True
            stored = self._bucket.upload(output.path, key, mime_type, sha256, self._stop)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - one file must not end the sync of the others
            if self._has_changed(output) or _is_in_work(error, output):
                return True
            self._fail(output, key, _reason(error))
            return False
        self._state.note(output, key, None)
        save_state(self._folder, self._state)
        behind_s = round(max(0.0, time.time() - output.mtime), 1)
        facts = {"bytes": output.bytes, "seconds": stored.seconds, "behind_s": behind_s}
        _log.info("sync.uploaded", file=output.name, key=key, **facts)
        return True

    def _has_changed(self, output: Output) -> bool:
        """Whether the file is another version by now, or gone; not where that cannot be told."""
        try:
            return output_at(output.path, self._folder) != output
        except OSError:
            return False

    def _fail(self, output: Output, key: str, reason: str) -> None:
        tries = self._state.note(output, key, reason)
        save_state(self._folder, self._state)
        pause_s = min(2.0 ** min(tries - 1, 10), _MAX_PAUSE_S)
        self._not_before[output] = time.monotonic() + pause_s
        facts = {"reason": reason, "tries": tries, "again_in_s": pause_s}
        _log.warning("sync.failed", file=output.name, **facts)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Read the command line and sync until SIGTERM or SIGINT, or print the status.

    Ends the process: with 0 in order, 1 where something fails, 2 for a wrong command line.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        folder = _folder(options.folder, settings)
    except InvalidSettings as error:
        sys.exit(f"The sync cannot start: {error}")
    if options.status:
        report = report_on(folder, is_running=_is_locked(folder))
        sys.stdout.writelines(f"{line}\n" for line in report.lines())
        sys.exit(int(report.is_failing))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _log_to(options.log, settings.log_level)
        has_lock = _lock(folder)
    except OSError as error:
        sys.exit(f"The sync cannot start: {error.filename}: {error.strerror}")
    if not has_lock:
        sys.exit("The sync cannot start: another one has this folder")
    stop = StopSignal(math.inf)
    _serve(lambda: _work(folder, settings, options.every, stop), stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltx_worker.sync", description="Upload finished outputs to the bucket."
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="what to watch; default LTX2_OUTPUT_DIR of ComfyUI"
    )
    parser.add_argument("--log", type=Path, default=_LOG_PATH, help="default %(default)s")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    parser.add_argument(
        "--status", action="store_true", help="say how the sync goes; fails when it does"
    )
    return parser


def _folder(given: Path | None, settings: Settings) -> Path:
    """The folder to watch; raises `InvalidSettings` when none is named."""
    comfyui = settings.comfyui_dir
    outputs = settings.comfy_output_dir or (comfyui / "output" if comfyui is not None else None)
    if given is None and outputs is None:
        raise InvalidSettings("name the folder, or set COMFY_OUTPUT_DIR or COMFYUI_DIR")
    return (given or Path(outputs or "", settings.output_dir)).absolute()


def _log_to(path: Path, level: str) -> None:
    """Log JSON lines to stderr and to a file, which may be moved away; raises `OSError`."""
    configure_logging(level, "json")
    root = logging.getLogger()
    handler = WatchedFileHandler(path, encoding="utf-8")
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


def _work(folder: Path, settings: Settings, every_s: float, stop: StopSignal) -> NoReturn:
    try:
        config = bucket_config(settings)
        problem = _NO_BUCKET
    except InvalidSettings as error:
        config, problem = None, str(error)
    if config is not None:
        _log.info("sync.started", folder=str(folder))
        Sync(folder, Bucket(config, _ATTEMPTS), key_prefix(settings.output_key), stop).run(every_s)
    state = load_state(folder)
    state.problem = problem
    save_state(folder, state)
    _log.error("sync.no_bucket", reason=problem)
    while True:
        stop.sleep(3600)


def _is_in_work(error: Exception, output: Output) -> bool:
    """Whether the file is a clip that its encoder is probably still writing."""
    return isinstance(error, NotWhole) and time.time() - output.mtime < _STALLED_S


def _reason(error: Exception) -> str:
    """A failure in a few words."""
    if isinstance(error, NotWhole):
        return "the clip is not whole: it is still being written, or it is damaged"
    if isinstance(error, DeliveryFailed):
        return error.message
    if isinstance(error, OSError):
        return f"the file cannot be read: {error.strerror}"
    _log.error("sync.fault", exc_info=error)
    return f"unexpected {type(error).__name__}; the log has more"


def _serve(work: Callable[[], object], stop: StopSignal) -> NoReturn:
    """Do `work` until SIGTERM or SIGINT, then leave within two seconds."""
    ending = {signal.SIGTERM, signal.SIGINT}
    # Waited for, not handled: a handler would run amid whatever this thread does with `stop`.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    running = in_daemon_thread(work)
    while not running.done() and signal.sigtimedwait(ending, _WAKE_S) is None:
        pass
    stop.cancel()
    status = 0
    try:
        running.result(_LEAVE_S)
    except (Cancelled, NotYet):
        _log.info("sync.stopped")
    except Exception:  # noqa: BLE001 - the end of the process
        _log.exception("sync.broken")
        status = 1
    give_up = time.monotonic() + _LEAVE_S
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        thread.join(max(0.0, give_up - time.monotonic()))
    # An ordinary exit would wait for the threads of an upload that hangs.
    logging.shutdown()
    os._exit(status)


def _lock_path(folder: Path) -> Path:
    """The lock of this machine for the folder: a network volume's own may outlive their owner."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"ltx2-sync-{name}.lock")


def _lock(folder: Path) -> bool:
    """Take the folder for this process until it ends; False when another one has it."""
    descriptor = os.open(_lock_path(folder), os.O_RDONLY | os.O_CREAT, 0o644)
    give_up = time.monotonic() + _LOCK_WAIT_S
    while not _flock(descriptor, fcntl.LOCK_EX):
        # A status that is being asked for holds it for a moment.
        if time.monotonic() > give_up:
            return False
        time.sleep(_WAKE_S)
    return True


def _is_locked(folder: Path) -> bool:
    """Whether a sync has the folder."""
    try:
        with _lock_path(folder).open("rb") as file:
            return not _flock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main()
