"""The places where a control may act: each acts, is checked, and costs nothing when empty."""

from dataclasses import fields, replace

import numpy as np
import pytest
from backends.harness import give, relative, take, tree, values
from networks.configs import UNETS
from networks.programs import unet_config, unet_inputs, unet_program

from underdraw import backends
from underdraw.backends.deltas import LowRank
from underdraw.errors import ControlError, InputError
from underdraw.networks import unet
from underdraw.networks.sites import NO_SITES, Sites

CASE = UNETS["sd1"]
CONFIG = unet_config(CASE)
BLOCK = "attentions.0.transformer_blocks.0"
SKIPS = 8
"""Skip connections: the first convolution, two per level and two downsamplings, less one."""


class Recorder:
    """A hook that changes nothing and remembers where it was called with what."""

    def __init__(self, act):
        self.act, self.seen = act, []

    def __call__(self, nn, *arguments):
        *place, value = arguments
        self.seen.append((*(p for p in place if isinstance(p, str)), tuple(value.shape)))
        return self.act(nn, *arguments)


def same(nn, place, x):
    return x


def louder(nn, place, x):
    return x * 1.5


def shorter(nn, place, x):
    return x[:, 1:]


def residuals(nn, change):
    """One array per skip of `CASE` at its size, and the one of the middle."""
    shapes = [(8, 9, 14)] * 3 + [(8, 5, 7)] + [(16, 5, 7)] * 2 + [(16, 3, 4)] + [(24, 3, 4)] * 2
    random = np.random.default_rng(2)
    made = [give("torch", random.standard_normal((3, *shape))) for shape in shapes]
    return [change(array) for array in made]


def drawn(*shape):
    return give("torch", np.random.default_rng(5).standard_normal(shape))


def none(nn, place, q):
    return q * 0


def low_rank(*shape, factor=1.0):
    """A difference to the first convolution of `CASE`, `(8, 4, 3, 3)`."""
    random = np.random.default_rng(4)
    down, up = random.standard_normal(shape), random.standard_normal((8, shape[0], 1, 1)) * factor
    return {"conv_in": LowRank(give("torch", down), give("torch", up), 0.5)}


# A hook per site that acts, one that changes nothing, and one with a wrong shape.
ACTING = {
    "context": {
        "act": (lambda nn, x: x * 1.5,),
        "idle": (lambda nn, x: x,),
        "wrong": (lambda nn, x: x[..., 1:],),
    },
    "model_input": {
        "act": (lambda nn, x: x * 1.5,),
        "idle": (lambda nn, x: x,),
        "wrong": (lambda nn, x: x[:, :, 1:],),
    },
    "after_self_attention": {"act": (louder,), "idle": (same,), "wrong": (shorter,)},
    "self_attention": {"act": (louder,), "idle": (same,), "wrong": (shorter,)},
    "cross_attention": {"act": (louder,), "idle": (same,), "wrong": (shorter,)},
    "beside_cross_attention": {"act": (louder,), "idle": (none,), "wrong": (shorter,)},
    "down": {"act": (louder,), "idle": (same,), "wrong": (shorter,)},
    "join": {
        "act": (lambda nn, place, x, skip: (x * 1.5, skip),),
        "idle": (lambda nn, place, x, skip: (x, skip),),
        "wrong": (lambda nn, place, x, skip: (x, skip[:, 1:]),),
    },
    "down_residuals": {
        "act": residuals(None, lambda a: a),
        "idle": residuals(None, lambda a: a * 0),
        "wrong": residuals(None, lambda a: a[:, 1:]),
    },
    "mid_residual": {
        "act": residuals(None, lambda a: a)[-1],
        "idle": residuals(None, lambda a: a * 0)[-1],
        "wrong": residuals(None, lambda a: a[:, :, 1:])[-1],
    },
    "conv_in": {
        "act": lambda nn, p, x: nn.conv2d(p, x, 8, 3) * 1.5,
        "idle": lambda nn, p, x: nn.conv2d(p, x, 8, 3),
        "wrong": lambda nn, p, x: nn.conv2d(p, x, 8, 3)[:, 1:],
    },
    "cross_attention_output": {"act": (louder,), "idle": (same,), "wrong": (shorter,)},
    "skip": {"act": (louder,), "idle": (same,), "wrong": (shorter,)},
    "up": {"act": (louder,), "idle": (same,), "wrong": (shorter,)},
    "features": {
        "act": {"up_blocks.2.resnets.1": drawn(3, 8, 9, 14)},
        "idle": {},
        "wrong": {"up_blocks.2.resnets.1": drawn(3, 7, 9, 14)},
    },
    "attended": {
        "act": {f"down_blocks.0.{BLOCK}.attn2": drawn(3, 126, 8)},
        "idle": {},
        "wrong": {f"down_blocks.0.{BLOCK}.attn2": drawn(3, 125, 8)},
    },
    "keys": {
        "act": lambda nn, place, x: x[:, :5],
        "idle": same,
        "wrong": lambda nn, place, x: x[..., 1:],
    },
    "leaves": {
        "act": low_rank(2, 4, 3, 3),
        "idle": low_rank(2, 4, 3, 3, factor=0),
        "wrong": low_rank(2, 3, 3, 3),
    },
}
PLACES = {
    "context": ("context", (3, 5, 9), "(3, any, 10)"),
    "model_input": ("model_input", (3, 4, 8, 14), "(3, any, 9, 14)"),
    "after_self_attention": (f"down_blocks.0.{BLOCK}", (3, 125, 8), (3, 126, 8)),
    "self_attention": (f"down_blocks.0.{BLOCK}.attn1", (3, 1, 126, 126), (3, 2, 126, 126)),
    "cross_attention": (f"down_blocks.0.{BLOCK}.attn2", (3, 1, 126, 5), (3, 2, 126, 5)),
    "beside_cross_attention": (f"down_blocks.0.{BLOCK}.attn2", (3, 1, 126, 4), (3, 2, 126, 4)),
    "down": ("down_blocks.0", (3, 7, 9, 14), (3, 8, 9, 14)),
    "join": ("up_blocks.0", (3, 23, 3, 4), (3, 24, 3, 4)),
    "down_residuals": ("down_residuals.0", (3, 7, 9, 14), (3, 8, 9, 14)),
    "mid_residual": ("mid_residual", (3, 24, 2, 4), (3, 24, 3, 4)),
    "conv_in": ("conv_in", (3, 7, 9, 14), (3, 8, 9, 14)),
    "cross_attention_output": (f"down_blocks.0.{BLOCK}.attn2", (3, 125, 8), (3, 126, 8)),
    "skip": ("conv_in", (3, 7, 9, 14), (3, 8, 9, 14)),
    "up": ("up_blocks.0.resnets.0", (3, 23, 3, 4), (3, 24, 3, 4)),
    "features": ("up_blocks.2.resnets.1", (3, 7, 9, 14), (3, 8, 9, 14)),
    "attended": (f"down_blocks.0.{BLOCK}.attn2", (3, 125, 8), (3, 126, 8)),
    "keys": (f"down_blocks.0.{BLOCK}.attn1", (3, 126, 7), "(3, any, 8)"),
    "leaves": ("conv_in", (2, 3, 3, 3), (8, 4, 3, 3)),
}
ALONE = {
    "conv_in": "two controls replace the first convolution",
    "keys": "two controls choose what self-attention attends to",
    "features": "two controls know the value at 'up_blocks.2.resnets.1'",
    "attended": f"two controls know the value at 'down_blocks.0.{BLOCK}.attn2'",
}
"""Sites that one control alone can have."""
EVERY = pytest.mark.parametrize("site", [f.name for f in fields(Sites)])


@pytest.fixture(scope="module")
def call():
    layout = unet.layout(CONFIG)
    p = tree("torch", layout, values(layout))
    nn = backends.get("torch").operations
    inputs = {key: give("torch", value) for key, value in unet_inputs(CASE).items()}

    def run(sites=NO_SITES, **more):
        return take("torch", unet_program(nn, p, CONFIG, inputs, sites, **more))

    return run


@EVERY
@pytest.mark.parametrize("hoisted", [False, True])
def test_acts_and_leaves_no_trace(call, site, hoisted):
    before = call(hoisted=hoisted)
    if site == "context" and hoisted:
        with pytest.raises(ControlError, match="keys and values were computed before"):
            call(Sites(context=ACTING[site]["act"]), hoisted=hoisted)
        return
    acted = call(Sites(**{site: ACTING[site]["act"]}), hoisted=hoisted)
    assert acted.shape == before.shape
    assert relative(acted, before) > 1e-3
    assert np.array_equal(call(hoisted=hoisted), before)


@EVERY
def test_a_hook_that_changes_nothing(call, site):
    """The same bits, except that probabilities are computed in the open where somebody looks."""
    idle = call(Sites(**{site: ACTING[site]["idle"]}))
    if site in ("self_attention", "cross_attention"):
        assert relative(idle, call()) <= 1e-5
    else:
        assert np.array_equal(idle, call())


@EVERY
def test_a_wrong_shape_is_named(call, site):
    with pytest.raises(ControlError) as error:
        call(Sites(**{site: ACTING[site]["wrong"]}))
    place, given, carried = PLACES[site]
    text = str(error.value)
    assert f"'{place}'" in text
    assert text.index(str(given)) < text.index(str(carried))


@EVERY
def test_sums_of_sites_act_one_after_the_other(call, site):
    """`a + b` is both; an absent side changes nothing."""
    one = Sites(**{site: ACTING[site]["act"]})
    assert np.array_equal(call(one + NO_SITES), call(one))
    assert np.array_equal(call(NO_SITES + one), call(one))
    if site in ALONE:
        with pytest.raises(ControlError, match=ALONE[site]):
            one + one
    else:
        both = call(one + one)
        assert relative(both, call(one)) > 1e-3


def test_where_hooks_are_called(call):
    """Each site once per block, with the name a checkpoint gives the block."""
    hooks = {
        name: Recorder(none if name == "beside_cross_attention" else same)
        for name in (
            "after_self_attention",
            "self_attention",
            "cross_attention",
            "beside_cross_attention",
            "down",
        )
    }
    call(Sites(**{name: (hook,) for name, hook in hooks.items()}))
    blocks = [
        *(f"down_blocks.{i}.attentions.{j}.transformer_blocks.0" for i in (0, 1) for j in (0, 1)),
        f"mid_block.{BLOCK}",
        *(f"up_blocks.{i}.attentions.{j}.transformer_blocks.0" for i in (1, 2) for j in (0, 1, 2)),
    ]
    wanted = {
        "after_self_attention": blocks,
        "self_attention": [f"{block}.attn1" for block in blocks],
        "cross_attention": [f"{block}.attn2" for block in blocks],
        "beside_cross_attention": [f"{block}.attn2" for block in blocks],
        "down": [f"down_blocks.{i}" for i in range(3)],
    }
    assert {name: [place for place, _ in hook.seen] for name, hook in hooks.items()} == wanted
    assert hooks["self_attention"].seen[2] == (f"{blocks[2]}.attn1", (3, 2, 35, 35))
    assert hooks["cross_attention"].seen[-1] == (f"{blocks[-1]}.attn2", (3, 2, 126, 5))
    leaves = unet.layout(CONFIG).leaves
    for name in ("self_attention", "cross_attention"):
        assert all(f"{place}.to_q" in leaves for place in wanted[name])


@pytest.mark.parametrize("hoisted", [False, True])
def test_two_attentions_to_the_context_are_told_apart(hoisted):
    """The x4 upscaler's middle levels attend to the text twice in a block and never to itself."""
    case = UNETS["x4-upscaler"]
    config = unet_config(case)
    layout = unet.layout(config)
    p, nn = tree("torch", layout, values(layout)), backends.get("torch").operations
    case = replace(case, residuals=False)
    inputs = {key: give("torch", value) for key, value in unet_inputs(case).items()}
    seen, itself = Recorder(same), Recorder(same)
    sites = Sites(cross_attention=(seen,), self_attention=(itself,))
    unet_program(nn, p, config, inputs, sites, hoisted=hoisted)
    places = [place for place, _ in seen.seen]
    assert len(set(places)) == len(places)
    leaves = unet.layout(config).leaves
    blocks = {path.rpartition(".attn")[0] for path in leaves if path.endswith(".attn2.to_q")}
    twice = {place[: -len(".attn1")] for place in places if place.endswith(".attn1")}
    assert twice and {f"{block}.attn2" for block in blocks} <= set(places)
    assert {f"{block}.attn1" for block in blocks - twice} == {place for place, _ in itself.seen}


def test_join_sees_every_skip(call):
    seen = []

    def join(nn, place, x, skip):
        seen.append((place, tuple(x.shape[1:]), tuple(skip.shape[1:])))
        return x, skip

    call(Sites(join=(join,)))
    assert [place for place, *_ in seen] == [f"up_blocks.{i}" for i in range(3) for _ in range(3)]
    assert seen[0][1:] == ((24, 3, 4), (24, 3, 4))
    assert seen[-1][1:] == ((8, 9, 14), (8, 9, 14))
    assert all(x[1:] == skip[1:] for _, x, skip in seen)


def test_model_input_may_add_channels():
    """An inpainting network takes 9 channels; the loop carries 4."""
    case = UNETS["sd1-inpainting"]
    config = unet_config(case)
    layout = unet.layout(config)
    p, nn = tree("torch", layout, values(layout)), backends.get("torch").operations
    inputs = {key: give("torch", value) for key, value in unet_inputs(case).items()}
    whole = take("torch", unet_program(nn, p, config, inputs))
    extra = inputs["sample"][:, 4:]
    inputs["sample"] = inputs["sample"][:, :4]
    sites = Sites(model_input=(lambda nn, x: nn.concat((x, extra), 1),))
    assert np.array_equal(take("torch", unet_program(nn, p, config, inputs, sites)), whole)
    with pytest.raises(InputError, match=r"\(3, 4, 9, 14\).*9 channels"):
        unet_program(nn, p, config, inputs)
    with pytest.raises(ControlError, match=r"\(3, 5, 9, 14\).*9 channels"):
        sites = Sites(model_input=(lambda nn, x: nn.concat((x, extra[:, :1]), 1),))
        unet_program(nn, p, config, inputs, sites)


def test_residuals_of_another_network(call):
    arrays = residuals(None, lambda a: a)
    with pytest.raises(ControlError, match=r"down_residuals has 8 entries.* 9 skip"):
        call(Sites(down_residuals=arrays[:-1]))
    one_image = [a[:1] for a in arrays]
    repeated = [a[:1].expand(3, -1, -1, -1) for a in arrays]
    same = call(Sites(down_residuals=one_image)), call(Sites(down_residuals=repeated))
    assert np.array_equal(*same)
