"""`StableDiffusionSafetyChecker`: flags images close to fixed concepts and blackens them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError, InputTypeError
from underdraw.models.base import Model
from underdraw.networks import safety
from underdraw.networks.config import CLIPVisionConfig, inner_config
from underdraw.networks.program import Ask, directly


class StableDiffusionSafetyChecker(Model):
    """The checker published with Stable Diffusion 1.x."""

    config_class = CLIPVisionConfig
    weights_name = "model"
    network = "safety_checker"
    config: CLIPVisionConfig

    @classmethod
    def layout(cls, config: CLIPVisionConfig) -> Layout:
        return safety.layout(config)

    @classmethod
    def adapt_config(cls, raw: dict[str, Any]) -> dict[str, Any]:
        inner = inner_config(raw, "vision_config")
        width = raw.get("projection_dim", inner.get("projection_dim", 512))
        return {**inner, "projection_dim": width}

    def export_config(self) -> dict[str, Any]:
        config = self.config.to_dict()
        return {
            "architectures": [type(self).__name__],
            "model_type": "clip",
            "projection_dim": config["projection_dim"],
            "vision_config": {"model_type": "clip_vision_model", **config},
        }

    @checked
    def forward(self, clip_input: Array, images: Any) -> tuple[Any, list[bool]]:
        """Check images and return them with flagged ones black, and the flags.

        Args:
            clip_input: the images as `CLIPImageProcessor` prepares them.
            images: what to return: an array `(batch, ...)`; it is copied before anything is
                blackened.
        """
        side = self.config.image_size
        self._take("clip_input", clip_input, None, self.config.num_channels, side, side)
        if not (isinstance(images, np.ndarray) or self._framework.is_array(images)):
            raise InputTypeError(f"images is {type(images).__name__}; an array is needed")
        if "sparse" in str(getattr(images, "layout", "")):
            raise InputTypeError("images is sparse; a dense array is needed")
        if images.ndim < 1 or images.shape[0] != clip_input.shape[0]:
            raise InputError(
                f"images has shape {tuple(images.shape)}; clip_input has {clip_input.shape[0]} rows"
            )
        flags = self.flags(clip_input)
        if any(flags):
            images = images.copy() if isinstance(images, np.ndarray) else images.clone()
            for i, flagged in enumerate(flags):
                if flagged:
                    images[i] = 0
        return images, flags

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def flags(self, clip_input: Array, ask: Ask = directly) -> list[bool]:
        """Whether each image is to be withheld.

        Scores are rounded to three digits before they are compared with 0, as the published checker
        does; a hit on a special-care concept lowers all other thresholds by 0.01.
        """
        scores = ask(safety.CONCEPT_SCORES, self, clip_input)
        return withheld(*map(self._framework.to_numpy, scores))


def withheld(special: np.ndarray, concepts: np.ndarray) -> list[bool]:
    """`StableDiffusionSafetyChecker.flags`, from what `networks.safety.concept_scores` gives."""
    special, concepts = (scores.astype(np.float64) for scores in (special, concepts))
    lowered = np.where((special.round(3) > 0).any(1), 0.01, 0.0)
    return [bool(flag) for flag in ((concepts + lowered[:, None]).round(3) > 0).any(1)]
