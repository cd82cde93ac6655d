"""Controls from outside the package: each site acts, keeps its shape or is named, and leaves
nothing behind."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pipelines import tiny
from pipelines.tiny import run, together

from underdraw.controls import Control
from underdraw.controls.run import Conditioning, Run
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import answered
from underdraw.errors import ControlError
from underdraw.networks.sites import Sites
from underdraw.sampling.loop import sample

CALL = {"prompt": ["a red sphere", "blue cube"], "height": 40, "width": 72}


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def plain(pipe):
    return run(pipe, **CALL)


@dataclass(frozen=True)
class Toy(Control):
    """Acts at some sites while less than `until` of the run is done."""

    sites: Sites
    until: float = 1.0

    def before_call(self, nn, carry, latents, call):
        return latents, self.sites if call.progress < self.until else Sites(), carry


def residuals(pipe, value):
    """As ControlNet's: one array per skip connection."""
    seen = []

    class Look(Control):
        def before_call(self, nn, carry, latents, call):
            def note(nn, place, hidden, skip):
                seen.append(skip.shape)
                return hidden, skip

            return latents, Sites(join=(note,)), carry

    run(pipe, **CALL, num_inference_steps=1, controls=[Look()])
    return [torch.full((1, shape[1], 1, 1), value) for shape in reversed(seen)]


def doubled(nn, place, x):
    return x * 1.5


def nothing(nn, place, x):
    return x


HOOKS = {
    "after_self_attention": Sites(after_self_attention=(doubled,)),
    "self_attention": Sites(self_attention=(doubled,)),
    "cross_attention": Sites(cross_attention=(doubled,)),
    "beside_cross_attention": Sites(beside_cross_attention=(lambda nn, place, q: q * 0.5,)),
    "down": Sites(down=(doubled,)),
    "join": Sites(join=(lambda nn, place, hidden, skip: (hidden * 1.2, skip * 0.7),)),
    "model_input": Sites(model_input=(lambda nn, x: x * 1.1,)),
    "conv_in": Sites(conv_in=lambda nn, p, x: nn.conv2d(p, x, 16, 3) * 1.1),
    "mid_residual": Sites(mid_residual=torch.full((1, 32, 1, 1), 0.5)),
}


@pytest.mark.parametrize("site", [*HOOKS, "down_residuals"])
def test_each_site_acts_and_leaves_nothing_behind(pipe, plain, site):
    sites = HOOKS.get(site) or Sites(down_residuals=residuals(pipe, 0.4))
    acted = run(pipe, **CALL, controls=[Toy(sites)])
    assert (acted - plain).abs().max() > 1e-2 * plain.abs().max()
    early = run(pipe, **CALL, controls=[Toy(sites, until=0.5)])
    assert not torch.equal(early, acted) and not torch.equal(early, plain)
    assert torch.equal(run(pipe, **CALL, controls=[Toy(sites, until=0.0)]), plain)
    assert torch.equal(run(pipe, **CALL), plain)


@pytest.mark.parametrize("site", ["after_self_attention", "down", "self_attention"])
def test_a_hook_that_does_nothing_changes_next_to_nothing(pipe, plain, site):
    """Attention with its probabilities laid open rounds otherwise than the fused one."""
    made = run(pipe, **CALL, controls=[Toy(Sites(**{site: (nothing,)}))])
    assert (made - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_controls_combine_in_the_order_given(pipe, plain):
    one, two = Toy(HOOKS["down"]), Toy(HOOKS["mid_residual"])
    both = run(pipe, **CALL, controls=[one, two])
    assert torch.equal(both, run(pipe, **CALL, controls=[two, one]))  # they act at different places
    assert torch.equal(
        both, run(pipe, **CALL, controls=(Toy(HOOKS["down"] + HOOKS["mid_residual"]),))
    )
    assert not torch.equal(both, run(pipe, **CALL, controls=[one]))

    def add(nn, place, x):
        return x + 1

    def halve(nn, place, x):
        return x / 2

    first, second = (Toy(Sites(down=(hook,))) for hook in (add, halve))
    ordered = run(pipe, **CALL, controls=[first, second])
    assert not torch.equal(ordered, run(pipe, **CALL, controls=[second, first]))
    residual = residuals(pipe, 0.2)
    twice = [Toy(Sites(down_residuals=residual))] * 2
    once = Toy(Sites(down_residuals=[2 * value for value in residual]))
    added = run(pipe, **CALL, controls=twice)
    assert (added - run(pipe, **CALL, controls=[once])).abs().max() <= 1e-5 * plain.abs().max()


WRONG = {
    "after_self_attention": Sites(after_self_attention=(lambda nn, place, x: x[:, :-1],)),
    "self_attention": Sites(self_attention=(lambda nn, place, x: x[:1],)),
    "cross_attention": Sites(cross_attention=(lambda nn, place, x: x[..., :5],)),
    "beside_cross_attention": Sites(beside_cross_attention=(lambda nn, place, x: x[:, :1],)),
    "down": Sites(down=(lambda nn, place, x: x[:, :, 1:],)),
    "join": Sites(join=(lambda nn, place, hidden, skip: (hidden, skip[:, 1:]),)),
    "model_input": Sites(model_input=(lambda nn, x: torch.cat((x, x), 1),)),
    "model_input, size": Sites(model_input=(lambda nn, x: x[:, :, 1:],)),
    "conv_in": Sites(conv_in=lambda nn, p, x: x),
    "mid_residual": Sites(mid_residual=torch.ones(1, 31, 1, 1)),
    "down_residuals": Sites(down_residuals=[torch.ones(1, 1, 1, 1)] * 2),
    "down_residuals, size": Sites(down_residuals=[torch.ones(7, 1, 1, 1)] * 6),
}


@pytest.mark.parametrize("site", WRONG)
def test_a_hook_that_changes_the_shape_is_named(pipe, plain, site):
    name = site.split(",")[0]
    where = {"model_input": "model_input|conv_in", "join": "up_blocks"}
    where |= dict.fromkeys(("down",), "down_blocks")
    where |= dict.fromkeys([k for k in WRONG if "attention" in k], r"attentions\.0")
    with pytest.raises(ControlError, match=where.get(name, name)):
        run(pipe, **CALL, controls=[Toy(WRONG[site])])
    assert torch.equal(run(pipe, **CALL), plain)


def test_two_first_convolutions(pipe):
    with pytest.raises(ControlError, match="two controls replace the first convolution"):
        run(pipe, **CALL, controls=[Toy(HOOKS["conv_in"])] * 2)


def test_further_channels_for_an_inpainting_unet():
    """A control fills the channels that a mask and a masked picture take."""
    unet = tiny.components(unet={"in_channels": 9})["unet"]
    pipe = tiny.pipeline()
    pipe.unet = unet
    wide = Sites(model_input=(lambda nn, x: nn.concat((x, x[:, :1] * 0 + 1, x * 0), 1),))
    # The pipeline itself speaks of text to image only; the loop takes any UNet.
    table = pipe.scheduler.make_table(2)
    context, _ = pipe.encode_prompt("a")
    x = torch.randn(1, 4, 5, 9) * table.initial_sigma
    told = Run(unet.nn, unet, table, Conditioning(context))
    *_, last = answered(sample(told, x, [Toy(wide)]), EAGER)
    assert last.latents.shape == x.shape and torch.isfinite(last.latents).all()


# -- the four moments -----------------------------------------------------------------------------
class Count(Control):
    """Carries a count; shifts latents by it at the end of each call."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def prepare(self, run):
        self.seen.append(
            ("prepare", run.batch, tuple(run.latents.shape), run.calls, run.components)
        )
        return 0

    def before_call(self, nn, carry, latents, call):
        self.seen.append(("before", carry, call))
        return latents, Sites(), carry + 1

    def after_step(self, nn, carry, latents, call):
        self.seen.append(("after", carry, call))
        return latents + 0.01 * carry, carry + 10


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_moments_and_carry(pipe, plain, guidance):
    seen: list[Any] = []
    shifted = run(pipe, **CALL, guidance_scale=guidance, controls=[Count(seen)])
    assert seen[0] == ("prepare", 2, (2, 4, 5, 9), 3, pipe.parts)
    assert [(kind, carry) for kind, carry, _ in seen[1:]] == [
        *(("before", 0), ("after", 1), ("before", 11)),
        *(("after", 12), ("before", 22), ("after", 23)),
    ]
    calls = [call for _, _, call in seen[1:]]
    assert [call.index for call in calls] == [0, 0, 1, 1, 2, 2]
    assert {call.count for call in calls} == {3}
    assert [call.progress for call in calls[::2]] == [0, 1 / 3, 2 / 3]
    assert all(call.guided == (guidance > 1) for call in calls)
    times = list(pipe.scheduler.make_table(3).timesteps)
    assert [call.timestep for call in calls[::2]] == times
    assert not torch.equal(shifted, run(pipe, **CALL, guidance_scale=guidance))
    assert torch.equal(run(pipe, **CALL), plain)


def test_latents_before_a_call(pipe, plain):
    class Mask(Control):
        """Inpainting keeps the known half at the noise level of the step."""

        def before_call(self, nn, carry, latents, call):
            known = latents.clone()
            known[..., :4] = 1.0
            return known, Sites(), carry

    made = run(pipe, **CALL, controls=[Mask()])
    assert not torch.equal(made[..., 4:], plain[..., 4:])


@pytest.mark.parametrize(
    ("moment", "value", "message"),
    [
        ("before_call", None, "'before_call' returned NoneType; a tuple of 3"),
        ("before_call", (1, 2, 3), "'before_call' returned tuple; a tuple of 3"),
        ("before_call", (torch.ones(1, 4, 5, 9), Sites(), None), r"returned \(1, 4, 5, 9\)"),
        ("after_step", torch.ones(2, 4, 5, 9), "'after_step' returned Tensor; a tuple of 2"),
        ("after_step", (torch.ones(2, 4, 5, 8), None), r"returned \(2, 4, 5, 8\); the site carr"),
    ],
)
def test_moments_that_break_the_contract(pipe, plain, moment, value, message):
    wrong = type("Wrong", (Control,), {moment: lambda self, *_: value})
    with pytest.raises(ControlError, match=f"Wrong.*{message}"):
        run(pipe, **CALL, controls=[wrong()])
    assert torch.equal(run(pipe, **CALL), plain)


def test_one_control_serves_two_threads(pipe):
    control = Toy(replace(HOOKS["down"], join=HOOKS["join"].join), until=0.7)
    tasks = [
        lambda: run(pipe, "a red sphere", controls=[control], num_inference_steps=6),
        lambda: run(pipe, "blue", controls=[control], num_inference_steps=5, guidance_scale=1.0),
        lambda: run(pipe, "green cube", num_inference_steps=6),
    ]
    alone = [task() for task in tasks]
    assert all(torch.equal(a, b) for a, b in zip(alone, together(*tasks), strict=True))
