"""Model objects by themselves: configs, files, dtypes, errors."""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw import backends
from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.models import (
    AutoencoderKL,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    UNet2DConditionModel,
)

MAKE = {
    "unet": lambda: UNet2DConditionModel(**tiny.UNET),
    "vae": lambda: AutoencoderKL(**tiny.VAE),
    "text": lambda: CLIPTextModel(**tiny.text_config(600)),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", torch.float16])
def test_saved_and_read_again(tmp_path, kind, dtype):
    model = MAKE[kind]()
    model.save_pretrained(tmp_path / "part")
    again = type(model).from_pretrained(tmp_path / "part", dtype=dtype)
    wanted = getattr(torch, str(dtype or "float32").removeprefix("torch."))
    assert again.dtype == wanted and again.config == model.config and not again.training
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].to(wanted), theirs[name]) for name in ours)
    assert model.num_parameters() == sum(p.numel() for p in ours.values())
    # What is saved in half precision is in half precision in the file, too, and read back as told.
    again.save_pretrained(tmp_path / "half", variant="fp16")
    back = type(model).from_pretrained(tmp_path / "half", variant="fp16")
    assert back.dtype == torch.float32
    with pytest.raises(NotFoundError, match="there are: 'fp16'"):
        type(model).from_pretrained(tmp_path / "half")


@pytest.mark.parametrize("kind", MAKE)
def test_configs(tmp_path, kind):
    model = MAKE[kind]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.block_out_channels = (1,)
    name = next(iter(model.config))
    assert model.config[name] == model.config.get(name) == getattr(model.config, name)
    assert model.config.get("nothing", 5) == 5 and "nothing" not in model.config
    with pytest.raises(KeyError, match="to_dict"):
        model.config["to_dict"]
    fields = [f.name for f in dataclasses.fields(model.config)]
    assert isinstance(model.config, Mapping) and len(model.config) == len(fields)
    assert list(model.config) == list(model.config.keys()) == fields
    values = [getattr(model.config, name) for name in fields]
    assert list(model.config.values()) == values
    assert dict(model.config) == {**model.config} == dict(model.config.items())
    assert hash(model.config) == hash(dataclasses.replace(model.config))
    assert model.config != dict(model.config)
    again = type(model).from_config({**model.export_config(), "_diffusers_version": "0.1"})
    assert again.config == model.config
    assert isinstance(json.dumps(model.export_config()), str)
    with pytest.raises(InputTypeError, match=r"has no config fields \['widths'\]"):
        type(model)(widths=3)
    with pytest.raises(InputTypeError, match=r"config=3 is not a"):
        type(model)(3)


def test_models_of_the_wrong_kind():
    unet, vae = MAKE["unet"](), MAKE["vae"]()
    with pytest.raises((InputError, WeightError)):
        AutoencoderKL.adopt(unet)
    with pytest.raises(WeightError, match=r"UNet2DConditionModel: .*missing"):
        vae_like = torch.nn.Module()
        vae_like.config, vae_like.state_dict = tiny.UNET, vae.state_dict
        vae_like.parameters = vae.parameters
        UNet2DConditionModel.adopt(vae_like)
    with pytest.raises(InputTypeError, match="object cannot serve as AutoencoderKL"):
        AutoencoderKL.adopt(object())


def test_saving_as_pickle_is_refused(tmp_path):
    with pytest.raises(InputError, match="safetensors only"):
        MAKE["vae"]().save_pretrained(tmp_path / "x", safe_serialization=False)
    assert not (tmp_path / "x").exists()


def test_arguments_the_unet_does_not_use():
    unet = MAKE["unet"]()
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, tiny.WIDTH)
    for name in ("attention_mask", "cross_attention_kwargs", "added_cond_kwargs"):
        with pytest.raises(InputError, match=f"{name} is not used by this UNet"):
            unet(x, 1, context, **{name: {"scale": 1.0}})
    with pytest.raises(InputError, match="takes 4 channels"):
        unet(torch.randn(1, 5, 8, 8), 1, context)


def test_a_new_model_depends_on_the_seed_alone():
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(dict(MAKE["unet"]().named_parameters()))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["conv_in.weight"], made[2]["conv_in.weight"])


def test_the_image_processor_refuses():
    processor = CLIPImageProcessor(32, (32, 32))
    with pytest.raises(InputError, match="return_tensors='tf'"):
        processor(np.zeros((8, 8, 3), np.uint8), return_tensors="tf")
    with pytest.raises(InputTypeError, match="images holds str"):
        processor("picture.png")
    with pytest.raises(InputTypeError, match="images holds int"):
        processor([3])


def test_the_image_processor_is_saved(tmp_path):
    made = CLIPImageProcessor(20, (16, 12), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    made.save_pretrained(tmp_path / "p")
    assert CLIPImageProcessor.from_pretrained(tmp_path / "p") == made
    assert made(np.zeros((40, 30, 3), np.uint8)).pixel_values.shape == (1, 3, 16, 12)


@pytest.mark.parametrize("cls", [CLIPTextModel, CLIPTextModelWithProjection])
def test_arguments_of_the_text_towers(cls):
    model = cls(**tiny.text_config(600))
    ids = torch.randint(0, 600, (3, 11))
    mask = torch.ones(3, 11, dtype=torch.int64)
    mask[1, 6:] = 0
    named = model(ids, attention_mask=mask, output_hidden_states=True)
    placed = model(ids, mask, None, False, True, None)
    assert len(placed.hidden_states) == 4 and type(placed) is type(named)
    assert all(torch.equal(a, b) for a, b in zip(placed[:2], named[:2], strict=True))
    assert isinstance(model(ids, mask, None, None, None, False), tuple)
    assert model(ids).hidden_states is None
    with pytest.raises(InputError, match="position_ids="):
        model(ids, position_ids=torch.arange(11)[None])
    with pytest.raises(InputError, match="output_attentions=True"):
        model(ids, output_attentions=True)


def test_arguments_of_the_image_tower():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    more = {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    model = CLIPVisionModelWithProjection(**sizes, **more)
    x = torch.randn(3, 3, 16, 16)
    assert model(x).hidden_states is None and len(model(x, None, True).hidden_states) == 3
    assert isinstance(model(x, return_dict=False), tuple)
    for name in ("output_attentions", "interpolate_pos_encoding"):
        with pytest.raises(InputError, match=f"{name}=True"):
            model(x, **{name: True})


@pytest.mark.parametrize("kind", MAKE)
def test_configs_are_loaded_and_saved_alone(tmp_path, kind):
    model = MAKE[kind]()
    model.save_pretrained(tmp_path / "pipe" / "part")
    raw = type(model).load_config(tmp_path / "pipe", subfolder="part", revision=None)
    assert type(raw) is dict and type(model).from_config(raw).config == model.config
    model.save_config(tmp_path / "new" / "place")
    assert [f.name for f in (tmp_path / "new" / "place").iterdir()] == ["config.json"]
    assert type(model).load_config(str(tmp_path / "new" / "place")) == raw
    assert type(model).from_config(model.config).config == model.config
    with pytest.raises(InputTypeError, match="revison"):
        type(model).load_config(tmp_path, revison=3)
    with pytest.raises(NotFoundError):
        type(model).load_config(tmp_path)


@pytest.mark.parametrize("backend", [b for b in backends.installed() if b != "mindspore"])
@pytest.mark.parametrize("count", [607, 590, 600, None])
def test_token_embeddings_are_resized(tmp_path, backend, count):
    model = CLIPTextModel(**tiny.text_config(600, eos_token_id=500), backend=backend)
    take = model._framework.to_numpy
    old, other = take(model.get_input_embeddings().weight), model.text_model.final_layer_norm.weight
    layer = model.resize_token_embeddings(count)
    rows, count = take(layer.weight), count or 600
    assert rows.shape == (count, tiny.WIDTH) and model.config.vocab_size == count
    assert (rows[:600] == old[:count]).all() and layer is model.get_input_embeddings()
    assert np.allclose(rows[600:], old.mean(0), atol=1e-6)
    assert model.text_model.final_layer_norm.weight is other
    ids = np.array([[3, count - 1, 500], [500, 4, 5], [7, 500, count - 2]])
    found = model(model._framework.array(ids)).pooler_output
    model.save_pretrained(tmp_path / "text")
    again = CLIPTextModel.from_pretrained(tmp_path / "text", backend=backend)
    again_found = again(again._framework.array(ids)).pooler_output
    assert again.config == model.config and np.allclose(take(found), take(again_found), atol=1e-6)
    for wrong in (0, -3, 2.5, "600"):
        with pytest.raises(InputError, match="new_num_tokens="):
            model.resize_token_embeddings(wrong)


def test_resized_embeddings_learn():
    model = CLIPTextModel(**tiny.text_config(600, eos_token_id=500))
    layer = model.resize_token_embeddings(601)
    assert isinstance(layer, torch.nn.Embedding) and layer.num_embeddings == 601
    model(torch.tensor([[600, 500]])).last_hidden_state.square().sum().backward()
    assert layer.weight.grad[600].abs().sum() > 0 and layer.weight.grad[3].abs().sum() == 0
