"""What the names and shapes of an original checkpoint tell about its networks, as folder configs.

Widths, depths and channels are read from the shapes. What no shape tells (heads, groups,
activation, picture size) follows from the family: "sd1" has CLIP ViT-L/14 as its text encoder,
"sd2" OpenCLIP.
"""

from collections.abc import Mapping
from typing import Any

from underdraw.errors import WeightError
from underdraw.formats.stored import StoredTensor

Tensors = Mapping[str, StoredTensor]


def unet_config(tensors: Tensors, family: str, sample_size: int) -> dict[str, Any]:
    """`config.json` of a UNet whose original names (without prefix) are the keys of `tensors`."""
    encoder = encoder_config(tensors, family)
    attention = [kind.startswith("CrossAttn") for kind in encoder["down_block_types"]]
    gated = None
    if "position_net" in _tops(tensors):
        gated = "gated"
        if any(name.startswith("position_net.linears_text.") for name in tensors):
            gated = "gated-text-image"
    return {
        **encoder,
        "_class_name": "UNet2DConditionModel",
        **({"attention_type": gated} if gated else {}),
        "center_input_sample": False,
        "dual_cross_attention": False,
        # The smallest distilled networks have none.
        **({} if "middle_block" in _tops(tensors) else {"mid_block_type": None}),
        "out_channels": _shape(tensors, "out.2.weight")[0],
        "sample_size": sample_size,
        "up_block_types": [_kind("Up", has) for has in reversed(attention)],
    }


def encoder_config(tensors: Tensors, family: str) -> dict[str, Any]:
    """What the configs of a UNet and of a ControlNet both say, from the original names of its way
    down."""
    widths, layers, attention = _levels(tensors)
    if len(set(layers)) != 1:
        raise WeightError(f"a UNet with {layers} resnets per level is not Stable Diffusion 1 or 2")
    prefix = next(name[: -len("proj_in.weight")] for name in tensors if "proj_in.weight" in name)
    block = f"{prefix}transformer_blocks"
    context = _shape(tensors, f"{block}.0.attn2.to_k.weight")[1]
    if any(f"{block}.{i}.norm1.weight" in tensors for i in (1, 2)) or "label_emb" in _tops(tensors):
        raise WeightError(
            "the UNet has class embeddings or several transformer blocks per attention: SDXL, "
            "an upscaler or an unCLIP model, not Stable Diffusion 1 or 2"
        )
    # SD 2 fixes the width of a head (64), SD 1 their number (8).
    heads: Any = [width // 64 for width in widths] if family == "sd2" else 8
    return {
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": widths,
        "cross_attention_dim": context,
        "down_block_types": [_kind("Down", has) for has in attention],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": _shape(tensors, "input_blocks.0.0.weight")[1],
        "layers_per_block": layers[0],
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "num_class_embeds": None,
        "only_cross_attention": False,
        # Scores of SD 2.1 overflow in float16; computed in float32 they are right in both.
        "upcast_attention": family == "sd2",
        "use_linear_projection": len(_shape(tensors, f"{prefix}proj_in.weight")) == 2,
    }


def _kind(way: str, attention: bool) -> str:
    return f"{'CrossAttn' if attention else ''}{way}Block2D"


def _levels(tensors: Tensors) -> tuple[list[int], list[int], list[bool]]:
    """Width, number of resnets and presence of transformers, per level of the down path."""
    _shape(tensors, "input_blocks.0.0.weight")
    widths, layers, attention, block = [0], [0], [False], 1
    while True:
        here = f"input_blocks.{block}"
        if f"{here}.0.op.weight" in tensors:
            widths, layers, attention = [*widths, 0], [*layers, 0], [*attention, False]
        elif (found := tensors.get(f"{here}.0.in_layers.2.weight")) is not None:
            widths[-1] = found.shape[0]
            layers[-1] += 1
            attention[-1] = f"{here}.1.proj_in.weight" in tensors
        else:
            break
        block += 1
    if not any(attention) or 0 in layers:
        raise WeightError("the UNet has no blocks as Stable Diffusion 1 and 2 have")
    return widths, layers, attention


def vae_config(tensors: Tensors, sample_size: int) -> dict[str, Any]:
    """`config.json` of an autoencoder from its original names (without prefix)."""
    widths, layers = [], 0
    while (name := f"encoder.down.{len(widths)}.block.0.conv1.weight") in tensors:
        widths.append(tensors[name].shape[0])
    while f"encoder.down.0.block.{layers}.conv1.weight" in tensors:
        layers += 1
    if not widths:
        raise WeightError("the autoencoder has no encoder.down blocks")
    levels = len(widths)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": _shape(tensors, "encoder.conv_in.weight")[1],
        "latent_channels": _shape(tensors, "post_quant_conv.weight")[1],
        "layers_per_block": layers,
        "norm_num_groups": 32,
        "out_channels": _shape(tensors, "decoder.conv_out.weight")[0],
        "sample_size": sample_size,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(tensors: Tensors, family: str) -> dict[str, Any]:
    """`config.json` of a text encoder from its names in a folder (`text_model....`)."""
    stem = "text_model.encoder.layers"
    layers = 0
    while f"{stem}.{layers}.layer_norm1.weight" in tensors:
        layers += 1
    vocabulary, width = _shape(tensors, "text_model.embeddings.token_embedding.weight")
    positions = _shape(tensors, "text_model.embeddings.position_embedding.weight")[0]
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,  # as published: the end token is then the largest id
        "hidden_act": "gelu" if family == "sd2" else "quick_gelu",
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": _shape(tensors, f"{stem}.0.mlp.fc1.weight")[0],
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": positions,
        "model_type": "clip_text_model",
        "num_attention_heads": max(width // 64, 1),
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": 512 if family == "sd2" else width,
        "vocab_size": vocabulary,
    }


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """`scheduler_config.json` as published: PNDM, and DDIM for models that predict v."""
    ddim = prediction_type == "v_prediction"
    return {
        "_class_name": "DDIMScheduler" if ddim else "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightError(f"tensor {name!r} is missing")
    return tensors[name].shape


def _tops(tensors: Tensors) -> set[str]:
    return {name.split(".", 1)[0] for name in tensors}
