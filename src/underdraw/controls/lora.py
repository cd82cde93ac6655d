"""`Lora`: another amount of a LoRA in each image of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.backends.deltas import Deltas, together
from underdraw.backends.tree import map_arrays
from underdraw.controls.components import attached
from underdraw.controls.control import Call, Planned, Run
from underdraw.controls.steady import Steady
from underdraw.errors import InputError, InputTypeError
from underdraw.networks.sites import Sites
from underdraw.text.words import Tokens, Words
from underdraw.weights.lora.reading import LoraWeights
from underdraw.weights.lora.scales import Scales, as_scales, weighed

KIND = "lora"


@dataclass(frozen=True, eq=False)
class Lora(Steady):
    """Lays a LoRA's differences (Hu et al. 2021) over UNet and text encoder, in one call.

    It acts beside what `pipe.set_adapters` has made active; a pipeline that has loaded several
    LoRAs, and of which none is active, mixes them for each image by such controls:

        pipe.load_lora_weights("clay.safetensors", "clay")
        pipe.load_lora_weights("snow.safetensors", "snow")
        pipe.set_adapters([])
        pipe(["a cube", "a cone"], controls=[Lora("clay", [1, 0]), Lora("snow", [0.2, 0.8])])

    Args:
        weights: the name under which `pipe.load_lora_weights` has attached it, or the weights.
        scale: how much of it, a number or diffusers' mapping of blocks to numbers; a list has one
            number for each image. Between 0 and 1 a layer lies between what it was and what the
            file makes of it.

    Raises:
        InputError, InputTypeError: a scale is no finite number. When the call begins: no LoRA of
            this name is attached, or there are scales for another number of images.
    """

    weights: str | LoraWeights
    scale: float | Mapping[str, Any] | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.weights, str | LoraWeights):
            raise InputTypeError(
                f"weights={checks.shown(self.weights)} is neither a name nor LoraWeights"
            )
        _ = self._scales

    @property
    def _scales(self) -> tuple[Scales, tuple[float, ...] | None]:
        """Factors for all images, and those per image, if any."""
        if isinstance(self.scale, list | tuple):
            each = [checks.factor("scale", one) for one in self.scale]
            if not each:
                raise InputError("scale=[] is empty; needed is a number for each image")
            return Scales(), tuple(each)
        return as_scales("scale", self.scale), None

    def words(self, nn: Operations, words: Words) -> Words:
        found = _weights(self.weights, words.components)
        scales, each = self._scales
        if not found.text_encoder:
            return words
        framework = words.text_encoder._framework
        device = getattr(words.embeddings, "device", None)
        factor: Any = 1.0
        if each is not None:
            rows = _of_texts(each, words)
            factor = framework.array(np.array(rows, np.float32), device=device)
        deltas = here(
            weighed(found.text_encoder, "text_encoder", scales, factor), framework, device
        )
        return replace(words, leaves=together(words.leaves, deltas))

    def check(self, planned: Planned) -> None:
        """That it is attached, and has a scale for all images or for each; where it changes texts,
        one for each prompt."""
        found = _weights(self.weights, planned.components)
        _, each = self._scales
        if each is not None and len(each) not in (1, planned.images):
            raise InputError(
                f"scale has {len(each)} numbers; the call makes {planned.images} images"
            )
        if each is not None and found.text_encoder and planned.prompts:
            _by_prompt(each, len(planned.prompts))

    def placed(self, components: Any, tokens: Tokens) -> Tokens:
        """As they are: it puts none in."""
        return tokens

    def prepare(self, run: Run) -> dict[bool, Deltas]:
        """Its differences for calls without guidance and with it."""
        found = _weights(self.weights, run.components)
        scales, each = self._scales
        device = getattr(run.latents, "device", None)

        def deltas(guided: bool) -> Deltas:
            factor: Any = 1.0
            if each is not None:
                rows = each * (run.batch // len(each)) * (2 if guided else 1)
                factor = run.framework.array(np.array(rows, np.float32), device=device)
            return here(weighed(found.unet, "unet", scales, factor), run.framework, device)

        return {guided: deltas(guided) for guided in (False, True)}

    def sites_at(self, nn: Operations, carry: dict[bool, Deltas], like: Array, call: Call) -> Sites:
        return Sites(leaves=carry[call.guided])


def here(deltas: Deltas, framework: Any, device: Any) -> Any:
    """Differences whose arrays are where a network is asked."""
    return map_arrays(lambda x: framework.array(x, device=device), deltas)


def _weights(named: str | LoraWeights, components: Any) -> LoraWeights:
    if isinstance(named, LoraWeights):
        return named
    return attached(components, KIND, named, f"weights={named!r}", "load_lora_weights")


def _of_texts(each: Sequence[float], words: Words) -> list[float]:
    """Factors for the windows of all texts; a negative one has that of its prompt."""
    own = _by_prompt(each, max(words.prompts, 1))
    windows = words.ids.shape[1]
    return [own[text % len(own)] for text in range(len(words.texts)) for _ in range(windows)]


def _by_prompt(each: Sequence[float], prompts: int) -> list[float]:
    """The factor of each prompt, which that of its images must be.

    Raises:
        InputError: images of one prompt have several, or there are some for other images.
    """
    each = [*each] * prompts if len(each) == 1 else [*each]
    if len(each) % prompts:
        raise InputError(f"scale has {len(each)} numbers; there are {prompts} prompts")
    images = len(each) // prompts
    own = [set(each[prompt * images : (prompt + 1) * images]) for prompt in range(prompts)]
    if any(len(of_prompt) > 1 for of_prompt in own):
        raise InputError(
            "scale differs among the images of one prompt, and the LoRA changes the text encoder, "
            "which reads a prompt once; give the prompt as often as there are scales"
        )
    return [of_prompt.pop() for of_prompt in own]
