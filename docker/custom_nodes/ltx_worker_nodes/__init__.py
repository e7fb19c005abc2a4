"""ComfyUI nodes of the LTX worker: what it needs of ComfyUI and ComfyUI has not, or not as fast.

The nodes are imported when ComfyUI asks for them, not with the package: the encoder is also used
where there is neither torch nor ComfyUI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI at its start: what this pack offers."""
    # ruff: noqa: PLC0415
    from comfy_api.latest import ComfyExtension, io

    from . import speed
    from .decode_video import LTXWorkerDecodeVideo
    from .save_video import LTXWorkerSaveVideo

    speed.install()

    class WorkerNodes(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return [LTXWorkerSaveVideo, LTXWorkerDecodeVideo]

    return WorkerNodes()
