"""The run of a call: begun, and driven to its end."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.controls.planned import Planned
from underdraw.controls.run import Conditioning, Run
from underdraw.engines.engine import Question
from underdraw.errors import NonFiniteError
from underdraw.pipelines.call.conditioning import again
from underdraw.pipelines.call.latents import draw_noise
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.lora_mix import standing
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.loop import sample
from underdraw.sampling.steps import LATER, UNWATCHED, Step
from underdraw.sampling.windows import asked_together

LOG = logging.getLogger(__name__)
Steps = Generator[Question | Step, Any, Array]
"""Questions to be answered by an engine, and steps; at last the latents."""


def begin(
    components: Components,
    plan: Plan,
    conditioning: Conditioning,
    planned: Planned | None = None,
) -> Run:
    """The run of a plan; `planned` is what its controls were asked by (`check_run`). Without it no
    noise can be drawn."""
    return Run(
        components.nn,
        components.unet,
        plan.solver,
        conditioning,
        guidance=plan.guidance,
        rescale=float(plan.request.guidance_rescale),
        prompts=plan.prompts,
        draw=None if planned is None else partial(draw_noise, components, plan, planned.shape),
        components=components,
        engine=components.engine,
        encode=None if plan.prompts is None else partial(again, components, plan),
        checked=planned is not None,
        leaves=standing(components, "unet", plan.request.lora_scale),
        sites=components.sites,
    )


def denoise(run: Run, plan: Plan, latents: Array, own: Sequence[Control] = ()) -> Steps:
    """Run the solver from `latents`, which lie at its first noise level, to the end or until it is
    interrupted; gives the last latents, in the dtype of the UNet.

    Args:
        own: controls of the pipeline; they act before the caller's.

    Raises:
        NonFiniteError: the network gave NaN or infinity.
    """
    components, denoiser = run.components, Denoiser(run)
    accelerating = () if plan.exact else components.acceleration
    controls = (*own, *plan.request.own, *plan.request.controls, *accelerating)
    LOG.debug("%s: %d steps, latents %s", type(plan.caller).__name__, plan.steps, latents.shape)
    if plan.watch is not None:
        plan.watch.begin(run, denoiser)
    with ExitStack() as held:

        def ready() -> None:
            """The UNet comes after the networks that controls need to be prepared."""
            asked = [one for control in controls for one in control.networks(run)]
            held.enter_context(components.borrow(run.model, *asked))
            if controls:
                hooked = (*components.attached.beside, components.own_grounding)
                held.enter_context(components.borrow(*hooked, whole=True))

        loop = sample(run, latents, controls, ready, denoiser, asked_together(run))
        latents = yield from _driven(loop, run, plan, latents)
    if not components.framework.is_finite(latents):
        raise NonFiniteError(LATER)
    return run.nn.cast(latents, run.conditioning.context)


def _driven(loop: Generator[Any, Any, Array], run: Run, plan: Plan, latents: Array) -> Steps:
    """The loop with its bar and callbacks, which see every call and whether it ends a step."""
    caller, skip = plan.caller, plan.request.clip_skip
    order = getattr(run.components.scheduler, "order", 1)
    reply: Any = None
    seen = 0

    def ended(done: int) -> bool:
        """Whether a step ends with this call."""
        late = done > run.calls - plan.steps * order
        return done == run.calls or (late and done % order == 0)

    caller.views.leave(run, skip)
    caller.views.begun(latents.shape)
    with closing(loop), caller.views.going(run), caller.progress_bar(total=plan.steps) as bar:
        while True:
            try:
                item = loop.send(reply)
            except StopIteration:
                break
            if isinstance(item, Question):
                reply = yield item
                continue
            latents, reply, done = item.latents, None, item.index + 1
            if plan.watch is not None:
                reply = plan.watch(item, ended(done))
                latents = latents if reply.latents is None else reply.latents
            if ends := sum(map(ended, range(seen + 1, done + 1))):
                bar.update(ends)
            seen = done
            caller.views.leave(run, skip)
            change = yield item._replace(latents=latents)
            run.watched = change is not UNWATCHED or plan.watch is not None
            if change is not None and change is not UNWATCHED:
                reply, latents = change, latents if change.latents is None else change.latents
            if run.interrupted or run.ended:
                break
    caller.views.leave(run, skip)
    return latents
