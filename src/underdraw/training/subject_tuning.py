"""Fine-tuning to one subject (Li et al. 2023, "BLIP-Diffusion", section 3.4): from a few pictures
of it, in tens of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from underdraw.backends.deltas import Deltas
from underdraw.controls.subject import Subject
from underdraw.controls.subject_tokens import embed, overlay_of
from underdraw.errors import InputError
from underdraw.models.overlay import Overlay, TunedSubject
from underdraw.networks import clip
from underdraw.networks.sites import Sites
from underdraw.pictures.cropping import cut_to
from underdraw.pictures.reading import as_picture
from underdraw.training.data import shuffled, to_signed
from underdraw.training.differences import Differences, copy_with, difference, every_layer
from underdraw.training.loop import Batch, Draw, Figures, TrainingConfig, train
from underdraw.training.objectives import Objective, ObjectiveConfig
from underdraw.training.subject_words import prompts, read
from underdraw.training.subjects import clean_of, denoised, latents_of

TEMPLATES = ("a {}", "a photo of a {}", "a picture of a {}")
"""What prompts of pictures without captions say."""
RUN = TrainingConfig(40, 8, learning_rate=1e-4, warmup=5, ema=0.0)
"""Of `tune_subject`, if nothing else is said."""
FILE = "subject.safetensors"


@dataclass(frozen=True)
class TuningConfig:
    """`embedding`: begin with the mean of the pictures' embeddings, which is trained, too; without
    it this is fine-tuning as in DreamBooth (Ruiz et al. 2023; without its prior preservation), for
    comparison. `rank` None trains all of the UNet, as the paper does; a number low-rank differences
    of that rank, in a much smaller file. `text_encoder` trains the text tower in the same way.
    `drop_caption` of the examples are unconditional. `early` as in `SubjectTrainingConfig`."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    embedding: bool = True
    rank: int | None = None
    text_encoder: bool = False
    drop_caption: float = 0.1
    early: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_caption < 1:
            raise InputError(f"drop_caption={self.drop_caption} must be in [0, 1)")
        if self.early < 1:
            raise InputError(f"early={self.early} must be at least 1")
        if self.rank is not None and not 1 <= self.rank <= 1024:
            raise InputError(f"rank={self.rank} must be in 1 .. 1024, or None")


@dataclass(frozen=True, eq=False)
class SubjectPictures:
    """A few pictures of one subject: PIL pictures or arrays, and for each what to say of it, a text
    with the category in it; None says no more than the category."""

    pictures: Sequence[Any]
    category: str
    captions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.pictures:
            raise InputError("pictures is empty; give at least one picture of the subject")
        if self.captions is not None and len(self.captions) != len(self.pictures):
            raise InputError(
                f"captions has {len(self.captions)} entries; there are {len(self.pictures)} "
                "pictures"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    def squares(self, side: int) -> np.ndarray:
        """Their middles, uint8 `(n, side, side, 3)`."""
        made = [as_picture("pictures", one) for one in self.pictures]
        return np.stack([np.asarray(cut_to(one, side, side), np.uint8) for one in made])

    def says(self, index: int, rng: np.random.Generator) -> str:
        """What to say of a picture."""
        if self.captions is not None:
            return self.captions[index]
        return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(self.category)


class SubjectTuningTask:
    """`Task` that fits a pipeline's networks to one subject; they themselves stay as they are.

    Args:
        pipe: on PyTorch; with subject weights where `config.embedding` asks for them.
        encoder: which of its subject weights, where there are several.
        side: of the pictures in pixels; by default what the UNet was trained with.

    Raises:
        InputError: there are no subject weights, or one of the arguments cannot work.
    """

    def __init__(
        self,
        pipe: Any,
        shown: SubjectPictures,
        config: TuningConfig | None = None,
        encoder: str | None = None,
        side: int | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.shown, self.seed = config or TuningConfig(), shown, seed
        parts, c = pipe.parts, self.config
        if parts.framework.operations.name != "torch":
            raise InputError(f"pipe is on {parts.framework.operations.name!r}; allowed: 'torch'")
        self.unet, self.text_encoder, self.vae = parts.unet, parts.text_encoder, parts.vae
        self.tokenizer, self.objective = parts.tokenizer, Objective(c.objective)
        self.scale = self.vae.config.scaling_factor
        begin, tokens = Overlay(), None
        if c.embedding:
            subject = Subject(list(shown.pictures), shown.category, encoder=encoder)
            with torch.no_grad():
                (tokens,) = embed(parts, [subject])
            begin = overlay_of(parts, subject)
        trained = self.unet.config.sample_size
        trained = trained if isinstance(trained, int) else min(trained)
        squares = shown.squares(side or trained * self.vae.config.factor)
        with torch.no_grad():
            pixels = to_signed(squares).to(self.vae.device, self.vae.dtype)
            self.latents = self.vae.encode(pixels).latent_dist.mode().float().cpu().numpy()
        for part in (self.unet, self.text_encoder, self.vae):
            part.requires_grad_(False)
        self.modules: Mapping[str, nn.Module] = {
            "unet": _trained(self.unet, c.rank, begin.unet, seed),
        }
        if c.text_encoder:
            made = _trained(self.text_encoder, c.rank, begin.text_encoder, seed, every_layer)
            self.modules = {**self.modules, "text_encoder": made}
        self.tokens = None if tokens is None else _Tokens(tokens)
        if self.tokens is not None:
            self.modules = {**self.modules, "embedding": self.tokens}

    def draw(self, draw: Draw) -> Batch:
        c, rng, count = self.config, draw.rng, draw.count
        indices = shuffled(len(self.shown), draw.first, count, self.seed)
        texts = [self.shown.says(int(i), rng) for i in indices]
        words: list[str | None] = [self.shown.category] * count
        for i in np.flatnonzero(rng.random(count) < c.drop_caption):
            texts[i], words[i] = "", None
        if self.tokens is None:
            words = [None] * count
        length = self.text_encoder.config.max_position_embeddings
        room = 0 if self.tokens is None else self.tokens.values.shape[1]
        ready = prompts(self.tokenizer, length, texts, words, room)
        generator = draw.generator()
        clean = clean_of(self.vae, self.shown, self.latents, self.scale, indices, generator)
        return {
            **clean,
            "prompts": ready,
            "noise": torch.randn(clean["clean"].shape, generator=generator),
            "timesteps": self.objective.timesteps(count, generator, c.early),
        }

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        encoder, leaves = _acting(self.text_encoder, self.modules.get("text_encoder"))
        ids = batch["prompts"]
        if self.tokens is None:
            context = clip.text(encoder.nn, encoder, encoder.config, ids, leaves=leaves).last
        else:
            own = self.tokens.values.expand(len(ids), -1, -1)
            context = read(encoder, ids, own, leaves=leaves).last
        unet, deltas = _acting(self.unet, self.modules["unet"])
        clean = latents_of(self.vae, batch, self.scale)
        sites = Sites(leaves=deltas)
        error = denoised(unet, self.objective, clean, batch, context, sites).mean((1, 2, 3))
        return (error * self.objective.weights(batch["timesteps"])).mean(), {}

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        return {}

    def result(self) -> TunedSubject:
        """The subject as it is now."""
        embedding = None if self.tokens is None else self.tokens.values.detach().cpu().numpy()
        made = {
            name: _arrays(getattr(self, name), self.modules.get(name))
            for name in ("unet", "text_encoder")
        }
        return TunedSubject(self.shown.category, embedding, Overlay(**made))


class _Tokens(nn.Module):
    """The subject's tokens as a parameter, `(1, tokens, width)`."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone().float())


def _trained(
    network: Any, rank: int | None, begin: Deltas, seed: int, chosen: Any = None
) -> nn.Module:
    if rank is None:
        return copy_with(network, begin)
    how = {} if chosen is None else {"chosen": chosen}
    return Differences(network, rank, begin=begin, seed=seed, **how)


def _acting(network: Any, trained: nn.Module | None) -> tuple[Any, Deltas]:
    """The network that computes, and what is laid over it."""
    if trained is None:
        return network, {}
    if isinstance(trained, Differences):
        return network, trained.deltas()
    return trained, {}


def _arrays(network: Any, trained: nn.Module | None) -> Deltas:
    if trained is None:
        return {}
    return trained.arrays() if isinstance(trained, Differences) else difference(network, trained)


def tune_subject(
    pipe: Any,
    pictures: SubjectPictures,
    folder: str | Path,
    config: TuningConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    encoder: str | None = None,
    side: int | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> tuple[TunedSubject, Path]:
    """Learn one subject from a few pictures; the subject, and its file in `folder`.

        tuned, _ = tune_subject(pipe, SubjectPictures([a, b, c], "dog"), "runs/dog")
        pipe.load_subject(tuned, name="dog")
        pipe("a dog in the snow", controls=[Subject(encoder="dog", category="dog")])

    Args:
        pipe: with subject weights; it stays as it is.
        training: steps, batch and rate; by default 40 steps of 8.
        encoder: which subject weights, where several are attached.
        side: of the pictures in pixels; by default what the UNet was trained with.

    Raises:
        InputError, InputTypeError: an argument cannot work, or `folder` is of another task.
        loop.Stopped: interrupted; the same call goes on.
    """
    run = training or RUN
    task = SubjectTuningTask(pipe, pictures, config, encoder, side, run.seed)
    device = task.unet.device
    average = train(task, run, folder, resume=resume, device=device, progress=progress)
    with average.applied():
        made = task.result()
    path = Path(folder) / FILE
    made.to_file(path)
    return made, path
