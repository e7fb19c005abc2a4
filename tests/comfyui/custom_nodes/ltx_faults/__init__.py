"""Test-only ComfyUI node package: samplers that misbehave to order. No node is added.

`POST /sandbox/faults` arms `slow` and `execution_error` with the options they have in the sandbox,
and `DELETE` disarms them. Here both strike after the next sampling step, whatever runs: `slow` at
every step until it is disarmed, `execution_error` once.
"""

import builtins
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import latent_preview
import torch
from aiohttp import web
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
    if error := _armed.pop("execution_error", None):
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


PromptServer.instance.routes.route("*", "/sandbox/faults")(_arm)
latent_preview.prepare_callback = partial(_callback_with_faults, latent_preview.prepare_callback)
