"""`check_inputs`: the checks of a call without the call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from dataclasses import fields
from inspect import signature
from typing import Any

from PIL import Image

from underdraw.engines.engine import Question
from underdraw.errors import InputTypeError
from underdraw.pipelines.call.plan import make_plan
from underdraw.pipelines.call.request import Request

PLACES = {
    "StableDiffusionPipeline": "prompt height width callback_steps negative_prompt prompt_embeds "
    "negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds "
    "callback_on_step_end_tensor_inputs",
    "StableDiffusionImg2ImgPipeline": "prompt strength callback_steps negative_prompt "
    "prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds "
    "callback_on_step_end_tensor_inputs",
    "StableDiffusionInpaintPipeline": "prompt image mask_image height width strength "
    "callback_steps output_type negative_prompt prompt_embeds negative_prompt_embeds "
    "ip_adapter_image ip_adapter_image_embeds callback_on_step_end_tensor_inputs "
    "padding_mask_crop",
    "StableDiffusionGLIGENPipeline": "prompt height width callback_steps gligen_phrases "
    "gligen_boxes negative_prompt prompt_embeds negative_prompt_embeds",
    "StableDiffusionGLIGENTextImagePipeline": "prompt height width callback_steps gligen_images "
    "gligen_phrases negative_prompt prompt_embeds negative_prompt_embeds "
    "callback_on_step_end_tensor_inputs",
    "StableDiffusionControlNetPipeline": "prompt image callback_steps negative_prompt "
    "prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds "
    "controlnet_conditioning_scale control_guidance_start control_guidance_end "
    "callback_on_step_end_tensor_inputs",
    "StableDiffusionControlNetImg2ImgPipeline": "prompt image callback_steps "
    "negative_prompt prompt_embeds negative_prompt_embeds ip_adapter_image "
    "ip_adapter_image_embeds controlnet_conditioning_scale control_guidance_start "
    "control_guidance_end callback_on_step_end_tensor_inputs",
    "StableDiffusionControlNetInpaintPipeline": "prompt image mask_image height width "
    "callback_steps output_type negative_prompt prompt_embeds negative_prompt_embeds "
    "ip_adapter_image ip_adapter_image_embeds controlnet_conditioning_scale "
    "control_guidance_start control_guidance_end callback_on_step_end_tensor_inputs "
    "padding_mask_crop",
    "StableDiffusionAdapterPipeline": "prompt height width callback_steps image negative_prompt "
    "prompt_embeds negative_prompt_embeds",
    "StableDiffusionDiffEditPipeline": "prompt strength callback_steps negative_prompt "
    "prompt_embeds negative_prompt_embeds",
}
"""Arguments of diffusers' `check_inputs` in their order, by class."""


class _Checked(Exception):
    """The first network was about to be asked, so every check has passed."""


class _Nothing:
    """An engine that runs nothing."""

    def run(self, question: Question) -> Any:
        raise _Checked


class Checking:
    """The method of pipelines."""

    parts: Any

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Whether a call with these arguments can work; nothing is computed.

        Args:
            args: in the order of diffusers' method of this class.
            kwargs: any arguments of the call, and `strength` of DiffEdit.

        Raises:
            InputError, InputTypeError: what the call would raise.
        """
        given = self._named(args, kwargs)
        takes = signature(type(self).__call__).parameters
        if "inpaint_strength" in takes and "strength" in given:
            given["inpaint_strength"] = given.pop("strength")
        if "control_image" in takes and "image" in given and "control_image" not in given:
            given["control_image"] = given.pop("image")  # what diffusers' method calls the map
        if unknown := sorted(set(given) - set(takes)):
            raise InputTypeError(f"check_inputs has no arguments {unknown}; a call has others")
        pipe = copy(self)
        pipe.parts.engine, pipe.parts.offload = _Nothing(), None
        if "image_latents" in takes and given.get("image_latents") is None:
            shared = {one.name for one in fields(Request)}
            part = given.get("inpaint_strength", 0.8)
            asked = {name: value for name, value in given.items() if name in shared}
            make_plan(
                pipe.parts, Request(**asked, strength=part), pipe, strength_name="inpaint_strength"
            )
            return
        steps: Any = type(self).__call__
        run = steps.steps(pipe, **{"seed": 0, **_stand_ins(pipe, given, takes), **given})
        with suppress(_Checked):
            next(run)
        run.close()

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        kinds = (kind.__name__ for kind in type(self).__mro__)
        places = next((PLACES[kind].split() for kind in kinds if kind in PLACES), [])
        if len(args) > len(places):
            raise InputTypeError(f"check_inputs takes at most {len(places)} arguments by position")
        named = dict(zip(places, args, strict=False))
        if twice := sorted(set(named) & set(kwargs)):
            raise InputTypeError(f"{', '.join(twice)} given twice, by position and by name")
        return {**named, **kwargs}


def _stand_ins(pipe: Any, given: Mapping[str, Any], takes: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' method is not given, and the call needs."""
    found: dict[str, Any] = {}
    side = 8 * pipe.vae_scale_factor
    for name in ("image", "control_image"):
        if name in takes and name not in given:
            found[name] = Image.new("RGB", (side, side))
    entries = given.get("gligen_phrases") or given.get("gligen_images")
    boxes = "gligen_boxes" in takes and "gligen_boxes" not in given
    if boxes and isinstance(entries, list | tuple):
        found["gligen_boxes"] = [(0.0, 0.0, 1.0, 1.0)] * len(entries)
    return found
