"""The pieces of work that are timed: a guided step, decoding pictures, and whole pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from underdraw.backends.counting import Work
from underdraw.benchmark.counted import Counts, counted
from underdraw.benchmark.networks import Networks, drawn
from underdraw.benchmark.peers import Decoding, Part, Run, Stepping, Theirs, pipeline
from underdraw.benchmark.steps import GUIDANCE, TIME, run_of, stepper
from underdraw.benchmark.turns import Call
from underdraw.engines.engine import Engine, Question
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.sampling.denoiser import Denoiser

TOKENS = 77


@dataclass(frozen=True)
class Setting:
    """How large a piece of work is."""

    side: int
    """Of the pictures, in pixels."""
    images: int = 1
    """Pictures at once."""
    steps: int = 20
    """Of a run."""
    speed: str = "exact"
    """A preset of acceleration (`controls.acceleration.presets`), of a run."""


@dataclass(frozen=True, eq=False)
class Job:
    """A piece of work of one size: ours by an engine, and what others are asked for."""

    ours: Callable[[Engine], Call]
    theirs: Callable[[], Theirs]
    work: Work


@dataclass(frozen=True)
class Kind:
    """A kind of work."""

    make: Callable[[Networks, Setting], Job]
    runs: bool = False
    """Whether it is a run of steps, of which presets of acceleration leave something out."""


def step(networks: Networks, setting: Setting) -> Job:
    """A call of the UNet and what guidance makes of it, as the loop calls it: keys and values of
    the text and what blocks make of the time are there since the first call. diffusers computes
    them anew each time."""
    unet, nn, images = networks.unet, networks.unet.nn, setting.images
    latents = drawn(unet, 0, _shape(networks, setting, unet.config.in_channels), "float32")
    context = _context(networks, setting)

    def ours(engine: Engine) -> Call:
        denoise = stepper(unet, context, engine)
        return lambda: denoise(latents, 0)

    def guide(out: Any) -> Any:
        if unet.config.time_cond_proj_dim is not None:
            return nn.float32(out)
        unconditional, conditional = (nn.float32(out)[i * images :][:images] for i in range(2))
        return unconditional + GUIDANCE * (conditional - unconditional)

    def theirs() -> Theirs:
        part = _unet(networks, latents, context)
        return Theirs((part,), lambda run: lambda: guide(run(*part.inputs())))

    question = Denoiser(run_of(unet, context)).question(latents, 0)
    return Job(ours, theirs, counted(question))


def decode(networks: Networks, setting: Setting) -> Job:
    """Latents to pictures."""
    vae = networks.vae
    latents = drawn(vae, 2, _shape(networks, setting, vae.config.latent_channels))
    question = Question(type(vae).programs[1], vae, (latents,), vae.nn)

    def theirs() -> Theirs:
        return Theirs((_decoder(networks, latents),), lambda run: lambda: run(latents))

    return Job(lambda engine: lambda: engine.run(question), theirs, counted(question))


def picture(networks: Networks, setting: Setting) -> Job:
    """A guided run by DDIM from the context of a prompt to pictures `(images, 3, side, side)` in
    [0, 1], by a call of the pipeline, as users make it; diffusers' pipeline is called alike."""
    unet, images = networks.unet, setting.images
    shape = _shape(networks, setting, networks.vae.config.latent_channels)
    latents, context = drawn(unet, 0, shape, "float32"), _context(networks, setting)
    given: dict[str, Any] = {
        "prompt_embeds": context[images:],
        "negative_prompt_embeds": context[:images],
        "height": setting.side,
        "width": setting.side,
        "num_inference_steps": setting.steps,
        "guidance_scale": GUIDANCE,
        "output_type": "pt",
    }

    def ours(engine: Engine) -> Call:
        pipe: Any = StableDiffusionPipeline(networks.vae, None, None, unet, networks.schedule)
        pipe.set_progress_bar_config(disable=True)
        pipe.enable_acceleration(setting.speed)
        pipe.engine = engine
        return lambda: pipe(**given, latents=latents).images

    def theirs() -> Theirs:
        begun = unet.nn.cast(latents, context)  # diffusers' solvers compute in what they are given

        def ready(call: Run, decoding: Run) -> Call:
            peer, other = networks.peer(unet), networks.peer(networks.vae)
            pipe = pipeline(peer, other, call, decoding, networks.schedule)
            return lambda: pipe(**given, latents=begun).images

        return Theirs((_unet(networks, latents, context), _decoder(networks, begun)), ready)

    counts = Counts()
    ours(counts)()
    return Job(ours, theirs, counts.work)


WORKS: Mapping[str, Kind] = {
    "step": Kind(step),
    "decode": Kind(decode),
    "picture": Kind(picture, runs=True),
}
"""By name."""


def _shape(networks: Networks, setting: Setting, channels: int) -> tuple[int, int, int, int]:
    """Of latents."""
    side = setting.side // networks.factor
    return setting.images, channels, side, side


def _context(networks: Networks, setting: Setting) -> Any:
    """Of both halves, unconditional rows first."""
    unet = networks.unet
    return drawn(unet, 1, (2 * setting.images, TOKENS, unet.config.cross_attention_dim))


def _unet(networks: Networks, latents: Any, context: Any) -> Part:
    """diffusers' UNet, guided: both halves at once, or an embedding of the scale (LCM)."""
    unet, nn, images = networks.unet, networks.unet.nn, latents.shape[0]
    embedded = unet.config.time_cond_proj_dim

    def inputs() -> tuple[Any, ...]:
        time = unet._framework.array(TIME, device=unet.device)
        if embedded is not None:
            scale = drawn(unet, 3, (images, embedded))
            return nn.cast(latents, context), time, context[images:], scale
        return nn.cast(nn.concat((latents, latents), 0), context), time, context

    return Part(Stepping(networks.peer(unet)), inputs)


def _decoder(networks: Networks, latents: Any) -> Part:
    """diffusers' decoder."""
    return Part(Decoding(networks.peer(networks.vae)), lambda: (latents,))
