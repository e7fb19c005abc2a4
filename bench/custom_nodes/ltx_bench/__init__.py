# pyright: basic, reportMissingImports=false
"""Bench-only ComfyUI node package: what a measurement needs to see and change. No node is added.

LTX_BENCH_CONTENT=natural   the video decoder gives natural-like frames, not random weights' noise
LTX_BENCH_NODE_TIMES=FILE   one JSON line for each node that ran; LTX_BENCH_SYNC=1 waits for the GPU
                            before and after it
LTX_BENCH_PROFILE=FILE      where `POST /ltx_bench/profile` has the next prompt's kernels written
"""

from __future__ import annotations

import os

from . import content, node_times, routes

NODE_CLASS_MAPPINGS: dict[str, type] = {}

if os.environ.get("LTX_BENCH_CONTENT") == "natural":
    content.install()
if path := os.environ.get("LTX_BENCH_NODE_TIMES"):
    node_times.install(path, is_synchronised=os.environ.get("LTX_BENCH_SYNC") == "1")
routes.install(os.environ.get("LTX_BENCH_PROFILE"))
