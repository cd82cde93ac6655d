"""What a good autoencoder or sampler may do to a picture without being called wrong for it:
blur, lost detail, blocks, noise, a slight shift of colour. The evaluator trains on pictures
treated so, and its robustness is measured with the same functions."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 3, height, width), `sigma` in pixels."""
    reach = max(1, round(3 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    line = line / line.sum()
    images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    images = F.conv2d(images, line.reshape(1, 1, 1, -1).repeat(3, 1, 1, 1), groups=3)
    return F.conv2d(images, line.reshape(1, 1, -1, 1).repeat(3, 1, 1, 1), groups=3)


def resample(images: Tensor, factor: float) -> Tensor:
    """Shrunk by `factor` >= 1 and brought back to size."""
    height, width = images.shape[2:]
    small = (max(8, round(height / factor)), max(8, round(width / factor)))
    images = F.interpolate(images, small, mode="bilinear", antialias=True)
    return F.interpolate(images, (height, width), mode="bicubic").clamp(0, 1)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Through a JPEG file of that quality (1 to 95)."""
    arrays = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    done = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality)
        done.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).float() / 255


def blotches(images: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """Smooth coloured noise, such as a sampler that stopped early leaves."""
    count, _, height, width = images.shape
    coarse = rng.normal(0, amount, (count, 3, max(2, height // 8), max(2, width // 8)))
    noise = torch.from_numpy(coarse.astype(np.float32))
    return images + F.interpolate(noise, (height, width), mode="bicubic")


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A batch (n, 3, height, width) in [0, 1], each quarter treated in one way, then all with
    slight changes of light and colour and noise."""
    parts = list(images.chunk(4))
    order = rng.permutation(len(parts))
    for kind, place in enumerate(order):
        part = parts[place]
        if kind == 0:
            part = blur(part, float(rng.uniform(0.3, 1.6)))
        elif kind == 1:
            part = resample(part, float(rng.uniform(1.2, 3.0)))
        elif kind == 2:
            part = jpeg(part, int(rng.integers(25, 90)))
        parts[place] = part
    images = torch.cat(parts)
    images = blotches(images, float(rng.uniform(0, 0.03)), rng)
    count = len(images)
    gain = rng.uniform(0.9, 1.1, (count, 1, 1, 1)) * rng.uniform(0.96, 1.04, (count, 3, 1, 1))
    # PyTorch's noise is made faster than numpy's, which costs as much as the rest together.
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    noise = torch.randn(images.shape, generator=generator) * float(rng.uniform(0, 0.025))
    images = images * torch.from_numpy(gain.astype(np.float32)) + noise
    return images.clamp(0, 1)
