# pyright: basic, reportMissingImports=false
"""Compare a prompt's embeddings with the text speed-up and without, on tiny weights of both models.

Run with ComfyUI's own Python in ComfyUI's folder; prints one JSON object:

    python text_equality.py MODELS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import comfyui_on_cpu

# isort: split
import comfy.sd
import ltx_tiny_gemma  # noqa: F401 - ComfyUI's Gemma in the tiny one's sizes
import speed
import tiny_sizes
import torch

speed.install()

MODELS = Path(comfyui_on_cpu.ARGUMENTS[0])
PROMPT = tiny_sizes.TOKENIZER_TEXT[0]


def encoded(clip: Any, is_on: bool) -> dict[str, Any]:
    """The embeddings, and how many tokens' states leave Gemma, in what precision."""
    speed.switches.text = is_on
    gemma = clip.cond_stage_model.gemma3_12b
    seen: dict[str, Any] = {}
    run = type(gemma).encode_token_weights

    def watched(self: Any, pairs: Any) -> Any:
        result = run(self, pairs)
        seen["tokens"] = result[0].shape[2]
        seen["tf32"] = torch.backends.cuda.matmul.allow_tf32
        return result

    type(gemma).encode_token_weights = watched
    try:
        condition = clip.encode_from_tokens(clip.tokenize(PROMPT), return_dict=True)
    finally:
        type(gemma).encode_token_weights = run
    return seen | {
        "embeddings": condition["cond"],
        "tf32_after": torch.backends.cuda.matmul.allow_tf32,
    }


def compared(checkpoint: str) -> dict[str, Any]:
    clip = comfy.sd.load_clip(
        [
            str(MODELS / "text_encoders" / tiny_sizes.TEXT_ENCODER),
            str(MODELS / "checkpoints" / checkpoint),
        ],
        clip_type=comfy.sd.CLIPType.LTXV,
    )
    stock, ours = (encoded(clip, is_on) for is_on in (False, True))
    is_equal = torch.equal(stock.pop("embeddings"), ours.pop("embeddings"))
    return {"is_equal": is_equal, "stock": stock, "ours": ours}


def main() -> None:
    checkpoints = ("ltx-2-19b-distilled-fp8.safetensors", "ltx-2.3-22b-distilled-fp8.safetensors")
    sys.stdout.write(json.dumps({name: compared(name) for name in checkpoints}))


if __name__ == "__main__":
    main()
