"""Run by ComfyUI before its imports: begins to read the first job's weights onto the GPU.

The rest of the pack is imported some ten seconds later, when ComfyUI has imported all of its own.
`speed/weights.py` finds what is begun here under the name `ltx_worker_speed`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

_NAME = "ltx_worker_speed"


def _begin() -> None:
    folder = Path(__file__).parent / "speed"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    if package.switches.weights:
        importlib.import_module(f"{_NAME}.weights_preload").begin()


if os.environ.get("LTX2_PRELOAD"):
    _begin()
