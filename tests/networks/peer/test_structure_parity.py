"""ControlNets and T2I-Adapters against diffusers': same random weights, same numbers."""

import diffusers
import numpy as np
import pytest
import torch
from backends.harness import relative, values
from networks.peer import oracle
from networks.structure import (
    ADAPTERS,
    BASE,
    CONTROLNETS,
    adapter_maps,
    controlnet_config,
    controlnet_inputs,
    run_adapter,
    run_controlnet,
)

from underdraw.models import ControlNetModel, MultiAdapter, MultiControlNetModel, T2IAdapter
from underdraw.networks import t2i_adapter
from underdraw.networks.config import read
from underdraw.networks.controlnet import program
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.networks.t2i_adapter import T2IAdapterConfig


def filled(name):
    """diffusers' ControlNet with the weights that ours is given."""
    tensors = values(program.layout(controlnet_config(name)))
    with torch.device("meta"):
        module = diffusers.ControlNetModel.from_config({**BASE, **CONTROLNETS[name]})
    return oracle.fill(module, tensors), tensors


def called(module, inputs, guess=False):
    given = {key: torch.from_numpy(value) for key, value in inputs.items()}
    down, mid = module(
        given["sample"],
        given["timesteps"],
        given["context"],
        given["maps"],
        0.7,
        guess_mode=guess,
        return_dict=False,
    )
    return [one.numpy() for one in (*down, mid)]


def worst(ours, theirs):
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    return max(relative(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnets(name):
    config = controlnet_config(name)
    module, tensors = filled(name)
    inputs = controlnet_inputs(config)
    for guess, hoisted in ((False, True), (True, False)):
        theirs = called(module, inputs, guess)
        ours = run_controlnet("torch", config, tensors, inputs, guess=guess, hoisted=hoisted)
        assert worst(ours, theirs) <= 1e-5
    if name == "shuffle":  # one is compiled on JAX, where that takes seconds
        ours = run_controlnet("jax", config, tensors, inputs, guess=True)
        assert worst(ours, theirs) <= 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name):
    config = read(T2IAdapterConfig, ADAPTERS[name])
    tensors, maps = values(t2i_adapter.layout(config)), adapter_maps(config)
    with torch.device("meta"):
        module = diffusers.T2IAdapter.from_config(ADAPTERS[name])
    module = oracle.fill(module, tensors)
    theirs = [one.numpy() for one in module(torch.from_numpy(maps))]
    for backend in ("torch", "jax")[: 1 + (name == "light")]:
        assert worst(run_adapter(backend, config, tensors, maps), theirs) <= 1e-5
    ours = T2IAdapter.adopt(module)
    assert ours.downscale_factor == module.downscale_factor
    assert ours.total_downscale_factor == module.total_downscale_factor


PUBLISHED = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts(name):
    with torch.device("meta"):
        peer = diffusers.ControlNetModel(**PUBLISHED[name])
    theirs = {name: tuple(value.shape) for name, value in peer.state_dict().items()}
    config = read(ControlNetConfig, dict(peer.config))
    assert program.layout(config).shapes == theirs
    assert config == read(ControlNetConfig, PUBLISHED[name])


@pytest.mark.parametrize("kind", [{}, ADAPTERS["light"]], ids=["full", "light"])
def test_published_adapters(kind):
    with torch.device("meta"):
        peer = diffusers.T2IAdapter(**kind)
    theirs = {name: tuple(value.shape) for name, value in peer.state_dict().items()}
    assert t2i_adapter.layout(read(T2IAdapterConfig, dict(peer.config))).shapes == theirs


def test_models_are_called_as_diffusers_are():
    """The same arguments in the same places, and both of several at once."""
    inputs = controlnet_inputs(controlnet_config("sd1"))
    one, two = filled("sd1")[0], filled("sd1")[0]
    two.controlnet_mid_block.bias.data += 1
    x, t, c, m = (torch.from_numpy(inputs[k]) for k in ("sample", "timesteps", "context", "maps"))
    keep = torch.tensor([[1.0] * (c.shape[1] - 2) + [0.0] * 2] * 3)
    ours = ControlNetModel.adopt(one)
    with torch.no_grad():
        theirs = one(x, t, c, m, 0.3)
        mine = ours(x, t, c, m, 0.3)
        assert torch.allclose(mine.mid_block_res_sample, theirs.mid_block_res_sample, atol=1e-5)
        # Of masked tokens diffusers says as much, but masks self-attention, whose size differs.
        masked = ours(x, t, c, m, 0.3, None, None, keep).mid_block_res_sample
        shorter = ours(x, t, c[:, :-2], m, 0.3).mid_block_res_sample
        assert torch.allclose(masked, shorter, atol=1e-5)
        with pytest.raises(RuntimeError, match="size of tensor"):
            one(x, t, c, m, 0.3, None, None, keep)
        peer = diffusers.MultiControlNetModel([one, two])
        both = MultiControlNetModel([ours, ControlNetModel.adopt(two)])
        theirs = peer(x, 500, c, [m, 1 - m], [0.5, 1.5], guess_mode=True, return_dict=False)
        mine = both(x, 500, c, [m, 1 - m], [0.5, 1.5], guess_mode=True, return_dict=False)
    assert worst([one.numpy() for one in mine[0]], [one.numpy() for one in theirs[0]]) <= 1e-5
    assert torch.allclose(mine[1], theirs[1], atol=1e-5)
    torch.manual_seed(0)
    peers = [diffusers.T2IAdapter(**ADAPTERS["full"]) for _ in range(2)]
    maps = [torch.rand(1, 3, 32, 48) for _ in peers]
    with torch.no_grad():
        ours = MultiAdapter([T2IAdapter.adopt(one) for one in peers])
        for weights in (None, [0.2, 0.5]):
            theirs = diffusers.MultiAdapter(peers)(maps, weights)
            mine = ours(maps, weights)
            assert worst([x.numpy() for x in mine], [x.numpy() for x in theirs]) <= 1e-5


def test_a_new_controlnet_is_as_diffusers_makes_it():
    """From a UNet: its encoder, and layers that are zero."""
    torch.manual_seed(0)
    base = {k: v for k, v in BASE.items() if k != "conditioning_embedding_out_channels"}
    ups = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    unet = diffusers.UNet2DConditionModel(**base, up_block_types=ups)
    from underdraw.models import UNet2DConditionModel

    widths = (4, 6, 8, 10)
    theirs = diffusers.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=widths, conditioning_channels=1
    )
    ours = ControlNetModel.from_unet(
        UNet2DConditionModel.adopt(unet),
        conditioning_embedding_out_channels=widths,
        conditioning_channels=1,
    )
    assert ours.config == read(ControlNetConfig, dict(theirs.config))
    wanted = theirs.state_dict()
    for name, value in ours.state_dict().items():
        drawn = name.startswith("controlnet_cond_embedding") and "conv_out" not in name
        assert drawn or torch.equal(value, wanted[name]), name
    assert not np.any(ours.stored_tensors()["controlnet_down_blocks.0.weight"].load())
