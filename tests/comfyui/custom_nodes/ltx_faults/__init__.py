"""Test-only ComfyUI node package: samplers and decoders that misbehave to order. No node is added.

`POST /sandbox/faults` arms `slow` and `execution_error` with the options they have in the sandbox,
and `DELETE` disarms them. Here both strike after the next sampling step, whatever runs: `slow` at
every step until it is disarmed, `execution_error` once. `decode_error`, with the options of
`execution_error`, strikes once when a video is decoded, or a tile of one; the sandbox has it not.
"""

import builtins
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import latent_preview
import torch
from aiohttp import web
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}

_armed: dict[str, dict[str, Any]] = {}


async def _arm(request: web.Request) -> web.Response:
    if request.method == "DELETE":
        _armed.clear()
    else:
        fault = await request.json()
        _armed[fault["fault"]] = fault
    return web.json_response({})


def _strike() -> None:
    time.sleep(_armed.get("slow", {"delay_s": 0})["delay_s"])
    _fail_if_armed("execution_error")


def _fail_if_armed(fault: str) -> None:
    if error := _armed.pop(fault, None):
        module, _, name = error["exception_type"].rpartition(".")
        raise getattr(torch if module else builtins, name)(error["message"])


def _callback_with_faults(
    make_callback: Callable[..., Callable[..., None]], *args: Any
) -> Callable[..., None]:
    report_step = make_callback(*args)

    def callback(*step: Any) -> None:
        _strike()
        report_step(*step)

    return callback


def _decode_with_faults(decode: Callable[..., Any]) -> Callable[..., Any]:
    def decode_unless_armed(*args: Any, **options: Any) -> Any:
        _fail_if_armed("decode_error")
        return decode(*args, **options)

    return decode_unless_armed


PromptServer.instance.routes.route("*", "/sandbox/faults")(_arm)
latent_preview.prepare_callback = partial(_callback_with_faults, latent_preview.prepare_callback)
VideoVAE.decode = _decode_with_faults(VideoVAE.decode)
