"""Strict matching against folders the peers really write, and each kind of misfit in words."""

import numpy as np
import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from underdraw.formats.stored import stored
from underdraw.weights.folders import open_component
from underdraw.weights.match import match_network

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
}
TEXT = SMALL | {"vocab_size": 30, "max_position_embeddings": 9}
VISION = SMALL | {"image_size": 8, "patch_size": 4}


def shapes(module):
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def arrays(module):
    return {name: stored(t.numpy()) for name, t in module.state_dict().items()}


@pytest.mark.parametrize(
    ("network", "module"),
    [
        ("text_encoder", CLIPTextModel(CLIPTextConfig(**TEXT))),
        ("text_encoder", CLIPTextModelWithProjection(CLIPTextConfig(**TEXT))),
        ("text_encoder", CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION))),
        ("image_encoder", CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))),
    ],
)
@pytest.mark.parametrize("prefix", [True, False])
def test_clip_with_and_without_its_prefix(tmp_path, network, module, prefix):
    module.save_pretrained(tmp_path)
    _, found = open_component(tmp_path)
    inner = "text_model." if network == "text_encoder" else "vision_model."
    bare = {
        name.removeprefix(inner): tensor
        for name, tensor in module.state_dict().items()
        if not name.startswith(("visual", "text_projection", "vision_model.", "logit"))
        or name.startswith(inner)
    }
    expected = {(inner if prefix else "") + name: t for name, t in bare.items()}
    position_ids = {f"{inner}embeddings.position_ids": stored(np.zeros((1, 9), "i8"))}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    got = match_network(network, wanted, found | position_ids)
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert np.array_equal(got[name].load(), tensor.numpy())


def test_safety_checker_with_one_and_two_levels(tmp_path):
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)
    module = StableDiffusionSafetyChecker(config)
    module.save_pretrained(tmp_path)
    _, found = open_component(tmp_path)
    flat = {
        name.replace("vision_model.vision_model.", "vision_model."): t.shape
        for name, t in found.items()
    }
    nested = {
        name.replace("vision_model.", "vision_model.vision_model."): shape
        for name, shape in flat.items()
    }
    for expected in (flat, nested):
        assert match_network("safety_checker", expected, found).keys() == expected.keys()


def test_published_autoencoders_with_old_attention_names():
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    now = arrays(vae)
    before = {}
    for name, tensor in now.items():
        for old, new in (
            ("query", "to_q"),
            ("key", "to_k"),
            ("value", "to_v"),
            ("proj_attn", "to_out.0"),
        ):
            name = name.replace(f".{new}.", f".{old}.")
        before[name] = tensor
    assert sum(name not in now for name in before) == 16
    assert match_network("vae", shapes(vae), before).keys() == now.keys()
    convolutions = {
        name: t.reshape((*t.shape, 1, 1)) if ".attentions." in name and len(t.shape) == 2 else t
        for name, t in before.items()
    }
    got = match_network("vae", shapes(vae), convolutions)
    for name, tensor in now.items():
        assert np.array_equal(got[name].load(), tensor.load())


def test_linear_and_convolution_projections_of_a_unet():
    config = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
    }
    linear = UNet2DConditionModel(**config, use_linear_projection=True)
    plain = UNet2DConditionModel(**config)
    assert shapes(linear) != shapes(plain)
    for have, want in ((linear, plain), (plain, linear)):
        got = match_network("unet", shapes(want), arrays(have))
        assert {name: t.shape for name, t in got.items()} == shapes(want)
        for name, tensor in have.state_dict().items():
            assert np.array_equal(got[name].load().ravel(), tensor.numpy().ravel())
