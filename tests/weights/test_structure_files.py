"""ControlNets and T2I-Adapters in files of every kind: what is written is read back, what is not
one is named."""

import re

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw import ControlNetModel, InputError, Structure, T2IAdapter, WeightError
from underdraw.formats.stored import Checkpoint, stored
from underdraw.models import UNet2DConditionModel
from underdraw.weights import controlnet as files, key_tables as keys, save, t2i_adapter
from underdraw.weights.controlnet import Base, read_controlnet

# Shapes tell sizes; what they do not (8 heads, 32 groups) is as in Stable Diffusion 1.
UNET = {
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": tiny.WIDTH,
    "attention_head_dim": 8,
}
TABLE = keys.controlnet_table((True, True, True, False), 2, 3)
BACK = keys.inverse(TABLE)
EMPTY = stored(np.zeros(0, np.float32))


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.shake(UNet2DConditionModel(**UNET))


@pytest.fixture(scope="module")
def net(unet):
    return tiny.controlnet(unet)


def original(net):
    """Its tensors under the original's names."""
    return {keys.rename(name, BACK): tensor for name, tensor in net.stored_tensors().items()}


def same(found, net):
    wanted = net.stored_tensors()
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[name].load(), t.load()) for name, t in wanted.items())


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("with_unet", [False, True])
def test_the_originals_names(unet, net, prefix, with_unet):
    tensors = {prefix + name: tensor for name, tensor in original(net).items()}
    base = Base(unet.config, unet.stored_tensors()) if with_unet else None
    found = read_controlnet(Checkpoint(tensors, {}), base)
    assert found.config == net.config and same(found.tensors, net)


def test_a_folders_names_without_its_config(net):
    found = read_controlnet(Checkpoint(net.stored_tensors(), {}))
    assert found.config == net.config and same(found.tensors, net)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_files(net, unet, tmp_path, suffix):
    place = tmp_path / f"control_v11_canny.{suffix}"
    tensors = {f"control_model.{name}": tensor for name, tensor in original(net).items()}
    if suffix == "pth":
        arrays = {name: torch.from_numpy(t.load().copy()) for name, t in tensors.items()}
        torch.save({"state_dict": arrays}, place)
    else:
        save.save_tensors(place, tensors)
    read = ControlNetModel.from_single_file(place)
    assert read.config == net.config and same(read.stored_tensors(), net)
    half = ControlNetModel.from_single_file(place, unet=unet, dtype="float16")
    assert half.dtype == torch.float16
    read.save_pretrained(tmp_path / "folder")
    again = ControlNetModel.from_pretrained(tmp_path / "folder")
    assert again.config == net.config and same(again.stored_tensors(), net)


def test_differences_are_added_to_the_encoder(net, unet):
    base = unet.stored_tensors()

    def minus(name, tensor):
        ours = keys.rename(name, TABLE)
        whole = ours not in base
        return tensor if whole else stored(tensor.load() - base[ours].load())

    tensors = {name: minus(name, tensor) for name, tensor in original(net).items()}
    for mark in ({"difference": EMPTY}, {"control_model.difference": EMPTY}):
        prefix = "control_model." if "control_model.difference" in mark else ""
        given = {**{prefix + name: t for name, t in tensors.items()}, **mark}
        found = read_controlnet(Checkpoint(given, {}), Base(unet.config, base))
        for name, tensor in net.stored_tensors().items():
            assert np.allclose(found.tensors[name].load(), tensor.load(), atol=1e-6)
    with pytest.raises(InputError, match=r"differences to a UNet.*unet="):
        read_controlnet(Checkpoint({**tensors, "difference": EMPTY}, {}))


def low_rank(net, rank=2):
    """A Control-LoRA in which every layer of the encoder changes."""
    random, made = np.random.default_rng(1), {"lora_controlnet": EMPTY}
    for name, tensor in original(net).items():
        encoder = name.startswith(("input_blocks.", "middle_block.", "time_embed."))
        if not encoder or name.endswith("bias"):
            made[name] = tensor
        elif len(tensor.shape) > 1:
            place, (out, *into) = name.removesuffix(".weight"), tensor.shape
            up = random.standard_normal((out, rank, *[1] * (len(into) - 1)))
            made[f"{place}.up"] = stored(0.1 * up.astype(np.float32))
            down = random.standard_normal((rank, *into)).astype(np.float32)
            made[f"{place}.down"] = stored(down)
    return made


def test_a_control_lora_lies_over_the_encoder(net, unet):
    tensors, base = low_rank(net), unet.stored_tensors()
    found = read_controlnet(Checkpoint(tensors, {}), Base(unet.config, base)).tensors
    for name, tensor in found.items():
        theirs = keys.rename(name, BACK)
        up = tensors.get(f"{theirs.removesuffix('.weight')}.up")
        if up is not None:
            down = tensors[f"{theirs.removesuffix('.weight')}.down"].load()
            product = up.load().reshape(len(down[:1].T) and up.shape[0], -1) @ down.reshape(2, -1)
            wanted = base[name].load() + product.reshape(tensor.shape)
        else:
            wanted = (tensors[theirs] if theirs in tensors else base[name]).load()
        assert np.allclose(tensor.load(), wanted, atol=1e-6), name
    with pytest.raises(InputError, match="Control-LoRA"):
        read_controlnet(Checkpoint(tensors, {}))


@pytest.mark.parametrize("name", ["control_v11e_sd15_shuffle.pth", "canny.pth"])
def test_pooling_is_guessed_by_the_name_and_told(net, name, caplog):
    tensors = original(net)
    found = read_controlnet(Checkpoint(tensors, {}), name=name)
    assert found.config.global_pool_conditions == ("shuffle" in name)
    assert bool(caplog.records) == ("shuffle" in name)
    said = read_controlnet(Checkpoint(tensors, {}), name=name, global_pool_conditions=False)
    assert not said.config.global_pool_conditions


# -- T2I-Adapters ----------------------------------------------------------------------------------
ADAPTERS = {
    "full": {"channels": (32, 64, 64, 64)},
    "grey": {"channels": (32, 32, 64, 64), "in_channels": 1, "num_res_blocks": 3},
    "light": {"channels": (32, 64, 64), "adapter_type": "light_adapter", "num_res_blocks": 4},
}


def original_adapter(adapter):
    blocks, light = adapter.config.num_res_blocks, "light" in adapter.config.adapter_type
    made = {}
    for name, tensor in adapter.stored_tensors().items():
        name = name.removeprefix("adapter.")
        if light:
            name = name.replace(".resnets.", ".body.")
        else:
            inside = re.match(r"body\.(\d+)\.resnets\.(\d+)\.(.*)", name)
            between = re.match(r"body\.(\d+)\.(in_conv.*)", name)
            if inside:
                name = f"body.{int(inside[1]) * blocks + int(inside[2])}.{inside[3]}"
            elif between:
                name = f"body.{int(between[1]) * blocks}.{between[2]}"
        made[name] = tensor
    return made


@pytest.mark.parametrize("wrapper", ["", "adapter."])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(kind, wrapper):
    adapter = T2IAdapter(**ADAPTERS[kind])
    tensors = {wrapper + name: tensor for name, tensor in original_adapter(adapter).items()}
    found = t2i_adapter.read_adapter(Checkpoint(tensors, {}))
    assert found.config == adapter.config and same(found.tensors, adapter)
    found = t2i_adapter.read_adapter(Checkpoint(adapter.stored_tensors(), {}))
    assert found.config == adapter.config


# -- through a pipeline ----------------------------------------------------------------------------
def test_files_are_attached_to_a_pipeline(unet, net, tmp_path):
    pipe = tiny.pipeline(unet={**UNET, "layers_per_block": 2, "norm_num_groups": 32})
    base = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    adapter = T2IAdapter(**ADAPTERS["full"])
    files_ = {"edges": original(net), "lora": low_rank(net), "depth": original_adapter(adapter)}
    made = {}
    plain = tiny.run(pipe)
    for name, tensors in files_.items():
        save.save_tensors(tmp_path / f"{name}.safetensors", tensors)
        pipe.load_structure(tmp_path / f"{name}.safetensors")
        made[name] = tiny.run(pipe, controls=[Structure(name, np.ones((64, 64)))])
    assert list(pipe.adapters["structure"]) == ["edges", "lora", "depth"]
    direct = tiny.run(pipe, controls=[Structure(net, np.ones((64, 64)))])
    assert (made["edges"] - direct).abs().max() <= 1e-5 * direct.abs().max()
    assert all((one - plain).abs().max() > 1e-3 for one in made.values())
    assert all(torch.equal(base[name], value) for name, value in pipe.unet.state_dict().items())
    pipe.unload_structure()
    assert torch.equal(tiny.run(pipe), plain)


# -- what is no such file --------------------------------------------------------------------------
def array(*shape):
    return stored(np.zeros(shape, np.float32))


WRONG = {
    "a style adapter": (
        {"transformer_layes.0.attn.in_proj_weight": array(2, 2)},
        "a style adapter",
    ),
    "a style embedding": (
        {"style_embedding": array(1, 8, 4), "proj": array(4, 4)},
        "style adapter",
    ),
    "a fuser": (
        {"task_embedding": array(4), "seq_proj.weight": array(4, 4)},
        "fuser of co-adapters",
    ),
    "a fuser's maps": ({"spatial_feat_mapping.style.1.weight": array(4, 4)}, "fuser"),
    "a LoRA": ({"lora_unet_x.lora_up.weight": array(2, 2)}, "a LoRA"),
    "a UNet": (
        {"input_blocks.0.0.weight": array(4, 4, 3, 3), "output_blocks.0.0.x": array(4)},
        "a UNet",
    ),
    "another architecture": (
        {"controlnet_x_embedder.weight": array(4, 4), "control_add_embedding.x": array(4)},
        "another architecture",
    ),
    "nothing known": ({"weight": array(4)}, "no ControlNet inside; 1 tensors such as weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_named(name, tmp_path):
    tensors, words = WRONG[name]
    save.save_tensors(tmp_path / "file.safetensors", tensors)
    pipe = tiny.pipeline()
    before = tiny.run(pipe)
    with pytest.raises(WeightError, match=f"file.safetensors.*{words}"):
        pipe.load_structure(tmp_path / "file.safetensors")
    assert pipe.adapters["structure"] == {} and torch.equal(tiny.run(pipe), before)


BROKEN = {
    "one is missing": (lambda t: t.pop("zero_convs.3.0.weight"), "controlnet_down_blocks.3.weight"),
    "one too many": (lambda t: t.update({"nowhere.weight": array(4)}), "left over: nowhere.weight"),
    "another shape": (
        lambda t: t.update({"middle_block_out.0.weight": array(64, 32, 1, 1)}),
        "controlnet_mid_block.weight is",
    ),
    "whole numbers": (
        lambda t: t.update({"zero_convs.0.0.bias": stored(np.zeros(32, np.int64))}),
        "holds int64",
    ),
    "no blocks": (
        lambda t: [t.pop(n) for n in list(t) if n.startswith("input_blocks.")],
        "names and shapes|is missing|no blocks",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_are_refused(net, name):
    tensors = original(net)
    change, words = BROKEN[name]
    change(tensors)
    with pytest.raises(WeightError, match=words):
        read_controlnet(Checkpoint(tensors, {}))


def test_damaged_control_loras_are_refused(net, unet):
    base = Base(unet.config, unet.stored_tensors())
    place = "input_blocks.1.0.in_layers.2"
    for change, words in (
        ({f"{place}.down": array(3, 32, 3, 3)}, "and its .down"),
        ({f"{place}.up": array(16, 2, 1, 1)}, "and its .down"),
        ({"input_blocks.99.0.up": array(2, 2)}, "left over|no .down"),
    ):
        with pytest.raises(WeightError, match=words):
            read_controlnet(Checkpoint({**low_rank(net), **change}, {}), base)
    lacking = low_rank(net)
    del lacking[f"{place}.down"]
    with pytest.raises(WeightError, match=r"no \.down beside it"):
        read_controlnet(Checkpoint(lacking, {}), base)


def test_nets_of_another_unet_are_refused(net, tmp_path):
    save.save_tensors(tmp_path / "net.safetensors", original(net))
    pipe = tiny.pipeline()
    with pytest.raises((InputError, WeightError), match="made for a UNet of 32 to 64"):
        pipe.load_structure(tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="is of a 'AutoencoderKL'"):
        pipe.vae.save_pretrained(tmp_path / "vae")
        pipe.load_structure(tmp_path / "vae")
    assert files.is_controlnet(original(net)) and not files.is_controlnet({"x"})
