"""Several runs in one call of the network: each equals itself run alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from controls.test_grounding import opened
from engines.runs import apart, begun, ended, unet

from underdraw.backends.deltas import LowRank
from underdraw.controls import Control
from underdraw.engines.batch import Batch
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question, answer
from underdraw.errors import ControlError
from underdraw.networks import joining
from underdraw.networks.sites import Observed, Sites, UpTo, owner_field
from underdraw.networks.unet import Inputs


@pytest.fixture(scope="module")
def model():
    return unet()


class Counting:
    """An engine that counts the calls of the network and their rows."""

    def __init__(self):
        self.rows = []

    def run(self, question):
        if question.program.name == "unet":
            self.rows.append(question.inputs[0].shape[0])
        return question.program(
            question.nn, question.model, question.model.config, *question.inputs
        )


def in_one(runs, engine):
    """Latents of runs which share calls; a failed one gives its error."""
    batch, live, results = Batch(engine), dict(enumerate(runs)), [None] * len(runs)
    replies = dict.fromkeys(live)
    while live:
        questions = {}
        for which, run in list(live.items()):
            try:
                item = run.send(replies[which])
                while not isinstance(item, Question):
                    results[which] = item.latents.numpy()
                    item = run.send(None)
                questions[which] = item
            except StopIteration:
                del live[which]
            except ControlError as error:
                results[which] = error
                del live[which]
        for which, reply in zip(questions, batch.run_all(list(questions.values())), strict=True):
            if isinstance(reply, Exception):
                results[which] = reply
                live.pop(which).close()
            replies[which] = reply
    return results


@dataclass(frozen=True, eq=False)
class Louder:
    """A hook with an array."""

    factor: torch.Tensor

    def __call__(self, nn, place, x):
        return x * self.factor


@dataclass(frozen=True, eq=False)
class Told:
    """A hook that tells the mean of what it sees."""

    owner: Any = owner_field()  # noqa: RUF009

    def __call__(self, nn, place, x):
        return Observed(x * 1.01, nn.mean(nn.float32(x), (0, 1, 2, 3)))


@dataclass(frozen=True, eq=False)
class Acting(Control):
    """Puts sites into each call, and remembers what they tell."""

    sites: Sites
    told: Any = None

    def before_call(self, nn, carry, latents, call):
        return latents, self.sites, carry

    def after_step(self, nn, carry, latents, call):
        if self.told is not None:
            self.told.extend((extra.place, float(extra.value)) for extra in call.extras)
        return latents, carry


def residuals(model, value):
    seen = []

    @dataclass(frozen=True)
    class Look(Control):
        def before_call(self, nn, carry, latents, call):
            def note(nn, place, hidden, skip):
                seen.append(tuple(skip.shape[1:]))
                return hidden, skip

            return latents, Sites(join=(note,)), carry

    ended(model, steps=1, controls=[Look()])
    return [torch.full((1, *shape), value) for shape in reversed(seen)]


def boxes(model, rows, strength=0.8):
    part = opened(model)
    random = np.random.default_rng(rows)
    corners = np.sort(random.uniform(0, 1, (2, rows, 4, 2)), 0).reshape(rows, 4, 4)
    phrases = random.standard_normal((rows, 4, 32))
    tokens = part.boxes(corners, np.ones((rows, 4)), phrases)
    return part.sites(part.constants(tokens), strength)


def low_rank(model, rows, path="down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"):
    random = np.random.default_rng(rows)
    layer = model.get_submodule(path)
    out, inner = layer.weight.shape[:2]
    down, up = (
        torch.from_numpy(random.standard_normal(s).astype(np.float32))
        for s in ((3, inner), (out, 3))
    )
    return {path: LowRank(down, up, torch.linspace(0.2, 0.9, rows))}


def kinds(model):
    """By name the options of a run that has something of its own."""
    wide = torch.ones(1)
    time = "up_blocks.1.resnets.0.time_emb_proj"
    return {
        "plain": {},
        "unguided": {"guidance": 1.0},
        "one image, other solver": {"images": 1, "solver": "HeunDiscreteScheduler", "steps": 3},
        "ancestral": {"solver": "EulerAncestralDiscreteScheduler", "steps": 5},
        "longer context": {"tokens": 154},
        "context of another length": {"tokens": 33, "images": 3},
        "guidance per image": {"guidance": torch.tensor([2.0, 5.0]).reshape(2, 1, 1, 1)},
        "tokens": {"controls": [Acting(Sites(after_self_attention=(Louder(wide * 1.3),)))]},
        "self-attention": {"controls": [Acting(Sites(self_attention=(Louder(wide * 1.5),)))]},
        "cross-attention": {
            "controls": [Acting(Sites(cross_attention=(UpTo(20, Louder(wide * 1.5)),)))]
        },
        "beside": {"controls": [Acting(Sites(beside_cross_attention=(Louder(wide * 0.3),)))]},
        "down": {"controls": [Acting(Sites(down=(Louder(wide * 1.2),)))]},
        "join": {
            "controls": [Acting(Sites(join=(lambda nn, at, x, skip: (x * 1.1, skip * 0.9),)))]
        },
        "latents": {"controls": [Acting(Sites(model_input=(lambda nn, x: x * 1.1,)))]},
        "context": {"controls": [Acting(Sites(context=(lambda nn, c: c * 1.2,)))]},
        "residuals": {
            "controls": [
                Acting(
                    Sites(
                        down_residuals=residuals(model, 0.3),
                        mid_residual=torch.full((1, 32, 1, 1), 0.5),
                    )
                )
            ]
        },
        "first convolution": {
            "controls": [Acting(Sites(conv_in=lambda nn, p, x: nn.conv2d(p, x, 16, 3) * 1.1))]
        },
        "boxes": {"controls": [Acting(boxes(model, 4))]},
        "other boxes": {"controls": [Acting(boxes(model, 4, 0.4))]},
        "low rank": {"controls": [Acting(Sites(leaves=low_rank(model, 4)))]},
        "low rank of times": {"controls": [Acting(Sites(leaves=low_rank(model, 4, time)))]},
    }


def test_each_run_equals_itself_alone(model):
    """All kinds at once, joined at different ticks: other solvers, numbers of steps and images,
    lengths of context, guidance on and off, and every site."""
    options = kinds(model)
    alone = [ended(model, seed, **each) for seed, each in enumerate(options.values())]
    engine = Counting()
    runs = [begun(model, seed, **each) for seed, each in enumerate(options.values())]
    together = in_one(runs, engine)
    for name, mine, theirs in zip(options, together, alone, strict=True):
        assert not isinstance(mine, Exception), (name, mine)
        assert apart(mine, theirs) <= 1e-5, name
    # A tick is one call for all that are left; the longest run makes five.
    assert len(engine.rows) == 5
    rows = [
        2 * each.get("images", 2) // (1 + (name == "unguided")) for name, each in options.items()
    ]
    assert engine.rows[0] == sum(rows)


@pytest.mark.parametrize("name", ["boxes", "cross-attention", "low rank", "plain"])
def test_a_run_beside_plain_ones_acts_in_its_rows_alone(model, name):
    """Plain runs before and behind it have the numbers of a batch of plain runs."""
    own = kinds(model)[name]
    runs = [begun(model, 5), begun(model, 6, **own), begun(model, 7)]
    together = in_one(runs, Counting())
    for seed, made, options in zip((5, 6, 7), together, ({}, own, {}), strict=True):
        assert apart(made, ended(model, seed, **options)) <= 1e-5


def test_what_hooks_tell_comes_to_their_own_run(model):
    told, alone = [[], [], []], [[], [], []]

    def acting(into):
        two = [Acting(Sites(down=(Told(),)), into[i]) for i in (0, 1)]
        return two, [Acting(Sites(self_attention=(UpTo(20, Told()),)), into[2])]

    first, second = acting(told)
    in_one([begun(model, 1, controls=first), begun(model, 2, controls=second)], Counting())
    first, second = acting(alone)
    ended(model, 1, controls=first)
    ended(model, 2, controls=second)
    assert [len(each) for each in told] == [8, 8, 4]
    for mine, theirs in zip(told, alone, strict=True):
        assert [place for place, _ in mine] == [place for place, _ in theirs]
        np.testing.assert_allclose([v for _, v in mine], [v for _, v in theirs], rtol=1e-4)


def test_an_error_in_one_leaves_the_others_alone(model):
    broken = [Acting(Sites(down=(lambda nn, place, x: x[:, 1:],)))]
    runs = [begun(model, 1), begun(model, 2, controls=broken), begun(model, 3)]
    first, error, last = in_one(runs, Counting())
    assert isinstance(error, ControlError) and "down_blocks.0" in str(error)
    for seed, made in ((1, first), (3, last)):
        assert apart(made, ended(model, seed)) <= 1e-5


def test_other_sizes_and_networks_are_asked_apart(model):
    other, engine = unet(layers_per_block=2), Counting()
    runs = [begun(model, 1), begun(model, 2, size=(8, 8)), begun(other, 3), begun(model, 4)]
    together = in_one(runs, engine)
    assert engine.rows == [8, 4, 4] * 4
    assert apart(together[1], ended(model, 2, size=(8, 8))) <= 1e-5
    assert apart(together[2], ended(other, 3)) <= 1e-5


def test_boxes_of_several_runs_are_one_attention(model):
    """Their hooks become one, whose strength is that of each row."""
    sites = [boxes(model, 2, 0.8), boxes(model, 4, 0.8), boxes(model, 2, 0.3)]
    first, second, third = (one.after_self_attention[0] for one in sites)
    second, third = (
        type(one)(first.p, one.config, one.constants, one.strength) for one in (second, third)
    )
    acting = [
        joining.OnRows(0, 2, first),
        joining.OnRows(2, 6, second),
        joining.OnRows(6, 8, third),
    ]
    (one,) = joining.together(model.nn, acting)
    assert (one.start, one.stop) == (0, 8)
    assert one.hook.strength.reshape(-1).tolist() == pytest.approx([0.8] * 6 + [0.3] * 2)
    # With a plain run between them they stay two.
    apart_ = [acting[0], joining.OnRows(4, 6, third)]
    assert len(joining.together(model.nn, apart_)) == 2
    place = next(iter(first.constants.keys))
    widths = {at: width for at, width, _ in first.config.fusers}
    x = torch.randn(8, 11, widths[place])
    parts = [each.hook(model.nn, place, x[each.start : each.stop]) for each in acting]
    torch.testing.assert_close(one(model.nn, place, x), torch.cat(parts), rtol=1e-5, atol=1e-5)


def test_contexts_of_the_same_runs_are_joined_once(model, monkeypatch):
    joined = []
    plain = joining.join_contexts
    monkeypatch.setattr(
        joining, "join_contexts", lambda nn, each: joined.append(len(each)) or plain(nn, each)
    )
    in_one([begun(model, 1), begun(model, 2), begun(model, 3, steps=2)], Counting())
    # Ahead of each tick empty ones, which cost nothing; those of three runs once, of two once.
    assert sum(1 for _ in joined) == 4 + 2


def test_a_single_question_is_the_engines(model):
    engine = Counting()
    question = next(begun(model, 1))
    made = Batch(engine).run(question)
    assert engine.rows == [4] and made.sample.shape == (4, 4, 5, 9)
    assert isinstance(Inputs(*question.inputs), Inputs)


def test_what_is_infinite_in_one_run_leaves_the_others_alone(model):
    broken = [Acting(Sites(mid_residual=torch.full((1, 32, 1, 1), float("inf"))))]
    runs = [begun(model, 1), begun(model, 2, controls=broken)]
    questions = [next(run) for run in runs]
    first, second = Batch().run_all(questions)
    assert first.sample.isfinite().all() and not second.sample.isfinite().all()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("path", ["conv_in", "down_blocks.0.attentions.0.proj_out", "time_emb"])
def test_differences_that_are_not_finite_leave_other_runs_alone(model, path, stacked):
    path = "down_blocks.0.resnets.0.time_emb_proj" if path == "time_emb" else path
    weight = model.get_submodule(path).weight
    ones = (1,) * (weight.dim() - 2)
    down, up = torch.full((2, *weight.shape[1:]), torch.inf), torch.ones(len(weight), 2, *ones)
    if stacked:
        down, up = (a.expand(4, *a.shape) for a in (down, up))
    broken = [Acting(Sites(leaves={path: LowRank(down, up, 0.5)}))]
    runs = [begun(model, 1), begun(model, 2, controls=broken), begun(model, 3)]
    first, second, third = Batch().run_all([next(run) for run in runs])
    assert not second.sample.isfinite().all()
    for made, seed in ((first, 1), (third, 3)):
        alone = answer(EAGER, next(begun(model, seed)))
        assert apart(made.sample.numpy(), alone.sample.numpy()) <= 1e-5


def test_what_acts_before_the_network_acts_once(model):
    """Also where a run cannot be joined after all, beside latents of another size."""
    seen = []
    counted = lambda nn, x: seen.append(x.shape[0]) or x * 1.1  # noqa: E731
    runs = lambda: [  # noqa: E731
        begun(model, 1, controls=[Acting(Sites(model_input=(counted,), context=(counted,)))]),
        begun(model, 2, size=(6, 6)),
    ]
    first, second = (next(run) for run in runs())
    made = Batch().run_all([first, second])
    assert seen == [4, 4]
    alone = answer(EAGER, next(runs()[0]))
    assert apart(made[0].sample.numpy(), alone.sample.numpy()) <= 1e-6


def test_an_extra_of_none_is_told_in_a_batch(model):
    hook = joining.OnRows(0, 1, lambda nn, place, x: Observed(x, None))
    assert isinstance(hook(model.nn, "here", torch.ones(2, 3)), Observed)


def test_a_hook_on_all_rows_sees_them_beside_one_on_some(model):
    """As prompt-to-prompt, which compares rows, beside a hook on one row."""
    seen = []
    compares = lambda nn, place, x: seen.append(x.shape[0]) or x  # noqa: E731
    some = joining.OnRows(0, 1, lambda nn, place, x: x * 1.0)
    ended(model, 1, steps=1, controls=[Acting(Sites(cross_attention=(compares, some)))])
    assert seen and set(seen) == {4}
