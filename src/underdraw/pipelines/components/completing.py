"""Components that a pipeline needs and a folder lacks, made of others that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from underdraw.formats.stored import stored
from underdraw.models import CLIPImageProjection
from underdraw.models.base import Model
from underdraw.pipelines.components.processor import CLIPProcessor
from underdraw.pipelines.components.registry import Names, uncompiled


def complete(names: Names, found: dict[str, Any], folder: Path | None) -> None:
    """Add to `found` what is needed and can be made of what it holds.

    Args:
        found: components by name; what is None counts as lacking.
        folder: of the pipeline, where it has one. Beside grounding weights in it the image tower
            was trained into the space of phrases, unless it holds an `image_project`.
    """
    made = {"processor": _processor, "image_project": _projection}
    for name, make in made.items():
        if name in names.needed and found.get(name) is None:
            component = make(found, folder)
            if component is not None:
                found[name] = component


def _processor(found: dict[str, Any], folder: Path | None) -> Any:
    """CLIP's processor is a tokenizer and an image processor, which pipelines hold anyway."""
    pictures, texts = found.get("feature_extractor"), found.get("tokenizer")
    return None if pictures is None or texts is None else CLIPProcessor(pictures, texts)


def _projection(found: dict[str, Any], folder: Path | None) -> Any:
    """The identity, where features of pictures already are as those of phrases."""
    tower = uncompiled(found.get("image_encoder"))
    if folder is None or not isinstance(tower, Model):
        return None
    trained_beside = (folder / "grounding" / "config.json").is_file()
    if not trained_beside or (folder / "image_project").is_dir():
        return None
    width = tower.config.projection_dim
    return CLIPImageProjection.from_tensors(
        {"hidden_size": width},
        {"project.weight": stored(np.eye(width, dtype=np.float32))},
        dtype=tower.dtype,
        device=tower.device,
        backend=tower.nn.name,
    )
