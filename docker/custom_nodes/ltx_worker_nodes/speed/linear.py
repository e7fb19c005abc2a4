"""Linear layers whose weights lie ready on the GPU, called without what makes them ready.

For each layer ComfyUI asks where the weight lies, casts it, waits for copies under way and wraps
fp8 operands in tensors of a class of its own: so much Python that the GPU waits for it in the first
pass. A layer that has nothing to ask is one product here, with the same operands and rounding; any
other (streamed weights, LoRAs applied as they are used, other formats, hooks) is called as ever.
"""

from __future__ import annotations

import functools
from typing import Any

import comfy.ops
import comfy.quant_ops
import torch

from . import kernels
from .self_check import kernels_work

_OPERATIONS = (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
# Where a checkpoint is quantised, each model has classes of its own, made by this function.
_MIXED_LAYER = f"{comfy.ops.mixed_precision_ops.__name__}.<locals>.MixedPrecisionOps.Linear"
_FP8_LAYOUT = "TensorCoreFP8E4M3Layout"


def linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What the layer makes of [..., in features]; [..., out features] in the same type."""
    if is_plain(layer, x):
        return torch.nn.functional.linear(x, layer.weight, layer.bias)
    if _is_fp8(layer, x):
        return _scaled_product(layer, x, gelu=False)
    return layer(x)


def is_plain(layer: Any, x: torch.Tensor) -> bool:
    """Whether a linear or norm layer's weight can be used as it lies."""
    weight = layer.weight
    return (
        type(weight) is torch.nn.Parameter
        and weight.dtype == x.dtype
        and weight.device == x.device
        and _is_known(type(layer))
        and _is_untouched(layer, x)
    )


def is_ready(module: torch.nn.Module, like: torch.Tensor) -> bool:
    """Whether nothing needs to be done before a module's weights serve for a tensor like this."""
    if isinstance(module, comfy.ops.CastWeightBiasOp):
        return is_plain(module, like) or _is_fp8(module, like)
    return not (module._forward_hooks or module._forward_pre_hooks)


@functools.cache
def _is_known(layer: type[torch.nn.Module]) -> bool:
    """Classes of other operations quantise, or cast in ways of their own."""
    known = (getattr(names, name) for names in _OPERATIONS for name in ("Linear", "RMSNorm"))
    return layer in known or layer.__qualname__ == _MIXED_LAYER


def _is_untouched(layer: Any, x: torch.Tensor) -> bool:
    bias = layer.bias
    return (bias is None or (bias.dtype == x.dtype and bias.device == x.device)) and not (
        layer.weight_function
        or layer.bias_function
        or layer._forward_hooks
        or layer._forward_pre_hooks
    )


def _is_fp8(layer: Any, x: torch.Tensor) -> bool:
    """Whether ComfyUI would make an fp8 product of it, and its parameters lie where x does."""
    if getattr(layer, "layout_type", None) != _FP8_LAYOUT:
        return False
    weight = layer.weight
    scale = getattr(layer, "input_scale", None)
    return (
        isinstance(weight, comfy.quant_ops.QuantizedTensor)
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.is_contiguous()
        and kernels.run_on(x)
        and weight._qdata.device == weight._params.scale.device == x.device
        and (scale is None or scale.device == x.device)
        and not (layer._full_precision_mm or getattr(layer, "comfy_force_cast_weights", False))
        and _is_untouched(layer, x)
        and kernels_work("fp8")
    )


def _scaled_product(layer: Any, x: torch.Tensor, *, gelu: bool) -> torch.Tensor:
    """fp8 weights times x, brought to fp8 by the scale of the checkpoint, or by none."""
    weight = layer.weight
    scale = getattr(layer, "input_scale", None)
    if scale is None:
        scale = torch.ones((), device=x.device)
    rows = kernels.quantise(x.flatten(0, -2), scale, gelu=gelu)
    out = torch._scaled_mm(
        rows, weight._qdata.t(), scale, weight._params.scale, layer.bias, out_dtype=x.dtype
    )
    return out.view(*x.shape[:-1], -1)


def feed_forward_fits(first: Any, second: Any, x: torch.Tensor) -> bool:
    """Whether `feed_forward` has anything to gain."""
    return _has_gelu_product(first, x) or _is_fp8(second, x)


def feed_forward(first: Any, second: Any, x: torch.Tensor) -> torch.Tensor:
    """Both layers of a feed-forward with GELU (by tanh) between them, in the product or after."""
    if _has_gelu_product(first, x):
        weight, bias, stream = comfy.ops.cast_bias_weight(first, x, offloadable=True)
        hidden = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        comfy.ops.uncast_bias_weight(first, weight, bias, stream)
        return linear(second, hidden.view(*x.shape[:-1], -1))
    hidden = linear(first, x)
    if _is_fp8(second, hidden):
        return _scaled_product(second, hidden, gelu=True)
    return linear(second, torch.nn.functional.gelu(hidden, approximate="tanh"))


def _has_gelu_product(layer: Any, x: torch.Tensor) -> bool:
    weight = getattr(layer, "weight", None)
    return (
        isinstance(weight, torch.Tensor)
        and weight.dtype == x.dtype
        and layer.bias is not None
        and not isinstance(weight, comfy.quant_ops.QuantizedTensor)
    )
