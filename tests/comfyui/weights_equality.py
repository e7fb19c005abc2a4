"""What the pack's way of reading weights gives, against ComfyUI's own. Prints JSON.

Run it with ComfyUI's own Python, in an environment with LTX2_WEIGHTS_DEVICE=cpu:

    python weights_equality.py --comfyui DIR --models DIR --folder DIR

`--folder` is for the files that are written here. Each key of the answer is a function below.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
PACKS = HERE.parents[1] / "docker" / "custom_nodes"
CHECKPOINT = "checkpoints/ltx-2-19b-distilled-fp8.safetensors"
TEXT_ENCODER = "text_encoders/gemma_3_12B_it_fp8_scaled.safetensors"
TRANSFORMER = "model.diffusion_model."

Tensors = Mapping[str, torch.Tensor]
Report = dict[str, Any]


def speed(name: str) -> Any:
    return importlib.import_module(f"ltx_worker_nodes.speed.{name}")


def same(found: Tensors, expected: Tensors) -> bool:
    """Whether both hold the same names, types, shapes and bytes."""
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        and raw(found[name]) == raw(tensor)
        for name, tensor in expected.items()
    )


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def mixed_file(folder: Path) -> Path:
    """A file of all kinds of tensors, with sizes that fit no alignment."""
    path = folder / "mixed.safetensors"
    save_file(
        {
            "scale": drawn(1)[0],
            "a": drawn(7, 3).bfloat16(),
            "b": drawn(1001).half(),
            "c": drawn(5, 1, 9).to(torch.float8_e4m3fn),
            "d": drawn(3000).to(torch.float8_e5m2),
            "empty": torch.empty(0, 4),
            "flags": torch.tensor([True, False, True]),
            "large": drawn(257, 1031),
            "numbers": torch.arange(11),
            "text": torch.tensor(list(b"words"), dtype=torch.uint8),
        },
        path,
        {"name": "mixed"},
    )
    return path


def scaled_checkpoint(folder: Path, models: Path) -> Path:
    """The tiny checkpoint with its blocks' matrices in float8, and scales for them."""
    from safetensors import safe_open

    path = folder / "scaled.safetensors"
    tensors = load_file(models / CHECKPOINT)
    layers = {}
    for name in [name for name in tensors if is_matrix_of_a_block(name, tensors[name])]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.weight_scale"] = scale
        layers[layer] = {"format": "float8_e4m3fn"}
    with safe_open(models / CHECKPOINT, "pt") as file:
        metadata = dict(file.metadata())
    quantised = {"_quantization_metadata": json.dumps({"layers": layers})}
    save_file(tensors, path, metadata | quantised)
    return path


def is_matrix_of_a_block(name: str, tensor: torch.Tensor) -> bool:
    return ".transformer_blocks." in name and name.endswith(".weight") and tensor.dim() == 2


def files_read_in_blocks(folder: Path, models: Path) -> Report:
    """For block sizes around every alignment: the same bytes, at aligned addresses."""
    reader, file = speed("weights_reader"), speed("weights_file")
    cpu = torch.device("cpu")
    report: Report = {}
    for path in (mixed_file(folder), models / CHECKPOINT):
        opened, expected = file.open_weights(path), load_file(path)
        for block in (97, 4096, 2**25) if path.parent == folder else (2**16, 2**25):
            found = reader.read_tensors(
                path, list(opened.entries.values()), cpu, threads=3, block_bytes=block
            )
            aligned = all(one.storage_offset() * one.itemsize % 256 == 0 for one in found.values())
            report[f"{path.name}, {block}"] = aligned and same(found, expected)
        report[f"{path.name}, mapped"] = same(opened.mapped(), expected)
    return report


def read_by_a_node(folder: Path, models: Path) -> Report:
    """What is read in the mode in which ComfyUI runs nodes."""
    opened = speed("weights_file").open_weights(models / CHECKPOINT)
    with torch.inference_mode():
        found = speed("weights_reader").read_tensors(
            opened.path, list(opened.entries.values()), torch.device("cpu")
        )
    return {
        "inference": any(tensor.is_inference() for tensor in found.values()),
        "same": same(found, load_file(opened.path)),
    }


def faulty_files(folder: Path, models: Path) -> Report:
    """What is said of files that are cut off, or hold what is not known."""
    reader, file = speed("weights_reader"), speed("weights_file")
    content = (models / CHECKPOINT).read_bytes()
    report: Report = {}
    for name, changed in {
        "short": content[:-1],
        "header": content[:100],
        "empty": b"",
        "dtype": content.replace(b'"F32"', b'"F99"', 1),
    }.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(changed)
        try:
            file.open_weights(path)
        except ValueError as error:
            report[name] = str(error)
    path = folder / "shrunk.safetensors"
    path.write_bytes(content)
    opened = file.open_weights(path)
    os.truncate(path, len(content) // 2)
    try:
        reader.read_tensors(path, list(opened.entries.values()), torch.device("cpu"))
    except ValueError as error:
        report["shrunk"] = str(error)
    return report


def built(folder: Path, models: Path, checkpoint: Path) -> dict[str, Tensors]:
    """What ComfyUI's three loaders build of a checkpoint, as state dicts by model."""
    import comfy.sd
    import comfy.utils

    model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_clip=False)
    sound, metadata = comfy.utils.load_torch_file(str(checkpoint), return_metadata=True)
    parts = {"audio_vae.": "autoencoder.", "vocoder.": "vocoder."}
    sound = comfy.utils.state_dict_prefix_replace(sound, parts, filter_keys=True)
    clip = comfy.sd.load_clip(
        [str(models / TEXT_ENCODER), str(checkpoint)], clip_type=comfy.sd.CLIPType.LTXV
    )
    return {
        "transformer": model.model.diffusion_model.state_dict(),
        "video": vae.first_stage_model.state_dict(),
        "sound": comfy.sd.VAE(sd=sound, metadata=metadata).first_stage_model.state_dict(),
        "text": clip.cond_stage_model.state_dict(),
    }


def models_built(folder: Path, models: Path) -> Report:
    """Every model's weights, of the pack's and of ComfyUI's reading, full and quantised."""
    switches = speed("switches").switches
    report: Report = {}
    for path in (models / CHECKPOINT, scaled_checkpoint(folder, models)):
        switches.weights = False
        expected = built(folder, models, path)
        switches.weights = True
        found = built(folder, models, path)
        report |= {f"{path.name}, {name}": same(found[name], expected[name]) for name in expected}
    quantised = {str(one.dtype) for one in expected["transformer"].values()}
    return report | {"has float8": "torch.float8_e4m3fn" in quantised}


def taken_ahead(folder: Path, models: Path) -> Report:
    """What is held of a checkpoint that was read ahead: before, between and after its loaders."""
    ahead, groups, file = speed("weights_preload"), speed("weights_groups"), speed("weights_file")
    weights = speed("weights")
    opened = file.open_weights(models / CHECKPOINT)
    whole = groups.groups_of(opened, groups.placement())
    preload = ahead.Preload([models / CHECKPOINT, models / TEXT_ENCODER], groups.placement())
    preload.start()
    load = weights._or_stock(lambda *_: None, preload)
    first, metadata = load(str(models / CHECKPOINT), return_metadata=True)
    names = [name for name in first if name.startswith(TRANSFORMER)]
    expected = load_file(models / CHECKPOINT)
    popped = {name: first.pop(name) for name in names}
    second = load(str(models / CHECKPOINT))
    name = "text_embedding_projection.aggregate_embed.weight"
    projection = second.pop(name)
    buffer = weakref.ref(popped[names[0]]._base)
    is_held = buffer() is not None
    is_same = same(popped, {name: expected[name] for name in names})
    popped.clear()
    del first
    text = load(str(models / TEXT_ENCODER))
    return {
        "metadata": metadata == opened.metadata,
        "same": is_same and raw(projection) == raw(expected[name]),
        "text encoder": same(text, load_file(models / TEXT_ENCODER)),
        "held by the taker, then by nobody": is_held and buffer() is None,
        "held when all is taken": preload.held_bytes,
        "groups": sorted(whole),
        "read anew": raw(load(str(models / CHECKPOINT)).pop(names[-1])) == raw(expected[names[-1]]),
    }


def released(folder: Path, models: Path) -> Report:
    """What nobody took is held until it is released, and then no more."""
    ahead, groups, file = speed("weights_preload"), speed("weights_groups"), speed("weights_file")
    opened = file.open_weights(models / CHECKPOINT)
    whole = groups.groups_of(opened, groups.placement())
    preload = ahead.Preload([models / CHECKPOINT], groups.placement())
    preload.start()
    preload.take(opened.identity, "none of its groups")
    before = preload.held_bytes
    preload.release()
    return {
        "before": before == sum(groups.bytes_of(entries) for entries in whole.values()),
        "after": preload.held_bytes,
        "taken": preload.take(opened.identity, next(iter(whole))) is not None,
    }


def released_in_time(folder: Path, models: Path) -> Report:
    """What is held when ComfyUI has, and when it lacks memory, and when a prompt has ended."""
    ahead, groups = speed("weights_preload"), speed("weights_groups")
    execution = importlib.import_module("execution")
    management = importlib.import_module("comfy.model_management")
    report: Report = {}
    for cause in ("plenty", "short", "prompt"):
        preload = ahead.Preload([models / CHECKPOINT], groups.placement())
        preload.start()
        preload.take(speed("weights_file").open_weights(models / CHECKPOINT).identity, "none")
        executor, free = execution.PromptExecutor.execute, management.free_memory
        speed("weights")._release_in_time(preload)
        if cause == "prompt":
            with suppress(AttributeError):
                # Not even a prompt that fails keeps them.
                execution.PromptExecutor.execute(None, {}, "id")
        else:
            needed = 1.0 if cause == "plenty" else 1e30
            management.free_memory(needed, torch.device("cpu"))
        report[cause] = preload.held_bytes > 0
        execution.PromptExecutor.execute, management.free_memory = executor, free
    return report


def changed_files(folder: Path, models: Path) -> Report:
    """A file that was replaced since it was read ahead is read again."""
    ahead, groups = speed("weights_preload"), speed("weights_groups")
    path = folder / "changing.safetensors"
    name = f"{TRANSFORMER}patchify_proj.weight"
    save_file({name: torch.zeros(4, 4)}, path)
    preload = ahead.Preload([path], groups.placement())
    preload.start()
    preload.take((), "")
    load = speed("weights")._or_stock(lambda *_: None, preload)
    path.unlink()
    save_file({name: torch.ones(4, 4)}, path)
    return {"new": load(str(path)).pop(name).sum().item() == 16}


def left_to_comfyui(folder: Path, models: Path) -> Report:
    """What is loaded as ever: other files, other devices, and everything when switched off."""
    load = speed("weights")._or_stock(lambda *_: "stock", None)
    switches = speed("switches").switches
    path = str(models / CHECKPOINT)
    replaced = load(path)
    name = next(name for name in replaced if name.startswith(TRANSFORMER))
    replaced[name] = torch.ones(3)
    switches.weights = False
    off = load(path)
    switches.weights = True
    return {
        "mixed": load(str(mixed_file(folder))),
        "missing": load(str(folder / "none.safetensors")),
        "cut off": load(str(folder / "short.safetensors")),
        "other device": load(path, device=torch.device("meta")),
        "off": off,
        "replaced": replaced.pop(name).numel() == 3,
        "default": replaced.pop("none", "nothing"),
    }


CASES: tuple[Callable[[Path, Path], Report], ...] = (
    files_read_in_blocks,
    read_by_a_node,
    faulty_files,
    models_built,
    taken_ahead,
    released,
    released_in_time,
    changed_files,
    left_to_comfyui,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("comfyui", "models", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui), str(PACKS), str(HERE / "custom_nodes")]
    importlib.import_module("comfy.cli_args").args.cpu = True
    importlib.import_module("ltx_tiny_gemma")
    speed("weights").install()
    report = {case.__name__: case(options.folder, options.models) for case in CASES}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
