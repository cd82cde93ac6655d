"""What callbacks written for diffusers read and change on a pipeline."""

from __future__ import annotations

from typing import Any, ClassVar

from underdraw.pipelines.call.plan import needs_guidance
from underdraw.pipelines.call.views import Views
from underdraw.pipelines.components.components import Components


class FamiliarRuns:
    """Attributes about the run whose callback is at work in this thread; outside of callbacks,
    about the last run of the thread."""

    parts: Components
    views: Views
    _callback_tensor_inputs: ClassVar[list[str]] = [
        *("latents", "prompt_embeds", "negative_prompt_embeds")
    ]
    """Names of the tensors that `callback_on_step_end` may ask for and change."""

    @property
    def guidance_scale(self) -> Any:
        """A number, or an array `(images, 1, 1, 1)`."""
        return self.views.now.guidance

    @property
    def _guidance_scale(self) -> Any:
        """By this name callbacks written for diffusers change it."""
        return self.views.now.guidance

    @_guidance_scale.setter
    def _guidance_scale(self, value: Any) -> None:
        self.views.change("guidance", value)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether calls of the network are guided."""
        return needs_guidance(self.parts, self.guidance_scale)

    @property
    def num_timesteps(self) -> int:
        """Calls of the network."""
        return self.views.now.calls

    @property
    def clip_skip(self) -> int | None:
        """As it was given."""
        return self.views.now.skip

    @property
    def guidance_rescale(self) -> float:
        """As it was given."""
        return self.views.now.rescale

    @property
    def interrupt(self) -> bool:
        """Whether the run was asked to stop after the current step, by `pipe._interrupt = True`."""
        return self.views.now.interrupted

    @property
    def _interrupt(self) -> bool:
        return self.views.now.interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """In a callback, of its run; elsewhere, of the run whose step this thread was handed last;
        in a thread that has none in progress, of all runs of this pipeline."""
        self.views.interrupt(bool(value))
