"""Gradients in less memory are the same gradients."""

import pytest
import torch
from pipelines import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from underdraw.errors import InputError
from underdraw.models import UNet2DConditionModel
from underdraw.networks.sites import Sites

X, TIMES = (3, 4, 10, 14), [7, 500, 999]


def unet(**changes):
    torch.manual_seed(0)
    return tiny.shake(UNet2DConditionModel(**{**tiny.UNET, **changes}))


def gradients(model, sites=None):
    """Of every parameter, the latents and the context."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(X, generator=generator, requires_grad=True)
    context = torch.randn((3, 5, tiny.WIDTH), generator=generator, requires_grad=True)
    out = model(x, torch.tensor(TIMES), context, sites=sites or Sites()).sample
    model.zero_grad()
    out.square().mean().backward()
    found = {name: value.grad for name, value in model.named_parameters()}
    return out, {**found, "x": x.grad, "context": context.grad}


def saved(model):
    """How many numbers wait for the backward pass."""
    total = 0

    def pack(value):
        nonlocal total
        total += value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        model(torch.randn(X), torch.tensor(TIMES), torch.randn(3, 5, tiny.WIDTH))
    return total


@pytest.mark.parametrize(
    "changes", [{}, {"use_linear_projection": True}, {"resnet_time_scale_shift": "scale_shift"}]
)
def test_the_same_gradients_from_less_that_is_kept(changes):
    model = unet(**changes).train()
    expected, wanted = gradients(model)
    assert all(value is not None for value in wanted.values())
    before = saved(model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    out, found = gradients(model)
    assert torch.equal(out, expected)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)
    assert saved(model) < 0.5 * before
    model.disable_gradient_checkpointing()
    assert saved(model) == before


def test_hooks_of_controls_get_their_gradients():
    model = unet()
    scale = torch.tensor(1.5, requires_grad=True)
    sites = Sites(cross_attention=(lambda nn, place, x: x * scale,))
    gradients(model, sites)
    (expected, scale.grad) = (scale.grad, None)
    assert expected.abs() > 0
    model.enable_gradient_checkpointing()
    gradients(model, sites)
    torch.testing.assert_close(scale.grad, expected)


def test_without_gradients_nothing_is_computed_twice():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    model, counts = unet(), []
    for act in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
        act()
        with torch.no_grad(), Count() as count:
            model(torch.ones(X), 7, torch.ones(3, 5, tiny.WIDTH))
        counts.append(count.calls)
    assert counts[0] == counts[1] > 100


def test_backends_without_it_say_so():
    with pytest.raises(InputError, match="jax"):
        UNet2DConditionModel(**tiny.UNET, backend="jax").enable_gradient_checkpointing()
