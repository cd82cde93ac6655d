"""The loop as a generator: previews, changes, closing; foreign schedulers."""

import gc
import weakref

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw import schedulers
from underdraw.controls.run import Conditioning, Run
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import answered
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.sampling.denoiser import CHUNK
from underdraw.sampling.loop import sample
from underdraw.sampling.steps import Change
from underdraw.schedulers.foreign import ForeignSolver

SHAPE = (2, 4, 5, 9)


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


def begin(pipe, scheduler=None, steps=4, guidance=3.0, draw=None, **options):
    scheduler = scheduler or pipe.scheduler
    solver = scheduler.make_table(steps)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=g) * solver.initial_sigma
    noise = torch.Generator().manual_seed(1)
    draw = draw or (lambda: torch.randn(SHAPE, generator=noise))
    return loop(pipe, solver, x, guidance=guidance, draw=draw, **options)


def loop(pipe, solver, x, prompts=("a red sphere", "blue cube"), **options):
    """The steps of a run, whose questions are answered."""
    context, negative = pipe.encode_prompt(list(prompts))
    conditioning = options.pop("conditioning", Conditioning(context, negative))
    run = Run(pipe.unet.nn, pipe.unet, solver, conditioning, **options)
    return answered(sample(run, x), EAGER)


def last(run):
    *_, step = run
    return step.latents


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("EulerDiscreteScheduler", 4),
        ("PNDMScheduler", 13),
        ("HeunDiscreteScheduler", 7),
        ("DDIMScheduler", 4),
        ("DPMSolverMultistepScheduler", 4),
    ],
)
def test_steps_and_previews(pipe, name, calls):
    scheduler = getattr(schedulers, name)(**tiny.SCHEDULE)
    table = scheduler.make_table(4)
    steps = list(begin(pipe, scheduler))
    assert len(steps) == len(table) == calls
    assert [step.index for step in steps] == list(range(calls))
    assert [step.timestep for step in steps] == list(table.timesteps)
    for step in steps:
        assert step.latents.shape == SHAPE and step.latents.dtype == torch.float32
        clean = step.clean()
        assert clean.shape == SHAPE and torch.isfinite(clean).all()
        assert torch.equal(clean, step.clean())
    # The last step lands on the clean image, where the solver goes all the way.
    if name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        torch.testing.assert_close(steps[-1].clean(), steps[-1].latents, rtol=1e-4, atol=1e-3)


def test_looking_at_previews_changes_nothing(pipe):
    looked = begin(pipe)
    for step in looked:
        final = step.latents
        step.clean().add_(5)
    assert torch.equal(final, last(begin(pipe)))


def test_the_generator_returns_the_last_latents(pipe):
    run = begin(pipe)
    with pytest.raises(StopIteration) as stop:
        while True:
            step = next(run)
    assert torch.equal(stop.value.value, step.latents)


def test_closing_between_two_steps_frees_what_the_run_held(pipe):
    run = begin(pipe)
    step = next(run)
    held = weakref.ref(step.latents)
    run.close()
    del step
    gc.collect()
    assert held() is None
    with pytest.raises(StopIteration):
        next(run)
    assert torch.is_grad_enabled()


def test_gradients_are_as_they_were_between_steps(pipe):
    """Consumers may differentiate: nothing leaks out of a step that is under way."""
    run = begin(pipe)
    for step in run:
        assert torch.is_grad_enabled()
        assert not step.latents.requires_grad


def test_changes_sent_back(pipe):
    plain = last(begin(pipe))
    run = begin(pipe)
    first = next(run)
    second = run.send(Change(latents=first.latents.double()))
    assert second.latents.dtype == torch.float32
    for step in run:
        final = step.latents
    assert torch.equal(final, plain)
    for change in (
        lambda step: Change(latents=step.latents * 0.5),
        lambda step: Change(context=torch.zeros(4, 77, tiny.WIDTH)),
        lambda step: Change(context=torch.zeros(2, 77, tiny.WIDTH)),  # without unconditional half
    ):
        run = begin(pipe)
        run.send(None)
        step = run.send(change(next(begin(pipe))))
        for step in run:
            final = step.latents
        assert torch.isfinite(final).all()
        assert (final - plain).abs().max() > 1e-2


def test_nothing_remembers_the_first_context_when_another_takes_its_place(pipe):
    """Also one that was changed in place."""
    finals = []
    for in_place in (False, True):
        solver = pipe.scheduler.make_table(3)
        context, negative = pipe.encode_prompt("a red sphere")
        told = Conditioning(torch.cat((negative, context)))
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 14
        run = loop(pipe, solver, x, conditioning=told, guidance=4.0)
        next(run)
        whole = told.context
        run.send(Change(context=whole.mul_(2) if in_place else whole * 2))
        finals.append(next(run).latents)
    assert torch.equal(*finals)


def test_more_calls_than_times_embedded_together(pipe):
    steps = CHUNK + 3
    long = last(begin(pipe, steps=steps))
    context, negative = pipe.encode_prompt(["a red sphere", "blue cube"])
    table = pipe.scheduler.make_table(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * table.initial_sigma
    whole = torch.cat((negative, context))
    for i in range(steps):
        row = table.row(i)
        with torch.no_grad():
            both = pipe.unet(torch.cat((x, x)) * row.input_scale, row.timestep, whole).sample
        low, high = both.chunk(2)
        out = low + 3.0 * (high - low)
        from underdraw.solvers.table import State, advance

        x = advance(pipe.unet.nn, row, State(x), out).x
    assert (long - x).abs().max() <= 1e-4 * x.abs().max()


def test_noise_is_drawn_only_where_a_solver_adds_it(pipe):
    drawn = []

    def draw():
        drawn.append(1)
        return torch.zeros(SHAPE)

    last(begin(pipe, draw=draw))
    assert not drawn
    last(begin(pipe, schedulers.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE), draw=draw))
    assert len(drawn) == 4


def test_nan_is_an_error_at_the_first_step(pipe):
    with pytest.raises(NonFiniteError, match=r"first step gave NaN or infinity; .*float32"):
        next(begin(pipe, guidance=float("inf")))


# -- foreign schedulers ---------------------------------------------------------------------------
def test_our_own_scheduler_also_quacks(pipe):
    """Through the methods of the familiar classes, and as a table: the same latents."""
    scheduler = schedulers.DPMSolverMultistepScheduler(**tiny.SCHEDULE)
    solver = ForeignSolver(scheduler, 4)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=g) * solver.initial_sigma
    steps = list(loop(pipe, solver, x, guidance=3.0))
    expected = last(begin(pipe, schedulers.DPMSolverMultistepScheduler(**tiny.SCHEDULE)))
    assert (steps[-1].latents - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(step.clean().shape == SHAPE for step in steps)


def test_what_is_no_scheduler():
    with pytest.raises(InputTypeError, match="scheduler=object has no set_timesteps, step"):
        ForeignSolver(object(), 3)


def test_times_a_foreign_scheduler_does_not_take():
    class Plain:
        init_noise_sigma = 1.0
        timesteps = (1,)

        def set_timesteps(self, steps, device=None): ...

        def step(self, output, t, x): ...

        def scale_model_input(self, x, t): ...

    with pytest.raises(InputError, match="sigmas: Plain takes no custom sigmas"):
        ForeignSolver(Plain(), None, sigmas=[2.0, 1.0])


def test_a_foreign_scheduler_draws_by_pytorch_alone():
    class Drawing:
        init_noise_sigma = 1.0
        timesteps = (1,)

        def set_timesteps(self, steps, device=None): ...

        def step(self, output, t, x, generator=None): ...

        def scale_model_input(self, x, t): ...

    assert len(ForeignSolver(Drawing(), 1, generator=torch.Generator())) == 1
    for given in (np.random.default_rng(0), [torch.Generator(), np.random.default_rng(0)]):
        with pytest.raises(InputTypeError, match="generator is numpy's; Drawing"):
            ForeignSolver(Drawing(), 1, generator=given)
