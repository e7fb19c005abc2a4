"""LoRA files are read and compared with a checkpoint before a job is queued."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ltx_worker.errors import ModelMissing
from ltx_worker.workflow.lora_files import (
    MAX_HEADER_BYTES,
    LoraFit,
    SafetensorsHeader,
    check_lora,
    describe_misfit,
    read_header,
    reference_downscale_factor,
)

Shapes = dict[str, tuple[int, ...]]

ROWS, COLUMNS, RANK = 48, 16, 4
FF = "transformer_blocks.0.ff.net.0.proj"
Q = "transformer_blocks.0.attn1.to_q"
ADALN = "adaln_single.linear"
TRANSFORMER: Shapes = {
    f"{FF}.weight": (ROWS, COLUMNS),
    f"{FF}.bias": (ROWS,),
    f"{FF}.scale_weight": (1,),
    f"{FF}.comfy_quant": (32,),
    f"{Q}.weight": (COLUMNS, COLUMNS),
    f"{ADALN}.weight": (6 * COLUMNS, COLUMNS),
    "transformer_blocks.0.scale_shift_table": (6, COLUMNS),
}
CHECKPOINT = SafetensorsHeader(
    {f"model.diffusion_model.{key}": shape for key, shape in TRANSFORMER.items()}
    | {"vae.decoder.conv.weight": (8, 8, 3, 3), "text_embedding_projection.weight": (4, 4)}
)


def pair(layer: str, rows: int = ROWS, columns: int = COLUMNS) -> Shapes:
    return {f"{layer}.lora_B.weight": (rows, RANK), f"{layer}.lora_A.weight": (RANK, columns)}


def fit_of(shapes: Shapes, metadata: dict[str, str] | None = None) -> LoraFit:
    return check_lora(SafetensorsHeader(shapes, metadata or {}), CHECKPOINT)


def write(path: Path, shapes: Shapes, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: np.zeros(shape, np.float16) for key, shape in shapes.items()}, path, metadata)
    return path


def raw(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_a_file_s_header_gives_shapes_and_metadata(tmp_path: Path) -> None:
    """What the safetensors library wrote is read back: names, shapes, metadata."""
    shapes: Shapes = pair(FF) | {"alpha": (), "empty": (0, 3)}
    path = write(tmp_path / "a.safetensors", shapes, {"base_model": "x"})

    header = read_header(path)

    assert header.tensors == shapes
    assert header.metadata == {"base_model": "x"}


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """A sparse file of 43 GB is read at once, as its tensors are never touched."""
    size = 43 * 10**9
    entry = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    path = tmp_path / "large.safetensors"
    path.write_bytes(raw(json.dumps(entry).encode()))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)

    assert read_header(path).tensors == {"w": (size,)}


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_file_that_is_cut_off_is_called_so(tmp_path: Path, kept: int) -> None:
    """Wherever a download stopped, the message says that the file is cut off, and not its path."""
    path = write(tmp_path / "a.safetensors", pair(FF))
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ModelMissing, match=r"^a\.safetensors is cut off") as caught:
        read_header(path)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>Log in</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
        raw(b"{"),
        raw(b"[1, 2]"),
        raw(b'{"w": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 0]}}'),
        raw(b'{"w": {"dtype": "F16", "shape": ["2"], "data_offsets": [0, 0]}}'),
        raw(b'{"w": {"dtype": "F16", "shape": [2], "data_offsets": [0]}}', b"1234"),
        raw(b'{"w": {"dtype": "F16"}}'),
        raw(b'{"__metadata__": {"a": 1}}'),
        raw(b'{"a":' * 100_000),
    ],
    ids=[
        "html",
        "lfs",
        "huge",
        "json",
        "list",
        "negative",
        "text",
        "offset",
        "bare",
        "meta",
        "deep",
    ],
)
def test_something_else_is_not_a_safetensors_file(tmp_path: Path, content: bytes) -> None:
    """A saved web page, a Git LFS pointer or a header that is no header is told apart."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)

    with pytest.raises(ModelMissing, match=r"^a\.safetensors is not a safetensors file$"):
        read_header(path)


def test_a_file_with_bytes_after_its_tensors_is_refused(tmp_path: Path) -> None:
    """ComfyUI's loader refuses such a file too."""
    path = write(tmp_path / "a.safetensors", pair(FF))
    path.write_bytes(path.read_bytes() + b"123")

    with pytest.raises(ModelMissing, match="3 bytes too many"):
        read_header(path)


def test_a_missing_file_is_a_missing_model(tmp_path: Path) -> None:
    """A file that is not there is named without its folder."""
    with pytest.raises(ModelMissing, match=r"^a\.safetensors cannot be read: No such file"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", ["diffusion_model.{}", "{}", "lora_unet_{flat}"])
def test_a_layer_is_known_by_three_names(tmp_path: Path, form: str) -> None:
    """A pair under each name that ComfyUI maps fits the layer's weight."""
    layer = form.format(FF, flat=FF.replace(".", "_"))
    path = write(tmp_path / "a.safetensors", pair(layer) | {f"{layer}.alpha": ()})

    fit = check_lora(read_header(path), CHECKPOINT)

    assert fit == LoraFit(keys=3, weights=(f"{FF}.weight",))
    assert fit.fits
    assert fit.pairs == 1


def test_a_dora_and_a_bias_fit() -> None:
    """A DoRA scale belongs to its pair, and a bias may be changed beside its weight."""
    layer = f"diffusion_model.{FF}"
    extra: Shapes = {f"{layer}.dora_scale": (ROWS, 1), f"{layer}.diff_b": (ROWS,)}

    assert fit_of(pair(layer) | extra).weights == (f"{FF}.bias", f"{FF}.weight")


def test_lokr_factors_multiply_to_the_weights_size() -> None:
    """A LoKr's factors, one of them in two parts, fit where their Kronecker product does."""
    layer = f"diffusion_model.{FF}"
    lokr: Shapes = {
        f"{layer}.lokr_w1": (6, 2),
        f"{layer}.lokr_w2_a": (8, 3),
        f"{layer}.lokr_w2_b": (3, 8),
    }

    assert fit_of(lokr).fits
    assert not fit_of(lokr | {f"{layer}.lokr_w1": (6, 4)}).fits


@pytest.mark.parametrize(
    ("rows", "columns"), [(ROWS, COLUMNS + 1), (ROWS - 1, COLUMNS), (COLUMNS, ROWS)]
)
def test_one_wrong_shape_is_a_misfit(rows: int, columns: int) -> None:
    """A pair of another size, or turned on its side, is named and the file does not fit."""
    wrong = pair(f"diffusion_model.{FF}", rows, columns)

    fit = fit_of(wrong | pair(f"diffusion_model.{Q}", COLUMNS))

    assert set(fit.misshapen) == set(wrong)
    assert fit.pairs == 1
    assert not fit.fits


@pytest.mark.parametrize(
    "parts",
    [
        {".lora_B.weight": (ROWS, RANK), ".lora_A.weight": (RANK, COLUMNS), ".dora_scale": (9, 1)},
        {".lora_B.weight": (ROWS, RANK), ".lora_A.weight": (RANK, COLUMNS), ".alpha": (2,)},
        {".lora_B.weight": (ROWS, 0), ".lora_A.weight": (0, COLUMNS)},
        {
            ".lora_up.weight": (ROWS, RANK),
            ".lora_mid.weight": (RANK, RANK),
            ".lora_down.weight": (RANK, COLUMNS),
        },
        {
            ".hada_w1_a": (ROWS, RANK),
            ".hada_w1_b": (RANK, COLUMNS),
            ".hada_w2_a": (ROWS, RANK),
            ".hada_w2_b": (RANK, COLUMNS + 1),
        },
        {".diff": (COLUMNS, ROWS)},
    ],
    ids=["dora", "alpha", "rank", "middle", "loha", "diff"],
)
def test_parts_that_do_not_go_together_are_a_misfit(parts: Shapes) -> None:
    """One part that does not go with the others takes them all along."""
    fit = fit_of({f"diffusion_model.{FF}{suffix}": shape for suffix, shape in parts.items()})

    assert len(fit.misshapen) == len(parts)
    assert fit.pairs == 0


def test_a_norms_bias_is_read_beside_its_weight_only() -> None:
    """ComfyUI looks for `.b_norm` where it found `.w_norm`."""
    layer = f"diffusion_model.{FF}"
    bias: Shapes = {f"{layer}.b_norm": (ROWS,)}

    assert fit_of(bias).unknown == (f"{layer}.b_norm",)
    assert fit_of(bias | {f"{layer}.w_norm": (ROWS, COLUMNS)}).pairs == 2


def test_half_a_pair_is_a_misfit() -> None:
    """ComfyUI fails on an up without its down, so the worker does not queue it."""
    key = f"diffusion_model.{FF}.lora_B.weight"

    assert fit_of({key: (ROWS, RANK)}).misshapen == (key,)


@pytest.mark.parametrize(
    "layer",
    [
        "diffusion_model.transformer_blocks.9.attn1.to_q",
        "diffusion_model.transformer_blocks.0.scale_shift_table",
        f"diffusion_model.{FF}.scale",
        "vae.decoder.conv",
        "model.vae.decoder.conv",
    ],
)
def test_what_comfyui_never_changes_is_unknown(layer: str) -> None:
    """Absent layers, bare parameters, quantisation scales and other models' parts do not count."""
    shapes = pair(layer, 6, COLUMNS)
    fit = fit_of(shapes)

    assert set(fit.unknown) == set(shapes)
    assert not fit.fits


def test_a_tenth_of_the_keys_may_be_unknown() -> None:
    """A stray key among ten is let pass; two are too many."""
    layers = [f"transformer_blocks.{n}.attn1.to_q" for n in range(5)]
    checkpoint = SafetensorsHeader({f"model.diffusion_model.{x}.weight": (8, 8) for x in layers})
    lora: Shapes = {key: shape for layer in layers for key, shape in pair(layer, 8, 8).items()}
    del lora[f"{layers[0]}.lora_A.weight"], lora[f"{layers[0]}.lora_B.weight"]
    lora |= {f"{layers[0]}.diff": (8, 8)}

    one = check_lora(SafetensorsHeader(lora | {"text_encoders.a.diff": (1,)}), checkpoint)
    two = check_lora(
        SafetensorsHeader(lora | {"text_encoders.a.diff": (1,), "text_encoders.b.diff": (1,)}),
        checkpoint,
    )

    assert (one.keys, len(one.unknown), one.fits) == (10, 1, True)
    assert (two.keys, len(two.unknown), two.fits) == (11, 2, False)


def test_an_empty_file_does_not_fit() -> None:
    """A file without tensors would change nothing."""
    assert not fit_of({}).fits
    assert describe_misfit("a.safetensors", "ltx-2", fit_of({})) == (
        "a.safetensors does not fit ltx-2: it holds no tensors."
    )


@pytest.mark.parametrize(
    ("stated", "factor"),
    [
        ("2", 2.0),
        ("2.0", 2.0),
        ("0.5", 1.0),
        ("many", 1.0),
        ("inf", 1.0),
        ("nan", 1.0),
        (None, 1.0),
    ],
)
def test_the_downscale_factor_is_what_comfyui_makes_of_it(
    tmp_path: Path, stated: str | None, factor: float
) -> None:
    """An IC-LoRA's factor is a whole number from its metadata; without a usable one it is 1."""
    metadata = {"reference_downscale_factor": stated} if stated else None
    path = write(tmp_path / "a.safetensors", pair(FF), metadata)

    assert reference_downscale_factor(read_header(path)) == factor


GATES = pair("diffusion_model.transformer_blocks.0.attn1.to_gate_logits", 4)


@pytest.mark.parametrize(
    ("name", "shapes", "metadata", "message"),
    [
        (
            "a.safetensors",
            pair(f"diffusion_model.{FF}") | GATES,
            {},
            "of its 4 tensors 2 match no weight of the model; it seems to be made for ltx-2.3.",
        ),
        (
            "a.safetensors",
            pair(f"diffusion_model.{ADALN}", 9 * COLUMNS),
            {},
            "of its 2 tensors 2 have a shape that does not fit; it seems to be made for ltx-2.3.",
        ),
        (
            "a.safetensors",
            pair("lora_unet_blocks_0_self_attn_q"),
            {},
            "of its 2 tensors 2 match no weight of the model; it seems to be made for Wan.",
        ),
        (
            "ltx-2.3-22b-x.safetensors",
            pair(f"diffusion_model.{FF}", 64) | pair("other"),
            {},
            "of its 4 tensors 2 match no weight of the model and 2 have a shape that does not fit; "
            "it seems to be made for ltx-2.3.",
        ),
        (
            "a.safetensors",
            pair("other"),
            {"modelspec.architecture": "LTX-2.3/lora"},
            "of its 2 tensors 2 match no weight of the model; it seems to be made for ltx-2.3.",
        ),
        (
            "ltx-2-19b-x.safetensors",
            pair(f"transformer.{FF}"),
            {},
            "of its 2 tensors 2 match no weight of the model; "
            'its keys begin with "transformer.", which ComfyUI does not read here.',
        ),
        ("a.safetensors", pair("other"), {}, "of its 2 tensors 2 match no weight of the model."),
    ],
    ids=["gates", "modulations", "wan", "name", "metadata", "prefix", "unknown"],
)
def test_a_misfit_says_what_the_file_seems_to_be(
    name: str, shapes: Shapes, metadata: dict[str, str], message: str
) -> None:
    """One sentence names the file, the family, the fault and, where told, the model it is for."""
    fit = fit_of(shapes, metadata)

    assert not fit.fits
    assert describe_misfit(name, "ltx-2", fit) == f"{name} does not fit ltx-2: {message}"


def test_a_lora_with_a_caption_projection_is_for_ltx_2() -> None:
    """The projection of captions inside the transformer is LTX-2's; LTX-2.3 has none."""
    fit = fit_of(pair("diffusion_model.audio_caption_projection.linear_1"))

    assert "made for ltx-2." in describe_misfit("a.safetensors", "ltx-2.3", fit)
