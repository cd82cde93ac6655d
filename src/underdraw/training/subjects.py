"""What a subject's tokens mean to a denoiser (Li et al. 2023, "BLIP-Diffusion", section 3.3): a
picture of the subject, cut out and put on another background, becomes tokens in a prompt that
names no more than its category, and the denoiser is to draw the picture it was taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from underdraw.backends.deltas import Deltas
from underdraw.errors import InputError
from underdraw.models.wordpiece import PADDING
from underdraw.networks.blip import qformer
from underdraw.networks.program import directly
from underdraw.networks.sites import Sites
from underdraw.training.clip import normalise
from underdraw.training.data import shuffled
from underdraw.training.differences import Differences
from underdraw.training.loop import Batch, Draw, Figures
from underdraw.training.objectives import Objective, ObjectiveConfig
from underdraw.training.subject_encoder import CATEGORY, SubjectExamples, shown
from underdraw.training.subject_words import prompts, read
from underdraw.training.truth import Recorder, TruthHeads
from underdraw.training.wire import images, padded, signed, unpadded


@dataclass(frozen=True)
class SubjectTrainingConfig:
    """`image_tower`: whether the encoder's image tower learns, too; alignment has taught it.
    `rank`: of what is laid over the layers of the UNet, which itself stays as it is; 0 for
    nothing. (The paper trains the UNet.) Of the examples `drop_all` have neither prompt nor
    subject, which is the unconditional side of guidance, and `drop_caption` a prompt that says the
    category alone. `early` 1 draws all noise levels alike, 2 draws a level as often as it is noisy.
    `inside` is how much more the error counts where the subject is; `truth` weighs what heads ask
    of the UNet's features (`training.truth`), where the examples know what stands where."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    image_tower: bool = False
    rank: int = 12
    drop_all: float = 0.1
    drop_caption: float = 0.1
    early: float = 1.5
    inside: float = 2.0
    truth: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_all", "drop_caption"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must be in [0, 1]")
        if self.drop_all + self.drop_caption > 1:
            raise InputError("drop_all and drop_caption must not add up to over 1")
        if self.early < 1 or self.inside < 0 or self.truth < 0:
            raise InputError(
                f"early={self.early} must be at least 1, inside={self.inside} and "
                f"truth={self.truth} 0"
            )
        if not 0 <= self.rank <= 1024:
            raise InputError(f"rank={self.rank} must be in 0 .. 1024")


class SubjectTask:
    """`Task` for a `Blip2QFormerModel` before a frozen text tower and a frozen UNet.

    Args:
        encoder: such as `new_encoder` makes and `AlignmentTask` has trained.
        family: `unet`, `text_encoder`, `tokenizer` and, if there are no `latents`, `vae` by name.
        latents: `(len(examples), channels, h, w)`, unscaled means of the autoencoder.
        scale: `scaling_factor` of the autoencoder, where the family lacks it.
        kinds: how many answers each question of the examples' `truth` has; needed for
            `config.truth`.
        begin: differences to the UNet to go on with, in place of new ones.
    """

    def __init__(
        self,
        encoder: Any,
        family: dict[str, Any],
        examples: SubjectExamples,
        config: SubjectTrainingConfig | None = None,
        latents: np.ndarray | None = None,
        scale: float | None = None,
        seed: int = 0,
        kinds: tuple[int, ...] = (),
        begin: Deltas | None = None,
    ) -> None:
        self.config = config or SubjectTrainingConfig()
        self.encoder, self.examples, self.latents, self.seed = encoder, examples, latents, seed
        self.unet, self.text_encoder = family["unet"], family["text_encoder"]
        self.tokenizer = family["tokenizer"]
        self.vae: Any = family.get("vae")
        if latents is not None and len(latents) != len(examples):
            raise InputError(f"{len(latents)} latents for {len(examples)} examples")
        if self.vae is None and (latents is None or scale is None):
            raise InputError("family has no 'vae'; without it, give latents and scale")
        if self.config.truth and not kinds:
            raise InputError(f"truth={self.config.truth} needs the argument `kinds`")
        self.scale: float = family["vae"].config.scaling_factor if scale is None else scale
        self.objective = Objective(self.config.objective)
        for part in (self.unet, self.text_encoder, self.vae):
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        encoder.requires_grad_(True).visual_encoder.requires_grad_(self.config.image_tower)
        self.modules: Mapping[str, nn.Module] = {"qformer": encoder}
        self.heads: TruthHeads | None = None
        self.differences = differences_for(self.unet, self.config, begin, seed)
        if self.differences is not None:
            self.modules = {**self.modules, "differences": self.differences}
        if self.config.truth:
            self.heads = TruthHeads.for_unet(self.unet.config, kinds)
            self.modules = {**self.modules, "heads": self.heads}

    def draw(self, draw: Draw) -> Batch:
        c, rng, count = self.config, draw.rng, draw.count
        indices = shuffled(len(self.examples), draw.first, count, self.seed)
        categories = [self.examples.category(int(i)) for i in indices]
        fate, texts = rng.random(count), self.examples.captions(indices, rng)
        words: list[str | None] = list(categories)
        for i, chance in enumerate(fate):
            if chance < c.drop_all:
                texts[i], words[i] = "", None
            elif chance < c.drop_all + c.drop_caption:
                texts[i] = f"a {categories[i]}"
        told = self.encoder.config
        length = self.text_encoder.config.max_position_embeddings
        ready = prompts(self.tokenizer, length, texts, words, told.num_query_tokens)
        size = told.vision_config.image_size
        padding = self.encoder.words().vocab[PADDING]
        ids, keep = padded(self.encoder.read(categories), CATEGORY, padding)
        generator = draw.generator()
        values = clean_of(self.vae, self.examples, self.latents, self.scale, indices, generator)
        shape = values["clean" if "clean" in values else "posterior"].shape
        if self.heads is not None:
            values["truth"] = self.heads.asked(self.examples, indices)
        return {
            **values,
            "pixels": shown(self.examples, indices, rng, size),
            "ids": ids,
            "keep": keep,
            "prompts": ready,
            "noise": torch.randn(shape, generator=generator),
            "timesteps": self.objective.timesteps(count, generator, c.early),
            "where": self.examples.where(indices, (int(shape[2]), int(shape[3]))),
        }

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        e = self.encoder
        image = normalise(batch["pixels"], e.config.vision_config.image_size)
        words = unpadded(batch["ids"], batch["keep"])
        tokens = directly(qformer.SUBJECT, e, image, *words)
        context = read(self.text_encoder, batch["prompts"], tokens).last
        deltas = {} if self.differences is None else self.differences.deltas()
        record = None if self.heads is None else Recorder(self.heads.places)
        sites = Sites(leaves=deltas)
        error = denoised(
            self.unet,
            self.objective,
            latents_of(self.vae, batch, self.scale),
            batch,
            context,
            sites if record is None else sites + record.sites,
        )
        area = 1 + self.config.inside * batch["where"][:, None]
        squared = (error * (area / area.mean((1, 2, 3), keepdim=True))).mean((1, 2, 3))
        loss = (squared * self.objective.weights(batch["timesteps"])).mean()
        if record is None or self.heads is None:
            return loss, {}
        truth, figures = self.heads(record.seen, batch["truth"])
        told = {"denoising": loss.detach(), "truth": truth.detach(), **figures}
        return loss + self.config.truth * truth, told

    def overlay(self) -> Deltas:
        """What is laid over the UNet, as it is now, of numpy arrays."""
        return {} if self.differences is None else self.differences.arrays()

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        return {}


def differences_for(
    unet: Any, config: SubjectTrainingConfig, begin: Deltas | None = None, seed: int = 0
) -> Differences | None:
    """What is laid over a UNet while a subject encoder is trained: what is there already, or new
    differences; None for nothing."""
    if not (begin or config.rank):
        return None
    return Differences(unet, 0 if begin else config.rank, begin=begin, seed=seed)


def clean_of(
    vae: Any,
    examples: Any,
    latents: np.ndarray | None,
    scale: float,
    indices: np.ndarray,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Clean latents of examples, or pixels and the noise by which latents are drawn from them."""
    if latents is not None:
        order = np.argsort(indices)  # memory-mapped: read in order
        clean = np.empty((len(indices), *latents.shape[1:]), np.float32)
        clean[order] = latents[indices[order]]
        return {"clean": torch.from_numpy(clean) * scale}
    pixels = images(examples, indices)
    sides = [side // vae.config.factor for side in pixels.shape[2:]]
    shape = (len(indices), vae.config.latent_channels, *sides)
    return {"pixels_clean": pixels, "posterior": torch.randn(shape, generator=generator)}


def latents_of(vae: Any, batch: Batch, scale: float) -> Tensor:
    """Those of `clean_of`, on the device."""
    if "clean" in batch:
        return batch["clean"]
    with torch.no_grad():
        found = vae.encode(signed(batch["pixels_clean"])).latent_dist
        return (found.mean + found.std * batch["posterior"]).float() * scale


def denoised(
    unet: Any, objective: Objective, clean: Tensor, batch: Batch, context: Tensor, sites: Sites
) -> Tensor:
    """Squared errors of the denoiser, in float32, of the shape of `clean`."""
    times = batch["timesteps"]
    noisy = objective.add_noise(clean, batch["noise"], times)
    output = unet(noisy, times, context, sites=sites).sample
    return (output.float() - objective.target(clean, batch["noise"], times)).square()
