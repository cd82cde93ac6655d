"""`CLIPImageProjection`: from CLIP's space of pictures into that of GLIGEN's phrases."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.models.base import Model
from underdraw.networks import image_projection
from underdraw.networks.program import Ask, directly
from underdraw.weights.grounding import read_projection


class CLIPImageProjection(Model):
    """A square matrix without bias, published with GLIGEN for pictures in boxes."""

    config_class = image_projection.ImageProjectionConfig
    network = "image_project"

    @classmethod
    def layout(cls, config: image_projection.ImageProjectionConfig) -> Layout:
        return image_projection.layout(config)

    @classmethod
    @checked
    def from_matrix_file(cls, path: str | os.PathLike[str], **where: Any) -> CLIPImageProjection:
        """From the original's `projection_matrix` file, which multiplies from the right.

        Args:
            where: `dtype`, `device`, `backend` as in `from_pretrained`.

        Raises:
            NotFoundError, WeightError: no such file, or not one square matrix.
        """
        matrix = read_projection(path)
        weight = matrix.derive(matrix.shape, lambda array: array.T.copy())
        config = {"hidden_size": matrix.shape[0]}
        return cls.from_tensors(config, {"project.weight": weight}, **where)

    @checked
    def forward(self, x: Array, ask: Ask = directly) -> Array:
        """Features `(..., hidden_size)` in the other space, of the same shape."""
        rank = len(getattr(x, "shape", ())) - 1
        self._take("x", x, *[None] * rank, self.config.hidden_size)
        return ask(image_projection.PROJECT, self, x)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward
