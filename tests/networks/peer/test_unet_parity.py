"""The UNet against diffusers': same random weights, same numbers."""

import pytest
import torch
from backends.harness import relative, values
from networks.configs import PUBLISHED_UNETS, SIZE, UNETS
from networks.peer import oracle
from networks.programs import run_unet, unet_config, unet_inputs

from underdraw.networks import unet
from underdraw.networks.config import read


@pytest.mark.parametrize("name", UNETS)
def test_numbers(name):
    case = UNETS[name]
    tensors = values(unet.layout(unet_config(case)))
    inputs = unet_inputs(case)
    theirs = oracle.call_unet(oracle.unet(case.config, tensors), inputs)
    ours = run_unet("torch", case, tensors, inputs)
    assert ours.shape == (3, case.config.get("out_channels", 4), *SIZE)
    assert relative(ours, theirs) <= 1e-5


@pytest.mark.parametrize("size", [(8, 12), (1, 3), (13, 4), (5, 7)], ids=str)
def test_sizes(size):
    case = UNETS["sd1"]
    tensors = values(unet.layout(unet_config(case)))
    inputs = unet_inputs(case, size)
    theirs = oracle.call_unet(oracle.unet(case.config, tensors), inputs)
    assert relative(run_unet("torch", case, tensors, inputs), theirs) <= 1e-5


@pytest.mark.parametrize("name", ["sd1-controlled", "x4-upscaler"])
def test_numbers_on_jax(name):
    case = UNETS[name]
    tensors = values(unet.layout(unet_config(case)))
    inputs = unet_inputs(case)
    theirs = oracle.call_unet(oracle.unet(case.config, tensors), inputs)
    assert relative(run_unet("jax", case, tensors, inputs), theirs) <= 1e-5


@pytest.mark.parametrize("name", PUBLISHED_UNETS)
def test_published_layouts(name):
    config = PUBLISHED_UNETS[name]
    with torch.device("meta"):
        peer = oracle.UNet2DConditionModel.from_config(config)
    theirs = {name: tuple(value.shape) for name, value in peer.state_dict().items()}
    assert unet.layout(read(unet.UNetConfig, config)).shapes == theirs


def test_published_config_file_is_read():
    """Whatever diffusers writes into `config.json`, our config takes and means the same."""
    for name, config in PUBLISHED_UNETS.items():
        with torch.device("meta"):
            written = dict(oracle.UNet2DConditionModel.from_config(config).config)
        ours = read(unet.UNetConfig, written)
        assert ours == read(unet.UNetConfig, config), name
        assert set(ours.keys()) >= {k for k in written if k[0] != "_"} - UNUSED


# Read only by an `addition_embed_type`, of which None is the only one allowed.
UNUSED = {
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
}
