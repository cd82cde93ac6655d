"""What a run is told: texts become contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from underdraw.backends.contract import Array
from underdraw.controls.control import joined, of_words
from underdraw.controls.run import Conditioning
from underdraw.errors import InputError
from underdraw.pipelines.call.latents import repeated
from underdraw.pipelines.call.plan import Plan, Prompts
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.lora_mix import standing
from underdraw.text.known import warn_of_unknown
from underdraw.text.learned import Learned
from underdraw.text.prompts import Encoded, check_lengths, encode


def condition(components: Components, plan: Plan) -> Conditioning:
    """The contexts of a plan."""
    texts = Prompts(plan.prompts, plan.negatives, plan.count)
    return encode_texts(components, plan.request, texts, plan.guided, plan.count)


def encode_texts(
    components: Components, request: Request, texts: Prompts, guided: bool, count: int
) -> Conditioning:
    """Contexts for `count` images, those of one prompt next to each other.

    Raises:
        InputError: a text has to be encoded by a pipeline that cannot, or contexts are of
            different length.
    """
    prompts, negatives = texts.prompts, texts.negatives
    context: Any = request.prompt_embeds
    ids = None
    negative: Any = request.negative_prompt_embeds if guided else None
    absent = guided and negative is None
    if prompts is not None or absent:
        check_encodes(components, prompts)
        warn_of_unknown((*(prompts or ()), *(negatives or ())), components.words)
    if prompts is not None:
        against = (negatives or [""] * len(prompts)) if absent else []
        if request.cut and len(set(against)) == 1:
            against = against[:1]  # read once for all
        beside = None if negative is None else negative.shape[1]
        found = _encoded(components, request, prompts, against, request.clip_skip, beside=beside)
        context, ids = found.context, found.ids
        negative = found.negative if absent else negative
    elif absent:
        # Beside a context that was given, of at most its length.
        window = min(components.tokenizer.model_max_length, context.shape[1])
        against = negatives or [""] * context.shape[0]
        beside = context.shape[1]
        found = _encoded(components, request, (), against, max_length=window, beside=beside)
        negative = found.negative
    if negative is not None and negative.shape[1] != context.shape[1]:
        context, negative = equally_long(components, context, negative)
    framework, nn = components.framework, components.nn
    like = framework.leaf(components.unet.conv_in)

    def ready(x: Array) -> Array:
        x = nn.cast(framework.array(x, device=components.device), like)
        return repeated(nn, x, count // x.shape[0])

    return Conditioning(ready(context), None if negative is None else ready(negative), ids)


def again(components: Components, plan: Plan, change: Callable[[Any], Any]) -> Array:
    """The context of a plan's prompts with other controls of words; see `Run.encode`."""
    acting = map(change, joined((*plan.request.own, *plan.request.controls)))
    controls = tuple(control for control in acting if control is not None)
    request = replace(plan.request, own=(), controls=controls)
    texts = Prompts(plan.prompts, None, plan.count)
    return encode_texts(components, request, texts, False, plan.count).context


def _encoded(
    components: Components,
    request: Request,
    prompts: Sequence[str],
    negatives: Sequence[str] = (),
    clip_skip: int | None = None,
    max_length: int | None = None,
    beside: int | None = None,
) -> Encoded:
    with components.borrow(components.text_encoder):
        return encode(
            components.text_encoder,
            components.tokenizer,
            prompts,
            negatives,
            clip_skip,
            components.compat == "diffusers",
            max_length,
            components.ask,
            of_words((*request.own, *request.controls)),
            components,
            request.cut,
            beside,
            standing(components, "text_encoder", request.lora_scale),
            Learned(components.learned) if components.learned else None,
        )


def check_encodes(components: Components, prompts: list[str] | None) -> None:
    """Raise an InputError where texts cannot be encoded; `prompts` are None where the negative
    ones alone have to be."""
    names = ("text_encoder", "tokenizer")
    if lacking := [name for name in names if components.named.get(name) is None]:
        what = (
            "prompt" if prompts is not None else "negative_prompt (an empty one if none is given)"
        )
        raise InputError(
            f"{' and '.join(lacking)}=None, so {what} cannot be encoded; give prompt_embeds, and "
            "negative_prompt_embeds or guidance_scale=1"
        )


def equally_long(components: Components, context: Array, negative: Array) -> tuple[Array, Array]:
    """The shorter of two contexts repeated, which attention to it does not notice."""
    lengths = (context.shape[1], negative.shape[1])
    check_lengths(*lengths)
    concat, most = components.nn.concat, max(lengths)
    return (
        concat((context,) * (most // lengths[0]), 1),
        concat((negative,) * (most // lengths[1]), 1),
    )
