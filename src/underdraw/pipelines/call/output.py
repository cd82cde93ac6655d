"""What a call returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underdraw.models.outputs import Output
from underdraw.pictures.writing import save_png


@dataclass
class StableDiffusionPipelineOutput(Output):
    """What a call returns."""

    images: Any
    """A list of PIL images, or an array, as `output_type` says."""
    nsfw_content_detected: list[bool] | None = None
    """Per image, whether the safety checker withheld it; None without a checker."""

    def save(self, pattern: str | Path) -> list[Path]:
        """Write the images as PNG with all that is needed to make them again.

        `pattern` is a file name; several images get `-0`, `-1`, ... before the suffix.
        """
        path, several = Path(pattern), len(self.images) > 1
        paths = [
            path.with_stem(f"{path.stem}-{i}") if several else path for i in range(len(self.images))
        ]
        for image, target in zip(self.images, paths, strict=True):
            save_png(image, target)
        return paths
