"""`Components`: what a pipeline is made of, and how it runs its networks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine, Question, answer
from underdraw.errors import NonFiniteError
from underdraw.models.autoencoder import Tiling
from underdraw.models.base import Model
from underdraw.models.outputs import Posterior
from underdraw.networks.freeu import FreeU
from underdraw.networks.program import Program
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.pipelines.components.adapters import Attached, Networks
from underdraw.pipelines.components.advice import Advice
from underdraw.pipelines.components.grounding import Sight, groundings, sight_of
from underdraw.pipelines.components.ip_adapter import ImageScales, towers
from underdraw.pipelines.components.lora_mix import Mix
from underdraw.pipelines.components.offload import Offload
from underdraw.pipelines.components.preview import preview_decoder
from underdraw.pipelines.components.registry import networks_among, uncompiled
from underdraw.pipelines.components.settings import SEAMLESS, Settings
from underdraw.pipelines.components.subjects import subject_processor, subjects
from underdraw.text.learned import Learned, LearnedTokenizer

NARROW = (
    "gave NaN or infinity; its weights hold such values, or its dtype is too narrow (try "
    "dtype='float32' or 'bfloat16')"
)


def _named(name: str, what: str) -> Any:
    return property(lambda self: self.named.get(name), doc=what)


class Components:
    """What a pipeline is made of, and how it runs its networks.

    This is what calls are written over, and what controls see of a pipeline. Pipelines may share
    networks (`from_pipe`); each has components of its own, so that settings are one pipeline's.

    Pictures are images `(n, 3, height, width)` in [-1, 1]. Latents are as the UNet sees them, times
    the autoencoder's `scaling_factor`, but for those of the distribution which `encode` gives:
    `scaled` multiplies what was drawn from it.
    """

    named: dict[str, Any]
    """Networks, tokenizer, schedulers, ... by the names diffusers gives them; None for absent
    ones."""
    settings: Settings
    """Slices and tiles."""
    engine: Engine
    """Answers every question about a network."""
    offload: Offload | None
    """Moves networks to an accelerator while they are used; None leaves them where they are."""
    attached: Attached
    """What was attached beside the UNet, and what came with it."""
    learned: Mapping[str, np.ndarray]
    """Words beside the tokenizer's, each with its vectors (textual inversion). Replaced as a whole,
    as `mix` is."""
    mix: Mix
    """Which of the attached LoRAs act in calls, and which are merged."""
    image_scales: ImageScales
    """By name of an IP-Adapter, how much of it acts where calls are given `ip_adapter_image`."""
    compat: str | None
    """"diffusers" brings its behaviour back where it differs."""
    source: str | None
    """Where the pipeline was loaded from."""
    advice: Advice
    """Arguments that suit the weights."""
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    """By which pictures of subjects are normalised; None: as their processor says."""

    def __init__(self) -> None:
        self.named = {}
        self.settings, self.engine, self.offload = Settings(), EAGER, None
        self.attached, self.compat, self.source = Attached(), None, None
        self.learned, self.mix, self.image_scales = {}, Mix(), {}
        self.advice, self.mean, self.std = Advice(), None, None

    unet = _named("unet", "`UNet2DConditionModel`")
    vae = _named("vae", "`AutoencoderKL` or `AutoencoderTiny`")
    text_encoder = _named("text_encoder", "`CLIPTextModel`, or None")
    scheduler = _named("scheduler", "Makes the solver of a call.")
    inverse_scheduler = _named("inverse_scheduler", "Goes from pictures to noise, or None.")
    safety_checker = _named("safety_checker", "`StableDiffusionSafetyChecker`, or None")
    feature_extractor = _named("feature_extractor", "`CLIPImageProcessor`, or None")
    image_encoder = _named("image_encoder", "`CLIPVisionModelWithProjection`, or None")
    image_project = _named("image_project", "`CLIPImageProjection`, or None")
    processor = _named("processor", "`CLIPProcessor`, or None")
    qformer = _named("qformer", "`Blip2QFormerModel`, or None")
    controlnet = _named("controlnet", "`ControlNetModel`, `MultiControlNetModel`, or None")
    adapter = _named("adapter", "`T2IAdapter`, `MultiAdapter`, or None")

    def __copy__(self) -> Components:
        """Others on the same networks, whose settings change apart from these."""
        made = object.__new__(type(self))
        vars(made).update(vars(self), named=dict(self.named), attached=copy(self.attached))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Components:
        """Other networks, and the same engine, which holds none of a pipeline's state."""
        memo[id(self.engine)] = self.engine
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(deepcopy(vars(self), memo))
        return made

    def take_over(self, other: Components) -> None:
        """Settings, engine, offloading and what is attached, of a pipeline on the same networks."""
        self.settings, self.engine, self.offload = other.settings, other.engine, other.offload
        self.attached = copy(other.attached)
        self.learned, self.mix = other.learned, other.mix
        self.image_scales = other.image_scales
        self.source, self.advice = other.source, other.advice

    @property
    def tokenizer(self) -> Any:
        """`CLIPTokenizer`, or None; with the words that were learned beside its own."""
        own = self.named.get("tokenizer")
        if own is None or not self.learned:
            return own
        return LearnedTokenizer(own, Learned(self.learned))

    @property
    def words(self) -> tuple[str, ...]:
        """All words that the networks were trained on; empty where that is not said."""
        own = self.advice.words
        return (*own, *(word.lower() for word in self.learned)) if own else own

    # -- where and how ---------------------------------------------------------------------------
    @property
    def framework(self) -> Any:
        """The backend of the UNet: arrays, devices, randomness (`backends.framework`)."""
        return self.unet._framework

    @property
    def nn(self) -> Any:
        """Its operations, with the settings of this pipeline."""
        return self.framework.with_settings(self.settings.attention_slice)

    @property
    def dtype(self) -> Any:
        """The dtype of the UNet."""
        return self.unet.dtype

    @property
    def device(self) -> Any:
        """Where calls compute: on the device of the UNet, unless networks are offloaded."""
        at = self.offload
        return at.device if at is not None else self.framework.device_of(self.unet)

    @property
    def networks(self) -> list[Model]:
        """All networks, those that were attached included."""
        return networks_among((*self.named.values(), *self.attached.parts))

    def borrow(self, *networks: Any, whole: bool = False) -> AbstractContextManager[None]:
        """While it lasts these networks are on `device`, which without offloading they always are;
        what is no network is passed over. Where their layers pass through the device one by one,
        they are moved only if they are needed as a `whole`: by a hook, and not by an engine."""
        return nullcontext() if self.offload is None else self.offload.using(*networks, whole=whole)

    def place(self, network: Any) -> Any:
        """Where a network computes, once it is borrowed."""
        return network.device if self.offload is None else self.offload.device

    def ask(self, program: Program, model: Any, *inputs: Any) -> Any:
        """What a program of a network gives for `inputs`, arrays on `device`, by the engine; a
        component that was wrapped by `torch.compile` is asked in its wrapping."""
        model = next((one for one in self.named.values() if uncompiled(one) is model), model)
        nn = model._framework.with_settings(self.settings.attention_slice)
        with self.borrow(model):
            return answer(self.engine, Question(program, model, inputs, nn))

    # -- what stands beside the UNet ---------------------------------------------------------------
    def adapters(self, kind: str) -> Networks:
        """Attached networks of a kind by name; InputError where the kind is not known."""
        return self.attached.of(self, kind)

    def only_adapter(self, kind: str) -> str | None:
        """The name of the only one that somebody attached, or else of the only one there is."""
        return self.attached.only(self, kind)

    @property
    def groundings(self) -> Networks:
        """Grounding weights by kind ("text", "text-image", "keypoints", ...): those attached, and
        those which a gated UNet has in itself."""
        return groundings(self)

    @property
    def own_grounding(self) -> Any:
        """The grounding layers inside of a gated UNet whose other layers are streamed, else
        None."""
        streams = self.offload is not None and self.offload.streams
        return getattr(uncompiled(self.unet), "grounding", None) if streams else None

    @property
    def sight(self) -> Sight:
        """What makes features of images in boxes: given with the weights, or components."""
        return sight_of(self)

    @property
    def towers(self) -> tuple[Any, ...]:
        """Image towers: what the weights of image prompts have brought along, and the pipeline's
        own."""
        return towers(self)

    @property
    def subjects(self) -> Networks:
        """Subject weights by name: those attached, or else those of the pipeline itself."""
        return subjects(self)

    @property
    def preview_decoder(self) -> Any:
        """The small autoencoder that decodes previews (`pipe.load_preview`), or None."""
        return preview_decoder(self)

    @property
    def subject_processor(self) -> Any:
        """What prepares pictures of subjects, with the pipeline's own numbers; None where the
        pipeline has none."""
        return subject_processor(self)

    # -- pictures and latents ----------------------------------------------------------------------
    @property
    def tiling(self) -> Tiling | None:
        """The tiles on which pictures are worked on; None for whole pictures."""
        if self.settings.vae_tiling == SEAMLESS:
            return self.vae.seamless_tiling()
        return self.vae.default_tiling() if self.settings.vae_tiling else self.vae.tiling

    @property
    def sites(self) -> Sites:
        """What acts in every call of the UNet because the settings say so."""
        freeu = self.settings.freeu
        return NO_SITES if freeu is None else Sites(join=(FreeU(*freeu),))

    @property
    def acceleration(self) -> list[Control]:
        """What leaves out parts of calls because the settings say so."""
        chosen = self.settings.acceleration
        return [] if chosen is None else chosen.controls()

    @property
    def _slicing(self) -> bool:
        return self.settings.vae_slicing or self.vae.use_slicing

    def encode(self, pixels: Array) -> Posterior:
        """The distribution of the latents of pictures `(n, 3, height, width)` in [-1, 1].

        It is the autoencoder's own, in its dtype: `scaled(distribution.mean)` are latents
        `(n, channels, height / factor, width / factor)` for the UNet.

        Raises:
            NonFiniteError: the encoder gave NaN or infinity.
        """
        vae, framework = self.vae, self.framework
        with framework.no_grad(), self.borrow(vae):
            # The autoencoder may live in another dtype, or elsewhere, than the UNet.
            pixels = framework.array(pixels, dtype=vae.dtype, device=self.place(vae))
            found = vae.encode_with(pixels, self._slicing, self.tiling, self.ask)
            if not (framework.is_finite(found.mean) and framework.is_finite(found.std)):
                raise NonFiniteError(f"vae: encoding {NARROW}")
        return found

    def scaled(self, latents: Array) -> Array:
        """Latents drawn from the distribution of `encode`, as the UNet sees them."""
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Array) -> Array:
        """Images `(n, 3, height, width)` near [-1, 1] of latents as the UNet sees them, in the
        autoencoder's dtype.

        Raises:
            NonFiniteError: the decoder gave NaN or infinity.
        """
        return self._decoded(self.vae, latents, self.tiling)

    def sketch(self, latents: Array) -> Array | None:
        """The same by the small autoencoder that was attached for previews; None without one."""
        small = self.preview_decoder
        return None if small is None else self._decoded(small, latents, None)

    def _decoded(self, vae: Any, latents: Array, tiling: Tiling | None) -> Array:
        framework = self.framework
        with framework.no_grad(), self.borrow(vae):
            z = framework.array(latents, dtype=vae.dtype, device=self.place(vae))
            z = z / vae.config.scaling_factor
            decoded = vae.decode_with(z, self._slicing, tiling, self.ask)
            if not framework.is_finite(decoded):
                raise NonFiniteError(f"vae: decoding {NARROW}")
        return decoded
