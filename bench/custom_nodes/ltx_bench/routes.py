# pyright: basic, reportMissingImports=false
"""The bench's calls to a running ComfyUI.

GET  /ltx_bench          versions, the device, its memory since the last reset, the switches
POST /ltx_bench/reset    begin a new memory peak
POST /ltx_bench/switch   {"name": bool}: what of the product's node package is on
POST /ltx_bench/profile  the next prompt's operations and kernels go to LTX_BENCH_PROFILE
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import execution
import torch
from aiohttp import web
from comfyui_version import __version__ as comfyui_version
from server import PromptServer

_PRODUCT = "ltx_worker_nodes.speed"
_ROWS = 80
_armed: list[str] = []


def install(profile_path: str | None) -> None:
    """Add the routes; `profile_path` is where a profile is written."""
    routes = PromptServer.instance.routes
    routes.get("/ltx_bench")(_state)
    routes.post("/ltx_bench/reset")(_reset)
    routes.post("/ltx_bench/switch")(_switch)
    if profile_path is not None:
        routes.post("/ltx_bench/profile")(functools.partial(_profile_next, profile_path))
        _install_profiler()


def product_switches() -> Any:
    """The switches of the product's node package; None where it is not loaded."""
    found = [module for name, module in sys.modules.items() if name.endswith(_PRODUCT)]
    return found[0].switches if found else None


def _values(switches: Any) -> dict[str, bool]:
    return {name: on for name, on in vars(switches).items() if isinstance(on, bool)}


async def _state(_request: web.Request) -> web.Response:
    has_gpu = torch.cuda.is_available()
    switches = product_switches()
    return web.json_response(
        {
            "comfyui": comfyui_version,
            # Paths are this machine's and say nothing to another.
            "options": [word for word in sys.argv[1:] if "/" not in word],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "device": torch.cuda.get_device_name() if has_gpu else "cpu",
            "peak_allocated_bytes": torch.cuda.max_memory_allocated() if has_gpu else None,
            "peak_reserved_bytes": torch.cuda.max_memory_reserved() if has_gpu else None,
            "switches": None if switches is None else _values(switches),
        }
    )


async def _reset(_request: web.Request) -> web.Response:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return web.json_response({})


async def _switch(request: web.Request) -> web.Response:
    switches = product_switches()
    wanted = await request.json()
    if switches is None and wanted:
        return web.json_response({"error": f"{_PRODUCT} is not loaded"}, status=409)
    unknown = [name for name in wanted if not isinstance(getattr(switches, name, None), bool)]
    if unknown:
        return web.json_response({"error": f"no switch: {', '.join(unknown)}"}, status=400)
    for name, is_on in wanted.items():
        setattr(switches, name, bool(is_on))
    return web.json_response({} if switches is None else _values(switches))


async def _profile_next(path: str, _request: web.Request) -> web.Response:
    _armed[:] = [path]
    return web.json_response({"path": path})


def _install_profiler() -> None:
    execute = execution.PromptExecutor.execute

    @functools.wraps(execute)
    def profiled(self: Any, *args: Any, **options: Any) -> Any:
        if not _armed:
            return execute(self, *args, **options)
        path = _armed.pop()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            result = execute(self, *args, **options)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        Path(path).write_text(_tables(profile))
        return result

    execution.PromptExecutor.execute = profiled


def _tables(profile: torch.profiler.profile) -> str:
    averages = profile.key_averages()
    orders = ["self_cpu_time_total"]
    if torch.cuda.is_available():
        orders.insert(0, "self_cuda_time_total")
    return "\n\n".join(
        averages.table(sort_by=order, row_limit=_ROWS, max_name_column_width=110)
        for order in orders
    )
