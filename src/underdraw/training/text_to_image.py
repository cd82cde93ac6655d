"""Training the denoiser, alone or with its text tower."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from underdraw.errors import InputError
from underdraw.formats.writing import writing_file
from underdraw.networks.sites import NO_SITES
from underdraw.pipelines.components.advice import Advice
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.scenes import words
from underdraw.schedulers import DPMSolverMultistepScheduler
from underdraw.training.data import TRUTH, Examples, RenderedScenes, shuffled
from underdraw.training.loop import Batch, Draw, Figures
from underdraw.training.objectives import Objective, ObjectiveConfig
from underdraw.training.spoken import Spoken
from underdraw.training.tokens import tokenize
from underdraw.training.truth import Recorder, TruthHeads
from underdraw.training.wire import images, signed

ADVICE = Advice(guidance_scale=4.5, words=words())
"""For small networks: at the usual 7.5 colours of theirs go over. They know the scenes only."""


@dataclass(frozen=True)
class TextToImageConfig:
    """`drop_caption` of the captions are empty, for classifier-free guidance (Ho & Salimans 2022).

    `train_text` also trains the text tower. `truth` weighs what `training.truth` adds, where the
    examples know what stands where; it needs three levels or more. `prompts` are drawn with
    `guidance` in previews. `gradient_checkpointing` trains in less memory and more time.
    `captions` of each example are drawn once, ahead (`training.spoken`); with 0 it has a new one
    each time.
    """

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    drop_caption: float = 0.1
    train_text: bool = False
    captions: int = 0
    truth: float = 0.0
    prompts: tuple[str, ...] = ()
    guidance: float = 4.0
    preview_steps: int = 20
    gradient_checkpointing: bool = False


class TextToImageTask:
    """`Task` for a UNet on captioned latents or images.

    Args:
        family: `vae`, `text_encoder`, `tokenizer`, `unet` by name, as a pipeline's components. The
            autoencoder may be missing if there are `latents` and no previews.
        examples: captions, and images where there are no `latents`.
        latents: `(len(examples), channels, h, w)`, unscaled means of the autoencoder.
        spoken: the captions to be learnt from, as a frozen text tower reads them; without, those
            of the examples.
        heads: what tells the truth, to go on with; without, new ones are made.
    """

    def __init__(
        self,
        family: dict[str, Any],
        examples: Examples,
        config: TextToImageConfig | None = None,
        latents: np.ndarray | None = None,
        seed: int = 0,
        *,
        spoken: Spoken | None = None,
        heads: TruthHeads | None = None,
    ) -> None:
        self.config = config or TextToImageConfig()
        self.spoken = spoken
        if self.config.train_text and spoken is not None:
            raise InputError("train_text=True: captions cannot be read ahead")
        self.unet, self.text_encoder = family["unet"], family["text_encoder"]
        self.tokenizer = family["tokenizer"]
        self.vae: Any = family.get("vae")
        self.examples, self.latents, self.seed = examples, latents, seed
        if self.vae is None and (latents is None or self.config.prompts):
            raise InputError("family has no 'vae'; images and previews need one")
        if latents is not None and len(latents) != len(examples):
            raise InputError(f"{len(latents)} latents for {len(examples)} examples")
        self.scale: float = self.vae.config.scaling_factor if self.vae is not None else 1.0
        self.objective = Objective(self.config.objective)
        self.modules = {"unet": self.unet}
        if self.config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.config.truth:
            self.modules["heads"] = heads or self._heads()
        if self.config.train_text:
            self.modules["text_encoder"] = self.text_encoder
        else:
            self.text_encoder.requires_grad_(False)
        if self.vae is not None:
            self.vae.requires_grad_(False)

    def _heads(self) -> TruthHeads:
        if not isinstance(self.examples, RenderedScenes):
            raise InputError(
                f"truth={self.config.truth} needs examples that know what stands where; "
                f"{type(self.examples).__name__} does not"
            )
        return TruthHeads.for_unet(self.unet.config, TRUTH)

    def draw(self, draw: Draw) -> Batch:
        indices = shuffled(len(self.examples), draw.first, draw.count, self.seed)
        told = self._told(indices, draw.rng)
        generator = draw.generator()
        if self.latents is not None:
            order = np.argsort(indices)  # memory-mapped: read in order
            clean = np.empty((draw.count, *self.latents.shape[1:]), np.float32)
            clean[order] = self.latents[indices[order]]
            values = {"clean": torch.from_numpy(clean) * self.scale}
            shape: Sequence[int] = clean.shape
        else:
            pixels = images(self.examples, indices)
            values = {"pixels": pixels}
            c = self.vae.config
            sides = [side // c.factor for side in pixels.shape[2:]]
            shape = (draw.count, c.latent_channels, *sides)
            values["posterior"] = torch.randn(shape, generator=generator)
        heads: Any = self.modules.get("heads")
        if heads is not None:
            values["truth"] = heads.asked(self.examples, indices)
        return {
            **values,
            **told,
            "noise": torch.randn(shape, generator=generator),
            "timesteps": self.objective.timesteps(draw.count, generator),
        }

    def _told(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Captions as ids, or as what the text tower makes of them; some of them empty."""
        if self.spoken is not None:
            which = rng.integers(self.spoken.count, size=len(indices))
            which[rng.random(len(indices)) < self.config.drop_caption] = -1
            return {"context": self.spoken.contexts(indices, which)}
        captions = self.examples.captions(indices, rng)
        dropped = rng.random(len(indices)) < self.config.drop_caption
        texts = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
        return {"ids": self.tokenize(texts)}

    def tokenize(self, texts: list[str]) -> Tensor:
        """Ids `(n, length of the text tower)`."""
        length = self.text_encoder.config.max_position_embeddings
        return torch.from_numpy(tokenize(self.tokenizer, length, texts))

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        context = batch.get("context")
        if context is None:
            with torch.set_grad_enabled(self.config.train_text):
                context = self.text_encoder(batch["ids"]).last_hidden_state
        if "clean" in batch:
            clean = batch["clean"]
        else:
            with torch.no_grad():
                found = self.vae.encode(signed(batch["pixels"])).latent_dist
                clean = (found.mean + found.std * batch["posterior"]).float() * self.scale
        noisy = self.objective.add_noise(clean, batch["noise"], batch["timesteps"])
        heads, record = self.modules.get("heads"), None
        if heads is not None:
            record = Recorder(heads.places)
        sites = NO_SITES if record is None else record.sites
        output = self.unet(noisy, batch["timesteps"], context, sites=sites).sample
        loss = self.objective.loss(output, clean, batch["noise"], batch["timesteps"])
        if heads is None or record is None:
            return loss, {}
        told, figures = heads(record.seen, batch["truth"])
        return loss + self.config.truth * told, {"denoising": loss.detach(), **figures}

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        if self.config.prompts:
            draw_grid(
                self.pipeline(),
                self.config.prompts,
                folder / "preview.png",
                steps=self.config.preview_steps,
                guidance=self.config.guidance,
            )
        return {}

    def pipeline(self) -> Any:
        """A pipeline over these very networks (not copies), as they stand now."""
        return make_pipeline(
            {name: getattr(self, name) for name in ("vae", "text_encoder", "tokenizer", "unet")},
            self.config.objective,
        )


def scheduler_for(objective: ObjectiveConfig) -> Any:
    """The solver that goes with a trained family: DPM-Solver++ of second order.

    Its config also says what others are to do with the family's latents: DDIM, DDPM and PNDM read
    it when they take its place, and by their own defaults would clip latents to [-1, 1].
    """
    own = {
        "num_train_timesteps": objective.num_train_timesteps,
        "beta_start": objective.beta_start,
        "beta_end": objective.beta_end,
        "beta_schedule": objective.beta_schedule,
        "rescale_betas_zero_snr": objective.rescale_betas_zero_snr,
        "prediction_type": objective.prediction_type,
        "timestep_spacing": "trailing",
        "steps_offset": 1,
    }
    of_others = {"clip_sample": False, "set_alpha_to_one": True, "skip_prk_steps": True}
    return DPMSolverMultistepScheduler.from_config({**own, **of_others})


def make_pipeline(family: dict[str, Any], objective: ObjectiveConfig) -> Any:
    """`StableDiffusionPipeline` over the networks of a family."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "image_encoder", "feature_extractor")
    parts = {name: family[name] for name in names if family.get(name) is not None}
    return StableDiffusionPipeline(**parts, scheduler=scheduler_for(objective))


def draw_grid(
    pipeline: Any,
    prompts: Sequence[str],
    path: Path,
    *,
    steps: int = 20,
    guidance: float = 4.0,
    columns: int = 4,
    seed: int = 0,
) -> None:
    """Draw one image per prompt, image i from seed `seed + i`, and save them as one picture."""
    made = pipeline(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        seed=[seed + i for i in range(len(prompts))],
        output_type="np",
    ).images
    tiles = np.clip(np.asarray(made) * 255 + 0.5, 0, 255).astype(np.uint8)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1:3]
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = tile
    with writing_file(path) as file:
        Image.fromarray(sheet).save(file, "PNG")


def save_family(
    family: dict[str, Any], objective: ObjectiveConfig, folder: str | Path, half: bool = True
) -> None:
    """Write the family as a published pipeline folder, with fp16 weights if `half`.

    The networks given are left as they are.
    """
    parts = {
        name: copy.deepcopy(part).half() if half and isinstance(part, torch.nn.Module) else part
        for name, part in family.items()
    }
    pipe = make_pipeline(parts, objective)
    pipe.advice = ADVICE
    pipe.save_pretrained(folder)
