"""Gradients with respect to an array, with what else a function tells."""

import numpy as np
import pytest
from backends.harness import give, take

from underdraw import backends


@pytest.mark.parametrize("name", backends.installed())
def test_gradient(name):
    framework = backends.get(name)
    nn = framework.operations
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)

    def cubes(x):
        third = x * x * x
        return nn.mean(third, (0, 1, 2)).reshape(1)[0] * 24, (third, x * 2)

    found, (third, twice) = framework.gradient(cubes, give(name, values))
    np.testing.assert_allclose(take(name, found), 3 * values**2, rtol=1e-5)
    np.testing.assert_allclose(take(name, third), values**3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(take(name, twice), values * 2, rtol=1e-6)


def test_nothing_stays_on_parameters():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        found, (out,) = backends.get("torch").gradient(
            lambda x: (layer(x).sum(), (layer(x),)), torch.ones(1, 3)
        )
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, layer.weight.sum(0, keepdim=True).detach())
    assert layer.weight.grad is None and not out.requires_grad and not found.requires_grad
