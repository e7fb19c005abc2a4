"""Nodes of the sandbox that encode, enhance and show text."""

from __future__ import annotations

import json
from typing import Any

from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.cache import Entry
from ltx_worker.sandbox.context import Context, Inputs, get

# What an enhanced prompt ends in; the light follows from the seed.
ENHANCEMENT = "In {light} light the camera drifts slowly closer, and every sound is near and clear."
_LIGHTS = ("soft morning", "warm evening", "cool northern", "pale winter", "golden autumn")


def encode(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """CLIPTextEncode."""
    return (v.Conditioning(get(inputs, "clip", v.TextEncoder), get(inputs, "text", str)),)


def enhance(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """TextGenerateLTX2Prompt: the prompt and one more sentence, another for another seed."""
    get(inputs, "clip", v.TextEncoder)
    prompt = get(inputs, "prompt", str)
    seed = inputs.get("sampling_mode.seed", 0) if inputs["sampling_mode"] == "on" else 0
    return (f"{prompt} {ENHANCEMENT.format(light=_LIGHTS[seed % len(_LIGHTS)])}",)


def preview(inputs: Inputs, _context: Context) -> Entry:
    """PreviewAny: text and numbers as they are, the rest as JSON or, failing that, in Python."""
    source = inputs["source"]
    try:
        plain = source is None or isinstance(source, str | int | float)
        shown = str(source) if plain else json.dumps(source, indent=4)
    except TypeError:
        shown = repr(source)
    return Entry((shown,), {"text": (shown,)})
