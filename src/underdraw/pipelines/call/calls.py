"""What every call does around the loop: arguments are checked before any work, texts become
contexts, a solver is made, the loop is driven, its result decoded.

A pipeline's call is a recipe over these: `Request` (what was given) -> `_plan` (checked) ->
`_denoising` -> `_decode` -> `_output`. Errors name the argument, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial, wraps
from typing import Any, TypeVar

from tqdm.auto import tqdm
from typing_extensions import ParamSpec

from underdraw import checks
from underdraw.backends import seeds
from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.errors import InputError, NonFiniteError
from underdraw.pictures.writing import OUTPUT_TYPES
from underdraw.pipelines.call.callbacks import Callbacks
from underdraw.pipelines.call.checks import check_controls, last_steps, sides, wrong_unet
from underdraw.pipelines.call.output import StableDiffusionPipelineOutput
from underdraw.pipelines.call.record import annotate, seeds_of
from underdraw.pipelines.call.request import SHARED, Plan, Request
from underdraw.pipelines.diffusers.compatible import no_texts
from underdraw.sampling.loop import Change, Denoiser, Step, sample
from underdraw.schedulers import Scheduler
from underdraw.schedulers.foreign import ForeignSolver
from underdraw.solvers.solver import Solver
from underdraw.text.prompts import encode_prompts


def asked(arguments: Mapping[str, Any], **own: Any) -> Request:
    """The request of a call whose `locals()` are `arguments`: of these the shared ones, which are
    fields by the same names. `own` are fields that calls make themselves."""
    return Request(**{name: arguments[name] for name in SHARED if name in arguments}, **own)


Given = ParamSpec("Given")
Made = TypeVar("Made")


def apart(call: Callable[Given, Made]) -> Callable[Given, Made]:
    """A method that, called inside a callback, leaves the state of the run around it as it was."""

    @wraps(call)
    def guarded(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        pipe: Any = args[0]
        outer = dict(vars(pipe._run))
        try:
            return call(*args, **kwargs)
        finally:
            if outer.get("watched"):
                vars(pipe._run).update(outer)

    return guarded


def streamed(make: Callable[Given, Generator[Step, None, Made]]) -> Callable[Given, Made]:
    """A pipeline's call, written as a generator of steps: it runs to the end, and `pipe.stream`,
    which takes the same arguments, hands the steps out."""

    @apart
    @wraps(make)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        return ended(make(*args, **kwargs))

    call.steps = make  # type: ignore[attr-defined]
    return call


def ended(run: Generator[Any, None, Made]) -> Made:
    """What a generator returns, after all its steps."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


class Calls:
    """The half of a pipeline that runs in a call."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    settings: Any
    compat: str | None
    decode_latents: Callable[..., Any]
    _run: Any
    _check_embeds: Callable[..., Any]
    _negative_like: Callable[..., Any]
    _equally_long: Callable[..., Any]
    _guidance_per_image: Callable[..., Any]
    _progress_bar_config: dict[str, Any]
    _interrupt = False
    _offload: Any = None

    @property
    def _operations(self) -> Any:
        """The backend's operations with this pipeline's settings."""
        return self.unet._framework.with_settings(self.settings.attention_slice)

    @property
    def device(self) -> Any:
        """Where calls compute: on the device of the UNet, unless networks are offloaded."""
        at = self._offload
        return at.device if at is not None else self.unet._framework.device_of(self.unet)

    def _borrowed(self, *networks: Any) -> AbstractContextManager[None]:
        """While it lasts, these networks are on `device`; without offloading they always are."""
        return nullcontext() if self._offload is None else self._offload.using(*networks)

    # -- checking arguments ------------------------------------------------------------------------
    def _plan(self, request: Request) -> Plan:
        """Check what calls share and make the solver.

        Raises:
            InputError, InputTypeError: an argument cannot work.
        """
        checks.choice("output_type", request.output_type, OUTPUT_TYPES)
        per_prompt = checks.whole("num_images_per_prompt", request.num_images_per_prompt)
        checks.number("eta", request.eta, 0.0, 1.0)
        checks.number("guidance_rescale", request.guidance_rescale, 0.0, 1.0)
        if request.clip_skip is not None:
            checks.whole("clip_skip", request.clip_skip, 0)
        watch = None
        told = request.callback_on_step_end, request.callback, request.callback_steps
        if told != (None, None, 1) or request.callback_on_step_end_tensor_inputs != ("latents",):
            watch = Callbacks(self, request)
        if request.controls != ():
            check_controls(request.controls)
        prompts, negatives, count = self._check_prompts(request)
        count *= per_prompt
        scale: Any = request.guidance_scale
        if isinstance(scale, list | tuple):
            scale = self._guidance_per_image(scale, count)
        else:
            scale = checks.number("guidance_scale", scale)
        drawn, known = seeds.generators(request.generator, request.seed, count), []
        if request.output_type == "pil":
            known = seeds_of(drawn, count)
        guided = self._needs_guidance(scale)
        solver, steps = self._solver(request, drawn)
        return Plan(
            request, prompts, negatives, count, scale, guided, drawn, known, solver, steps, watch
        )

    def _check_prompts(self, request: Request) -> tuple[list[str] | None, list[str] | None, int]:
        """Prompts and negative prompts as lists, where they are texts, and how many there are."""
        prompt, embeds, negative = request.prompt, request.prompt_embeds, request.negative_prompt
        if prompt is None and embeds is None:
            raise InputError("prompt=None; give prompt or prompt_embeds")
        prompts = None if prompt is None else checks.texts("prompt", prompt)
        if not (embeds is request.negative_prompt_embeds is None):
            self._check_embeds(request, prompts)
        count = embeds.shape[0] if prompts is None else len(prompts)
        if request.pictures not in (1, count) and count != 1:
            raise InputError(f"image has {request.pictures} pictures; there are {count} prompts")
        images = max(count, request.pictures)
        if negative is None:
            return prompts, None, images
        negatives = checks.texts("negative_prompt", negative)
        negatives = negatives * count if isinstance(negative, str) else negatives
        if len(negatives) != count:
            raise InputError(
                f"negative_prompt has {len(negatives)} entries; there are {count} prompts"
            )
        return prompts, negatives, images

    def _check_size(self, height: Any, width: Any, latents: Any) -> tuple[int, int]:
        """Of the picture, in pixels; by default that of `latents`, or else the trained one."""
        factor = self.vae.config.factor
        trained = self.unet.config.sample_size or 64
        shape = (trained, trained) if isinstance(trained, int) else tuple(trained)
        if latents is not None and len(getattr(latents, "shape", ())) == 4:
            shape = tuple(latents.shape[2:])
        if height is width is None:
            return shape[0] * factor, shape[1] * factor
        return sides(height, width, shape, factor)

    def _latent_shape(
        self, count: int, height: int, width: int, added: Sequence[int] = (0,)
    ) -> tuple[int, int, int, int]:
        """Of `count` pictures; the UNet may take so many channels besides (inpainting: 5)."""
        factor, channels = self.vae.config.factor, self.vae.config.latent_channels
        taken = self.unet.config.in_channels
        if taken - channels not in added:
            raise wrong_unet(self, taken, channels, any(added))
        return count, channels, height // factor, width // factor

    def _needs_guidance(self, scale: Any) -> bool:
        largest = scale.max() if hasattr(scale, "shape") else scale
        return bool(largest > 1) and self.unet.config.time_cond_proj_dim is None

    # -- a run -------------------------------------------------------------------------------------
    def _solver(self, request: Request, drawn: Any) -> tuple[Solver, int]:
        """The solver of a call, and how many of its steps are run."""
        scheduler = self.scheduler if request.scheduler is None else request.scheduler
        timesteps, sigmas, eta = request.timesteps, request.sigmas, request.eta
        if timesteps is not None and sigmas is not None:
            raise InputError("timesteps and sigmas are both given; only one of them can be")
        count = None
        if timesteps is sigmas is None:
            most = getattr(scheduler, "config", {}).get("num_train_timesteps", 1000)
            count = checks.whole("num_inference_steps", request.num_inference_steps, 1, most)
        solver: Any
        if isinstance(scheduler, Scheduler):
            solver = scheduler.make_table(count, timesteps, sigmas, eta)
        else:
            solver = ForeignSolver(
                scheduler, count, timesteps, sigmas, eta, drawn, device=self.device
            )
        steps = count or -(-len(solver) // getattr(scheduler, "order", 1))
        if request.strength == 1:
            return solver, steps

        return last_steps(self, scheduler, solver, steps, request.strength)

    def _noise(self, plan: Plan, shape: Sequence[int]) -> Array:
        """Standard normal, in the model's dtype as the peer's; under a seed in float32 for all."""
        framework = self.unet._framework
        like = framework.leaf(self.unet.conv_in).dtype
        dtype = like if plan.request.seed is None else framework.float32
        return framework.draw(shape, plan.generators, self.device, dtype)

    def _denoising(
        self, plan: Plan, latents: Array, own: Sequence[Control] = ()
    ) -> Generator[Step, None, Array]:
        """Run `plan.solver` from `latents`, which lie at its first noise level, to the end.

        `own` are controls of the pipeline; they act before the caller's.

        Raises:
            NonFiniteError: the network gave NaN or infinity.
        """
        denoise, negative = self._denoiser(plan)
        controls = (*own, *plan.request.controls)
        if plan.watch is not None:
            plan.watch.begin(denoise, negative)
        noise = partial(self._noise, plan, latents.shape)
        with ExitStack() as held:

            def begin() -> None:
                parts = vars(self).get("_attached", {}) if controls else {}
                held.enter_context(self._borrowed(self.unet, *parts.values()))

            run = sample(denoise, plan.solver, latents, noise, controls, self, plan.prompts, begin)
            made = yield from self._drive(run, latents, len(plan.solver), plan.steps, plan.watch)
        if not self.unet._framework.is_finite(made):
            raise NonFiniteError("the latents became NaN or infinity after the first step")
        return denoise.nn.cast(made, denoise.context)

    def _denoiser(self, plan: Plan) -> tuple[Denoiser, Array | None]:
        """The network with the contexts of a plan, and its unconditional half."""
        request, solver, nn = plan.request, plan.solver, self._operations
        vars(self._run).update(guidance=plan.guidance, calls=len(solver))
        vars(self._run).update(rescale=float(request.guidance_rescale), skip=request.clip_skip)
        context, negative = self._contexts(
            request, plan.prompts, plan.negatives, plan.guided, plan.count
        )
        denoise = Denoiser(
            self.unet,
            nn,
            context if negative is None else nn.concat((negative, context), 0),
            [solver.timestep(i) for i in range(len(solver))],
            lambda: self._run.guidance,
            float(request.guidance_rescale),
            self.unet.config.time_cond_proj_dim is not None,
        )
        return denoise, negative

    def _contexts(
        self,
        request: Request,
        prompts: list[str] | None,
        negatives: list[str] | None,
        guided: bool,
        count: int,
    ) -> tuple[Array, Array | None]:
        """Contexts `(count, tokens, width)`; without guidance the second is None."""
        nn, framework, plain = self._operations, self.unet._framework, self.compat == "diffusers"
        context: Any = request.prompt_embeds
        negative: Any = request.negative_prompt_embeds if guided else None
        absent = guided and negative is None
        if (prompts is not None or absent) and None in (self.text_encoder, self.tokenizer):
            raise no_texts(self, prompts)
        if prompts is not None:
            against = (negatives or [""] * len(prompts)) if absent else []
            with self._borrowed(self.text_encoder):
                context, found = encode_prompts(
                    self.text_encoder, self.tokenizer, prompts, against, request.clip_skip, plain
                )
            negative = found if absent else negative
        elif absent:
            negative = self._negative_like(context, negatives or [""] * context.shape[0])
        if negative is not None and negative.shape[1] != context.shape[1]:
            context, negative = self._equally_long(context, negative)
        like = framework.leaf(self.unet.conv_in)

        def ready(x: Array) -> Array:
            x = nn.cast(framework.array(x, device=self.device), like)
            rows, tokens, width = x.shape
            x = nn.expand(x[:, None], (rows, count // rows, tokens, width))
            return x.reshape(-1, tokens, width)

        return ready(context), None if negative is None else ready(negative)

    # -- what comes out ----------------------------------------------------------------------------
    def _decode(self, plan: Plan, latents: Array) -> tuple[Any, list[bool] | None]:
        """The last latents as the caller wants them, and what the safety checker says."""
        kind = plan.request.output_type
        return (latents, None) if kind == "latent" else self.decode_latents(latents, kind)

    def _output(
        self,
        plan: Plan,
        made: Any,
        flags: list[bool] | None,
        own: Mapping[str, Any] | Callable[[int], Mapping[str, Any]],
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """What a call returns; PIL images get a record of it.

        `own` are the pipeline's arguments besides the shared ones, by name (or a function that
        gives those of an image): numbers and texts are recorded, of others that they were given.
        """
        if plan.request.output_type == "pil":
            annotate(self, made, plan, own)
        if not plan.request.return_dict:
            return made, flags
        return StableDiffusionPipelineOutput(made, flags)

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A `tqdm` bar with this pipeline's options."""
        if (iterable is None) == (total is None):
            raise InputError("progress_bar takes either iterable or total")
        return tqdm(iterable, total=total, **self._progress_bar_config)

    def _drive(
        self,
        run: Generator[Step, Change | None, Array],
        latents: Array,
        calls: int,
        steps: int,
        watch: Callable[[Step, bool], Change] | None = None,
    ) -> Generator[Step, None, Array]:
        """Take a run of `sample`, so many model calls in `steps` steps, to its end or to
        `interrupt`; the latents it arrived at. `watch` sees every call, and whether it ends a step;
        its answer goes back into the run."""
        order = getattr(self.scheduler, "order", 1)
        self._interrupt, change = False, None
        with closing(run), self.progress_bar(total=steps) as bar:
            while not self._interrupt:
                try:
                    step = run.send(change)
                except StopIteration:
                    break
                latents, change, done = step.latents, None, step.index + 1
                ends = done == calls or (done > calls - steps * order and done % order == 0)
                if watch is not None:
                    change = watch(step, ends)
                    latents = latents if change.latents is None else change.latents
                if ends:
                    bar.update()
                yield step._replace(latents=latents)
        return latents
