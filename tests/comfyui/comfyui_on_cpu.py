# pyright: basic, reportMissingImports=false
"""Imported before ComfyUI by this folder's scripts, which ComfyUI's Python runs in its folder.

ComfyUI reads the command line as it is imported: it gets `--cpu`, and the script's own arguments
are here. Then ComfyUI's modules can be imported, the node pack's `speed`, and what lies beside the
script, tiny Gemma among it.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent

ARGUMENTS = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [
    str(Path.cwd()),
    str(_HERE.parents[1] / "docker" / "custom_nodes" / "ltx_worker_nodes"),
    str(_HERE),
    str(_HERE / "custom_nodes"),
]

import comfy.options  # noqa: E402 - it is found by the path above

comfy.options.enable_args_parsing()
