"""The denoiser's loss on pictures with captions, for whatever learns beside a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from underdraw.errors import InputError
from underdraw.networks.sites import Sites
from underdraw.pipelines.components.registry import uncompiled
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from underdraw.schema import OneOf, Range, Schema
from underdraw.training.adapters.buckets import nearest, ordered, sizes_around
from underdraw.training.adapters.learners import Learner
from underdraw.training.adapters.pictures import TrainingPictures
from underdraw.training.data import to_signed
from underdraw.training.loop import Batch, Draw, Figures, autocast
from underdraw.training.objectives import WEIGHTINGS, Objective, ObjectiveConfig
from underdraw.training.text_to_image import draw_grid

INPAINTING = 5
"""Channels that UNets for inpainting see beside the latents: a mask and a picture with holes."""
SAMPLES = "samples"
"""Folder of what is drawn while training."""
NEEDED = ("unet", "vae", "text_encoder", "tokenizer")


@dataclass(frozen=True)
class PicturesConfig(Schema):
    """How pictures are looked at, what is asked for, and what is drawn meanwhile.

    `size` is the side of a square picture in pixels, by default what the UNet was trained with.
    With `buckets` pictures keep their proportions, as far as sizes of that area allow; else squares
    are cut from their middles. `flip` mirrors half of them. `drop_caption` of them have no caption,
    for guidance (Ho & Salimans 2022). `weighting` and `gamma` are as in `ObjectiveConfig`
    ("min_snr" is Hang et al. 2023). `offset_noise` adds so much noise that is one number per
    channel, with which brightness is learned sooner (Guttenberg 2023; usual are 0.05 to 0.1).
    `prompts` are drawn in previews, with `guidance` and `steps`. `gradient_checkpointing` trains in
    less memory and more time.
    """

    owner = "config of a training"

    size: Annotated[int, Range(8, 16384)] | None = None
    buckets: bool = True
    flip: bool = False
    drop_caption: Annotated[float, Range(0, below=1)] = 0.05
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"
    gamma: Annotated[float, Range(above=0, high=1e6)] = 5.0
    offset_noise: Annotated[float, Range(0, 1)] = 0.0
    prompts: tuple[str, ...] = ()
    guidance: Annotated[float, Range(0, 1000)] = 7.5
    steps: Annotated[int, Range(1, 1000)] = 20
    gradient_checkpointing: bool = False


class Encoded(NamedTuple):
    """A picture as the autoencoder sees it: mean and deviation of its latents `(ways, channels,
    height, width)`, as it is and, where pictures are mirrored, the other way round; and where holes
    are to be cut into it its pixels, uint8 `(height, width, 3)`."""

    mean: Tensor
    deviation: Tensor
    pixels: np.ndarray | None


@dataclass(frozen=True)
class Prior:
    """Pictures of the class that a subject is of, of which as many are learned from, so that the
    checkpoint goes on drawing others (Ruiz et al. 2023); `weight` is of their part of the loss."""

    pictures: TrainingPictures
    weight: float = 1.0


class PictureTask:
    """`Task` that has `learner` learn from pictures with captions.

    Args:
        pipe: any pipeline of ours on PyTorch; its networks stay as they are.
        prior: pictures of a class of which as many are learned from.
        progress: of encoding the pictures; a bar, none, or, None, one in a terminal.

    Raises:
        InputError: the pipeline lacks a network, or is on another backend, or its UNet sees more
            than latents and, for inpainting, holes.
    """

    def __init__(
        self,
        pipe: Any,
        pictures: TrainingPictures,
        learner: Learner,
        config: PicturesConfig | None = None,
        prior: Prior | None = None,
        seed: int = 0,
        progress: bool | None = False,
    ) -> None:
        self.pipe, self.learner, self.config = pipe, learner, config or PicturesConfig()
        self.prior, self.seed, c = prior, seed, self.config
        self.modules = learner.modules
        self.own = pipe.parts.unet.config
        self.inpainting = self.own.in_channels == self.own.out_channels + INPAINTING
        self.objective = Objective(objective_of(pipe, c))
        self.vae = pipe.parts.vae
        scale: float = self.vae.config.scaling_factor
        self.scale = scale
        self.shown = _Shown(self, pictures, progress)
        self.kept = None if prior is None else _Shown(self, prior.pictures, progress)

    # -- what a step sees
    def draw(self, draw: Draw) -> Batch:
        c, count, generator = self.config, draw.count, draw.generator()
        rows: list[tuple[_Shown, int, float]] = []
        if self.prior is None or self.kept is None:
            rows = [(self.shown, i, 1.0) for i in self.shown.order(draw.first, count, count)]
        else:  # even numbers of the endless stream are of the subject, odd ones of its class
            each = -(-count // 2)
            for number in range(draw.first, draw.first + count):
                own = number % 2 == 0
                shown = self.shown if own else self.kept
                (i,) = shown.order(number // 2, 1, each)
                rows.append((shown, i, 1.0 if own else self.prior.weight))
        texts = [shown.pictures.says(i, draw.rng) for shown, i, _ in rows]
        dropped = draw.rng.random(count) < c.drop_caption
        ways = draw.rng.integers(2 if c.flip else 1, size=count)
        encoded = [shown.encoded[i] for shown, i, _ in rows]
        clean = [
            (one.mean[way] + one.deviation[way] * _noise(one.mean[way], generator)) * self.scale
            for one, way in zip(encoded, ways, strict=True)
        ]
        noise = [_noise(one, generator) for one in clean]
        if c.offset_noise:
            noise = [
                one + c.offset_noise * torch.randn(len(one), 1, 1, generator=generator)
                for one in noise
            ]
        values: dict[str, Any] = {
            "ids": self.learner.ids(
                ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
            ),
            "clean": clean,
            "noise": noise,
            "timesteps": self.objective.timesteps(count, generator),
            "weights": torch.tensor([weight for _, _, weight in rows]),
        }
        if self.inpainting:
            values["keep"] = [_holes(one.shape[1:], draw.rng) for one in clean]
            values["pixels"] = [
                _mirrored(one.pixels, way) for one, way in zip(encoded, ways, strict=True)
            ]
        return values

    # -- what it learns
    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        context, device = self.learner.context(batch["ids"]), batch["ids"].device
        unet, deltas = self.learner.unet()
        losses: list[Tensor] = []
        for rows in _alike(batch["clean"]):
            clean, noise = (
                torch.stack([batch[name][i] for i in rows]).to(device)
                for name in ("clean", "noise")
            )
            times = batch["timesteps"][rows]
            noisy = self.objective.add_noise(clean, noise, times)
            if self.inpainting:
                noisy = torch.cat([noisy, *self._seen_of_holes(batch, rows, clean)], 1)
            output = unet(noisy, times, context[rows], sites=Sites(leaves=deltas)).sample
            error = output.float() - self.objective.target(clean, noise, times)
            error = error.square().mean((1, 2, 3)) * self.objective.weights(times)
            losses.append(error * batch["weights"][rows])
        return torch.cat(losses).mean(), {}

    def _seen_of_holes(self, batch: Batch, rows: Sequence[int], clean: Tensor) -> list[Tensor]:
        """The further channels of a UNet for inpainting, in the order of its kind."""
        keep = torch.stack([batch["keep"][i] for i in rows]).to(clean)
        if self.own.attention_type != "default":  # GLIGEN's, which cuts holes into latents
            return [clean * keep, keep]
        pixels = to_signed(np.stack([batch["pixels"][i] for i in rows])).to(clean)
        factor = self.vae.config.factor
        large = keep.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        # In its own half precision, if it is in one: the training's may be another.
        with torch.no_grad(), autocast(self.vae.device, self.vae.dtype):
            masked = self.vae.encode((pixels * large).to(self.vae.dtype)).latent_dist.mode()
        return [1 - keep, masked.float() * self.scale]

    # -- what people see
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        if self.config.prompts:
            path = folder / SAMPLES / f"{step:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            c = self.config
            draw = drawing(self.pipe, c, self.learner)
            draw_grid(draw, c.prompts, path, steps=c.steps, guidance=c.guidance, seed=self.seed)
        return {}


class _Shown:
    """Pictures brought to their sizes and encoded ahead."""

    def __init__(
        self, task: PictureTask, pictures: TrainingPictures, progress: bool | None
    ) -> None:
        self.pictures, self.seed = pictures, task.seed
        c, side = task.config, side_of(task.pipe, task.config)
        levels = len(task.own.block_out_channels)
        multiple = task.vae.config.factor * 2 ** (levels - 1)
        sizes = sizes_around(side, multiple) if c.buckets else [(side, side)]
        # What is nearest to the proportions of a picture, of those sizes that it can fill.
        own = [nearest(pictures.size(i), sizes) for i in range(len(pictures))]
        self.groups = [sizes.index(size) for size in own]
        shown = tqdm(
            own, desc="encoding", unit="picture", disable=None if progress is None else not progress
        )
        self.encoded = [self._encode(task, i, *size) for i, size in enumerate(shown)]

    def order(self, first: int, count: int, batch: int) -> list[int]:
        """Numbers of pictures in the endless stream."""
        return ordered(self.groups, first, count, batch, self.seed).tolist()

    def _encode(self, task: PictureTask, index: int, height: int, width: int) -> Encoded:
        pixels = self.pictures.cut(index, height, width)
        ways = [pixels, pixels[:, ::-1]] if task.config.flip else [pixels]
        with torch.no_grad():
            seen = to_signed(np.stack(ways)).to(task.vae.device, task.vae.dtype)
            found = task.vae.encode(seen).latent_dist
        mean, deviation = found.mean.float().cpu(), found.std.float().cpu()
        if not bool(torch.isfinite(mean).all()):
            raise InputError(
                f"pictures[{index}] has latents that are not finite; load the pipeline with "
                "dtype='float32'"
            )
        return Encoded(mean, deviation, pixels if task.inpainting else None)


def drawing(pipe: Any, config: PicturesConfig, learner: Learner | None = None) -> Any:
    """What draws prompts in the size of the training, with what was learned if there is any:
    called as a pipeline."""
    side = side_of(pipe, config)
    how: dict[str, Any] = {"height": side, "width": side}
    kind: Any = StableDiffusionPipeline
    own = pipe.parts.unet.config
    if own.in_channels != own.out_channels:  # for inpainting: a picture that is all hole
        grey = Image.new("RGB", (side, side), (128, 128, 128))
        how |= {"image": grey, "mask_image": Image.new("L", (side, side), 255)}
        kind = StableDiffusionInpaintPipeline
    made = kind.from_pipe(pipe)
    if learner is not None:
        made = learner.pipeline(made)
    made.set_progress_bar_config(disable=True)
    made.advice = replace(made.advice, words=())  # it is learning new ones
    return partial(made, **how)


def check_pipeline(pipe: Any) -> None:
    """Raise an InputError where a pipeline cannot be trained beside."""
    parts = pipe.parts
    if parts.framework.operations.name != "torch":
        raise InputError(f"pipe is on {parts.framework.operations.name!r}; allowed: 'torch'")
    for name in NEEDED:
        if parts.named.get(name) is None:
            raise InputError(f"pipe has no {name}, which training needs")
    c = parts.unet.config
    if c.in_channels not in (c.out_channels, c.out_channels + INPAINTING):
        raise InputError(
            f"the UNet of pipe has {c.in_channels} channels at its input and {c.out_channels} at "
            f"its output; allowed at its input: {c.out_channels}, or {c.out_channels + INPAINTING} "
            "for inpainting"
        )
    for name in NEEDED[:3]:
        uncompiled(parts.named[name]).requires_grad_(False)


def objective_of(pipe: Any, config: PicturesConfig) -> ObjectiveConfig:
    """What the pipeline's UNet was trained to predict, and how levels count."""
    scheduler = pipe.scheduler.config
    if scheduler.get("trained_betas") is not None:
        raise InputError("the scheduler of pipe has trained_betas; training takes named schedules")
    return ObjectiveConfig.of(scheduler, weighting=config.weighting, gamma=config.gamma)


def side_of(pipe: Any, config: PicturesConfig) -> int:
    """Pixels of a side of a square picture.

    Raises:
        InputError: `config.size` is no multiple of what the autoencoder shrinks by.
    """
    trained = pipe.parts.unet.config.sample_size
    factor = pipe.parts.vae.config.factor
    if config.size is not None and config.size % factor:
        raise InputError(f"size={config.size} must be a multiple of {factor}")
    return config.size or factor * (trained if isinstance(trained, int) else min(trained))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _mirrored(pixels: np.ndarray | None, way: int) -> np.ndarray:
    assert pixels is not None  # which is kept for inpainting
    return np.ascontiguousarray(pixels[:, ::-1]) if way else pixels


def _alike(latents: Sequence[Tensor]) -> Iterator[list[int]]:
    """Rows whose latents have one size, so that they share a call."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(latents):
        found.setdefault(tuple(one.shape), []).append(i)
    yield from found.values()


def _holes(sides: Sequence[int], rng: np.random.Generator) -> Tensor:
    """`(1, height, width)`: 0 in one to three boxes, of which some cover nearly all, 1 elsewhere;
    one in eight is all hole."""
    keep = np.ones((1, *sides), np.float32)
    if rng.random() < 0.125:
        return torch.from_numpy(keep * 0)
    for _ in range(int(rng.integers(1, 4))):
        corner, extent = rng.uniform(0, 0.8, 2), rng.uniform(0.1, 0.9, 2)
        low = np.floor(corner * sides).astype(int)
        high = np.ceil(np.minimum(corner + extent, 1) * sides).astype(int)
        keep[:, low[0] : high[0], low[1] : high[1]] = 0
    return torch.from_numpy(keep)
