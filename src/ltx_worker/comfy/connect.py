"""The ComfyUI of the settings: one that runs already, or one that the worker starts and owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ltx_worker.comfy.launch import EngineFolders, launch_of
from ltx_worker.comfy.process import OwnedComfy
from ltx_worker.comfy.server import ComfyServer, RemoteComfy
from ltx_worker.settings import Settings


def server_of(
    settings: Settings,
    gpu_args: Sequence[str] = (),
    on_given_up: Callable[[str], None] | None = None,
    preload: Callable[[Sequence[Path]], Sequence[Path]] | None = None,
) -> ComfyServer:
    """The server, not started yet; raises `ComfyUnavailable` when the settings name none.

    `gpu_args` are options for the worker's own ComfyUI, and `on_given_up` gets the cause when that
    cannot be started again. `preload` chooses, by the models folders, the weights that it reads
    onto the GPU as it starts.
    """
    timeouts = (settings.comfy_start_timeout_s, settings.comfy_unresponsive_s)
    if settings.comfy_url is None:
        launch = launch_of(settings, gpu_args)
        if preload is not None:
            launch = launch.preloading(preload(launch.folders.models_dirs))
        return OwnedComfy(launch, *timeouts, on_given_up)
    folders = EngineFolders(
        settings.comfy_input_dir,
        settings.comfy_output_dir,
        models_dirs=settings.comfy_models_dirs,
    )
    return RemoteComfy(settings.comfy_url, folders, *timeouts)
