"""BLIP-Diffusion's networks, on every backend, give what diffusers 0.33.1 gave
(`scripts/record_blip.py`)."""

import numpy as np
import pytest
import torch
from backends.harness import give, run, take, tree
from pipelines.blip import recorded

from underdraw import backends
from underdraw.errors import InputError
from underdraw.models import Blip2QFormerModel
from underdraw.networks.blip import qformer
from underdraw.networks.blip.config import Blip2Config
from underdraw.networks.config import read

BOUND = 1e-5
"""Of values near 1."""
CATEGORIES = recorded.record.THREE["source_subject_category"]


def see(name, program, *arrays):
    """Outputs of a program on the recorded weights, from numpy to numpy."""
    network = recorded.network("qformer")
    p = tree(name, type(network).layout(network.config), arrays_of(network))
    config = network.config

    def call(nn, p, *given):
        out = program(nn, p, config, *given)
        return tuple(out) if isinstance(out, tuple) else (out,)

    given = [give(name, array) for array in arrays]
    return [take(name, one) for one in run(name, call, p, given, compiled=True)]


def arrays_of(network):
    return {name: tensor.load() for name, tensor in network.stored_tensors().items()}


def far(ours, name):
    return np.abs(ours - recorded.arrays()[name]).max()


@pytest.mark.parametrize("name", backends.installed())
def test_networks(name):
    """Categories of different length share a batch, so padding must not count."""
    pixels = recorded.arrays()["pixels"]
    ids, keep = recorded.network("qformer").read(CATEGORIES)
    last, pooled = see(name, qformer.SEE, pixels)
    assert far(last, "vision") <= BOUND
    assert far(pooled, "vision_pooled") <= BOUND
    last, pooled = see(name, qformer.QFORMER, pixels, ids, keep)
    assert far(last, "qformer") <= BOUND
    assert np.array_equal(pooled, last[:, 0])
    (tokens,) = see(name, qformer.SUBJECT, pixels, ids, keep)
    assert far(tokens, "queries") <= BOUND


@torch.no_grad()
def test_objects():
    encoder, pixels = recorded.network("qformer"), torch.from_numpy(recorded.arrays()["pixels"])
    out = encoder(CATEGORIES, pixels)
    assert far(out.last_hidden_state.numpy(), "qformer") <= BOUND
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 0])
    assert far(encoder(CATEGORIES, pixels, return_dict=False).numpy(), "queries") <= BOUND
    alone = encoder(CATEGORIES[1], pixels[1:2], return_dict=False)
    assert np.abs(alone[0].numpy() - recorded.arrays()["queries"][1]).max() <= BOUND
    many = encoder(CATEGORIES, pixels[:1], return_dict=False)
    one = encoder(CATEGORIES[0], pixels[:1], return_dict=False)
    assert (many[:1] - one).abs().max() <= BOUND
    assert (many[0] - many[1]).abs().max() > 1e-2


def test_published_size():
    """Names and shapes of `Salesforce/blipdiffusion`, whose ViT-L lacks its last layer."""
    config = {
        "num_query_tokens": 16,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "qformer_config": {"cross_attention_frequency": 1, "vocab_size": 30523},
    }
    layout = qformer.layout(Blip2QFormerModel.read_config(config))
    numbers = sum(int(np.prod(shape)) for shape in layout.shapes.values())
    assert 470e6 < numbers < 500e6
    assert layout.shapes["encoder.layer.11.crossattention.attention.key.weight"] == (768, 1024)
    assert layout.shapes["visual_encoder.embeddings.position_embedding"] == (1, 257, 1024)
    assert "visual_encoder.encoder.layers.22.self_attn.qkv.bias" in layout.shapes
    assert "visual_encoder.encoder.layers.23.self_attn.qkv.bias" not in layout.shapes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_query_tokens": 0}, "num_query_tokens=0 is not supported"),
        ({"num_query_tokens": "16"}, "num_query_tokens='16' is not supported"),
        ({"vision_config": 3}, "BLIP vision config is 3"),
        ({"vision_config": {"num_attention_heads": 7}}, "num_attention_heads=7"),
        ({"vision_config": {"patch_size": 300}}, "patch_size=300 is larger than image_size=224"),
        ({"vision_config": {"hidden_size": 1024}}, "encoder_hidden_size=1408.*allowed: 1024"),
        (
            {"qformer_config": {"position_embedding_type": "relative_key"}},
            "position_embedding_type='relative_key' is not supported",
        ),
        ({"qformer_config": {"cross_attention_frequency": 0}}, "cross_attention_frequency=0"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(InputError, match=message):
        read(Blip2Config, fields)
