"""What a denoiser is asked for, and how much each noise level counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from underdraw.errors import InputError
from underdraw.solvers.schedule import NoiseSchedule, noise_schedule
from underdraw.training.wire import Kept

PREDICTIONS = ("epsilon", "v_prediction", "sample")
WEIGHTINGS = ("uniform", "min_snr", "bounded")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The noise schedule (names of scheduler configs), the prediction type and the weights.

    `weighting`: "uniform" counts all levels of the network's own output alike; "min_snr" is Hang et
    al. 2023, a weight min(SNR, gamma) of the error of the clean latents; "bounded" a weight
    min(SNR + 1, gamma) of it, which for v-prediction is uniform wherever SNR + 1 < gamma: where
    "min_snr" lets the weight of the noisiest levels go to zero, and what is where in the picture
    is decided there, "bounded" keeps it.
    """

    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_timesteps: int = 1000
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "v_prediction"
    weighting: str = "bounded"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        for name, allowed in (("prediction_type", PREDICTIONS), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name}={getattr(self, name)!r}; allowed: {', '.join(map(repr, allowed))}"
                )
        if not self.gamma > 0:
            raise InputError(f"gamma={self.gamma} must be positive")

    @classmethod
    def of(cls, scheduler: Mapping[str, Any], **changes: Any) -> ObjectiveConfig:
        """What a checkpoint was trained with, from its scheduler's config; `changes` are fields
        that it does not say."""
        told = {f.name: scheduler[f.name] for f in fields(cls) if f.name in scheduler}
        return cls(**{**told, **changes})

    def schedule(self) -> NoiseSchedule:
        """The schedule of these fields."""
        return noise_schedule(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            rescale_betas_zero_snr=self.rescale_betas_zero_snr,
        )


class Objective:
    """The diffusion loss on latents `(batch, channels, height, width)`."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.alphas_cumprod = torch.from_numpy(config.schedule().alphas_cumprod.copy())
        self._kept = Kept(self.alphas_cumprod)

    def timesteps(self, count: int, generator: torch.Generator, early: float = 1.0) -> Tensor:
        """`(count,)`, together spread evenly over the levels, which makes the loss of a step less
        noisy (Kingma et al. 2021, appendix I). `early` 1 draws all levels alike, 2 a level as often
        as it is noisy."""
        steps = self.config.num_train_timesteps
        offset = torch.rand((), generator=generator)
        spread = (offset + torch.arange(count) / count) % 1.0
        return (spread ** (1 / early) * steps).long().clamp(max=steps - 1)

    def _alphas(self, timesteps: Tensor) -> Tensor:
        """ᾱ at timesteps."""
        return self._kept.on(timesteps.device)[timesteps]

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas(timesteps)
        shape = (-1, 1, 1, 1)
        return alphas.sqrt().float().view(shape), (1 - alphas).sqrt().float().view(shape)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`sqrt(ᾱ) clean + sqrt(1 - ᾱ) noise` (Ho et al. 2020, eq. 4); `timesteps (batch,)`."""
        alpha, sigma = self._levels(timesteps)
        return alpha * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should answer: the noise, the clean latents, or
        `v = sqrt(ᾱ) noise - sqrt(1 - ᾱ) clean` (Salimans & Ho 2022)."""
        kind = self.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return clean
        alpha, sigma = self._levels(timesteps)
        return alpha * noise - sigma * clean

    def weights(self, timesteps: Tensor) -> Tensor:
        """Weight of the squared error of the network's output at each timestep, `(batch,)`."""
        alphas = self._alphas(timesteps)
        snr = alphas / (1 - alphas)
        if self.config.weighting == "uniform":
            return torch.ones_like(snr).float()
        bounded = self.config.weighting == "bounded"
        on_clean = (snr + 1 if bounded else snr).clamp(max=self.config.gamma)
        # The error of the output, times this, is the error of the clean latents: x0 = x / a - ...
        per_clean = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
        return (on_clean / per_clean[self.config.prediction_type]).float()

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Weighted mean squared error over the batch, in float32."""
        error = output.float() - self.target(clean, noise, timesteps)
        return (error.square().mean((1, 2, 3)) * self.weights(timesteps)).mean()
