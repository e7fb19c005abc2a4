"""LTX-2's transformer block with its row operations fused.

The same arithmetic as ComfyUI's block, in the same order. Attention stays ComfyUI's own call, and
so does each layer whose weights do not lie ready (`linear.py`): offloaded and LoRA-patched weights
and other attention functions work as ever. A block that the kernels do not fit (another device, a
width that is not contiguous, tokens that do not divide into the timestep's rows) runs as it did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import comfy.ldm.lightricks.av_model as av_model
import comfy.ldm.lightricks.model as ltx_model
import comfy.ldm.modules.attention as attention
import comfy.ops
import torch

from . import kernels
from .kernels import Parameters
from .linear import feed_forward, feed_forward_fits, is_plain, linear
from .room import is_roomy
from .self_check import kernels_work
from .switches import switches

# Options by which a caller can leave out a part of the block.
_BRANCHES = ("run_vx", "run_ax", "a2v_cross_attn", "v2a_cross_attn")

Pair = tuple[torch.Tensor, torch.Tensor]

# Where ComfyUI keeps a block's parameters in its tables.
_SHIFT, _SCALE, _GATE = 0, 1, 2
_MLP_SHIFT, _MLP_SCALE, _MLP_GATE = 3, 4, 5
_TEXT_SHIFT, _TEXT_SCALE, _TEXT_GATE = 6, 7, 8
_A2V_SCALE, _A2V_SHIFT, _V2A_SCALE, _V2A_SHIFT, _CROSS_GATE = 0, 1, 2, 3, 4


def install() -> None:
    """Replace the methods of ComfyUI's classes; the originals serve what does not fit."""
    block = av_model.BasicAVTransformerBlock
    block.forward = _or_stock(_block_forward, block.forward, _block_fits)
    layer = ltx_model.CrossAttention
    layer.forward = _or_stock(_attention_forward, layer.forward, _attention_fits)
    feed_forward = ltx_model.FeedForward
    feed_forward.forward = _or_stock(_feed_forward, feed_forward.forward, _feed_forward_fits)


def _or_stock(
    fused: Callable[..., Any], stock: Callable[..., Any], fits: Callable[..., bool]
) -> Callable[..., Any]:
    @functools.wraps(stock)
    def forward(module: Any, *arguments: Any, **options: Any) -> Any:
        if switches.transformer and kernels_work() and fits(module, *arguments, **options):
            return fused(module, *arguments, **options)
        return stock(module, *arguments, **options)

    return forward


def _is_row_major(x: torch.Tensor) -> bool:
    return x.dim() == 3 and x.is_contiguous() and kernels.run_on(x)


# Attention


def _attention_fits(
    layer: Any, x: torch.Tensor, context: Any = None, mask: Any = None, pe: Any = None,
    k_pe: Any = None, transformer_options: Any = None,
) -> bool:  # fmt: skip
    return _is_row_major(x) and all(
        embedding is None or _is_split(embedding) for embedding in (pe, k_pe)
    )


def _is_split(embedding: Any) -> bool:
    """Rotary embeddings of the split kind, as LTX-2 has them: cos, sin [b, heads, tokens, half]."""
    return (
        len(embedding) > 2
        and bool(embedding[2])
        and embedding[0].dim() == 4
        and embedding[0].stride() == embedding[1].stride()
        and embedding[0].stride(3) == 1
    )


def _attention_forward(
    layer: Any, x: torch.Tensor, context: Any = None, mask: Any = None, pe: Any = None,
    k_pe: Any = None, transformer_options: Mapping[str, Any] | None = None,
) -> torch.Tensor:  # fmt: skip
    source = x if context is None else context
    pair = _keys_and_values(layer, source, pe if k_pe is None else k_pe)
    return _attend(layer, x, pair, mask, pe, transformer_options or {})


def _keys_and_values(layer: Any, source: torch.Tensor, embedding: Any) -> Pair:
    keys = _normed(layer.k_norm, linear(layer.to_k, source), embedding)
    return keys, linear(layer.to_v, source)


def _attend(
    layer: Any, x: torch.Tensor, pair: Pair, mask: Any, pe: Any, options: Mapping[str, Any]
) -> torch.Tensor:
    keys, values = pair
    queries = _normed(layer.q_norm, linear(layer.to_q, x), pe)
    settings = {"attn_precision": layer.attn_precision, "transformer_options": options}
    if isinstance(mask, ltx_model.GuideAttentionMask):
        attend = functools.partial(ltx_model._attention_with_guide_mask, guide_mask=mask)
    else:
        attend = functools.partial(attention.optimized_attention, mask=mask)
    out = attend(queries, keys, values, layer.heads, **settings)
    if layer.to_gate_logits is not None:
        gates = 2.0 * torch.sigmoid(linear(layer.to_gate_logits, x))
        out = (out.unflatten(-1, (layer.heads, layer.dim_head)) * gates.unsqueeze(-1)).flatten(-2)
    return linear(layer.to_out[0], out)


def _attend_to_text(
    layer: Any, x: torch.Tensor, context: torch.Tensor, mask: Any, options: Mapping[str, Any]
) -> torch.Tensor:
    """Attention to a text that no step changes: its keys and values are kept from the first."""
    pair = _text.pairs(context, options).get(layer)
    if pair is None:
        pair = _text.keep(layer, _keys_and_values(layer, context, None))
    return _attend(layer, x, pair, mask, None, options)


class _Text:
    """The keys and values of the text of the pass that runs, by layer: 1.2 GB at 1,024 tokens."""

    def __init__(self) -> None:
        self._of: Any = None
        # A model that ComfyUI lets go goes.
        self._pairs: WeakKeyDictionary[Any, Pair] = WeakKeyDictionary()

    def pairs(self, context: torch.Tensor, options: Mapping[str, Any]) -> Mapping[Any, Pair]:
        """Those of this text; ComfyUI gives each conditioning of a guider an id of its own."""
        this = (tuple(options.get("uuids", ())), tuple(context.shape), context.dtype)
        # Within context windows one conditioning may have a text for each.
        if this != self._of or not this[0] or "context_window" in options:
            self._of, self._pairs = this, WeakKeyDictionary()
        return self._pairs

    def keep(self, layer: Any, pair: Pair) -> Pair:
        """On a GPU with room to spare; returns the pair."""
        if is_roomy():
            self._pairs[layer] = pair
        return pair

    def kept(self, layer: Any) -> tuple[torch.Tensor, ...]:
        return self._pairs.get(layer, ())


_text = _Text()


def kept_text(layer: Any) -> tuple[torch.Tensor, ...]:
    """The text's keys and values that a layer keeps in the pass that runs, if it does."""
    return _text.kept(layer)


def _normed(norm: Any, rows: torch.Tensor, embedding: Any) -> torch.Tensor:
    """Queries or keys, normalised, and rotated where they have positions."""
    if embedding is None or not _is_row_major(rows):
        rows = norm(rows)
        return rows if embedding is None else ltx_model.apply_rotary_emb(rows, embedding)
    if is_plain(norm, rows):
        return kernels.norm_rotate(rows, norm.weight, embedding[0], embedding[1], norm.eps)
    weight, bias, stream = comfy.ops.cast_bias_weight(norm, rows, offloadable=True)
    out = kernels.norm_rotate(rows, weight, embedding[0], embedding[1], norm.eps)
    comfy.ops.uncast_bias_weight(norm, weight, bias, stream)
    return out


# Feed-forward


def _feed_forward_fits(layer: Any, x: torch.Tensor) -> bool:
    return kernels.run_on(x) and feed_forward_fits(layer.net[0].proj, layer.net[2], x)


def _feed_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return feed_forward(layer.net[0].proj, layer.net[2], x)


# The block


def _block_fits(block: Any, x: Pair, **options: Any) -> bool:
    flags = options.get("transformer_options") or {}
    video, sound = x
    if sound.numel() == 0 or not (_is_row_major(video) and _is_row_major(sound)):
        return False
    if not all(flags.get(name, True) for name in _BRANCHES):
        return False
    video_rows = ("v_timestep", "v_cross_scale_shift_timestep", "v_cross_gate_timestep")
    sound_rows = ("a_timestep", "a_cross_scale_shift_timestep", "a_cross_gate_timestep")
    return all(
        _rows_fit(options[name], tokens)
        for names, tokens in ((video_rows, video.shape[1]), (sound_rows, sound.shape[1]))
        for name in names
    )


def _rows_fit(timestep: Any, tokens: int) -> bool:
    rows = _data(timestep)
    return rows.dim() == 3 and rows.is_contiguous() and tokens % rows.shape[1] == 0


def _data(timestep: Any) -> torch.Tensor:
    """An embedded timestep, [batch, n, parameters * width]; n equal runs of tokens."""
    return timestep.data if isinstance(timestep, av_model.CompressedTimestep) else timestep


def _parameters(table: torch.Tensor, timestep: Any) -> Parameters:
    """A block's table with its timestep."""
    rows = _data(timestep)
    return Parameters(table.to(device=rows.device, dtype=rows.dtype), rows)


def _block_forward(
    block: Any, x: Pair, v_context: Any = None, a_context: Any = None, attention_mask: Any = None,
    v_timestep: Any = None, a_timestep: Any = None, v_pe: Any = None, a_pe: Any = None,
    v_cross_pe: Any = None, a_cross_pe: Any = None, v_cross_scale_shift_timestep: Any = None,
    a_cross_scale_shift_timestep: Any = None, v_cross_gate_timestep: Any = None,
    a_cross_gate_timestep: Any = None, transformer_options: Any = None,
    self_attention_mask: Any = None, v_prompt_timestep: Any = None, a_prompt_timestep: Any = None,
) -> Pair:  # fmt: skip
    options = transformer_options or {}
    comfy.ops.run_every_op()  # ends a pass that is interrupted; layers called directly do not ask
    video, sound = x
    v_table = _parameters(block.scale_shift_table, v_timestep)
    a_table = _parameters(block.audio_scale_shift_table, a_timestep)
    v_cross_table = block.scale_shift_table_a2v_ca_video
    a_cross_table = block.scale_shift_table_a2v_ca_audio
    v_text = _with_text(
        block, block.attn1, block.attn2, video, v_table, v_context, attention_mask,
        "prompt_scale_shift_table", v_prompt_timestep, v_pe, self_attention_mask, options,
    )  # fmt: skip
    a_text = _with_text(
        block, block.audio_attn1, block.audio_attn2, sound, a_table, a_context, attention_mask,
        "audio_prompt_scale_shift_table", a_prompt_timestep, a_pe, None, options,
    )  # fmt: skip
    cross = _parameters(v_cross_table[:_CROSS_GATE], v_cross_scale_shift_timestep)
    video_for_a2v, video_for_v2a = _joined(video, *v_text, cross)
    cross = _parameters(a_cross_table[:_CROSS_GATE], a_cross_scale_shift_timestep)
    sound_for_a2v, sound_for_v2a = _joined(sound, *a_text, cross)
    to_video = block.audio_to_video_attn(
        video_for_a2v, context=sound_for_a2v, pe=v_cross_pe, k_pe=a_cross_pe,
        transformer_options=options,
    )  # fmt: skip
    to_sound = block.video_to_audio_attn(
        sound_for_v2a, context=video_for_v2a, pe=a_cross_pe, k_pe=v_cross_pe,
        transformer_options=options,
    )  # fmt: skip
    del video_for_a2v, video_for_v2a
    for stream, branch, cross_table, cross_timestep, table, layer in (
        (video, to_video, v_cross_table, v_cross_gate_timestep, v_table, block.ff),
        (sound, to_sound, a_cross_table, a_cross_gate_timestep, a_table, block.audio_ff),
    ):
        gate = (_parameters(cross_table[_CROSS_GATE:], cross_timestep), 0)
        (normed,) = kernels.add_norm(stream, branch, gate, ((table, _MLP_SCALE, _MLP_SHIFT),))
        kernels.add_norm(stream, layer(normed), (table, _MLP_GATE), None)
    return video, sound


def _with_text(
    block: Any, self_attention: Any, text_attention: Any, stream: torch.Tensor,
    table: Parameters, context: torch.Tensor, attention_mask: Any, prompt_table: str,
    prompt_timestep: Any, pe: Any, self_mask: Any, options: Any,
) -> tuple[torch.Tensor, tuple[Parameters, int] | None]:  # fmt: skip
    """Self-attention into the stream, then what the text's attention adds to it, and its gate."""
    (normed,) = kernels.add_norm(stream, modulations=((table, _SCALE, _SHIFT),))
    branch = self_attention(normed, pe=pe, mask=self_mask, transformer_options=options)
    if not block.cross_attention_adaln:
        (normed,) = kernels.add_norm(stream, branch, (table, _GATE))
        return _attend_to_text(text_attention, normed, context, attention_mask, options), None
    modulation = (table, _TEXT_SCALE, _TEXT_SHIFT)
    (normed,) = kernels.add_norm(stream, branch, (table, _GATE), (modulation,))
    shift, scale = (
        getattr(block, prompt_table)[None, None].to(device=stream.device, dtype=stream.dtype)
        + prompt_timestep.reshape(stream.shape[0], prompt_timestep.shape[1], 2, -1)
    ).unbind(dim=2)
    context = context * (1 + scale) + shift
    text = text_attention(normed, context=context, mask=attention_mask, transformer_options=options)
    return text, (table, _TEXT_GATE)


def _joined(
    stream: torch.Tensor,
    branch: torch.Tensor,
    gate: tuple[Parameters, int] | None,
    cross: Parameters,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The text's branch added; the stream normed for both cross attentions."""
    to_video = (cross, _A2V_SCALE, _A2V_SHIFT)
    to_sound = (cross, _V2A_SCALE, _V2A_SHIFT)
    first, second = kernels.add_norm(stream, branch, gate, (to_video, to_sound))
    return first, second
