"""Small configs that between them use every option, and the published ones at full size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

# Three levels; 9 x 14 latents halve unevenly twice (9, 5, 3 and 14, 7, 4).
SIZE = (9, 14)
BATCH, TOKENS = 3, 5

BASE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 24),
    "down_block_types": (CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN),
    "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 10,
}


@dataclass(frozen=True)
class UNetCase:
    """Config fields beside `BASE`, and what the call is given beside latents, times and text."""

    fields: dict[str, Any] = field(default_factory=dict)
    labels: str | None = None
    """Class labels: "ids", "times" or "vectors"."""
    condition: int | None = None
    """Width of `timestep_cond`."""
    mask: bool = False
    residuals: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {**BASE, **self.fields}


UNETS = {
    "sd1": UNetCase({"layers_per_block": 2}),
    "sd1-inpainting": UNetCase({"in_channels": 9, "attention_head_dim": 4}),
    "sd1-controlled": UNetCase(residuals=True),
    "sd2": UNetCase({"use_linear_projection": True, "attention_head_dim": (1, 2, 3)}),
    "sd2-upcast": UNetCase(
        {"use_linear_projection": True, "attention_head_dim": (2, 4, 6), "upcast_attention": True}
    ),
    "x4-upscaler": UNetCase(
        {
            "in_channels": 7,
            "down_block_types": (PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN),
            "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
            "only_cross_attention": (True, True, False),
            "use_linear_projection": True,
            "num_class_embeds": 11,
        },
        labels="ids",
        residuals=True,
    ),
    "only-cross-everywhere": UNetCase({"only_cross_attention": True}, mask=True),
    "attention-at-the-bottom": UNetCase(
        {
            "down_block_types": (PLAIN_DOWN, PLAIN_DOWN, CROSS_DOWN),
            "up_block_types": (CROSS_UP, PLAIN_UP, PLAIN_UP),
            "only_cross_attention": (False, True, True),
        }
    ),
    "other-middle-and-times": UNetCase(
        {
            "mid_block_scale_factor": 1.5,
            "time_embedding_act_fn": "gelu",
            "timestep_post_act": "silu",
            "resnet_out_scale_factor": 2.0,
            "resnet_skip_time_act": True,
            "cross_attention_norm": "layer_norm",
        }
    ),
    "no-attention-in-the-middle": UNetCase({"mid_block_type": "UNetMidBlock2D"}),
    "attention-in-the-middle": UNetCase(
        {
            "down_block_types": (PLAIN_DOWN, CROSS_DOWN, PLAIN_DOWN),
            "up_block_types": (PLAIN_UP, CROSS_UP, PLAIN_UP),
            "transformer_layers_per_block": (3, 2, 1),
        },
        mask=True,
    ),
    "attention-everywhere": UNetCase(
        {
            "down_block_types": (CROSS_DOWN,) * 3,
            "up_block_types": (CROSS_UP,) * 3,
            "transformer_layers_per_block": (1, 2, 2),
            "layers_per_block": (1, 2, 1),
            "attention_head_dim": (1, 4, 2),
        },
        mask=True,
    ),
    "up-unlike-down": UNetCase(
        {
            "down_block_types": (CROSS_DOWN, PLAIN_DOWN, CROSS_DOWN),
            "up_block_types": (PLAIN_UP,) * 3,
        }
    ),
    "labels-as-times": UNetCase({"class_embed_type": "timestep"}, labels="times"),
    "labels-as-vectors": UNetCase(
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 6},
        labels="vectors",
    ),
    "labels-as-vectors-simply": UNetCase(
        {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6},
        labels="vectors",
    ),
    "labels-as-they-are": UNetCase({"class_embed_type": "identity"}, labels="vectors"),
    "guidance-embedded": UNetCase({"time_cond_proj_dim": 7}, condition=7),
    "guidance-embedded-not-given": UNetCase({"time_cond_proj_dim": 7}),
    "scale-and-shift": UNetCase({"resnet_time_scale_shift": "scale_shift"}),
    "odd-widths": UNetCase(
        {
            "block_out_channels": (9, 18, 27),
            "norm_num_groups": 3,
            "attention_head_dim": 3,
            "time_embedding_dim": 20,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
        }
    ),
    "odd-kernels": UNetCase(
        {"conv_in_kernel": 5, "conv_out_kernel": 1, "center_input_sample": True, "out_channels": 5}
    ),
    "gelu-unpadded": UNetCase({"act_fn": "gelu", "downsample_padding": 0, "norm_eps": 1e-3}),
    "no-middle": UNetCase({"mid_block_type": None}, residuals=True),
    # As distilled ones are (BK-SDM, tiny-sd, SDXS).
    "distilled": UNetCase(
        {
            "mid_block_type": None,
            "layers_per_block": (1, 2, 1),
            "down_block_types": (PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN),
            "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
            "attention_head_dim": (1, 2, 3),
        }
    ),
    "two-levels": UNetCase(
        {
            "block_out_channels": (8, 16),
            "down_block_types": (CROSS_DOWN, PLAIN_DOWN),
            "up_block_types": (PLAIN_UP, CROSS_UP),
        }
    ),
    "one-level": UNetCase(
        {
            "block_out_channels": (8,),
            "down_block_types": (CROSS_DOWN,),
            "up_block_types": (CROSS_UP,),
        }
    ),
}

VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "norm_num_groups": 4,
}
VAES: dict[str, dict[str, Any]] = {
    "sd": VAE,
    "one-layer": {**VAE, "layers_per_block": 1, "latent_channels": 3},
    "no-quant-convolutions": {
        **VAE,
        "layers_per_block": 1,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latent_channels": 16,
    },
    "no-middle-attention": {**VAE, "layers_per_block": 1, "mid_block_add_attention": False},
    "grey-gelu": {
        **VAE,
        "layers_per_block": 1,
        "in_channels": 1,
        "out_channels": 1,
        "act_fn": "gelu",
    },
    "one-level": {
        **VAE,
        "block_out_channels": (8,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    },
}

TEXT: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 12,
    "intermediate_size": 20,
    "projection_dim": 7,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 9,
    "bos_token_id": 51,
    "eos_token_id": 52,
    "pad_token_id": 1,
}
TEXTS: dict[str, dict[str, Any]] = {
    "vit-l": {**TEXT, "eos_token_id": 2},
    "end-token-known": TEXT,
    "openclip-h": {**TEXT, "hidden_act": "gelu", "layer_norm_eps": 1e-4, "num_attention_heads": 2},
}

VISION: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "projection_dim": 7,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 4,
}
VISIONS: dict[str, dict[str, Any]] = {
    "quick-gelu": VISION,
    # 20 pixels hold two patches of 7 and a rest, which is left out.
    "gelu-uneven": {**VISION, "hidden_act": "gelu", "patch_size": 7, "layer_norm_eps": 1e-4},
}

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
}
PUBLISHED_UNETS: dict[str, dict[str, Any]] = {
    "stable-diffusion-v1-5": SD15_UNET,
    "stable-diffusion-inpainting": {**SD15_UNET, "in_channels": 9},
    "stable-diffusion-2-1": {
        **SD15_UNET,
        "sample_size": 96,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "stable-diffusion-x4-upscaler": {
        "sample_size": 128,
        "in_channels": 7,
        "block_out_channels": (256, 512, 512, 1024),
        "down_block_types": (PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP, PLAIN_UP),
        "attention_head_dim": 8,
        "cross_attention_dim": 1024,
        "num_class_embeds": 1000,
        "only_cross_attention": (True, True, True, False),
        "use_linear_projection": True,
    },
}
SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "vocab_size": 49408,
}
CLIP_L_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}


def smaller(case: UNetCase, **fields: Any) -> UNetCase:
    """The same case with other fields."""
    return replace(case, fields={**case.fields, **fields})
