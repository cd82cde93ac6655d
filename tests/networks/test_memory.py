"""What no number shows, but a step's time: where PyTorch's arrays lie, and how long they are held.

The figures are those of Stable Diffusion 1.4 with two boxes at 256 px (`benchmarks/RESULTS.md`).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import pytest
import torch
from backends.harness import give, tree, values
from networks.grounded import Grounded, box_inputs, call_inputs

from underdraw.backends.torch_operations import Torch
from underdraw.networks import unet
from underdraw.networks.gligen import grounding
from underdraw.networks.sites import Sites

CASE = Grounded("text")
FORMATS = pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])


@dataclass(frozen=True)
class Watched(Torch):
    """Remembers queries, keys and values of all attentions, and who of them lives at a GELU."""

    made: list = field(default_factory=list)
    held: list = field(default_factory=list)

    def attention(self, q, k, v, mask=None):
        self.made.extend(weakref.ref(each) for each in (q, k, v))
        return super().attention(q, k, v, mask)

    def living(self):
        return [array for ref in self.made if (array := ref()) is not None]

    def gelu(self, x):
        self.held.append(len(self.living()))
        return torch.nn.functional.gelu(x)


@torch.no_grad()
def run(nn, after_self_attention, form=torch.contiguous_format):
    """A call of the UNet with the text's keys and values computed before it."""
    p = tree("torch", CASE.layout, values(CASE.layout))
    call = {key: give("torch", value) for key, value in call_inputs().items()}
    sample = call["sample"].contiguous(memory_format=form)
    time = unet.embed_time(nn, p, CASE.unet, call["timesteps"], sample)
    sites = Sites(after_self_attention=(after_self_attention(p),))
    constants = unet.context_constants(nn, p, CASE.unet, call["context"])
    return unet.unet(nn, p, CASE.unet, sample, time, constants, sites)


def test_nothing_is_held_while_the_widest_layer_works():
    """What self-attention and a fuser's attention made; 15 % of the page faults of a step.

    Keys and values of the text are constants and live on."""
    nn, left = Watched(), []

    def fusers(p):
        given = {key: give("torch", value) for key, value in box_inputs("text", (2, 0, 1)).items()}
        tokens = grounding.box_tokens(nn, p, CASE.config, **given)
        constants = grounding.constants(nn, p, CASE.config, tokens)
        acting = grounding.Fusers(p, CASE.config, constants)

        def hook(nn, place, x):
            left.append(len(nn.living()))
            nn.made.clear()
            return acting(nn, place, x)

        return hook

    run(nn, fusers)
    blocks, text = len(CASE.config.fusers), 2
    assert left == [0] + [text] * (blocks - 1)  # of the block before
    assert nn.held == [0, text] * blocks  # in the fuser's network, in the block's own


@FORMATS
def test_the_tokens_of_a_block_are_not_a_view(form):
    """Of a view each of five normalisations would make a copy; 1 % of a step."""
    seen = []

    def hook(nn, place, x):
        seen.append(x.is_contiguous())
        return x

    run(Torch(), lambda p: hook, form)
    assert len(seen) == len(CASE.config.fusers)
    assert all(seen)


@FORMATS
def test_an_image_lies_as_the_one_it_joins(form):
    nn, x = Torch(), torch.randn(3, 4, 5, 7).contiguous(memory_format=form)
    back = nn.image(nn.tokens(x), x)
    assert torch.equal(back, x)
    assert back.stride() == x.stride()
