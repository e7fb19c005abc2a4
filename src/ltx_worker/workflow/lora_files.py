"""Whether a LoRA file fits a checkpoint, read from their headers before anything is queued.

ComfyUI reports success with a LoRA that changes nothing: keys that it cannot place and shapes that
do not fit leave a line in its log at most. So the worker compares the two headers first.

What counts as fitting is what ComfyUI 0.27 applies to its LTXAV model class (`comfy/lora.py`,
`comfy/weight_adapter/`), compared with the real one in `tests/comfyui/test_lora_keys.py`:

* a weight `X.weight` is named `diffusion_model.X`, `X`, or `lora_unet_X` with `_` for every dot;
  a bias only `diffusion_model.X.bias`. Not `transformer.X`, `base_model.model.X`, `lycoris_X`.
* LoRA pairs in seven spellings, LoHa, LoKr; `.alpha` and `.dora_scale` beside them; whole tensors
  as `.diff`, `.diff_b`, `.set_weight`, `.w_norm`, `.b_norm`.
* bare parameters (`scale_shift_table`, `learnable_registers`) are named but never patched, so a
  key aimed at one counts as unknown.

Stricter than ComfyUI: a product must have the weight's own rows and columns, where ComfyUI also
takes any with as many values; GLoRA, OFT and BOFT, in which no LTX LoRA is known, are unknown.
Checkpoints are 16-bit or 8-bit ones: a 4-bit file packs two values into one, and its shapes differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltx_worker.errors import ModelMissing

Shape = tuple[int, ...]

# The limit of the safetensors library itself (MAX_HEADER_SIZE).
MAX_HEADER_BYTES = 100_000_000

# Room for a few keys of a text encoder or projection, which the model-only loader leaves out. Of an
# LTX-2.3 LoRA of all attention and feed-forward layers, one key in six is a gate that LTX-2 lacks.
MAX_UNKNOWN_SHARE = 0.1

_LENGTH_BYTES = 8
_CHECKPOINT_PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says it holds: each tensor's shape, and the metadata."""

    tensors: Mapping[str, Shape]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class LoraFit:
    """How a LoRA file meets a checkpoint.

    `weights` are the checkpoint's tensors that it changes, `unknown` its keys that ComfyUI would
    not apply, `misshapen` those with a shape that does not fit or with their other half missing.
    `made_for` is the model that its metadata, keys or shapes speak of; `foreign_prefix` begins
    keys that would be known without it.
    """

    keys: int
    weights: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    made_for: str | None = None
    foreign_prefix: str | None = None

    @property
    def pairs(self) -> int:
        """How many of the checkpoint's tensors the file changes, each by one pair or tensor."""
        return len(self.weights)

    @property
    def fits(self) -> bool:
        """Whether the file does what it was trained for on this checkpoint."""
        is_known = len(self.unknown) <= MAX_UNKNOWN_SHARE * self.keys
        return self.pairs > 0 and not self.misshapen and is_known


class _Tensor(BaseModel):
    """One entry of the header: a shape, and the first and last byte behind the header."""

    model_config = ConfigDict(strict=True)
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: list[Annotated[int, Field(ge=0)]] = Field(min_length=2, max_length=2)


class _Header(BaseModel):
    """The header's JSON: tensors by name, beside an optional `__metadata__` of strings."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, _Tensor] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    file_metadata: dict[str, str] = Field(default_factory=dict, alias="__metadata__")


def read_header(path: Path) -> SafetensorsHeader:
    """Read the header of the safetensors file at `path`, and none of its tensors.

    The format is 8 bytes of length (little-endian), that many bytes of JSON, then the tensors to
    the file's end. Raises `ModelMissing` for a file that is absent, cut off, or something else.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            text = file.read(length) if length <= MAX_HEADER_BYTES else b""
            data_bytes = path.stat().st_size - _LENGTH_BYTES - length
    except OSError as error:
        raise ModelMissing(f"{path.name} cannot be read: {error.strerror}") from error
    if length > MAX_HEADER_BYTES or (text and not text.startswith(b"{")):
        raise _broken(path, "is not a safetensors file")
    if not text or data_bytes < 0:
        raise _broken(path, "is cut off within its header")
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        raise _broken(path, "is not a safetensors file") from error
    tensors = header.__pydantic_extra__
    # The tensors must end where the file does: the safetensors library refuses any other file.
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if end > data_bytes:
        raise _broken(path, f"is cut off: {end - data_bytes:,} bytes are missing")
    if end < data_bytes:
        raise _broken(path, f"has {data_bytes - end:,} bytes too many for a safetensors file")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return SafetensorsHeader(shapes, header.file_metadata)


def _broken(path: Path, fault: str) -> ModelMissing:
    return ModelMissing(f"{path.name} {fault}", hint="Download the file again.")


def check_lora(lora: SafetensorsHeader, checkpoint: SafetensorsHeader) -> LoraFit:
    """Compare a LoRA's keys and shapes with the transformer inside a checkpoint."""
    targets = _targets(checkpoint)
    patches = _patches(lora)
    weights: set[str] = set()
    unknown: list[str] = []
    misshapen: list[str] = []
    for base, parts in patches.items():
        changes = _changes(parts, targets[base]) if base in targets else {}
        weights |= {weight for weight in changes.values() if weight}
        misshapen += [base + suffix for suffix, weight in changes.items() if not weight]
        unknown += [base + suffix for suffix in parts if suffix not in changes]
    return LoraFit(
        keys=len(lora.tensors),
        weights=tuple(sorted(weights)),
        unknown=tuple(unknown),
        misshapen=tuple(misshapen),
        made_for=_made_for(patches, lora.metadata),
        foreign_prefix=_foreign_prefix((base for base in patches if base not in targets), targets),
    )


def reference_downscale_factor(header: SafetensorsHeader) -> float:
    """How many times smaller than the clip an IC-LoRA's reference is, in width and in height.

    A whole number of at least 1, as ComfyUI's `GetICLoRAParameters` reads it from the metadata.
    """
    stated = header.metadata.get("reference_downscale_factor", "1")
    try:
        return float(max(1, round(float(stated))))
    except (ValueError, OverflowError):
        return 1.0


def describe_misfit(name: str, family: str, fit: LoraFit) -> str:
    """One sentence: the file, the family it was asked for, what is wrong, what it seems to be."""
    faults: list[str] = []
    if fit.unknown:
        faults.append(f"{len(fit.unknown):,} match no weight of the model")
    if fit.misshapen:
        faults.append(f"{len(fit.misshapen):,} have a shape that does not fit")
    of = f"of its {fit.keys:,} tensors " + " and ".join(faults) if faults else "it holds no tensors"
    made_for = fit.made_for or _named_model(name)
    seems = ""
    if made_for and made_for != family:
        seems = f"; it seems to be made for {made_for}"
    elif fit.foreign_prefix:
        seems = f'; its keys begin with "{fit.foreign_prefix}", which ComfyUI does not read here'
    return f"{name} does not fit {family}: {of}{seems}."


@dataclass(frozen=True)
class _Target:
    """A tensor that a LoRA can change, and the bias of the same layer, where there is one."""

    name: str
    shape: Shape
    bias_name: str
    bias_shape: Shape | None

    @property
    def size(self) -> Shape:
        """Rows and columns of the tensor as a matrix; a vector has one column."""
        return self.shape[0], math.prod(self.shape[1:])


def _targets(checkpoint: SafetensorsHeader) -> dict[str, _Target]:
    """The transformer's weights and biases, not its bare tables, by each of their names."""
    inner = {
        key.removeprefix(_CHECKPOINT_PREFIX): shape
        for key, shape in checkpoint.tensors.items()
        if key.startswith(_CHECKPOINT_PREFIX) and shape
    }
    targets: dict[str, _Target] = {}
    for key, shape in inner.items():
        layer, _, kind = key.rpartition(".")
        if kind == "weight":
            target = _Target(key, shape, f"{layer}.bias", inner.get(f"{layer}.bias"))
            flat = layer.replace(".", "_")
            names = (layer, f"diffusion_model.{layer}", f"lora_unet_{flat}")
            targets |= dict.fromkeys(names, target)
        elif kind == "bias":
            targets[f"diffusion_model.{key}"] = _Target(key, shape, "", None)
    return targets


# Up (rows, rank) and down (rank, columns), in the order in which ComfyUI tries the spellings.
_PAIRS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)
_LOHA = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
_LOKR = (".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b")
_SCALES = (".alpha", ".dora_scale")
_WHOLE = (".diff", ".set_weight", ".w_norm")
_WHOLE_BIAS = (".diff_b", ".b_norm")
# Parts for convolutions, and a wish to pad the weight: ComfyUI fails on LTX's linear layers.
_NEVER_FIT = (".lora_mid.weight", ".hada_t1", ".hada_t2", ".lokr_t2", ".reshape_weight")
_SUFFIXES = (*chain(*_PAIRS), *_LOHA, *_LOKR, *_SCALES, *_WHOLE, *_WHOLE_BIAS, *_NEVER_FIT)

_Parts = Mapping[str, Shape]


def _patches(lora: SafetensorsHeader) -> dict[str, dict[str, Shape]]:
    """The LoRA's tensors by the name they aim at, then by suffix ("" where none is known)."""
    patches: dict[str, dict[str, Shape]] = {}
    for key, shape in lora.tensors.items():
        suffix = next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), "")
        patches.setdefault(key.removesuffix(suffix), {})[suffix] = shape
    return patches


def _product(left: Shape | None, right: Shape | None) -> Shape | None:
    """The size of a product of two matrices, or None; a kernel (out, in, 1, 1) is (out, in)."""
    if not left or not right or min(len(left), len(right)) < 2:
        return None
    return (left[0], math.prod(right[1:])) if math.prod(left[1:]) == right[0] > 0 else None


def _factored(parts: _Parts) -> Iterator[tuple[tuple[str, ...], Shape | None]]:
    """The suffixes of each product among the parts, with its size (None: it has no size)."""
    for up, down in _PAIRS:
        if up in parts or down in parts:
            yield (up, down), _product(parts.get(up), parts.get(down))
    if any(suffix in parts for suffix in _LOHA):
        first, second = (_product(*map(parts.get, half)) for half in (_LOHA[:2], _LOHA[2:]))
        yield _LOHA, first if first == second else None
    if any(suffix in parts for suffix in _LOKR):
        factors = [
            parts.get(whole) or _product(parts.get(left), parts.get(right)) or ()
            for whole, left, right in (_LOKR[:3], _LOKR[3:])
        ]
        is_whole = all(len(factor) == 2 for factor in factors)
        yield _LOKR, tuple(map(math.prod, zip(*factors, strict=True))) if is_whole else None


def _changes(parts: _Parts, target: _Target) -> dict[str, str | None]:
    """For each part that ComfyUI would apply: the tensor it changes, or None if it does not fit."""
    rows, columns = target.size
    changes: dict[str, str | None] = {}
    odd = [suffix for suffix in _NEVER_FIT if suffix in parts]
    scales = [suffix for suffix in _SCALES if suffix in parts]
    # Alpha is one number; a DoRA scale has one for each row or each column.
    has_scale = parts.get(".dora_scale", (rows, 1)) in ((rows, 1), (1, columns))
    has_scale &= math.prod(parts.get(".alpha", ())) == 1
    for suffixes, size in _factored(parts):
        fits = size == target.size and has_scale and not odd
        present = [*(suffix for suffix in suffixes if suffix in parts), *scales, *odd]
        changes |= dict.fromkeys(present, target.name if fits else None)
    whole = dict.fromkeys(_WHOLE, (target.name, target.shape))
    if target.bias_shape is not None:
        whole |= dict.fromkeys(_WHOLE_BIAS, (target.bias_name, target.bias_shape))
    for suffix, (name, shape) in whole.items():
        if suffix in parts and (suffix != ".b_norm" or ".w_norm" in parts):
            changes[suffix] = name if parts[suffix] == shape else None
    return changes


# Layers that only one model has (ComfyUI's `LTXAVModel` with and without `apply_gated_attention`,
# `cross_attention_adaln`, `caption_proj_before_connector`), and some of other models.
_LAYERS = (
    ("ltx-2.3", re.compile(r"to_gate_logits|prompt_adaln_single|prompt_scale_shift_table")),
    ("ltx-2", re.compile(r"(?:^|[._])caption_projection[._]|audio_caption_projection")),
    ("Wan", re.compile(r"(?:^|[._])blocks[._]\d+[._](?:self|cross)_attn[._]")),
    ("FLUX or HunyuanVideo", re.compile(r"(?:double|single)_(?:transformer_)?blocks[._]\d")),
    ("Stable Diffusion", re.compile(r"(?:down|up|input|output)_blocks[._]\d|lora_te\d?_text")),
)
# Rows per column of `adaln_single.linear`: six modulations, and three more for cross-attention.
_MODULATIONS = (("ltx-2", 6), ("ltx-2.3", 9))
_ADALN = re.compile(r"(?:diffusion_model\.|lora_unet_)?(?:audio_)?adaln_single[._]linear")
_NAMES = (
    ("ltx-2.5", re.compile(r"ltx[-_ ]?v?2[._]5")),
    ("ltx-2.3", re.compile(r"ltx[-_ ]?v?2[._]3|(?<!\d)22b")),
    ("ltx-2", re.compile(r"(?<!\d)19b")),
    ("LTX-Video", re.compile(r"ltxv[-_ ]|ltx-?video|(?<!\d)13b")),
)
# What trainers write: kohya's and its descendants', and Stability's model specification.
_METADATA = ("ss_base_model_version", "ss_sd_model_name", "modelspec.architecture", "base_model")
_FOREIGN_PREFIXES = ("model.diffusion_model.", "transformer.", "base_model.model.", "lycoris_")


def _made_for(patches: Mapping[str, _Parts], metadata: Mapping[str, str]) -> str | None:
    """The model that the LoRA's metadata, its layers or their sizes speak of."""
    if stated := _named_model(" ".join(metadata.get(key, "") for key in _METADATA)):
        return stated
    for base, parts in patches.items():
        for model, layer in _LAYERS:
            if layer.search(base):
                return model
        sizes = [size for _, size in _factored(parts) if size and _ADALN.fullmatch(base)]
        for model, rows_per_column in _MODULATIONS:
            if any(rows == rows_per_column * columns for rows, columns in sizes):
                return model
    return None


def _named_model(text: str) -> str | None:
    """The LTX model that a file name or a trainer's note speaks of."""
    return next((model for model, name in _NAMES if name.search(text.lower())), None)


def _foreign_prefix(bases: Iterable[str], targets: Mapping[str, _Target]) -> str | None:
    """The prefix that keeps ComfyUI from placing keys which would fit without it."""
    for base in bases:
        for prefix in _FOREIGN_PREFIXES:
            rest = base.removeprefix(prefix)
            if rest != base and (rest in targets or f"lora_unet_{rest}" in targets):
                return prefix
    return None
