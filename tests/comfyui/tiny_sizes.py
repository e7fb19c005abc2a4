"""Sizes and file names of the tiny LTX-2 and LTX-2.3 weights.

The switches by which ComfyUI tells the two architectures apart are those of the published models;
widths and depths are smaller.
"""

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

TEXT_ENCODER = "gemma_3_12B_it_fp8_scaled.safetensors"

TOKENIZER_PIECES = 480
GEMMA = {
    "vocab_size": TOKENIZER_PIECES,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
GEMMA_HEAD_WIDTH = 16
# Where Gemma ends its answer. The token's row of the embedding, which is its row of the output,
# too, is longer than others, so that an enhanced prompt ends after some dozens of tokens.
END_OF_TURN = 106
END_OF_TURN_GAIN = 2.5
GEMMA_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "image_size": 224,
}
GEMMA_STATES = GEMMA["hidden_size"] * (GEMMA["num_hidden_layers"] + 1)

TOKENIZER_TEXT = (
    "a red fox runs over fresh snow at night, cinematic light, shallow depth of field",
    "slow dolly shot of a woman playing the violin in the rain while the city hums behind her",
    "the camera pans across a quiet harbour, waves lap against wooden boats and gulls call",
    "close portrait of an old sailor who speaks to the camera in a calm, low voice",
    "worst quality, blurry, jittery, distorted, watermark, subtitles, low resolution",
)

VIDEO_WIDTH = 128
AUDIO_WIDTH = 64
CAPTION_WIDTH = 80

TRANSFORMER: Config = {
    "_class_name": "AVTransformer3DModel",
    "num_layers": 2,
    "in_channels": 128,
    "out_channels": 128,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "num_attention_heads": 4,
    "attention_head_dim": VIDEO_WIDTH // 4,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": AUDIO_WIDTH // 4,
    "cross_attention_dim": VIDEO_WIDTH,
    "audio_cross_attention_dim": AUDIO_WIDTH,
    "caption_channels": CAPTION_WIDTH,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": CAPTION_WIDTH // 2,
    "connector_num_layers": 2,
    "connector_num_learnable_registers": 128,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "causal_temporal_positioning": True,
    "use_middle_indices_grid": True,
    "timestep_scale_multiplier": 1000,
}
TRANSFORMER_23: Config = TRANSFORMER | {
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "connector_apply_gated_attention": True,
    "connector_num_attention_heads": 4,
    "connector_attention_head_dim": VIDEO_WIDTH // 4,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": AUDIO_WIDTH // 4,
    "av_ca_timestep_scale_multiplier": 1000.0,
}

VIDEO_VAE: Config = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
    "encoder_blocks": [
        ["res_x", {"num_layers": 1}],
        ["compress_space_res", {"multiplier": 2}],
        ["compress_time_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 1, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 1, "inject_noise": False}],
    ],
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "causal_decoder": False,
    "timestep_conditioning": False,
    "spatial_padding_mode": "zeros",
}

AUDIO_VAE: Config = {
    "model": {
        "params": {
            "sampling_rate": 16000,
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 8,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    },
    "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160}},
}

VOCODER: Config = {
    "upsample_initial_channel": 64,
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
    "resblock": "1",
    "stereo": True,
}
BIGVGAN: Config = VOCODER | {
    "resblock": "AMP1",
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
VOCODER_23: Config = {
    "vocoder": BIGVGAN
    | {"upsample_rates": [5, 2, 2, 2, 2, 2], "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4]},
    "bwe": BIGVGAN
    | {
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "num_mels": 64,
    },
}

UPSCALER: Config = {
    "_class_name": "LatentUpsampler",
    "in_channels": 128,
    "mid_channels": 32,
    "num_blocks_per_stage": 1,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
    "rational_resampler": False,
}
TEMPORAL_UPSCALER: Config = UPSCALER | {"spatial_upsample": False, "temporal_upsample": True}

# A LoRA whose name says so takes a guide of half the clip's sides.
HALF_SIZE_GUIDE = "ref0.5"


@dataclass(frozen=True)
class Family:
    """One model family: the names of its files and the sizes of its parts.

    `loudness` scales the vocoder's last layers, so that random weights give audible sound that
    does not clip.
    """

    name: str
    checkpoints: dict[str, str]
    loras: tuple[str, ...]
    upscaler: str
    temporal_upscaler: str
    config: Config
    loudness: float


FAMILIES = (
    Family(
        name="ltx-2",
        checkpoints={
            "distilled": "ltx-2-19b-distilled-fp8.safetensors",
            "dev": "ltx-2-19b-dev-fp8.safetensors",
        },
        loras=(
            "ltx-2-19b-distilled-lora-384.safetensors",
            "ltx-2-19b-lora-camera-control-dolly-in.safetensors",
            "ltx-2-19b-lora-camera-control-dolly-out.safetensors",
            "ltx-2-19b-lora-camera-control-dolly-left.safetensors",
            "ltx-2-19b-lora-camera-control-dolly-right.safetensors",
            "ltx-2-19b-lora-camera-control-jib-up.safetensors",
            "ltx-2-19b-lora-camera-control-jib-down.safetensors",
            "ltx-2-19b-lora-camera-control-static.safetensors",
            "ltx-2-19b-ic-lora-detailer.safetensors",
            "ltx-2-19b-ic-lora-canny-control.safetensors",
            "ltx-2-19b-ic-lora-depth-control.safetensors",
            "ltx-2-19b-ic-lora-pose-control.safetensors",
            "ltx-2-19b-ic-lora-union-control-ref0.5.safetensors",
        ),
        upscaler="ltx-2-spatial-upscaler-x2-1.0.safetensors",
        temporal_upscaler="ltx-2-temporal-upscaler-x2-1.0.safetensors",
        config={"transformer": TRANSFORMER, "vocoder": VOCODER},
        loudness=6.0,
    ),
    Family(
        name="ltx-2.3",
        checkpoints={
            "distilled": "ltx-2.3-22b-distilled-fp8.safetensors",
            "dev": "ltx-2.3-22b-dev-fp8.safetensors",
        },
        loras=(
            "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
            "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors",
            "ltx-2.3-22b-ic-lora-motion-track-control-ref0.5.safetensors",
        ),
        upscaler="ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        temporal_upscaler="ltx-2.3-temporal-upscaler-x2-1.0.safetensors",
        config={"transformer": TRANSFORMER_23, "vocoder": VOCODER_23},
        loudness=0.004,
    ),
)
