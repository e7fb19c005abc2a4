# pyright: basic, reportMissingImports=false
"""Start ComfyUI as the worker does, look at what is not loaded, then use it.

Run with ComfyUI's own Python in ComfyUI's folder; prints one JSON object:

    python late_imports_check.py OPTION ...   (ComfyUI's options)
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

PACK = Path(__file__).parents[2] / "docker" / "custom_nodes" / "ltx_worker_nodes"
LIST = tomllib.loads((PACK / "late_imports.toml").read_text())["late"]
HEAVY = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy", "transformers")


def start() -> None:
    """ComfyUI's `main.py` up to where it would serve."""
    sys.argv = ["main.py", *sys.argv[1:], "--quick-test-for-ci"]
    sys.path.insert(0, str(Path.cwd()))
    with suppress(SystemExit):
        runpy.run_path("main.py", run_name="__main__")


def is_loaded(name: str) -> bool:
    return name in sys.modules and type(sys.modules[name]).__name__ != "LateModule"


def compiled() -> dict[str, Any]:
    """comfy_kitchen's operators before and after torch.compile, which loads torch._dynamo."""
    import comfy_kitchen
    import torch

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor(0.5)
        small = comfy_kitchen.quantize_per_tensor_fp8(x, scale)
        return comfy_kitchen.dequantize_per_tensor_fp8(small, scale, torch.float32)

    x = torch.linspace(-3, 3, 64)
    eager = there_and_back(x)
    before = is_loaded("torch._dynamo")
    double = torch.compile(lambda y: y * 2 + 1, backend="eager", fullgraph=True)
    with_operators = torch.compile(there_and_back, backend="eager", fullgraph=True)
    return {
        "close": bool((eager - x).abs().max() < 0.13),
        "loaded before": before,
        "same": torch.equal(double(x), x * 2 + 1) and torch.equal(with_operators(x), eager),
        "loaded after": is_loaded("torch._dynamo"),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def used() -> dict[str, bool]:
    """What ComfyUI's modules and the packs do with names that they had imported before."""
    import comfy.k_diffusion.sampling as sampling
    import comfy.ldm.modules.sdpose as sdpose
    import comfy.samplers
    import comfy.sd1_clip as sd1_clip
    import nodes
    import numpy as np
    import torch

    step = np.zeros((9, 9))
    step[4, 4] = 1.0
    picture = torch.zeros(1, 32, 32, 3)
    picture[:, 8:24, 8:24] = 1.0
    edges = nodes.NODE_CLASS_MAPPINGS["Canny"].execute(picture, 0.1, 0.3).args[0]
    sigmas = torch.linspace(0.01, 1, 100)
    steps = comfy.samplers.beta_scheduler(type("Sampling", (), {"sigmas": sigmas})(), 4)
    blending = next(module for name, module in sys.modules.items() if "pyramid_blend" in name)
    return {
        "gaussian_filter": 0 < sdpose.gaussian_filter(step, sigma=1.0)[4, 4] < 1,
        "integrate": abs(sampling.integrate.quad(lambda x: x, 0, 2)[0] - 2) < 1e-9,
        "beta": len(steps) == 5 and bool((steps.diff() < 0).all()),
        "Canny": 0 < float(edges.mean()) < 0.5,
        "pyramid": blending.find_next_powerof_two(5) == 8,
        "CLIPTokenizer": "tokenize_with_weights" in dir(sd1_clip.SDTokenizer)
        and len(sd1_clip.SDTokenizer().tokenize_with_weights("a cat")[0]) == 77,
    }


def absent_names() -> list[str]:
    """Those of the list that their modules have not."""
    found: list[str] = []
    for name, late in LIST.items():
        module = importlib.import_module(name)
        module = sys.modules[name] if dir(module) else module
        wanted = [*late.get("names", ()), *late.get("idle", ())]
        found += [f"{name}.{each}" for each in wanted if not hasattr(module, each)]
    return found


def main() -> None:
    start()
    report: dict[str, Any] = {
        "imported": [name for name in LIST if name in sys.modules],
        "loaded": [name for name in (*LIST, *HEAVY) if is_loaded(name)],
    }
    report |= {"compiled": compiled(), "used": used(), "absent": absent_names()}
    report["still stand-ins"] = [name for name in LIST if not is_loaded(name)]
    print(json.dumps(report, default=bool))  # noqa: T201


if __name__ == "__main__":
    main()
