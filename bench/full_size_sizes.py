# pyright: basic, reportMissingImports=false
"""Sizes of the released LTX-2 and LTX-2.3, for weights that time as the published ones do.

Switches and anything that no size depends on come from the tiny ones (`tests/comfyui`). The VAE of
LTX-2 is the layout that ComfyUI builds for a file without a configuration, less its timestep.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "comfyui"))
import tiny_sizes as tiny  # noqa: E402 - found through the line above

Config = dict[str, Any]

_DEPTH_AND_WIDTH: Config = {
    "num_layers": 48,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "cross_attention_dim": 4096,
    "audio_cross_attention_dim": 2048,
    "caption_channels": 3840,
}
TRANSFORMER: Config = (
    tiny.TRANSFORMER
    | _DEPTH_AND_WIDTH
    | {"connector_num_attention_heads": 30, "connector_attention_head_dim": 128}
)
TRANSFORMER_23: Config = (
    tiny.TRANSFORMER_23
    | _DEPTH_AND_WIDTH
    | {
        "connector_num_layers": 8,
        "connector_num_attention_heads": 32,
        "connector_attention_head_dim": 128,
        "audio_connector_num_attention_heads": 32,
        "audio_connector_attention_head_dim": 64,
    }
)

_VIDEO_VAE: Config = tiny.VIDEO_VAE | {"encoder_base_channels": 128, "decoder_base_channels": 128}
VIDEO_VAE: Config = _VIDEO_VAE | {
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 5, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 5, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 5, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 5, "inject_noise": False}],
    ],
    "spatial_padding_mode": "reflect",
}
VIDEO_VAE_23: Config = _VIDEO_VAE | {
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 4}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time", {"multiplier": 2}],
        ["res_x", {"num_layers": 4}],
        ["compress_all", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}],
        ["compress_all", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
    ],
    "spatial_padding_mode": "zeros",
}


def _audio_vae() -> Config:
    params = tiny.AUDIO_VAE["model"]["params"]
    sizes = params["ddconfig"] | {"ch": 128, "num_res_blocks": 2}
    return tiny.AUDIO_VAE | {"model": {"params": params | {"ddconfig": sizes}}}


AUDIO_VAE = _audio_vae()

_RESIDUALS: Config = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}
VOCODER: Config = tiny.VOCODER | _RESIDUALS | {"upsample_initial_channel": 1024}
VOCODER_23: Config = {
    "vocoder": tiny.VOCODER_23["vocoder"] | _RESIDUALS | {"upsample_initial_channel": 1536},
    "bwe": tiny.VOCODER_23["bwe"]
    | _RESIDUALS
    | {
        "upsample_initial_channel": 512,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "apply_final_activation": False,
    },
}

SPATIAL_UPSCALER: Config = tiny.UPSCALER | {
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "rational_resampler": False,
}
TEMPORAL_UPSCALER: Config = tiny.TEMPORAL_UPSCALER | {
    "mid_channels": 512,
    "num_blocks_per_stage": 4,
    "rational_resampler": False,
}

GEMMA_WIDTH = 3840
GEMMA_STATES = GEMMA_WIDTH * 49
VIDEO_WIDTH = 4096
AUDIO_WIDTH = 2048

# What random sound is scaled by, in the vocoder's last layers: audible, and rarely clipped.
LOUDNESS = {"ltx-2": 6.0, "ltx-2.3": 0.004}


@dataclass(frozen=True)
class Family:
    """The parts of one model family.

    `blocks_in_16_bits` says by checkpoint which transformer blocks its fp8 file leaves alone. How
    many they are follows from the published sizes (42, 43 and 44 blocks' weights are missing in
    fp8); for the largest number they are known to be the first and last two.
    """

    name: str
    config: Config
    blocks_in_16_bits: dict[str, tuple[int, ...]]

    @property
    def loudness(self) -> float:
        return LOUDNESS[self.name]


_SHARED: Config = {"audio_vae": AUDIO_VAE}
FAMILIES = {
    "ltx-2": Family(
        name="ltx-2",
        config=_SHARED | {"transformer": TRANSFORMER, "vae": VIDEO_VAE, "vocoder": VOCODER},
        blocks_in_16_bits=dict.fromkeys(
            ("distilled_checkpoint", "dev_checkpoint"), (0, 1, 2, 45, 46, 47)
        ),
    ),
    "ltx-2.3": Family(
        name="ltx-2.3",
        config=_SHARED
        | {"transformer": TRANSFORMER_23, "vae": VIDEO_VAE_23, "vocoder": VOCODER_23},
        blocks_in_16_bits={
            "distilled_checkpoint": (0, 1, 2, 46, 47),
            "dev_checkpoint": (0, 1, 46, 47),
        },
    ),
}
