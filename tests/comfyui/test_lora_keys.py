"""The worker's verdict on a LoRA file agrees with what ComfyUI does with it.

ComfyUI's own loader puts each file on the tiny checkpoint; the tensors that differ afterwards, its
log lines and its errors are compared with `check_lora`, key by key.
"""

from __future__ import annotations

import inspect
import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.comfyui.tiny_engine import TINY_MODELS, comfyui_dir, make_tiny_models

from ltx_worker.comfy.launch import comfyui_python
from ltx_worker.workflow.lora_files import (
    LoraFit,
    SafetensorsHeader,
    check_lora,
    read_header,
)

pytestmark = pytest.mark.timeout(300)

CHECKPOINTS = {
    "ltx-2": TINY_MODELS / "checkpoints" / "ltx-2-19b-dev-fp8.safetensors",
    "ltx-2.3": TINY_MODELS / "checkpoints" / "ltx-2.3-22b-dev-fp8.safetensors",
}
LORAS = {
    "ltx-2": TINY_MODELS / "loras" / "ltx-2-19b-distilled-lora-384.safetensors",
    "ltx-2.3": TINY_MODELS / "loras" / "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
}
Q = "transformer_blocks.0.attn1.to_q"
FF = "transformer_blocks.1.ff.net.0.proj"
TABLE = "transformer_blocks.0.scale_shift_table"
Shapes = dict[str, tuple[int, ...]]
Report = dict[str, Any]
Reports = dict[str, tuple[Path, Report]]


def apply_loras() -> None:
    """Run by ComfyUI's Python: put each LoRA named on stdin on its checkpoint, report as JSON."""
    import json
    import logging
    import sys

    order = json.load(sys.stdin)
    sys.path.insert(0, order["comfyui"])
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sd
    import comfy.utils
    import torch

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)

    def report_of(model: Any, before: dict[str, Any], path: str) -> dict[str, Any]:
        lines.clear()
        report: dict[str, Any] = {"changed": [], "raised": None}
        try:
            lora = comfy.utils.load_torch_file(path, safe_load=True)
            patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
            patched.patch_model(torch.device("cpu"))
            after = patched.model.state_dict()
            names = [name for name in before if not torch.equal(before[name], after[name])]
            report["changed"] = sorted(name.removeprefix("diffusion_model.") for name in names)
            patched.unpatch_model()
        except (KeyError, IndexError, RuntimeError) as error:
            report["raised"] = f"{type(error).__name__}: {error}"
            model.model.load_state_dict(before)
        unread = "lora key not loaded: "
        report["unread"] = [line.removeprefix(unread) for line in lines if unread in line]
        report["not_loaded"] = [line for line in lines if line.startswith("NOT LOADED")]
        report["errors"] = [x for x in lines if x.startswith(("ERROR", "WARNING", "Calculate"))]
        return report

    reports = {}
    for checkpoint, loras in order["loras"].items():
        model = comfy.sd.load_checkpoint_guess_config(
            checkpoint, output_vae=False, output_clip=False
        )[0]
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        reports[checkpoint] = {path: report_of(model, before, path) for path in loras}
    sys.stdout.write(json.dumps(reports))


def ask_comfyui(loras: Mapping[str, list[Path]]) -> dict[tuple[str, Path], Report]:
    """What ComfyUI does with each LoRA on the checkpoint of the family it is listed for."""
    script = f"from typing import Any\n{inspect.getsource(apply_loras)}\napply_loras()\n"
    paths = {str(CHECKPOINTS[family]): [str(path) for path in loras[family]] for family in loras}
    done = subprocess.run(
        [comfyui_python(comfyui_dir()), "-c", script],
        input=json.dumps({"comfyui": str(comfyui_dir()), "loras": paths}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {
        (family, path): answers[str(CHECKPOINTS[family])][str(path)]
        for family in loras
        for path in loras[family]
    }


def pair(up: str, down: str, rows: int = 128, columns: int = 128, rank: int = 4) -> Shapes:
    return {up: (rows, rank), down: (rank, columns)}


def peft(module: str, rows: int = 128, columns: int = 128) -> Shapes:
    return pair(f"{module}.lora_B.weight", f"{module}.lora_A.weight", rows, columns)


def kohya(module: str, rows: int = 128, columns: int = 128) -> Shapes:
    return pair(f"{module}.lora_up.weight", f"{module}.lora_down.weight", rows, columns)


FLAT_Q = "lora_unet_" + Q.replace(".", "_")
DQ = f"diffusion_model.{Q}"
LOHA = {f"{DQ}.hada_w{n}_{m}": (128, 4) if m == "a" else (4, 128) for n in "12" for m in "ab"}
ACCEPTED: dict[str, Shapes] = {
    "peft": peft(DQ),
    "peft-bare": peft(Q),
    "peft-flat": peft(FLAT_Q),
    "kohya": kohya(FLAT_Q) | {f"{FLAT_Q}.alpha": ()},
    "kohya-dotted": kohya(DQ) | {f"{DQ}.alpha": (1,)},
    "kohya-not-square": kohya("lora_unet_" + FF.replace(".", "_"), 512),
    "diffusers-old": pair(f"{DQ}_lora.up.weight", f"{DQ}_lora.down.weight"),
    "diffusers": pair(f"{DQ}.lora.up.weight", f"{DQ}.lora.down.weight"),
    "plain": pair(f"{DQ}.lora_B", f"{DQ}.lora_A"),
    "linear-layer": pair(
        f"{DQ}.lora_linear_layer.up.weight", f"{DQ}.lora_linear_layer.down.weight"
    ),
    "peft-default": pair(f"{DQ}.lora_B.default.weight", f"{DQ}.lora_A.default.weight"),
    "kernel": {f"{DQ}.lora_up.weight": (128, 4, 1, 1), f"{DQ}.lora_down.weight": (4, 128, 1, 1)},
    "dora-rows": peft(DQ) | {f"{DQ}.dora_scale": (128, 1)},
    "dora-columns": peft(f"diffusion_model.{FF}", 512)
    | {f"diffusion_model.{FF}.dora_scale": (1, 128)},
    "norm": peft("diffusion_model.transformer_blocks.0.attn1.q_norm", 128, 1),
    "bias": peft(f"{DQ}.bias", 128, 1),
    "loha": LOHA,
    "lokr": {f"{DQ}.lokr_w1": (4, 8), f"{DQ}.lokr_w2": (32, 16)},
    "lokr-factors": {
        f"{DQ}.lokr_w1_a": (4, 2),
        f"{DQ}.lokr_w1_b": (2, 8),
        f"{DQ}.lokr_w2_a": (32, 2),
        f"{DQ}.lokr_w2_b": (2, 16),
        f"{DQ}.alpha": (),
    },
    "diff": {f"{DQ}.diff": (128, 128), f"{DQ}.diff_b": (128,)},
    "diff-of-bias": {f"{DQ}.bias.diff": (128,)},
    "set-weight": {f"{DQ}.set_weight": (128, 128)},
    "norm-tensors": {f"{DQ}.w_norm": (128, 128), f"{DQ}.b_norm": (128,)},
    "one-stray-key": {
        key: shape
        for layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k")
        for key, shape in peft(f"diffusion_model.transformer_blocks.0.{layer}").items()
    }
    | {"text_encoders.gemma.embed.diff": (4,)},
}
IGNORED: dict[str, Shapes] = {
    "transformer-prefix": peft(f"transformer.{Q}"),
    "base-model-prefix": peft(f"base_model.model.{Q}"),
    "unet-prefix": peft(f"unet.{Q}"),
    "checkpoint-prefix": peft(f"model.diffusion_model.{Q}"),
    "lycoris": kohya("lycoris_" + Q.replace(".", "_")),
    "lora-transformer": kohya("lora_transformer_" + Q.replace(".", "_")),
    "bare-bias": {f"{Q}.bias.diff": (128,)},
    "no-such-block": peft("diffusion_model.transformer_blocks.7.attn1.to_q"),
    "table-pair": peft(f"diffusion_model.{TABLE}", 9),
    "table-diff": {f"diffusion_model.{TABLE}.diff": (9, 128)},
    "registers": {
        "diffusion_model.video_embeddings_connector.learnable_registers.diff": (128,) * 2
    },
    "bias-of-a-norm": {"diffusion_model.transformer_blocks.0.attn1.q_norm.diff_b": (128,)},
    "b-norm-alone": {f"{DQ}.b_norm": (128,)},
    "magnitude": {f"{DQ}.lora_magnitude_vector.weight": (128,)},
    "plain-tensor": {f"{DQ}.weight": (128, 128)},
    "boft": {f"{DQ}.oft_blocks": (2, 16, 8, 8)},
}
MISSHAPEN: dict[str, Shapes] = {
    "wrong-rows": peft(DQ, 96),
    "wrong-columns": peft(DQ, 128, 96),
    "wrong-rank": {f"{DQ}.lora_B.weight": (128, 4), f"{DQ}.lora_A.weight": (8, 128)},
    "up-without-down": {f"{DQ}.lora_B.weight": (128, 4)},
    "vectors": {f"{DQ}.lora_B.weight": (128,), f"{DQ}.lora_A.weight": (128,)},
    "wrong-dora": peft(DQ) | {f"{DQ}.dora_scale": (96, 1)},
    "long-alpha": peft(DQ) | {f"{DQ}.alpha": (2,)},
    "convolution-middle": kohya(DQ) | {f"{DQ}.lora_mid.weight": (4, 4)},
    "loha-incomplete": {key: LOHA[key] for key in list(LOHA)[:3]},
    "wrong-loha": LOHA | {f"{DQ}.hada_w2_b": (4, 96)},
    "wrong-lokr": {f"{DQ}.lokr_w1": (4, 8), f"{DQ}.lokr_w2": (32, 8)},
    "wrong-diff": {f"{DQ}.diff": (96, 128)},
    "wrong-diff-b": {f"{DQ}.diff_b": (96,)},
}
# ComfyUI applies these; the worker does not let them pass (see the module's docstring).
STRICTER: dict[str, Shapes] = {
    "reshaped": peft(f"diffusion_model.{FF}", 128, 512),
    "oft": {f"{DQ}.oft_blocks": (16, 8, 8)},
    "glora": {
        f"{DQ}.{part}.weight": (128, 4) if part in ("a1", "b1") else (4, 128)
        for part in ("a1", "a2", "b1", "b2")
    },
}
CASES = ACCEPTED | IGNORED | MISSHAPEN | STRICTER


def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    random = np.random.default_rng(1)
    save_file({k: np.array(random.normal(size=s), np.float32) for k, s in shapes.items()}, path)
    return path


@cache
def header_of(path: Path) -> SafetensorsHeader:
    return read_header(path)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Path], Report]:
    """What ComfyUI does with every file of this module, in one run of its Python."""
    make_tiny_models()
    folder = tmp_path_factory.mktemp("loras")
    files = [write(folder / f"{name}.safetensors", CASES[name]) for name in CASES]
    return ask_comfyui({"ltx-2": list(LORAS.values()), "ltx-2.3": [*files, LORAS["ltx-2.3"]]})


@pytest.fixture(scope="module")
def reports(answers: dict[tuple[str, Path], Report]) -> Reports:
    """Every case's file, and what ComfyUI does with it on the LTX-2.3 checkpoint."""
    return {
        path.stem: (path, report)
        for (family, path), report in answers.items()
        if family == "ltx-2.3" and path.stem in CASES
    }


def verdict_on(path: Path, family: str = "ltx-2.3") -> LoraFit:
    return check_lora(header_of(path), header_of(CHECKPOINTS[family]))


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_fits_changes_the_same_weights_in_comfyui(name: str, reports: Reports) -> None:
    """Every accepted key format changes, in ComfyUI, exactly the weights the verdict names."""
    path, report = reports[name]
    fit = verdict_on(path)

    assert fit.fits
    assert report["changed"] == list(fit.weights)
    assert report["unread"] == list(fit.unknown)
    assert (report["errors"], report["raised"]) == ([], None)


@pytest.mark.parametrize("name", IGNORED)
def test_unknown_keys_change_nothing_in_comfyui(name: str, reports: Reports) -> None:
    """Keys called unknown change no weight, whether or not ComfyUI's log says so."""
    path, report = reports[name]
    fit = verdict_on(path)

    assert not fit.fits
    assert set(fit.unknown) == set(CASES[name])
    assert report["changed"] == []
    assert set(report["unread"]) <= set(fit.unknown)
    assert report["raised"] is None


@pytest.mark.parametrize("name", MISSHAPEN)
def test_wrong_shapes_fail_in_comfyui(name: str, reports: Reports) -> None:
    """Shapes called wrong change no weight in ComfyUI, which logs an error or raises one."""
    path, report = reports[name]
    fit = verdict_on(path)

    assert not fit.fits
    assert set(fit.misshapen) == set(CASES[name])
    assert report["changed"] == []
    assert report["errors"] or report["raised"]


@pytest.mark.parametrize("name", STRICTER)
def test_the_worker_is_stricter_in_few_formats(name: str, reports: Reports) -> None:
    """A product of the wrong form, OFT and GLoRA are refused though ComfyUI applies them."""
    path, report = reports[name]

    assert report["changed"]
    assert not verdict_on(path).fits


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_each_familys_own_lora_fits_it(
    family: str, answers: dict[tuple[str, Path], Report]
) -> None:
    """A LoRA of all the blocks' layers fits its own family; ComfyUI changes the same weights."""
    fit = verdict_on(LORAS[family], family)
    report = answers[family, LORAS[family]]

    assert fit.fits
    assert not fit.unknown
    assert report["changed"] == list(fit.weights)


def test_a_lora_for_2_3_does_not_fit_2(answers: dict[tuple[str, Path], Report]) -> None:
    """LTX-2 has no gates, so ComfyUI drops a sixth of an LTX-2.3 LoRA and reports success."""
    fit = verdict_on(LORAS["ltx-2.3"], "ltx-2")
    report = answers["ltx-2", LORAS["ltx-2.3"]]

    assert not fit.fits
    assert fit.made_for == "ltx-2.3"
    assert set(report["unread"]) == set(fit.unknown)
    assert report["changed"] == list(fit.weights)
