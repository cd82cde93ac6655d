"""A leaf that nothing watches is computed without `nn.Module.__call__`; anything else is called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from underdraw.backends.torch import operations

LAYERS = {
    "linear": (nn.Linear(4, 6), (2, 3, 4), lambda p, x: operations.linear(p, x, 6)),
    "conv2d": (nn.Conv2d(4, 6, 3, 2, 1), (2, 4, 5, 7), lambda p, x: operations.conv2d(p, x, 6, 3)),
    "group_norm": (nn.GroupNorm(2, 4), (2, 4, 5, 7), lambda p, x: operations.group_norm(p, x, 2)),
    "layer_norm": (nn.LayerNorm(4), (2, 3, 4), lambda p, x: operations.layer_norm(p, x)),
}
EVERY = pytest.mark.parametrize("name", LAYERS)


def given(name):
    layer, shape, call = LAYERS[name]
    return layer, torch.randn(shape), call


@EVERY
def test_the_same_numbers_as_a_call(name):
    layer, x, call = given(name)
    assert torch.equal(call(layer, x), layer(x))


@EVERY
@pytest.mark.parametrize(
    "hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_run(name, hook):
    layer, x, call = given(name)
    seen = []
    handle = getattr(layer, hook)(lambda *_: seen.append(1))
    call(layer, x.requires_grad_()).sum().backward()
    handle.remove()
    assert seen == [1]


@EVERY
def test_hooks_on_all_modules_run(name):
    layer, x, call = given(name)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    call(layer, x)
    handle.remove()
    assert seen == [1]


@EVERY
def test_a_replaced_forward_runs(name):
    layer, x, call = given(name)
    layer.forward = lambda x: "replaced"
    assert call(layer, x) == "replaced"
    del layer.forward


@EVERY
def test_a_wrapping_layer_is_called(name):
    layer, x, call = given(name)

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = layer

        def forward(self, x):
            return self.base(x) + 1

    assert torch.equal(call(Adapter(), x), layer(x) + 1)


def test_convolutions_wrap_around_when_told_so():
    layer = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    x = torch.randn(1, 2, 5, 7)
    assert torch.equal(operations.conv2d(layer, x, 2, 3), layer(x))


@EVERY
def test_half_precision_on_the_processor(name):
    """In float32 where the processor has no float16, so at least as near to it as a call is."""
    layer, x, call = given(name)
    half = copy.deepcopy(layer).half()
    got = call(half, x.half())
    assert got.dtype == torch.float16
    exact = copy.deepcopy(half).float()(x.half().float())
    assert (got.float() - exact).abs().max() <= 1e-3 * exact.abs().max()
