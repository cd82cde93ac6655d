"""Targets and weights of the diffusion loss against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from underdraw.errors import InputError
from underdraw.training.objectives import Objective, ObjectiveConfig

TIMES = torch.tensor([0, 17, 400, 999])


def alphas() -> np.ndarray:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1 - betas)[TIMES.numpy()]


def test_noise_and_targets_follow_the_schedule() -> None:
    clean, noise = torch.randn(2, 4, 3, 5, 7).unbind(0)
    a = alphas().reshape(4, 1, 1, 1)
    x, e = clean.numpy().astype(np.float64), noise.numpy().astype(np.float64)
    expected = {
        "epsilon": e,
        "sample": x,
        "v_prediction": np.sqrt(a) * e - np.sqrt(1 - a) * x,
    }
    for kind, target in expected.items():
        objective = Objective(ObjectiveConfig(prediction_type=kind))
        noisy = objective.add_noise(clean, noise, TIMES)
        np.testing.assert_allclose(noisy, np.sqrt(a) * x + np.sqrt(1 - a) * e, atol=1e-5)
        np.testing.assert_allclose(objective.target(clean, noise, TIMES), target, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_weights_of_the_output_are_the_stated_weights_of_the_clean_image(kind: str) -> None:
    """An error in the output is an error in the clean latents; weighting either is the same."""
    snr = alphas() / (1 - alphas())
    for weighting, on_clean in (
        ("min_snr", np.minimum(snr, 5)),
        ("bounded", np.minimum(snr + 1, 5)),
    ):
        objective = Objective(ObjectiveConfig(prediction_type=kind, weighting=weighting))
        clean, noise, error = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64).unbind(0)
        a = torch.from_numpy(alphas()).view(4, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        output = objective.target(clean, noise, TIMES).double() + error
        implied = {
            "epsilon": (noisy - (1 - a).sqrt() * output) / a.sqrt(),
            "sample": output,
            "v_prediction": a.sqrt() * noisy - (1 - a).sqrt() * output,
        }[kind]
        per_image = (implied - clean).square().mean((1, 2, 3)).numpy() * on_clean
        found = objective.loss(output, clean.float(), noise.float(), TIMES)
        np.testing.assert_allclose(found, per_image.mean(), rtol=1e-3)


def test_known_values_of_min_snr() -> None:
    """Hang et al. 2023: min(SNR, 5) / SNR for noise, min(SNR, 5) / (SNR + 1) for v."""
    snr = alphas() / (1 - alphas())
    for kind, expected in (
        ("epsilon", np.minimum(snr, 5) / snr),
        ("v_prediction", np.minimum(snr, 5) / (snr + 1)),
        ("sample", np.minimum(snr, 5)),
    ):
        objective = Objective(ObjectiveConfig(prediction_type=kind, weighting="min_snr"))
        np.testing.assert_allclose(objective.weights(TIMES), expected, rtol=1e-3)
    uniform = Objective(ObjectiveConfig(weighting="uniform"))
    assert uniform.weights(TIMES).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction_type": "velocity"}, "prediction_type='velocity'.*v_prediction"),
        ({"weighting": "max"}, "weighting='max'.*min_snr"),
        ({"gamma": 0.0}, r"gamma=0\.0"),
    ],
)
def test_bad_objectives_are_named(change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ObjectiveConfig(**change)
