# pyright: basic, reportMissingImports=false
"""Compare layers called directly with ComfyUI's own way of calling them.

Run with ComfyUI's own Python in ComfyUI's folder; prints one JSON object: for each case the
relative difference, and whether ComfyUI's layer was called. Kernels run in Triton's interpreter
(`TRITON_INTERPRET=1`); without Triton it prints that there is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import comfyui_on_cpu  # noqa: F401 - sets up ComfyUI

# isort: split
import comfy.ops
import torch

try:
    from speed import linear
except ImportError:
    linear = None

WIDTHS = (64, 32)
DTYPE = torch.bfloat16


def plain(operations: Any = comfy.ops.disable_weight_init, dtype: torch.dtype = DTYPE) -> Any:
    layer = operations.Linear(*WIDTHS, device="cpu", dtype=dtype)
    with torch.no_grad():
        layer.weight.normal_(0, WIDTHS[0] ** -0.5)
        layer.bias.normal_()
    return layer


def quantised(
    input_scale: float | None, full_precision: bool = False, widths: tuple[int, int] = WIDTHS
) -> Any:
    """A layer of an fp8 checkpoint; a GPU without fp8 products has them in full precision."""
    operations = comfy.ops.mixed_precision_ops(compute_dtype=DTYPE)
    layer = operations.Linear(*widths, device="cpu", dtype=DTYPE)
    weight = torch.randn(*reversed(widths)) * 64
    mark = bytearray(b'{"format": "float8_e4m3fn"}')
    state = {
        "weight": weight.to(torch.float8_e4m3fn),
        "bias": torch.randn(widths[1], dtype=DTYPE),
        "weight_scale": torch.tensor(1 / 512),
        "comfy_quant": torch.frombuffer(mark, dtype=torch.uint8),
    }
    if input_scale is not None:
        state["input_scale"] = torch.tensor(input_scale)
    layer.load_state_dict(state, strict=False)
    layer._full_precision_mm = full_precision
    return layer


def with_change(layer: Any) -> Any:
    """As ComfyUI applies a LoRA to a layer whose weights it does not keep changed."""
    layer.weight_function = [lambda weight: weight * 2]
    return layer


def hooked(layer: Any) -> Any:
    layer.register_forward_hook(lambda _, __, result: result + 1)
    return layer


CASES: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "cast if need be": lambda: plain(comfy.ops.manual_cast),
    "another type": lambda: plain(comfy.ops.manual_cast, torch.float32),
    "changed": lambda: with_change(plain(comfy.ops.manual_cast)),
    "hooked": lambda: hooked(plain()),
    "fp8": lambda: quantised(1 / 16),
    "fp8 without an input scale": lambda: quantised(None),
    "fp8 in full precision": lambda: quantised(1 / 16, full_precision=True),
    "fp8 changed": lambda: with_change(quantised(1 / 16)),
}


@torch.no_grad()
def compared(layer: Any) -> dict[str, Any]:
    # Exact in fp8 at the scales above: the interpreter does not round as a GPU does.
    x = torch.randn(2, 48, WIDTHS[0]).to(torch.float8_e4m3fn).to(DTYPE)
    calls: list[Any] = []
    # A hook of every module: one of the layer's own would be a reason to call it.
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: calls.append(module)
    )
    ours = linear.linear(layer, x)
    handle.remove()
    stock = layer(x)
    error = float((ours.float() - stock.float()).norm() / stock.float().norm())
    return {"error": error, "is_stock": bool(calls), "shape": list(ours.shape)}


@torch.no_grad()
def feed_forward_error(first: Any, second: Any) -> float:
    x = torch.randn(2, 48, WIDTHS[0], dtype=DTYPE)
    ours = linear.feed_forward(first, second, x)
    stock = second(torch.nn.functional.gelu(first(x), approximate="tanh"))
    return float((ours.float() - stock.float()).norm() / stock.float().norm())


def main() -> None:
    torch.manual_seed(0)
    result: dict[str, Any] = {"triton": linear is not None}
    if linear is not None:
        result["cases"] = {name: compared(make()) for name, make in CASES.items()}
        second = quantised(1 / 16, widths=(WIDTHS[1], WIDTHS[0]))
        result["feed_forward"] = feed_forward_error(quantised(1 / 16), second)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
