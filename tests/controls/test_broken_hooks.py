"""Hooks that break their contract: the message names what came back, and what the site carries."""

import pytest
import torch
from engines.runs import ended, unet

from underdraw.backends.deltas import LowRank
from underdraw.controls import Control
from underdraw.errors import ControlError
from underdraw.networks.sites import Observed, Sites

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"


class Acting(Control):
    def __init__(self, **sites):
        self.sites = Sites(**sites)

    def before_call(self, nn, carry, latents, call):
        return latents, self.sites, carry


@pytest.fixture(scope="module")
def model():
    return unet()


@pytest.mark.parametrize(
    ("site", "hook", "message"),
    [
        ("down", lambda nn, at, x: None, r"'down_blocks.0' returned NoneType"),
        ("join", lambda nn, at, x, skip: x, r"a tuple of hidden and skip is needed"),
        ("join", lambda nn, at, x, skip: (x, None), r"'up_blocks.0' returned NoneType"),
        ("beside_cross_attention", lambda nn, at, x: Observed(x, 1), r"returned Observed"),
        ("context", lambda nn, x: None, r"'context' returned NoneType; .* \(2, any, 32\)"),
        ("model_input", lambda nn, x: x[:1], r"returned \(1, 4, 5, 9\); .* \(2, any, 5, 9\)"),
    ],
)
def test_what_a_hook_returned_is_named(model, site, hook, message):
    with pytest.raises(ControlError, match=message):
        ended(model, images=1, controls=[Acting(**{site: (hook,)})])


@pytest.mark.parametrize("rows", [2, 3])
def test_factors_for_other_rows(model, rows):
    """Also where the call has a single row, which could be repeated."""
    layer = model.get_submodule(PATH)
    down, up = torch.ones(2, layer.in_features), torch.ones(layer.out_features, 2)
    leaves = {PATH: LowRank(down, up, torch.linspace(0.2, 0.9, rows))}
    with pytest.raises(ControlError, match=rf"{PATH}.* is for {rows} rows; the call has 1"):
        ended(model, images=1, guidance=1.0, controls=[Acting(leaves=leaves)])
