"""`CLIPImageProjection`: from CLIP's space of pictures into that of GLIGEN's phrases."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Shape, trace
from underdraw.models.base import Model
from underdraw.networks.config import Config
from underdraw.weights.grounding import read_projection


@dataclass(frozen=True)
class CLIPImageProjectionConfig(Config):
    """`config.json` of a `CLIPImageProjection`."""

    hidden_size: int = 768


class CLIPImageProjection(Model):
    """A square matrix without bias, published with GLIGEN for pictures in boxes."""

    config_class = CLIPImageProjectionConfig
    network = "image_project"

    @classmethod
    def layout(cls, config: CLIPImageProjectionConfig) -> Layout:
        return _layout(config.hidden_size)

    @classmethod
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

    def forward(self, x: Array) -> Array:
        """Features `(..., hidden_size)` in the other space, of the same shape."""
        root: Any = self
        return self.nn.linear(root.project, x, self.config.hidden_size, bias=False)


@cache
def _layout(width: int) -> Layout:
    return trace(lambda nn, p: nn.linear(p.project, Shape(1, width), width, bias=False))
