"""Weights on contexts, on every backend installed. No peer is needed: MindSpore runs this, too."""

import numpy as np
import pytest
import torch

from underdraw import backends
from underdraw.text.prompts import apply_weights


@pytest.fixture(params=backends.installed())
def nn(request):
    return backends.get(request.param)


def arrays(nn, *values):
    return [nn.array(np.asarray(value, np.float32)) for value in values]


def context_of_one_sign():
    random = np.random.default_rng(5)
    return random.normal(-0.4, 1, (3, 11, 64)).astype(np.float32), random.uniform(0, 2, (3, 11))


def test_weights_keep_the_mean_of_each_image(nn):
    """Contexts whose tokens have means of one sign: the common convention to the number."""
    context, weights = context_of_one_sign()
    assert (context.mean(2) < 0).all()
    got = nn.to_numpy(apply_weights(nn.operations, *arrays(nn, context, weights)))
    scaled = context * weights[:, :, None].astype(np.float32)
    wanted = scaled * (context.mean((1, 2)) / scaled.mean((1, 2)))[:, None, None]
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(got.mean((1, 2)), context.mean((1, 2)), rtol=1e-5)
    one = nn.to_numpy(apply_weights(nn.operations, *arrays(nn, context[1:2], weights[1:2])))
    np.testing.assert_allclose(one[0], got[1], rtol=1e-6, atol=1e-7)


def test_weights_of_one_change_no_bit(nn):
    context, _ = context_of_one_sign()
    got = apply_weights(nn.operations, *arrays(nn, context, np.ones((3, 11))))
    assert (nn.to_numpy(got) == context).all()


def test_tokens_of_opposite_mean_cannot_blow_the_context_up(nn):
    context = np.random.default_rng(5).normal(0, 1, (200, 11, 16)).astype(np.float32)
    weights = np.random.default_rng(6).uniform(0.8, 1.3, (200, 11))
    got = nn.to_numpy(apply_weights(nn.operations, *arrays(nn, context, weights)))
    factor = (got / context / weights[:, :, None])[:, 0, 0]
    assert factor.min() >= 1 / 1.3
    assert factor.max() <= 1 / 0.8
    zero = nn.to_numpy(apply_weights(nn.operations, *arrays(nn, context, np.zeros((200, 11)))))
    assert (zero == 0).all()


def test_weights_keep_half_precision():
    context, weights = context_of_one_sign()
    half = torch.from_numpy(context).half()
    got = apply_weights(backends.get("torch").operations, half, torch.from_numpy(weights))
    exact = apply_weights(backends.get("torch").operations, half.float(), torch.from_numpy(weights))
    assert got.dtype == torch.float16
    assert (got.float() - exact).abs().max() <= 2e-3 * exact.abs().max()
