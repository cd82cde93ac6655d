"""The callbacks of diffusers as a consumer of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.run import Run
from underdraw.errors import InputError, InputTypeError
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.components import Components
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.steps import Change, Step


class Callbacks:
    """Calls both kinds of callback after a model call.

    `callback_on_step_end` is `f(pipe, step, timestep, tensors)` and may return changed tensors;
    `callback_on_step_end_tensor_inputs` names those it gets. `callback` is the older kind,
    `f(step, timestep, latents)` after every `callback_steps` steps.
    """

    def __init__(self, caller: Any, components: Components, request: Request) -> None:
        every, names = request.callback_steps, request.callback_on_step_end_tensor_inputs
        on_step_end, callback = request.callback_on_step_end, request.callback
        every = 1 if every is None else checks.whole("callback_steps", every)
        checks.function("callback_on_step_end", on_step_end)
        checks.function("callback", callback)
        names = getattr(on_step_end, "tensor_inputs", names)  # diffusers' callback objects
        wanted = "callback_on_step_end_tensor_inputs"
        for name in checks.sequence(wanted, names, "names of tensors"):
            checks.choice(wanted, name, caller._callback_tensor_inputs)
        self.caller, self.components, self.every = caller, components, every
        self.on_step_end, self.wanted, self.callback = on_step_end, tuple(names), callback
        self.skip = request.clip_skip
        self.own: dict[str, Array] = {}
        """Further tensors of the pipeline by name, as callbacks left them."""
        self.altered = False
        """Whether a callback changed anything so far."""

    def begin(self, run: Run, denoiser: Denoiser) -> None:
        """Before the first call of a run."""
        self.run, self.denoiser, self.negative = run, denoiser, run.conditioning.negative

    def __call__(self, step: Step, ends: bool) -> Change:
        with self.caller.views.inside(self.run, self.skip):
            return self._tell(step, ends)

    def _tell(self, step: Step, ends: bool) -> Change:
        change = Change()
        i, latents = step.index, step.latents
        if self.on_step_end is not None:
            context = self.denoiser.context
            held = {
                "latents": self.run.nn.cast(latents, context),
                "prompt_embeds": context,
                "negative_prompt_embeds": self.negative,
                **self.own,
            }
            tensors = {name: held[name] for name in self.wanted}
            answer = self.on_step_end(self.caller, i, self._time(step.timestep), tensors)
            answer = {} if answer is None else answer
            change = self._change(answer, held)
            self.altered = self.altered or any(answer[name] is not held[name] for name in answer)
            self.negative = answer.get("negative_prompt_embeds", self.negative)
            latents = latents if change.latents is None else change.latents
        if ends:
            self.note(i, step.timestep, latents)
        return change

    def note(self, index: int, timestep: float, latents: Array) -> None:
        """Tell the older kind of callback that a step has ended with the model call `index`."""
        if self.callback is not None and index % self.every == 0:
            order = getattr(self.components.scheduler, "order", 1)
            self.callback(index // order, self._time(timestep), latents)

    def _change(self, answer: Any, held: Mapping[str, Any]) -> Change:
        """What a callback returned, as the loop takes it."""
        where, framework = "callback_on_step_end's", self.components.framework
        if not isinstance(answer, dict):
            raise InputTypeError(
                f"{where} result is {checks.shown(answer)}; a dict or None is needed"
            )
        for name, value in answer.items():
            checks.choice(f"{where} dict", name, list(held))
            old = held[name]
            if value is old:
                continue
            if name in self.own:
                self.own[name] = checks.array(f"{where} {name}", value, old.shape, framework)
                continue
            shape = old.shape if name == "latents" else (None, None, old.shape[2])
            checks.array(f"{where} {name}", value, shape, framework)
            rows, images = value.shape[0], held["latents"].shape[0]
            if rows not in (images, 2 * images):
                raise InputError(
                    f"{where} {name} has {rows} rows; allowed: {images}, or with the "
                    f"unconditional half {2 * images}"
                )
        return Change(answer.get("latents"), answer.get("prompt_embeds"))

    def _time(self, timestep: float) -> Array:
        """A time for callbacks: a whole number where the solver's times are."""
        whole = getattr(self.components.scheduler, "whole", False)
        return self.components.framework.array(int(timestep) if whole else timestep)
