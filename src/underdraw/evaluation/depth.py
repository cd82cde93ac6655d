"""How far away things look in a picture of a scene: what judges pictures that follow a depth map.

A small network (see `network.py`), trained like the evaluator on renders of seeds of its own.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .images import as_images
from .network import DepthNetwork
from .weights import FOLDER, read_network

WEIGHTS = FOLDER / "depth.safetensors"
SIDE = 128  # the network sees every picture with a shorter side of this many pixels


class DepthEstimator:
    """Tells inverse depth from pictures. Deterministic; a picture does not depend on its batch."""

    def __init__(self, network: DepthNetwork) -> None:
        self.network = network.eval()

    def estimate(self, images: Any, batch: int = 32) -> np.ndarray:
        """Inverse depth of each picture, float32 `(n, height, width)`: 1 at its nearest place and 0
        at its farthest, as maps for ControlNets are.

        Args:
            images: `(n, height, width, 3)` in [0, 1] or pictures, see `as_images`; scaled so that
                the shorter side is 128.
        """
        import torch

        pictures, found = as_images(images), []
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                chunk = torch.from_numpy(pictures[start : start + batch]).permute(0, 3, 1, 2)
                found.append(self._estimate(chunk.contiguous()).numpy())
        return np.concatenate(found)

    def _estimate(self, images: Any) -> Any:
        from torch.nn import functional as F

        height, width = images.shape[2:]
        scale = SIDE / min(height, width)
        rows, columns = round(height * scale), round(width * scale)
        if (rows, columns) != (height, width):
            images = F.interpolate(images, (rows, columns), mode="bilinear", antialias=True)
        down, across = (-side % 16 for side in (rows, columns))
        told = self.network(F.pad(images, (0, across, 0, down), mode="replicate"))
        told = told[..., :rows, :columns]
        if (rows, columns) != (height, width):
            told = F.interpolate(told, (height, width), mode="bilinear", antialias=True)
        flat = told[:, 0].flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        spread = (high - low).clamp(min=1e-6)
        return ((flat - low[:, None]) / spread[:, None]).reshape(-1, height, width)


def load_depth_estimator(path: str | os.PathLike | None = None) -> DepthEstimator:
    """The estimator that ships with the package, or the one that `train_depth` wrote to `path`.

    Raises NotFoundError without that file, WeightError when it holds something else.
    """
    return _load(str(WEIGHTS if path is None else path))


@lru_cache(maxsize=4)
def _load(path: str) -> DepthEstimator:
    return DepthEstimator(read_network(Path(path), DepthNetwork, "depth estimator"))
