"""A step's transformer blocks as one CUDA graph.

Python takes 0.15 to 0.25 s to issue the 3,500 operations of a step, in bad moments more; the GPU
works on them for 0.18 s in the first pass at 1280x704, for 0.12 s with an fp8 checkpoint, and then
waits. A graph is issued at once. It reads and writes where it did when it was captured, so it
serves as long as weights and sizes stay, in later jobs too, and what differs is copied there.

The first step of a pass is issued as ever: it computes what the others keep (the text's keys and
values). A graph is captured in the third step, if the GPU has done all before it by then and waits,
and never for large sizes: there the GPU is the slower of the two.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import comfy.ldm.lightricks.av_model as av_model
import torch

from . import transformer
from .linear import is_ready
from .room import holds_everything
from .switches import switches

_log = logging.getLogger(__name__)

_MOST_TOKENS = 8192
# 1.2 GB for the text's keys and values at 1,024 tokens, and about one for what a step computes.
_MOST_GRAPHS = 2
_SECOND, _THIRD = 2, 3
# What ComfyUI tells of a step that its blocks do not ask for. Any other option may change what they
# do, such as other nodes' guidance that leaves something out in every second call.
_IDLE_OPTIONS = frozenset({
    "callbacks", "cond_or_uncond", "prefetch_dynamic_vbars", "sample_sigmas", "sigmas", "uuids",
    "wrappers",
})  # fmt: skip


def install() -> None:
    """Wrap the method that runs the blocks of a step; it serves what does not fit."""
    model = av_model.LTXAVModel
    stock = model._process_transformer_blocks
    steps = _Steps(_captured, _Issued())

    @functools.wraps(stock)
    def _process_transformer_blocks(
        self: Any, x: Any, context: Any, attention_mask: Any, timestep: Any, pe: Any,
        transformer_options: Any = None, self_attention_mask: Any = None, **options: Any
    ) -> Any:  # fmt: skip
        transformer_options = transformer_options or {}
        inputs = (x, context, attention_mask, timestep, pe)

        def run(inputs: Any) -> Any:
            return stock(
                self, *inputs, transformer_options=transformer_options,
                self_attention_mask=self_attention_mask, **options,
            )  # fmt: skip

        if self_attention_mask is None and _fits(x, transformer_options):
            return steps.run(self, inputs, transformer_options, run)
        return run(inputs)

    model._process_transformer_blocks = _process_transformer_blocks


def _fits(x: Any, options: Any) -> bool:
    return (
        switches.graphs
        and x[0].is_cuda
        and _can_capture()
        and switches.transformer
        and x[0].shape[1] <= _MOST_TOKENS
        and _are_plain(options)
        and holds_everything()
        and not torch.is_grad_enabled()
    )


def _are_plain(options: Mapping[str, Any]) -> bool:
    return bool(options.get("uuids")) and options.keys() <= _IDLE_OPTIONS


@functools.cache
def _can_capture() -> bool:
    """torch's own allocator; that of CUDA, ComfyUI's default, ends the process in a capture."""
    return torch.cuda.get_allocator_backend() == "native"


class _Steps:
    """The graphs that there are, and where in a pass the model is."""

    def __init__(self, capture: Callable[..., _Graph | None], issued: _Issued) -> None:
        self._capture = capture
        self._issued = issued
        self._graphs: dict[Any, _Graph] = {}
        self._pass: Any = None
        self._step = 0
        self._ready: _Graph | None = None

    def run(self, model: Any, inputs: Any, options: Any, run: Callable[[Any], Any]) -> Any:
        """One step, by whichever way there is for it."""
        key = (id(model), *_described(inputs))
        this = (key, tuple(options["uuids"]))
        if this != self._pass:
            self._pass, self._step, self._ready = this, 0, None
        self._step += 1
        if self._ready is None and (
            (self._step == _SECOND and key in self._graphs)
            or (self._step == _THIRD and self._issued.is_done())
        ):
            self._ready = self._graph_for(key, model, inputs, run)
        if self._ready is not None:
            return self._ready.run(inputs)
        result = run(inputs)
        self._issued.mark()
        return result

    def _graph_for(
        self, key: Any, model: Any, inputs: Any, run: Callable[[Any], Any]
    ) -> _Graph | None:
        """That of these sizes, kept or captured now; None where there can be none."""
        graph = self._graphs.pop(key, None)
        addresses = _addresses(model, inputs[0][0])
        if addresses is None:
            return None
        if graph is not None and graph.addresses == addresses:
            graph.take_text(_text_tensors(model))
        else:
            del graph
            while len(self._graphs) >= _MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph = self._capture(model, addresses, inputs, run)
        if graph is None:
            switches.graphs = False  # nor would another be captured
        else:
            self._graphs[key] = graph
        return graph


class _Issued:
    """What was issued to the GPU up to a mark, and whether that is done."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None

    def mark(self) -> None:
        self._event = torch.cuda.Event()
        self._event.record()

    def is_done(self) -> bool:
        return self._event is not None and self._event.query()


class _Graph:
    """A captured step: its graph, and the tensors that it reads what differs from."""

    def __init__(self, addresses: Any, inputs: Any, text: list[torch.Tensor]) -> None:
        self.addresses = addresses
        self.inputs = _mapped(inputs, torch.clone)
        self.replay: Callable[[], Any] | None = None
        self.result: Any = None
        self._tensors = list(_tensors(self.inputs))
        self._text = text

    def take_text(self, text: list[torch.Tensor]) -> None:
        """The keys and values of another pass's text."""
        if text:
            torch._foreach_copy_(self._text, text)

    def run(self, inputs: Any) -> Any:
        """The blocks' results; good until the next run."""
        torch._foreach_copy_(self._tensors, list(_tensors(inputs)))
        assert self.replay is not None
        self.replay()
        return self.result


def _captured(model: Any, addresses: Any, inputs: Any, run: Callable[[Any], Any]) -> _Graph | None:
    """None where something in it cannot be captured."""
    step = _Graph(addresses, inputs, _text_tensors(model))
    graph = torch.cuda.CUDAGraph()
    main, side = torch.cuda.current_stream(), _side_stream(inputs[0][0].device)
    side.wait_stream(main)
    try:
        with torch.cuda.stream(side):
            # Other threads may allocate meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                step.result = run(step.inputs)
            finally:
                graph.capture_end()
    except RuntimeError as error:
        _log.warning("A step cannot be captured as a CUDA graph: %s", error)
        return None
    finally:
        main.wait_stream(side)
    step.replay = graph.replay
    return step


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where graphs are captured. Workspaces of products are made here, outside of any graph."""
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        square = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
        torch.nn.functional.linear(square, square, square[0])
        torch._addmm_activation(square[0], square, square, use_gelu=True)
    return stream


def _text_tensors(model: Any) -> list[torch.Tensor]:
    """The keys and values that this pass keeps, in the blocks' order."""
    layers = (
        layer for block in model.transformer_blocks for layer in (block.attn2, block.audio_attn2)
    )
    return [tensor for layer in layers for tensor in transformer.kept_text(layer)]


def _addresses(model: Any, like: torch.Tensor) -> list[int] | None:
    """Where all parameters of the blocks lie; None where one is not used just as it lies."""
    found: list[int] = []
    for module in model.transformer_blocks.modules():
        if "forward" in vars(module) or not is_ready(module, like):
            return None
        for parameter in module.parameters(recurse=False):
            found += (part.data_ptr() for part in _parts(parameter))
    return found


def _parts(parameter: torch.Tensor) -> tuple[torch.Tensor, ...]:
    quantised = getattr(parameter, "_qdata", None)
    return (parameter,) if quantised is None else (quantised, parameter._params.scale)


def _mapped(value: Any, make: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same with other tensors."""
    if isinstance(value, torch.Tensor):
        return make(value)
    if isinstance(value, av_model.CompressedTimestep):
        rows, run = make(value.data), value.patches_per_frame
        return av_model.CompressedTimestep(rows, run, per_frame=True)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, make) for item in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, av_model.CompressedTimestep):
        yield value.data
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _described(value: Any) -> Iterator[Any]:
    """What must be equal for a graph to serve: sizes and types of tensors, and all else."""
    if isinstance(value, torch.Tensor):
        yield value.shape, value.stride(), value.dtype
    elif isinstance(value, av_model.CompressedTimestep):
        yield value.data.shape, value.data.dtype, value.patches_per_frame
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for item in value:
            yield from _described(item)
    else:
        yield value
