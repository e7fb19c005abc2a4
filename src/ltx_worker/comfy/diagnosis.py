"""What went wrong in ComfyUI, in words: from a node's error, or from the log of one that ended.

Pure. Texts of the log are recognised, not repeated, so that nothing of a job gets out by them.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

# How torch, CUDA and Python say that memory ran out; on the graphics card, and in the machine.
_GPU_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|HIP out of memory|Allocation on device"
)
_SYSTEM_MEMORY = re.compile(
    r"DefaultCPUAllocator: (?:can't|not enough)|(?<!OutOf)MemoryError|Cannot allocate memory"
    r"|Unable to allocate .* for an array"
)
# After one of these the process's CUDA context is lost, whatever it answers.
_GPU_FAULT = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|misaligned address"
    r"|illegal instruction|uncorrectable ECC|fallen off the bus|CUBLAS_STATUS_(?!ALLOC)"
    r"|CUDNN_STATUS_(?:EXECUTION|INTERNAL)|CUDA error: (?!out of memory)|hardware error"
)
_IMPORT = re.compile(r"(?:ModuleNotFoundError|ImportError): (.{1,120})")


class Fault(Enum):
    """What kind of failure a node's error is."""

    GPU_MEMORY = "gpu memory"
    SYSTEM_MEMORY = "system memory"
    GPU_FAULT = "gpu fault"
    OTHER = "other"


def fault_of(error: Mapping[str, Any]) -> Fault:
    """The kind of an `execution_error`, by its exception's type and message."""
    kind = str(error.get("exception_type", ""))
    text = f"{kind} {error.get('exception_message', '')}"
    if _GPU_MEMORY.search(text):
        return Fault.GPU_MEMORY
    if _SYSTEM_MEMORY.search(text):
        return Fault.SYSTEM_MEMORY
    if _GPU_FAULT.search(text):
        return Fault.GPU_FAULT
    return Fault.OTHER


@dataclass(frozen=True)
class Death:
    """Why ComfyUI ended; `is_lasting` where starting it again cannot help."""

    cause: str
    is_lasting: bool = False


_SIGNS: Sequence[tuple[re.Pattern[str], Death]] = (
    (_GPU_FAULT, Death("the GPU reported a CUDA fault", is_lasting=True)),
    (
        re.compile(r"driver version is insufficient|No CUDA GPUs are available|no NVIDIA driver"),
        Death("it found no usable GPU: the driver is missing or too old", is_lasting=True),
    ),
    (_GPU_MEMORY, Death("the GPU's memory ran out")),
    (_SYSTEM_MEMORY, Death("the machine's memory ran out")),
    (re.compile(r"No space left on device"), Death("the disk is full")),
    (
        re.compile(r"address already in use", re.IGNORECASE),
        Death("its port is in use by another program", is_lasting=True),
    ),
)


def death_of(status: int | None, log: Sequence[str]) -> Death:
    """Why a process with this exit status (negative: a signal) and these last lines ended."""
    text = "\n".join(log)
    for sign, death in _SIGNS:
        if sign.search(text):
            return death
    if status is not None and status < 0:
        return _killed_by(-status)
    # An import that fails inside a node pack is survived; one that ends ComfyUI is its last word.
    imports = [m for line in log[-5:] if (m := _IMPORT.search(line))]
    if imports:
        return Death(f"an import failed: {imports[-1].group(1)}", is_lasting=True)
    return Death(f"it ended with status {status}")


def _killed_by(number: int) -> Death:
    if number == signal.SIGKILL:
        return Death("it was killed, as the system does when the machine's memory runs out")
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL):
        return Death(f"it crashed ({signal.Signals(number).name})")
    return Death(f"it was ended by {signal.Signals(number).name}")
