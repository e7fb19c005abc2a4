"""Run by ComfyUI before its imports: shortens them, and reads the first job's weights meanwhile.

The rest of the pack is imported some ten seconds later, when ComfyUI has imported all of its own.
`speed/weights.py` finds what is begun here under the name `ltx_worker_speed`.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parent


def _load(name: str, path: Path, package: Path | None = None) -> ModuleType:
    """The module of a file, or the package of its folder, which others then find under the name."""
    folders = None if package is None else [str(package)]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _begin() -> None:
    name = "ltx_worker_speed"
    package = _load(name, _FOLDER / "speed" / "__init__.py", _FOLDER / "speed")
    if package.switches.imports:
        # What is imported stays: `speed/garbage.py` lets garbage be collected again.
        gc.set_threshold(10_000_000)
        late_imports = _load("ltx_worker_late_imports", _FOLDER / "late_imports.py")
        late_imports.install(late_imports.read_list(_FOLDER / "late_imports.toml"))
    if package.switches.weights and os.environ.get("LTX2_PRELOAD"):
        importlib.import_module(f"{name}.weights_preload").begin()


_begin()
