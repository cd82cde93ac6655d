"""What both BLIP-Diffusion pipelines are made of, and diffusers' methods of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Self

from underdraw import checks, models
from underdraw.arguments import checked
from underdraw.backends import seeds
from underdraw.backends.contract import Array
from underdraw.controls.subject import Subject
from underdraw.controls.subject_tokens import encoder_of
from underdraw.errors import InputError
from underdraw.models.blip_processor import Spread, Three, check_statistics
from underdraw.pipelines.base import Component
from underdraw.pipelines.blip.arguments import build_prompts
from underdraw.pipelines.blip.edit import SubjectEdits
from underdraw.pipelines.blip.original import read_original
from underdraw.pipelines.call.conditioning import encode_texts
from underdraw.pipelines.call.latents import LONGEST_SIDE
from underdraw.pipelines.call.plan import MOST_IMAGES, check_prompts
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.registry import uncompiled
from underdraw.pipelines.latent import LatentPipeline
from underdraw.schema import accept

MOST_BEGIN = 65536
"""Positions of a text encoder."""


class BlipPipeline(SubjectEdits, LatentPipeline):
    """Components of `StableDiffusionPipeline`, and a subject encoder with its image processor."""

    components_needed = (
        *("tokenizer", "text_encoder", "vae", "unet", "scheduler", "qformer", "image_processor"),
    )
    components_for_text = ()
    components_optional = ("safety_checker", "feature_extractor")
    switches = ("ctx_begin_pos", "mean", "std", "requires_safety_checker", "compat")
    stored = ("ctx_begin_pos", "mean", "std")

    qformer: Component[models.Blip2QFormerModel]
    image_processor: Component[models.BlipImageProcessor]  # type: ignore[assignment]

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        unet: Any,
        scheduler: Any,
        qformer: Any,
        image_processor: Any,
        ctx_begin_pos: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            qformer=qformer,
            image_processor=image_processor,
            **more,
        )
        encoder_of(self.parts, None)
        self.ctx_begin_pos = checks.whole("ctx_begin_pos", ctx_begin_pos, 1, MOST_BEGIN)
        owner = type(self).__name__
        self.parts.mean = None if mean is None else accept(owner, "mean", mean, Three)
        self.parts.std = None if std is None else accept(owner, "std", std, Spread)
        if self.parts.mean is not None and self.parts.std is not None:
            check_statistics(self.parts.mean, self.parts.std, prefix="")

    @classmethod
    @checked
    def from_original(cls, folder: str | Path, base: str | Path, **options: Any) -> Self:
        """A pipeline from the original's folder (LAVIS' `blip-diffusion`, unpacked).

        Args:
            base: a folder or Hub id of Stable Diffusion 1.5, for configs and vocabulary, and
                networks that the folder lacks.
            options: `vocabulary`, BERT's; `dtype`, `device`, `backend` as in `from_pretrained`;
                components to use instead, or those it lacks (`controlnet`); `ctx_begin_pos`,
                `mean`, `std`.

        Raises:
            NotFoundError, WeightError: a folder or file is not there, or damaged.
            InputTypeError: an option is not known.
        """
        names = ("vocabulary", "dtype", "device", "backend")
        how = {name: options.pop(name) for name in names if name in options}
        made = cls(**{**read_original(folder, base, **how), **options})
        made.source = str(folder)
        return made

    def _accept(self, name: str, value: Any) -> Any:
        value = super()._accept(name, value)
        if name == "text_encoder" and type(value) is not type(uncompiled(value)):
            return value
        if name == "text_encoder" and not isinstance(value, models.ContextCLIPTextModel):
            # The same parameters, under the class that folders of this pipeline name.
            return models.ContextCLIPTextModel.sharing(value.config, value)
        return value

    @property
    def mean(self) -> tuple[float, float, float] | None:
        """By which pictures of subjects are normalised; None: as `image_processor` says."""
        return self.parts.mean

    @property
    def std(self) -> tuple[float, float, float] | None:
        """Likewise."""
        return self.parts.std

    # -- diffusers' methods ------------------------------------------------------------------------
    def get_query_embeddings(self, input_image: Array, src_subject: str | list[str]) -> Array:
        """Tokens of subjects, `(categories, num_query_tokens, hidden_size)`.

        Args:
            input_image: `(1 or categories, 3, side, side)` as `image_processor` gives it.
            src_subject: what is to be seen in each.

        Raises:
            InputError, InputTypeError: an argument does not fit.
        """
        network: Any = self.qformer
        ids, keep = network.read(src_subject, "src_subject")
        pixels = network.check_pixels("input_image", input_image, len(ids))
        with self.parts.framework.no_grad(), self.parts.borrow(network):
            framework = network._framework
            where = {"dtype": network.dtype, "device": self.parts.place(network)}
            pixels = framework.array(pixels, **where)
            return network.encode(pixels, ids, keep, self.parts.ask)

    def encode_prompt(  # type: ignore[override]
        self, query_embeds: Array, prompt: str | list[str], device: Any = None
    ) -> Array:
        """The context of prompts with the tokens of a subject in each, from `ctx_begin_pos` on:
        `(prompts, tokens, width)`.

        Args:
            query_embeds: `(1 or prompts, n, width)` of `get_query_embeddings`.
            prompt: as they are; `_build_prompt` makes those of the call.
            device: diffusers'; contexts are where the pipeline computes.

        Raises:
            InputError, InputTypeError: an argument does not fit.
        """
        checks.device("device", device)
        prompts = checks.texts("prompt", prompt)
        width = self.parts.unet.config.cross_attention_dim
        checks.array("query_embeds", query_embeds, (None, None, width), self.parts.framework)
        rows = query_embeds.shape[0]
        if rows not in (1, len(prompts)):
            raise InputError(f"query_embeds has {rows} rows; there are {len(prompts)} prompts")
        own = tuple(
            Subject(
                embedding=query_embeds[i : i + 1],
                word="subject",
                at=self.ctx_begin_pos,
                prompts=(i,) if rows > 1 else None,
            )
            for i in range(rows)
        )
        request = Request(prompts, own=own, cut=True)
        texts = check_prompts(self.parts, request)
        return encode_texts(self.parts, request, texts, False, texts.count).context

    def _build_prompt(
        self,
        prompts: Sequence[str],
        tgt_subjects: Sequence[str],
        prompt_strength: float = 1.0,
        prompt_reps: int = 20,
    ) -> list[str]:
        """ "a [subject] [prompt]" of each, so many times."""
        return build_prompts(prompts, tgt_subjects, prompt_strength, prompt_reps)

    def prepare_latents(
        self,
        batch_size: int,
        num_channels: int,
        height: int,
        width: int,
        dtype: Any = None,
        device: Any = None,
        generator: Any = None,
        latents: Array | None = None,
    ) -> Array:
        """What a run begins with: noise `(batch_size, num_channels, height, width)` (or `latents`)
        times the scheduler's first noise level. Sides are those of the latents, as in diffusers."""
        names = ("batch_size", "num_channels", "height", "width")
        limits = (MOST_IMAGES, MOST_IMAGES, LONGEST_SIDE, LONGEST_SIDE)
        shape = (batch_size, num_channels, height, width)
        for name, value, most in zip(names, shape, limits, strict=True):
            checks.whole(name, value, 1, most)
        framework = self.parts.framework
        checks.usable("device", device, framework)
        checks.dtype("dtype", dtype)
        drawn = seeds.generators(generator, None, batch_size)
        device = self.parts.device if device is None else device
        if latents is not None:
            checks.array("latents", latents, shape, framework)
            begin = framework.array(latents, dtype=dtype, device=device)
        else:
            like = framework.leaf(self.parts.unet.conv_in).dtype if dtype is None else dtype
            begin = framework.draw(shape, drawn, device, like)
        return begin * getattr(self.parts.scheduler, "init_noise_sigma", 1.0)
