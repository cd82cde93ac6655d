"""The autoencoder's report with round trips whose loss is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from underdraw.errors import InputError
from underdraw.evaluation import evaluate_autoencoder


def test_known_losses():
    report = evaluate_autoencoder(lambda x: x, 6, height=64, width=96, batch=4, progress=False)
    assert report.mean == np.inf
    assert report.objects == report.upper_bound
    darker = evaluate_autoencoder(
        lambda x: np.where(x > 0.5, x - 0.1, x + 0.1), 9, batch=4, progress=False
    )
    assert darker.mean == pytest.approx(20, abs=0.01)
    assert darker.percentile_5 == pytest.approx(20, abs=0.01)
    lost = evaluate_autoencoder(np.zeros_like, 6, progress=False)
    assert lost.objects.right == 0
    assert lost.upper_bound.share > 0.7
    assert "upper bound" in lost.table()
    assert lost.to_json()["upper_bound"]["of"] == lost.upper_bound.of


class Halving(torch.nn.Module):
    """Has the calls of an autoencoder; loses what is finer than two pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def encode(self, x):
        assert x.dtype == torch.float64
        assert x.min() < -0.2
        z = torch.nn.functional.avg_pool2d(x, 2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: z * self.weight))

    def decode(self, z):
        return SimpleNamespace(sample=torch.nn.functional.interpolate(z, scale_factor=2))


def test_autoencoders_are_called_their_way():
    report = evaluate_autoencoder(Halving(), 10, height=96, width=128, batch=3, progress=False)
    assert 20 < report.mean < 40
    assert report.percentile_5 <= report.median <= report.percentile_95
    assert report.objects.share > 0.5


def test_wrong_arguments():
    with pytest.raises(InputError, match="count=0"):
        evaluate_autoencoder(lambda x: x, 0)
    with pytest.raises(InputError, match="for pictures"):
        evaluate_autoencoder(lambda x: x[:, ::2, ::2], 2, progress=False)
    with pytest.raises(InputError, match="nan"):
        evaluate_autoencoder(lambda x: x * np.nan, 2, progress=False)
