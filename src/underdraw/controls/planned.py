"""What is fixed of a run before anything is computed, as `Control.check` sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw.backends.contract import Operations
from underdraw.errors import InputError


@dataclass(frozen=True, eq=False)
class Planned:
    """A run as it will be. Nothing of it has been computed: no text is encoded, no noise drawn."""

    nn: Operations
    """Of the UNet's backend, with the settings of the pipeline."""
    model: Any
    """The UNet."""
    solver: Any
    """`solvers.solver.Solver`"""
    shape: tuple[int, int, int, int]
    """Of the latents: images, channels, height, width."""
    guided: bool = False
    """Whether there is an unconditional half."""
    prompts: Sequence[str] | None = None
    """Texts of the call, where it has any."""
    ids: tuple[np.ndarray, ...] | None = None
    """As `Conditioning.ids`; None where prompts are given as embeddings, empty where a control
    changes words that does not say where (`Control.placed`)."""
    tokens: int | None = None
    """Of the context, where prompts are given as embeddings."""
    components: Any = None
    """The pipeline's `controls.components.Components`; None in a loop without a pipeline."""

    @property
    def images(self) -> int:
        """Images of the run; those of a prompt lie next to each other."""
        return self.shape[0]

    @property
    def calls(self) -> int:
        """Model calls from begin to end."""
        return len(self.solver)

    @property
    def framework(self) -> Any:
        """The backend's arrays (`backends.framework.Framework`)."""
        return self.model._framework

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels.

        Raises:
            InputError: there is no autoencoder that would say so.
        """
        if self.components is None:
            raise InputError(
                "pictures need the autoencoder of a pipeline; this run has none, give latents"
            )
        factor = self.components.vae.config.factor
        return self.shape[2] * factor, self.shape[3] * factor
