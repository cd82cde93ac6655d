"""Layouts do not depend on the size of what goes in, and config files mean what they say."""

import dataclasses

import pytest
from networks.configs import PUBLISHED_UNETS, TEXT, UNETS, VAE, VAES, VISION
from networks.programs import unet_config

from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Shape, trace
from underdraw.errors import InputError
from underdraw.networks import clip, unet, vae, vision as image_tower
from underdraw.networks.config import read


@pytest.mark.parametrize("name", UNETS)
def test_unet_at_two_sizes(name):
    case = UNETS[name]
    c = unet_config(case)
    labels = {"ids": Shape(2), "times": Shape(2), None: None}.get(
        case.labels,
        Shape(2, 6 if "proj" in str(c.class_embed_type) else 4 * c.block_out_channels[0]),
    )
    condition = Shape(2, c.time_cond_proj_dim) if c.time_cond_proj_dim else None

    def program(nn, p):
        x = Shape(2, c.in_channels, 9, 14)
        time = unet.embed_time(nn, p, c, Shape(2), x, labels, condition)
        unet.unet(nn, p, c, x, time, Shape(2, 5, c.cross_attention_dim))

    assert trace(program) == unet.layout(c)


@pytest.mark.parametrize("name", VAES)
def test_vae_at_two_sizes(name):
    c = read(vae.VAEConfig, VAES[name])
    entries = [
        trace(lambda nn, p: vae.encode(nn, p, c, Shape(2, c.in_channels, 37, 50))),
        trace(lambda nn, p: vae.decode(nn, p, c, Shape(2, c.latent_channels, 5, 9))),
    ]
    assert entries[0] | entries[1] == vae.layout(c)
    assert not set(entries[0].leaves) & set(entries[1].leaves)


def test_clip_at_two_sizes():
    c = read(clip.CLIPTextConfig, TEXT)
    other = trace(lambda nn, p: clip.text(nn, p, c, Shape(3, 9)))
    assert other == clip.text_layout(c)
    whole = clip.text_layout(c, projection=True)
    assert set(whole.leaves) - set(other.leaves) == {"text_projection"}
    v = read(clip.CLIPVisionConfig, VISION)
    assert trace(
        lambda nn, p: image_tower.vision(nn, p, v, Shape(3, 3, 20, 20))
    ) == image_tower.vision_layout(v, False)


def test_layouts_are_computed_once():
    config = read(unet.UNetConfig, PUBLISHED_UNETS["stable-diffusion-v1-5"])
    again = read(unet.UNetConfig, dict(PUBLISHED_UNETS["stable-diffusion-v1-5"]))
    assert unet.layout(config) is unet.layout(again)
    assert isinstance(unet.layout(config), Layout)


BAD_UNETS = {
    "down_block_types": ("AttnDownBlock2D",) * 3,
    "up_block_types": ("SkipUpBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "act_fn": "relu",
    "resnet_time_scale_shift": "ada_group",
    "time_embedding_type": "fourier",
    "class_embed_type": "text",
    "encoder_hid_dim": 32,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text_time",
    "num_attention_heads": 4,
    "dual_cross_attention": True,
    "mid_block_scale_factor": 0,
    "time_embedding_act_fn": "relu",
    "timestep_post_act": "mish",
    "class_embeddings_concat": True,
    "reverse_transformer_layers_per_block": [1, 1, 1],
    "attention_type": "fused",
}


@pytest.mark.parametrize("field", BAD_UNETS)
def test_unet_fields_that_cannot_be_honoured(field):
    """Field, value and what is allowed; nothing is ignored silently."""
    value = BAD_UNETS[field]
    with pytest.raises(InputError) as error:
        read(unet.UNetConfig, {**UNETS["sd1"].config, field: value})
    text = str(error.value)
    assert text.startswith(f"UNet config: {field}=")
    shown = value[0] if isinstance(value, (tuple, list)) and isinstance(value[0], str) else value
    assert str(shown) in text or str(tuple(shown)) in text
    assert "allowed: " in text


@pytest.mark.parametrize(
    "field, value",
    [
        ("layers_per_block", [1, 2]),
        ("attention_head_dim", [2, 2, 2, 2]),
        ("transformer_layers_per_block", [1]),
        ("only_cross_attention", [True, False]),
        ("down_block_types", ["DownBlock2D"]),
        ("up_block_types", ["UpBlock2D"] * 4),
    ],
)
def test_lists_have_an_entry_per_level(field, value):
    with pytest.raises(InputError, match=rf"UNet config: {field}=.* {len(value)} entries.* 3"):
        read(unet.UNetConfig, {**UNETS["sd1"].config, field: value})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm_num_groups": 5}, r"norm_num_groups=5 .*block_out_channels\[0\]=8"),
        ({"attention_head_dim": 3}, "attention_head_dim=3"),
        ({"attention_head_dim": (2, 5, 2)}, r"attention_head_dim=5 .*block_out_channels\[1\]=16"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim=None"),
    ],
)
def test_numbers_that_do_not_fit_each_other(fields, message):
    with pytest.raises(InputError, match=f"UNet config: {message}"):
        unet.layout(read(unet.UNetConfig, {**UNETS["sd1"].config, **fields}))


@pytest.mark.parametrize(
    "field, value",
    [
        ("act_fn", "relu"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 3),
        ("up_block_types", ["AttnUpDecoderBlock2D"] * 3),
        ("down_block_types", ["DownEncoderBlock2D"]),
        ("norm_num_groups", 7),
    ],
)
def test_vae_fields(field, value):
    with pytest.raises(InputError, match=f"VAE config: {field}="):
        vae.layout(read(vae.VAEConfig, {**VAE, field: value}))


def test_clip_fields():
    with pytest.raises(InputError, match=r"CLIP text config: hidden_act='relu'.*allowed: 'silu'"):
        read(clip.CLIPTextConfig, {**TEXT, "hidden_act": "relu"})
    with pytest.raises(InputError, match="CLIP vision config: hidden_act="):
        read(clip.CLIPVisionConfig, {**VISION, "hidden_act": "gelu_new"})
    with pytest.raises(InputError, match="CLIP text config: num_attention_heads=5"):
        read(clip.CLIPTextConfig, {**TEXT, "num_attention_heads": 5})


def test_unknown_keys_are_left_out_and_lists_become_values():
    config = read(unet.UNetConfig, {"_class_name": "x", "sample_size": [8, 16], "new_option": 3})
    assert config.sample_size == (8, 16)
    assert dataclasses.replace(config) == config
    assert hash(config) == hash(read(unet.UNetConfig, {"sample_size": (8, 16)}))


def test_labels_that_are_missing_are_named():
    case = UNETS["x4-upscaler"]
    config = unet_config(case)
    with pytest.raises(InputError, match="class_labels=None"):
        trace(lambda nn, p: unet.embed_time(nn, p, config, Shape(1), Shape(1, 7, 4, 4)))
