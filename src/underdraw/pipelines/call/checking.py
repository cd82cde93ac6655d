"""The last check of a call: its controls are asked whether they fit the run, before anything is
computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from underdraw.controls.control import Control, joined, of_words, tokens_with
from underdraw.controls.planned import Planned
from underdraw.pipelines.call.conditioning import check_encodes
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.components.components import Components
from underdraw.text.prompts import read_texts
from underdraw.text.words import Tokens


def check_run(
    components: Components,
    plan: Plan,
    shape: Sequence[int],
    own: Sequence[Control] = (),
) -> Planned:
    """The run of a plan, which all controls have agreed to.

    Args:
        shape: of the latents of all images.
        own: controls of the pipeline that are known by now. Those that hold what networks made
            come later; the pipeline answers for them.

    Raises:
        InputError, InputTypeError: a control does not fit, texts cannot be read.
        ControlError: controls do not go together.
    """
    controls = joined((*own, *plan.request.own, *plan.request.controls))
    accelerating = () if plan.exact else components.acceleration
    embeds = plan.request.prompt_embeds
    planned = Planned(
        components.nn,
        components.unet,
        plan.solver,
        tuple(shape),  # type: ignore[arg-type]
        plan.guided,
        plan.prompts,
        None if plan.prompts is None or not controls else _tokens(components, plan),
        None if embeds is None else embeds.shape[1],
        components,
    )
    for control in (*controls, *accelerating):
        control.check(planned)
    return planned


def _tokens(components: Components, plan: Plan) -> tuple[Any, ...]:
    """Of each prompt the windows that it becomes; see `Planned.ids`."""
    request, prompts, tokenizer = plan.request, tuple(plan.prompts or ()), components.tokenizer
    check_encodes(components, plan.prompts)
    acting = of_words((*request.own, *request.controls))
    plain = components.compat == "diffusers"
    # What does not fit is cut without a warning, which comes when texts are encoded.
    ids, _, own = read_texts(
        components.text_encoder,
        tokenizer,
        prompts,
        plain=plain,
        controls=acting,
        components=components,
        cut=plain or request.cut,
    )
    found = tokens_with(acting, components, Tokens(prompts, len(prompts), ids, tokenizer))
    if found is None:
        return ()
    return tuple(row[:windows] for row, windows in zip(found.ids, own, strict=True))
