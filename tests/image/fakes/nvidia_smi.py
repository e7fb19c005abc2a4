"""An nvidia-smi that says what it is told to."""

from __future__ import annotations

from pathlib import Path

_SCRIPT = """#!/usr/bin/env bash
case $* in
  --query-gpu={fields}*nounits) printf '%s\\n' {listing} ;;
  -L) printf '%s\\n' {slices} ;;
  *) exit 64 ;;
esac
exit {status}
"""
_FIELDS = "name,memory.total,driver_version,mig.mode.current"


def nvidia_smi(folder: Path, *listing: str, slices: tuple[str, ...] = (), status: int = 0) -> str:
    """Write it into `folder`; returns its path. `listing` answers the query, `slices` -L."""
    path = folder / "nvidia-smi"
    words = {"listing": _quoted(listing), "slices": _quoted(slices), "status": status}
    words["fields"] = _FIELDS
    path.write_text(_SCRIPT.format(**words))
    path.chmod(0o755)
    return str(path)


def _quoted(lines: tuple[str, ...]) -> str:
    return " ".join("'" + line.replace("'", "'\\''") + "'" for line in lines)
