"""Inversions that lead back to the image they came from, on small random networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw import schedulers
from underdraw.controls import Control, NullText
from underdraw.controls.run import Conditioning, Run
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import answered
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.inversion import (
    FixedPoint,
    Inversion,
    NegativePrompt,
    NullTextInversion,
    Plain,
    finish,
    invert,
    reconstruct,
    reconstruction,
)
from underdraw.sampling.loop import sample
from underdraw.schedulers.foreign import ForeignSolver

STEPS, GUIDANCE = 3, 5.0
SHAPE = (2, 4, 5, 9)
EXACT = FixedPoint(tolerance=2e-6, iterations=40)
PROMPTS = ["a red sphere", "blue cube left of a green sphere"]


@pytest.fixture(scope="module")
def pipe():
    ddim = schedulers.DDIMScheduler(**tiny.SCHEDULE, clip_sample=False)
    pipe = tiny.pipeline(unet=tiny.DEEP, scheduler=ddim)
    # A random network is rougher than a trained one; iteration settles where slopes are below 1.
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.4)
    return pipe


def clean(rows=slice(None)):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))[rows] * 0.8


def solver_of(pipe, name="DDIMScheduler", steps=STEPS, **options):
    kind = getattr(schedulers, name)
    if name == "DDIMScheduler":
        options = {"clip_sample": False, **options}
    return kind(**{**tiny.SCHEDULE, **options}).make_table(steps)


def denoiser(pipe, solver, guidance=1.0, prompts=PROMPTS):
    context, negative = pipe.encode_prompt(prompts, negative_prompt="the table")
    conditioning = Conditioning(context, negative if guidance > 1 else None)
    return Denoiser(Run(pipe.unet.nn, pipe.unet, solver, conditioning, guidance))


def downwards(pipe, solver, begin):
    """The steps of a run."""
    return answered(sample(denoiser(pipe, solver).run, begin), EAGER)


def inverted(pipe, method, guidance=1.0, solver=None, **options):
    solver = solver or solver_of(pipe)
    return finish(invert(denoiser(pipe, solver, guidance), solver, clean(), method, **options))


def test_plain_inversion_is_the_inverse_solver(pipe):
    """As the familiar pair of schedulers does it."""
    found = inverted(pipe, "plain")
    scheduler = schedulers.DDIMInverseScheduler(**tiny.SCHEDULE, clip_sample=False)
    table = scheduler.make_table(STEPS)
    run = downwards(pipe, table, clean())
    for mine, step in zip(found.latents[1:], run, strict=True):
        torch.testing.assert_close(mine, step.latents, rtol=1e-5, atol=1e-5)
    assert found.residuals == found.negatives == found.controls == ()


def test_a_fixed_point_leads_back_where_plain_inversion_does_not(pipe):
    plain = inverted(pipe, "plain")
    exact = inverted(pipe, EXACT)
    assert max(exact.error.latents) <= 1e-4
    assert min(plain.error.latents) > 20 * max(exact.error.latents)
    assert np.array(exact.residuals).shape == (STEPS, 2) and np.max(exact.residuals) <= 2e-6
    assert torch.equal(exact.latents[0], clean()) and len(exact.latents) == STEPS + 1
    # Each level is where the solver passes on its way down.
    solver = solver_of(pipe)
    run = downwards(pipe, solver, exact.noise)
    for level, step in zip(exact.latents[-2::-1], run, strict=True):
        torch.testing.assert_close(step.latents, level, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EulerDiscreteScheduler", {}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"prediction_type": "sample", "set_alpha_to_one": False}),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": False}),
    ],
)
def test_every_solver_whose_steps_can_be_turned_round(pipe, name, options):
    solver = solver_of(pipe, name, 12, **options).tail(9)
    found = inverted(pipe, EXACT, solver=solver)
    plain = inverted(pipe, "plain", solver=solver)
    assert max(found.error.latents) <= 1e-3
    assert max(found.error.latents) < 0.2 * min(plain.error.latents)


def test_the_best_is_kept_where_iteration_does_not_settle(pipe):
    """Residuals tell it, and more iterations are never worse."""
    few, more = (inverted(pipe, FixedPoint(0.0, n), guidance=GUIDANCE) for n in (2, 6))
    assert (np.array(few.residuals[0]) >= np.array(more.residuals[0])).all()
    assert torch.isfinite(more.noise).all()


SHORT = NullTextInversion(iterations=2, rate=0.1)


@pytest.mark.parametrize("method", [FixedPoint(), SHORT])
def test_an_image_does_not_depend_on_its_batch(pipe, method):
    solver = solver_of(pipe)
    guidance = GUIDANCE if method is SHORT else 1.0
    both = inverted(pipe, method, guidance)
    for i in range(2):
        one = denoiser(pipe, solver, guidance)
        one.set_context(one.context[i::2])
        alone = finish(invert(one, solver, clean(slice(i, i + 1)), method))
        torch.testing.assert_close(alone.noise, both.noise[i : i + 1], rtol=1e-3, atol=1e-4)
        assert alone.error.latents[0] == pytest.approx(both.error.latents[i], rel=0.05, abs=1e-5)


def test_null_text_leads_back_under_guidance(pipe):
    settings = NullTextInversion(EXACT, iterations=8, rate=0.1, tolerance=0.0)
    plain = inverted(pipe, EXACT, solver=solver_of(pipe))
    astray = reconstruction(denoiser(pipe, solver_of(pipe), GUIDANCE), solver_of(pipe), plain)
    found = inverted(pipe, settings, GUIDANCE)
    assert max(found.error.latents) < 0.7 * min(astray.latents)
    # More work, less error; and never more than without any.
    less = inverted(pipe, replace(settings, iterations=2), GUIDANCE)
    assert all(a < b for a, b in zip(found.error.latents, less.error.latents, strict=True))
    assert all(a <= b for a, b in zip(less.error.latents, astray.latents, strict=True))
    assert len(found.negatives) == STEPS
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_null_text_is_consumed_by_any_run(pipe):
    """What the inversion reached is what a pipeline makes of it."""
    found = inverted(pipe, SHORT, GUIDANCE)
    made = pipe(
        PROMPTS,
        negative_prompt="the table",
        latents=found.noise,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        controls=found.controls,
        output_type="latent",
    ).images
    torch.testing.assert_close(made, found.reached, rtol=1e-4, atol=1e-4)
    solver = solver_of(pipe)
    denoise = denoiser(pipe, solver, GUIDANCE)
    torch.testing.assert_close(reconstruct(denoise, solver, replace(found, reached=None)), made)


def test_negative_prompt_inversion_is_free_of_guidance(pipe):
    plain, found = inverted(pipe, "plain"), inverted(pipe, "negative-prompt", GUIDANCE)
    torch.testing.assert_close(found.noise, plain.noise)
    assert found.error.latents == pytest.approx(plain.error.latents, rel=1e-3)
    exact = inverted(pipe, NegativePrompt(EXACT), GUIDANCE)
    assert max(exact.error.latents) <= 2e-4
    assert len(exact.controls[0].contexts) == 1


@pytest.mark.parametrize("method", [FixedPoint(1e-4), NegativePrompt(), SHORT])
def test_stopped_and_resumed(pipe, method):
    solver = solver_of(pipe)
    guidance = 1.0 if isinstance(method, FixedPoint) else GUIDANCE
    whole = inverted(pipe, method, guidance)
    seen = []
    for stop in (2, STEPS + 1):
        kept = None
        for count, kept in enumerate(
            invert(denoiser(pipe, solver, guidance), solver, clean(), method), 1
        ):
            seen.append(kept.done)
            if count == stop:
                break
        assert isinstance(kept, Inversion) and kept.latents
        again = finish(
            invert(denoiser(pipe, solver, guidance), solver, clean(), method, resume=kept)
        )
        assert again.complete and torch.equal(again.noise, whole.noise)
        assert len(again.negatives) == len(whole.negatives)
        assert all(map(torch.equal, again.negatives, whole.negatives))
        assert again.error == whole.error
    assert seen[0] == pytest.approx(1 / (STEPS * (2 if method is SHORT else 1)))


def test_progress_and_what_is_measured(pipe):
    solver = solver_of(pipe)
    values = list(invert(denoiser(pipe, solver), solver, clean(), "plain", measure=False))
    assert [value.done for value in values] == pytest.approx(
        [(i + 1) / STEPS for i in range(STEPS)]
    )
    assert [value.complete for value in values] == [False] * (STEPS - 1) + [True]
    assert values[-1].error is None
    decode = lambda x: x[:, :3] / 8 + 0.5  # noqa: E731
    found = inverted(pipe, "plain", decode=decode)
    there = reconstruct(denoiser(pipe, solver), solver, found)
    for i in range(2):
        apart = (there - clean())[i]
        assert found.error.latents[i] == pytest.approx(float((apart**2).mean()) ** 0.5, rel=1e-4)
        noise = float(((apart[:3] / 8) ** 2).mean())
        assert found.error.psnr[i] == pytest.approx(-10 * np.log10(noise), rel=1e-3)


# -- the control ---------------------------------------------------------------------------------
def test_contexts_of_other_lengths_and_counts(pipe):
    arguments = {"prompt": PROMPTS, "height": 40, "width": 72, "guidance_scale": GUIDANCE}
    _, negative = pipe.encode_prompt("a", negative_prompt="green cube")
    expected = tiny.run(pipe, negative_prompt="green cube", **arguments)
    for contexts in ([negative], [negative] * 3, [None] * 2 + [negative] * 3):
        contexts = [negative * 0 if c is None else c for c in contexts]
        made = tiny.run(pipe, controls=[NullText(contexts)], **arguments)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    twice = torch.cat((negative, negative), 1)
    made = tiny.run(pipe, controls=[NullText([twice])], **arguments)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    plain = tiny.run(pipe, **{**arguments, "guidance_scale": 1.0})
    off = tiny.run(pipe, controls=[NullText([negative])], **{**arguments, "guidance_scale": 1.0})
    assert torch.equal(plain, off)


def test_different_contexts_reach_different_calls(pipe):
    seen = []

    class Look(Control):
        def before_call(self, nn, carry, latents, call):
            from underdraw.networks.sites import Sites

            return latents, Sites(context=(lambda nn, x: seen.append(x[:2].clone()) or x,)), carry

    contexts = [torch.full((1, 77, tiny.WIDTH), float(i)) for i in range(5)]
    tiny.run(pipe, PROMPTS, controls=[NullText(contexts), Look()], guidance_scale=GUIDANCE)
    assert [float(x.mean()) for x in seen] == [2.0, 3.0, 4.0]


# -- mistakes --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("exact", InputError, "method='exact' is not known; allowed: 'plain', 'fixed-point'"),
        (3, InputTypeError, "method=3 is not a method of inversion"),
        (FixedPoint(iterations=0), InputError, "iterations=0 is out of range; allowed: 1 or more"),
        (FixedPoint(tolerance=-1.0), InputError, "tolerance=-1.0 is out of range"),
        (NegativePrompt(FixedPoint(float("nan"))), InputError, "tolerance=nan is out of range"),
        ("null-text", InputError, "context has 2 rows for 2 images; guidance needs"),
    ],
)
def test_wrong_methods(pipe, method, error, message):
    with pytest.raises(error, match=message):
        inverted(pipe, method)


def ancestral():
    return schedulers.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE).make_table(3)


def clipping():
    return schedulers.DDIMScheduler(**tiny.SCHEDULE).make_table(3)


def multistep():
    return schedulers.DPMSolverMultistepScheduler(**tiny.SCHEDULE).make_table(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ancestral, "call 0 adds noise"),
        (clipping, "call 0 clips the image"),
        (multistep, "call 1 reads what earlier calls left"),
    ],
)
def test_solvers_that_cannot_be_turned_round(pipe, make, message):
    with pytest.raises(InputError, match=message):
        inverted(pipe, "plain", solver=make())


def test_other_mistakes(pipe):
    foreign = ForeignSolver(schedulers.DDIMScheduler(**tiny.SCHEDULE), 3)
    with pytest.raises(InputTypeError, match="solver is ForeignSolver; a table"):
        inverted(pipe, "plain", solver=foreign)
    half = next(invert(denoiser(pipe, solver_of(pipe)), solver_of(pipe), clean(), "plain"))
    for options, message in (
        ({"method": "fixed-point"}, r"resume is of Plain\(\) in 3 calls; asked for is FixedPoint"),
        ({"method": "plain", "solver": solver_of(pipe, steps=4)}, "in 3 calls; .* in 4"),
    ):
        with pytest.raises(InputError, match=message):
            inverted(pipe, resume=half, **options)
    smaller = replace(half, latents=(half.latents[0][:1],))
    with pytest.raises(InputError, match=r"resume is of latents \(1, 4, 5, 9\); given are \(2, 4"):
        inverted(pipe, "plain", resume=smaller)
    for contexts, error, message in (
        ([], InputError, "contexts is empty"),
        (torch.zeros(2, 77, 32), InputTypeError, "contexts is Tensor; a list is needed"),
        (
            [torch.zeros(77, 32)],
            InputTypeError,
            r"contexts holds Tensor of shape \(77, 32\)",
        ),
    ):
        with pytest.raises(error, match=message):
            NullText(contexts)
    for shape, count in (((3, 77, tiny.WIDTH), 1), ((1, 77, 32), 2)):
        with pytest.raises(InputError, match=r"contexts h"):
            tiny.run(pipe, PROMPTS, controls=[NullText([torch.zeros(shape)] * count)])


@pytest.mark.parametrize("method", [Plain(), FixedPoint(iterations=3)])
def test_nan_is_an_error(pipe, method):
    solver = solver_of(pipe)
    with pytest.raises(NonFiniteError, match="the inversion gave NaN"):
        next(invert(denoiser(pipe, solver), solver, clean() * float("nan"), method))
