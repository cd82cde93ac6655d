"""Training the autoencoder, and turning a whole data set into latents."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats.arrays import read_array
from underdraw.formats.writing import writing_file
from underdraw.models import AutoencoderKL
from underdraw.training.data import Examples, shuffled, to_signed
from underdraw.training.loop import Batch, Draw, Figures, autocast, resolve_precision
from underdraw.training.wire import images, signed


@dataclass(frozen=True)
class AutoencoderConfig:
    """Training on random crops of `crop` pixels (None: whole images), mirrored half of the time.

    The loss is the mean absolute and squared error of images in [-1, 1], `gradient` times the
    absolute error of differences between neighbours, and `kl` times the mean divergence per number
    of the latents. `freeze_encoder` trains the decoder alone, so that latents stay valid; `anchor`
    weighs how far latents of what is `Known` move, as a mean square.

    `local` weighs what the decoder changes in one place of a picture when the latents of another
    place are exchanged: normalisation sees the whole picture, and a decoder that nobody has told
    otherwise lets what is painted into a hole shine on all that was to be kept. Pictures exchange
    with their neighbours in the batch: a part of a step needs two.
    """

    crop: int | None = 64
    gradient: float = 0.25
    kl: float = 4e-4
    freeze_encoder: bool = False
    anchor: float = 1.0
    local: float = 0.0


@dataclass(frozen=True)
class Known:
    """Pictures whose latents other networks were trained on, and these latents, means without the
    scale, `(n, channels, height, width)`."""

    examples: Examples
    latents: np.ndarray


class AutoencoderTask:
    """`Task` for `AutoencoderKL` on any `Examples`; `shown`, uint8 `(n, height, width, 3)`, are the
    unseen images of the preview and its PSNR.

    With `known` pictures every second one is of them, whole, and an autoencoder learns `examples`
    of another kind beside networks that go on with the latents of these.

    Raises:
        InputError: `crop` is no multiple of the factor, or known pictures would be cropped, or have
            another number of latents.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        examples: Examples,
        config: AutoencoderConfig | None = None,
        shown: np.ndarray | None = None,
        seed: int = 0,
        known: Known | None = None,
    ) -> None:
        config = config or AutoencoderConfig()
        factor: int = vae.config.factor
        if config.crop is not None and config.crop % factor:
            raise InputError(f"crop={config.crop} must be a multiple of {factor}")
        if known is not None and config.crop is not None:
            raise InputError(f"crop={config.crop}: latents of known pictures are of whole ones")
        if known is not None and len(known.latents) != len(known.examples):
            raise InputError(
                f"known: {len(known.latents)} latents of {len(known.examples)} pictures"
            )
        self.vae: Any = vae
        self.examples, self.config, self.shown, self.seed = examples, config, shown, seed
        self.known = known
        self.modules = {"vae": self.vae}
        if config.freeze_encoder:
            for part in (self.vae.encoder, getattr(self.vae, "quant_conv", None)):
                if part is not None:
                    part.requires_grad_(False)

    def draw(self, draw: Draw) -> Batch:
        made: dict[str, Any] = {}
        if self.known is None:
            indices = shuffled(len(self.examples), draw.first, draw.count, self.seed)
            pictures = self._varied(indices, draw.rng)
        else:
            pictures, made = self._mixed(self.known, draw)
        pixels = torch.stack(pictures)
        c = self.vae.config
        latent = (len(pixels), c.latent_channels, *(side // c.factor for side in pixels.shape[2:]))
        made |= {"pixels": pixels, "noise": torch.randn(latent, generator=draw.generator())}
        if self.config.local:
            made["window"] = _windows(len(pixels), latent[2:], draw.rng)
        return made

    def _varied(self, indices: np.ndarray, rng: np.random.Generator) -> list[Tensor]:
        """Crops of pictures, some of them mirrored."""
        crop, parts = self.config.crop, []
        for image in images(self.examples, indices) if len(indices) else ():
            if crop is not None:
                top, left = (int(rng.integers(0, side - crop + 1)) for side in image.shape[1:])
                image = image[:, top : top + crop, left : left + crop]
            parts.append(image.flip(2) if rng.random() < 0.5 else image)
        return parts

    def _mixed(self, known: Known, draw: Draw) -> tuple[list[Tensor], dict[str, Any]]:
        """Pictures by turns of what is known and of what is new, so that all parts of steps have as
        many of either; latents of the former at `held`."""
        held = torch.arange(draw.first, draw.first + draw.count) % 2 == 0
        count, new = int(held.sum()), draw.first // 2  # of the new ones so many came before
        latents = torch.zeros(draw.count, *known.latents.shape[1:])
        indices = shuffled(len(known.examples), draw.first - new, count, self.seed)
        latents[held] = torch.from_numpy(known.latents[indices].astype(np.float32))
        whole = iter(images(known.examples, indices) if count else ())
        others = shuffled(len(self.examples), new, draw.count - count, self.seed)
        varied = iter(self._varied(others, draw.rng))
        pictures = [next(whole if one else varied) for one in held]
        return pictures, {"known": latents, "held": held}

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        pixels = signed(batch["pixels"])
        latents = self.vae.encode(pixels).latent_dist
        mean, logvar = latents.mean.float(), latents.logvar.float()
        sample = mean + (0.5 * logvar).exp() * batch["noise"]
        decoded = self.vae.decode(sample).sample.float()
        error = decoded - pixels
        slopes = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        absolute = error.abs().mean()
        loss = absolute + error.square().mean() + self.config.gradient * slopes
        told: Figures = {"absolute": absolute.detach(), "kl": kl.detach()}
        loss = loss + self.config.kl * kl
        if "known" in batch:
            # Half are known: twice the mean over all is theirs, in whatever parts a step comes.
            apart = (mean - batch["known"]) * batch["held"].view(-1, 1, 1, 1)
            strayed = 2 * apart.square().mean()
            told["strayed"] = strayed.detach()
            loss = loss + self.config.anchor * strayed
        if self.config.local:
            moved = self._moved(sample, decoded.detach(), batch["window"])
            told["moved"] = moved.detach()
            loss = loss + self.config.local * moved
        return loss, told

    def _moved(self, latents: Tensor, decoded: Tensor, window: Tensor) -> Tensor:
        """Mean absolute change of decoded pictures where windows `(n, 1, h, w)` get the latents of
        the picture before; cells beside an edge count a quarter, something has to give there."""
        if len(latents) < 2:
            raise InputError(
                f"local={self.config.local} needs two pictures in every part of a step; "
                "raise batch, or lower accumulate"
            )
        mixed = torch.where(window > 0, latents.roll(1, 0), latents)
        edge = F.max_pool2d(window, 3, 1, 1) + F.max_pool2d(1 - window, 3, 1, 1) > 1.5
        side = decoded.shape[-1] // window.shape[-1]
        inside, edge = (
            part.float().repeat_interleave(side, 2).repeat_interleave(side, 3)
            for part in (window, edge)
        )
        whole = torch.where(inside > 0, decoded.roll(1, 0), decoded)
        change = (self.vae.decode(mixed).sample.float() - whole).abs().mean(1, keepdim=True)
        weight = 1 - 0.75 * edge
        return (change * weight).sum() / weight.sum()

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        if self.shown is None:
            return {}
        first = self.shown[:8]
        back = ((reconstruct(self.vae, first) + 1) * 127.5).round().permute(0, 2, 3, 1)
        rows = [np.concatenate(list(part), 1) for part in (first, back.byte().cpu().numpy())]
        with writing_file(folder / "preview.png") as file:
            Image.fromarray(np.concatenate(rows, 0)).save(file, "PNG")
        return {"psnr": psnr(self.vae, self.shown)}


def _windows(count: int, size: Sequence[int], rng: np.random.Generator) -> Tensor:
    """`(count, 1, *size)`: 1 in a rectangle of up to three quarters of each side, anywhere."""
    made = torch.zeros(count, 1, *size)
    for one in made:
        low, high = [], []
        for side in size:
            length = int(rng.integers(1, max(2, 3 * side // 4 + 1)))
            low.append(int(rng.integers(0, side - length + 1)))
            high.append(low[-1] + length)
        one[:, low[0] : high[0], low[1] : high[1]] = 1
    return made


@torch.no_grad()
def reconstruct(vae: Any, images: np.ndarray) -> Tensor:
    """uint8 `(n, height, width, 3)` through the latents (their mean) and back, in [-1, 1]."""
    pixels = to_signed(images).to(vae.device)
    return vae.decode(vae.encode(pixels).latent_dist.mode()).sample.float().clamp(-1, 1)


def psnr(vae: Any, images: np.ndarray, batch: int = 8) -> float:
    """Mean over images of the peak signal-to-noise ratio of reconstructions, in dB."""
    found = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        error = (reconstruct(vae, part).cpu() - to_signed(part)) / 2
        found += (-10 * error.square().mean((1, 2, 3)).log10()).tolist()
    return math.fsum(found) / len(found)


@torch.no_grad()
def encode_all(
    vae: Any,
    examples: Examples,
    path: str | Path,
    batch: int = 32,
    precision: str = "auto",
    progress: bool | None = False,
) -> np.ndarray:
    """Latents of all examples (their means, not scaled) as float16 `(n, channels, h, w)`, kept in
    the file `path`. Where it holds some already, only those that are missing are computed; of an
    interrupted run, what was done a minute before is beside it and is not computed again. Files
    that cannot be read count as missing.
    `progress` shows a bar; None: where standard error is a terminal."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial.npy")
    parts = [held for held in map(_kept, (partial, path)) if held is not None][:1]
    dtype = resolve_precision(precision, vae.device)
    first, saved = len(parts[0]) if parts else 0, time.monotonic()
    hidden = None if progress is None else not progress
    with tqdm(total=len(examples), initial=first, unit="image", disable=hidden) as bar:
        count = len(examples)
        blocks = [np.arange(k, min(k + batch, count)) for k in range(first, count, batch)]
        read = images(examples, blocks[0]) if blocks else None
        for number, indices in enumerate(blocks, 1):
            assert read is not None
            with autocast(vae.device, dtype):
                mean = vae.encode(signed(read.to(vae.device))).latent_dist.mode()
            if number < len(blocks):  # while an accelerator computes
                read = images(examples, blocks[number])
            parts.append(mean.float().cpu().numpy().astype(np.float16))
            bar.update(len(indices))
            if time.monotonic() - saved > _KEEP:
                _keep(partial, parts)
                saved = time.monotonic()
    _keep(path, parts)
    partial.unlink(missing_ok=True)
    return read_array(path)


_KEEP = 60.0
"""Seconds after which what was encoded since is written."""


def _keep(path: Path, parts: list[np.ndarray]) -> None:
    with writing_file(path) as file:
        np.save(file, np.concatenate(parts))


def _kept(path: Path) -> np.ndarray | None:
    try:
        return np.array(read_array(path))  # a copy: the file is written anew
    except (NotFoundError, WeightError):
        return None


def scaling_factor(latents: np.ndarray) -> float:
    """1 / standard deviation: with it latents have unit variance (Rombach et al. 2022, G)."""
    return float(1 / np.asarray(latents[:4096], np.float64).std())
