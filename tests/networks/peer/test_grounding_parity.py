"""Gated UNets against diffusers': same random weights, same numbers, whatever is grounded."""

import numpy as np
import pytest
import torch
from backends.harness import relative, values
from networks.configs import SD15_UNET, UNETS
from networks.grounded import Grounded, box_inputs, call_inputs, run_grounded
from networks.peer import oracle

from underdraw.networks import unet
from underdraw.networks.config import read
from underdraw.networks.gligen.config import GroundingConfig
from underdraw.networks.gligen.sites import layout

NAMES = {
    "text": {
        "boxes": "boxes",
        "present": "masks",
        "phrases": "positive_embeddings",
    },
    "text-image": {
        "boxes": "boxes",
        "present": "masks",
        "phrases": "phrases_embeddings",
        "images": "image_embeddings",
        "phrase_present": "phrases_masks",
        "image_present": "image_masks",
    },
}


def call_peer(case, tensors, inputs, call=None):
    """diffusers pads to 30 boxes; what is padded has mask 0."""
    padded = {}
    for ours, theirs in NAMES[case.kind].items():
        value = inputs[ours]
        missing = [(0, 0), (0, 30 - value.shape[1]), *((0, 0) for _ in value.shape[2:])]
        padded[theirs] = torch.from_numpy(np.pad(value, missing))
    module = oracle.unet(case.gated, tensors)
    given = {k: torch.from_numpy(v) for k, v in (call or call_inputs()).items()}
    with torch.no_grad():
        out = module(
            given["sample"],
            given["timesteps"],
            given["context"],
            cross_attention_kwargs={"gligen": padded},
        )
    return out.sample.numpy()


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 0, 2), (3, 5, 4), (30, 29, 7)], ids=str)
@pytest.mark.parametrize("kind", NAMES)
def test_numbers(kind, counts):
    """Fewer boxes than 30 take fewer tokens here and give the numbers of 30."""
    case = Grounded(kind, published=True)
    tensors = values(case.layout)
    inputs = box_inputs(kind, counts)
    theirs = call_peer(case, tensors, inputs)
    assert relative(run_grounded("torch", case, tensors, inputs), theirs) <= 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {"in_channels": 9},
        {"attention_head_dim": (1, 4, 2), "layers_per_block": 2},
        {"use_linear_projection": True, "transformer_layers_per_block": 2},
        {"only_cross_attention": True},
    ],
    ids=["inpainting", "heads", "deep", "only-cross"],
)
def test_other_unets(fields):
    case = Grounded("text", published=True, fields=tuple(fields.items()))
    tensors = values(case.layout)
    inputs, call = box_inputs("text", (2, 0, 3)), call_inputs(case.unet.in_channels)
    theirs = call_peer(case, tensors, inputs, call)
    assert relative(run_grounded("torch", case, tensors, inputs, call), theirs) <= 1e-5


@pytest.mark.parametrize("kind", NAMES)
def test_numbers_on_jax(kind):
    case = Grounded(kind, published=True, fields=tuple(UNETS["two-levels"].fields.items()))
    tensors = values(case.layout)
    inputs = box_inputs(kind, (1, 0, 3))
    theirs = call_peer(case, tensors, inputs)
    assert relative(run_grounded("jax", case, tensors, inputs), theirs) <= 1e-5


@pytest.mark.parametrize(("kind", "channels"), [("text", 9), ("text-image", 4)])
def test_published_names(kind, channels):
    """At the size of Stable Diffusion 1.4, every name and shape is that of diffusers' UNet."""
    config = {**SD15_UNET, "in_channels": channels}
    types = {"text": "gated", "text-image": "gated-text-image"}
    with torch.device("meta"):
        peer = oracle.UNet2DConditionModel.from_config({**config, "attention_type": types[kind]})
    theirs = {name: tuple(value.shape) for name, value in peer.state_dict().items()}
    plain = read(unet.UNetConfig, config)
    ours = unet.layout(plain) | layout(GroundingConfig.for_unet(plain, kind))
    assert ours.shapes == theirs
