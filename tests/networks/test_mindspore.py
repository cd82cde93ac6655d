"""Every network on MindSpore gives PyTorch's numbers (and those are the peers', see `peer/`)."""

import numpy as np
import pytest
from backends.harness import give, relative, take, tree, values
from networks.configs import TEXTS, UNETS, VAES, VISIONS
from networks.grounded import Grounded, box_inputs, run_grounded
from networks.programs import (
    run_safety,
    run_text,
    run_unet,
    run_vae,
    run_vision,
    token_ids,
    unet_config,
    unet_inputs,
    unet_program,
)
from networks.structure import (
    ADAPTERS,
    CONTROLNETS,
    adapter_maps,
    controlnet_config,
    controlnet_inputs,
    run_adapter,
    run_controlnet,
)

from underdraw import backends
from underdraw.errors import ControlError
from underdraw.networks import clip, safety, t2i_adapter, unet, vae, vision as image_tower
from underdraw.networks.config import read
from underdraw.networks.controlnet import program as controlnets
from underdraw.networks.sites import Sites

TOLERANCE = 1e-5


def random(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    case = UNETS[name]
    tensors = values(unet.layout(unet_config(case)))
    inputs = unet_inputs(case)
    ours = run_unet("torch", case, tensors, inputs)
    assert relative(run_unet("mindspore", case, tensors, inputs), ours) <= TOLERANCE


@pytest.mark.parametrize("name", ["no-middle-attention", "no-quant-convolutions", "grey-gelu"])
def test_vae(name):
    fields = VAES[name]
    config = read(vae.VAEConfig, fields)
    tensors = values(vae.layout(config))
    for entry, shape in (
        ("encode", (3, config.in_channels, 19, 26)),
        ("decode", (3, config.latent_channels, 3, 5)),
    ):
        x = random(*shape)
        ours = run_vae("torch", fields, tensors, entry, x)
        assert relative(run_vae("mindspore", fields, tensors, entry, x), ours) <= TOLERANCE


@pytest.mark.parametrize("name", TEXTS)
def test_text(name):
    fields = TEXTS[name]
    tensors = values(clip.text_layout(read(clip.CLIPTextConfig, fields), projection=True))
    ids = token_ids(fields)
    keep = np.arange(ids.shape[1])[None] < np.array([[8], [5], [3], [1]])
    ours = run_text("torch", fields, tensors, ids, keep)
    theirs = run_text("mindspore", fields, tensors, ids, keep)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert relative(theirs[key], value) <= TOLERANCE, key


@pytest.mark.parametrize("name", VISIONS)
def test_vision_and_safety(name):
    fields = VISIONS[name]
    config = read(clip.CLIPVisionConfig, fields)
    image = random(3, 3, 20, 20)
    tensors = values(image_tower.vision_layout(config))
    ours = run_vision("torch", fields, tensors, image)
    theirs = run_vision("mindspore", fields, tensors, image)
    for key, value in ours.items():
        assert relative(theirs[key], value) <= TOLERANCE, key
    tensors = values(safety.layout(config))
    ours = run_safety("torch", fields, tensors, image)
    for score, other in zip(ours, run_safety("mindspore", fields, tensors, image), strict=True):
        assert np.abs(score - other).max() <= TOLERANCE


def test_sites():
    """Hooks act alike, and are checked alike."""
    case = UNETS["two-levels"]
    config = unet_config(case)
    layout = unet.layout(config)
    sites = Sites(
        self_attention=(lambda nn, place, x: x * 1.5,),
        cross_attention=(lambda nn, place, x: nn.clip(x, 0.1, 0.3),),
        join=(lambda nn, place, x, skip: (x * 1.5, skip),),
    )
    results = []
    for backend in ("torch", "mindspore"):
        p, nn = tree(backend, layout, values(layout)), backends.get(backend).operations
        inputs = {key: give(backend, value) for key, value in unet_inputs(case).items()}
        results.append(take(backend, unet_program(nn, p, config, inputs, sites)))
        with pytest.raises(ControlError, match=r"down_blocks\.0"):
            shorter = Sites(down=(lambda nn, place, x: x[:, 1:],))
            unet_program(nn, p, config, inputs, shorter)
    assert relative(*results) <= TOLERANCE


@pytest.mark.parametrize("name", ["sd1", "x4-upscaler", "scale-and-shift"])
def test_hoisted_constants(name):
    case = UNETS[name]
    tensors = values(unet.layout(unet_config(case)))
    inputs = unet_inputs(case)
    plain = run_unet("mindspore", case, tensors, inputs)
    assert relative(run_unet("mindspore", case, tensors, inputs, hoisted=True), plain) <= 1e-6


@pytest.mark.parametrize("kind", ["text", "text-image"])
def test_grounding(kind):
    """Of the other kinds, tokens are compared in `test_grounding`."""
    case = Grounded(kind)
    tensors, inputs = values(case.layout), box_inputs(kind, (2, 0, 1))
    ours = run_grounded("torch", case, tensors, inputs)
    assert relative(run_grounded("mindspore", case, tensors, inputs), ours) <= TOLERANCE


@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnets(name):
    config = controlnet_config(name)
    tensors, inputs = values(controlnets.layout(config)), controlnet_inputs(config)
    ours = run_controlnet("torch", config, tensors, inputs, guess=True)
    for hoisted in (False, True):
        theirs = run_controlnet("mindspore", config, tensors, inputs, guess=True, hoisted=hoisted)
        for a, b in zip(theirs, ours, strict=True):
            assert relative(a, b) <= TOLERANCE


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name):
    config = read(t2i_adapter.T2IAdapterConfig, ADAPTERS[name])
    tensors, maps = values(t2i_adapter.layout(config)), adapter_maps(config)
    ours = run_adapter("torch", config, tensors, maps)
    for a, b in zip(run_adapter("mindspore", config, tensors, maps), ours, strict=True):
        assert relative(a, b) <= TOLERANCE
