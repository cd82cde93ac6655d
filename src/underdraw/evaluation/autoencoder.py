"""How much of a picture an autoencoder keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from underdraw import scenes
from underdraw.errors import InputError

from .boxes import assign, wanted_in
from .detector import Evaluator, load_evaluator
from .editing import psnr
from .images import as_images
from .rates import Rate, as_json, table

SEED = 88_317_002  # no training uses it


@dataclass(frozen=True)
class AutoencoderReport:
    """PSNR in dB over `count` unseen renders, and what the evaluator still reads off them.

    `percentile_5` is what all but the worst 5 % reach. `objects`: things whose colour, shape,
    material and size are all right after the round trip; `upper_bound`: the same without it.
    """

    count: int
    mean: float
    percentile_5: float
    median: float
    percentile_95: float
    objects: Rate
    upper_bound: Rate

    def table(self) -> str:
        """For people."""
        rows: list[tuple[str, Any, Any]] = [
            ("PSNR, mean (dB)", self.mean, None),
            ("PSNR, 5th percentile", self.percentile_5, None),
            ("PSNR, median", self.median, None),
            ("PSNR, 95th percentile", self.percentile_95, None),
            ("things fully right", self.objects, self.upper_bound),
        ]
        return table(rows, ("", "round trip", "upper bound (real renders)"))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return as_json(self)


def evaluate_autoencoder(
    vae: Any,
    count: int = 64,
    *,
    height: int = 128,
    width: int = 128,
    seed: int = SEED,
    batch: int = 16,
    progress: bool = True,
    evaluator: Evaluator | None = None,
) -> AutoencoderReport:
    """The round trip of `count` renders of the split "held_out".

    `vae` is an AutoencoderKL on PyTorch (`encode(x).latent_dist.mode()`, `decode(z).sample` on
    (batch, 3, height, width) in [-1, 1]), or a function of arrays (batch, height, width, 3) in
    [0, 1] that gives such arrays. Raises InputError for a count or batch below 1.
    """
    for name, value in (("count", count), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is not an integer of at least 1")
    evaluator = evaluator or load_evaluator()
    there_and_back = vae if not hasattr(vae, "encode") else through(vae)
    ratios: list[float] = []
    after: list[bool] = []
    before: list[bool] = []
    with tqdm(total=count, unit="picture", disable=not progress) as bar:
        for start in range(0, count, batch):
            numbers = range(start, min(start + batch, count))
            samples = [scenes.sample_at(seed, i, height, width, split="held_out") for i in numbers]
            originals = np.stack([sample.rendering.image for sample in samples])
            returned = as_images(np.clip(np.asarray(there_and_back(originals)), 0, 1), "returned")
            if returned.shape != originals.shape:
                raise InputError(f"vae gave {returned.shape} for pictures {originals.shape}")
            ratios += [psnr(a, b) for a, b in zip(returned, originals, strict=True)]
            for shown, marks in ((returned, after), (originals, before)):
                for sample, seen in zip(samples, evaluator.detect(shown), strict=True):
                    wanted = wanted_in(sample.rendering.boxes, sample.scene.objects)
                    for want, (place, _) in zip(wanted, assign(seen, wanted), strict=True):
                        names = ("shape", "colour", "material", "size")
                        marks.append(
                            place is not None
                            and all(seen[place].shows(want.mention, n) for n in names)  # type: ignore[arg-type]
                        )
            bar.update(len(samples))
    low, middle, high = np.percentile(ratios, [5, 50, 95], method="nearest")
    return AutoencoderReport(
        count,
        float(np.mean(ratios)),
        float(low),
        float(middle),
        float(high),
        Rate.count(after),
        Rate.count(before),
    )


def through(vae: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function that sends pictures (n, height, width, 3) in [0, 1] through an AutoencoderKL on
    PyTorch and back; what comes back may leave [0, 1] a little."""
    import torch

    weight = next(vae.parameters())

    def run(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(weight) * 2 - 1
        with torch.inference_mode():
            back = vae.decode(vae.encode(x).latent_dist.mode()).sample
        return (back.float().cpu().permute(0, 2, 3, 1).numpy() + 1) / 2

    return run
