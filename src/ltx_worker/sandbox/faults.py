"""Misbehaviour to order: what `POST /sandbox/faults` arms, and when it strikes.

A fault strikes the next `count` prompts (0: every prompt until cleared). It is bound to a prompt
when that prompt is posted, so arming one never changes a prompt that already waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SAMPLER = "SamplerCustomAdvanced"

# Each fault's options with their defaults, beside `count`. `after_steps` counts sampling steps of
# the whole prompt; 0 strikes before the first node.
FAULTS: Mapping[str, Mapping[str, Any]] = {
    # Close the client's socket; the prompt runs on.
    "drop_socket": {"count": 1, "after_steps": 1},
    # Send the client nothing more and answer no ping, but leave its socket open.
    "half_open": {"count": 1, "after_steps": 1},
    # Send nothing after the last node; history is written as ever.
    "lose_final": {"count": 1},
    # Answer POST /prompt with 500, with `queued` although the prompt was queued.
    "prompt_500": {"count": 1, "queued": False},
    # Never answer POST /prompt; with `everything`, no request at all from now until cleared.
    "hang": {"count": 1, "everything": False},
    # End the process.
    "crash": {"count": 1, "after_steps": 1, "exit_code": 1},
    # Fail a node as torch does when memory is short.
    "out_of_memory": {"count": 1, "node_class": _SAMPLER},
    # Fail a node as a broken CUDA context does. It stays broken, as the real one: count is 0.
    "cuda_fault": {"count": 0, "node_class": _SAMPLER},
    # Fail a node with any exception.
    "execution_error": {
        "count": 1,
        "node_class": _SAMPLER,
        "exception_type": "RuntimeError",
        "message": "the sandbox was told to fail here",
    },
    # Report success with an output file that does not exist.
    "stale_cache": {"count": 1},
    # Take this long for every step.
    "slow": {"count": 1, "delay_s": 0.2},
}

_OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 31.36 GiB "
    "of which 1.12 GiB is free. Process 1 has 30.23 GiB memory in use."
)
# What ComfyUI adds to the message of a failure that it takes for a lack of memory.
OUT_OF_MEMORY_TIP = (
    "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before "
    "you might have accidentally set the batch_size to a large number."
)
_CUDA_FAULT = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect."
)


class UnknownFaultError(ValueError):
    """No such fault, or a fault without such an option."""


@dataclass
class _Armed:
    name: str
    options: dict[str, Any]
    remaining: int | None


@dataclass(frozen=True)
class PromptFaults:
    """The faults that strike one prompt: fault -> options."""

    by_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def due(self, name: str, steps: int) -> Mapping[str, Any] | None:
        """A fault's options when the step it waits for is the one just taken."""
        options = self.by_name.get(name)
        return options if options and options["after_steps"] == steps else None

    @property
    def step_delay_s(self) -> float:
        """What to add to every step."""
        return self.by_name.get("slow", {"delay_s": 0.0})["delay_s"]

    def strike(self, class_type: str) -> None:
        """Raise what a node of this class is to fail with."""
        for name, kind, message in (
            ("out_of_memory", "torch.OutOfMemoryError", _OUT_OF_MEMORY),
            ("cuda_fault", "torch.AcceleratorError", _CUDA_FAULT),
            ("execution_error", None, None),
        ):
            options = self.by_name.get(name)
            if options and options["node_class"] == class_type:
                raise exception_named(kind or options["exception_type"])(
                    message or options["message"]
                )


@dataclass
class Faults:
    """The faults that are armed. Used by the event loop alone."""

    _armed: list[_Armed] = field(default_factory=list[_Armed])

    def arm(self, request: Mapping[str, Any]) -> None:
        """Arm {"fault": name, options …}. Raises UnknownFaultError naming what it may be."""
        options = dict(request)
        name = options.pop("fault", None)
        if name not in FAULTS:
            raise UnknownFaultError(f"no fault {name!r}; there are: {', '.join(FAULTS)}")
        if unknown := options.keys() - FAULTS[name].keys():
            known = ", ".join(FAULTS[name])
            raise UnknownFaultError(f"{name} has no option {min(unknown)!r}; it has: {known}")
        merged = {**FAULTS[name], **options}
        self._armed.append(_Armed(name, merged, merged.pop("count") or None))

    def take(self) -> PromptFaults:
        """The faults for the prompt just posted, each counted once."""
        taken = PromptFaults({armed.name: armed.options for armed in self._armed})
        for armed in self._armed:
            if armed.remaining:
                armed.remaining -= 1
        self._armed = [armed for armed in self._armed if armed.remaining != 0]
        return taken

    def clear(self) -> None:
        """Disarm all."""
        self._armed.clear()

    @property
    def hangs_everything(self) -> bool:
        """Whether no request is to be answered."""
        return any(armed.name == "hang" and armed.options["everything"] for armed in self._armed)

    def as_list(self) -> list[dict[str, Any]]:
        """The armed faults with their options and the prompts they have left."""
        return [
            {"fault": armed.name, "remaining": armed.remaining, **armed.options}
            for armed in self._armed
        ]


def exception_named(name: str) -> type[Exception]:
    """An exception class that reports itself under this full name."""
    module, _, short = name.rpartition(".")
    return type(short, (RuntimeError,), {"__module__": module or "builtins"})
