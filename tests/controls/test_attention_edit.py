"""Prompt-to-prompt against a plain loop that edits the probabilities of two runs by hand."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backends.harness import give, take
from pipelines import tiny
from pipelines.tiny import run

from underdraw import backends, schedulers
from underdraw.controls import AttentionEdit, Call, Control, Run
from underdraw.controls.local_blend import grid
from underdraw.controls.region import Region
from underdraw.controls.run import Conditioning
from underdraw.errors import ControlError, InputError, InputTypeError
from underdraw.networks.sites import Sites, apply
from underdraw.solvers.table import State, advance

RED = "a red sphere left of a blue cube"
GREEN = "a green sphere left of a blue cube"
PURPLE = "a purple sphere left of a blue cube"
SIZE = {"height": 40, "width": 72}  # latents 5 x 9; attention over 45, 15 and 6 positions
STEPS, GUIDANCE = 5, 4.0


def sharp(**changes):
    """Random networks attend everywhere alike; here attention to the text differs by position."""
    pipe = tiny.pipeline(**changes)
    for name, value in pipe.unet.named_parameters():
        if name.endswith("attn2.to_q.weight"):
            value.data *= 8
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return sharp()


def made(pipe, prompts, *controls, **arguments):
    arguments = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **SIZE, **arguments}
    return run(pipe, prompts, controls=list(controls), **arguments)


def close(a, b, tolerance=2e-5):
    assert (a - b).abs().max() <= tolerance * b.abs().max(), (a - b).abs().max()


# -- the reference: one UNet call per image and condition, everything spelled out ------------------
class Layers:
    """Hands each attention of a call to `edit(kind, number, probabilities)` in order."""

    def __init__(self, edit):
        self.count, self.edit = {"cross": 0, "self": 0}, edit
        self.sites = Sites(
            cross_attention=(lambda nn, place, x: self.next("cross", x),),
            self_attention=(lambda nn, place, x: self.next("self", x),),
        )

    def next(self, kind, x):
        self.count[kind] += 1
        return self.edit(kind, self.count[kind], x)


@torch.no_grad()
def by_hand(
    pipe, prompts, seed, columns, *, cross, self_until, positions=256, factors=None, blend=None
):
    """Latents of source and target.

    columns: what the target's tokens take, `{token: [(token of the source, share)]}`.
    cross: `{token: until}`, in steps; `factors` by token; blend: tokens of source and target, first
    step, threshold.
    """
    context, negative = pipe.encode_prompt(list(prompts), negative_prompt="")
    table = pipe.scheduler.make_table(STEPS)
    noise = torch.randn(1, 4, 5, 9, generator=torch.Generator().manual_seed(seed))
    source = target = noise * table.initial_sigma
    maps = [torch.zeros(1, 15), torch.zeros(1, 15)]
    for step in range(STEPS):
        row, kept = table.row(step), {}

        def unet(x, text, edit=None, row=row):
            sites = Layers(edit).sites if edit else Sites()
            return pipe.unet(x * row.input_scale, row.timestep, text, sites=sites).sample

        def look(kind, number, p, kept=kept):
            kept[kind, number] = p.clone()
            if kind == "cross" and p.shape[2] == 15 and blend:
                maps[0] += p[..., blend[0]].sum(-1).mean(1)
            return p

        def take(kind, number, p, kept=kept, step=step):
            theirs, new = kept[kind, number], p.clone()
            if kind == "self":
                return theirs if step < self_until and p.shape[2] <= positions else p
            for token in range(77):
                if step < cross.get(token, cross["default"]):
                    if token in columns:
                        new[..., token] = sum(theirs[..., i] * w for i, w in columns[token])
                    new[..., token] *= (factors or {}).get(token, 1.0)
            if p.shape[2] == 15 and blend:
                maps[1] += new[..., blend[1]].sum(-1).mean(1)
            return new

        outputs = []
        for i, (x, edit) in enumerate(((source, look), (target, take))):
            empty, full = unet(x, negative[i : i + 1]), unet(x, context[i : i + 1], edit)
            outputs.append(empty + GUIDANCE * (full - empty))
        nn = pipe.unet.nn
        source = advance(nn, row, State(source), outputs[0]).x
        target = advance(nn, row, State(target), outputs[1]).x
        if blend and step >= blend[2]:
            inside = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
            for total in maps:
                wide = F.max_pool2d(total.reshape(1, 1, 3, 5), 3, 1, 1)
                inside |= F.interpolate(wide, (5, 9)) / wide.max() > blend[3]
            assert inside.any() and not inside.all()  # or the test would see nothing
            target = torch.where(inside, target, source)
    return torch.cat((source, target))


SAME = {token: [(token, 1.0)] for token in range(77)}
BEHIND = 8 - 2
"""`purple` has seven tokens less one more than the word it replaces, see `test_the_tokens`."""


def test_the_tokens_that_are_told_by_hand(pipe):
    ids = pipe.tokenizer(PURPLE).input_ids
    assert len(ids) - len(pipe.tokenizer(RED).input_ids) == BEHIND - 1
    assert len(pipe.tokenizer(RED).input_ids) == 10


def test_replace(pipe):
    expected = by_hand(
        pipe, (RED, GREEN), 3, SAME, cross={"default": 4}, self_until=2, positions=20
    )
    edit = AttentionEdit(cross=0.8, self_attention=0.4, positions=20)
    close(made(pipe, [RED, GREEN], edit, seed=3), expected)


def test_replace_by_a_word_of_several_tokens(pipe):
    word = range(2, 2 + BEHIND)
    columns = {0: [(0, 1.0)], 1: [(1, 1.0)], **{i: [(2, 1 / BEHIND)] for i in word}}
    columns |= {i + BEHIND - 1: [(i, 1.0)] for i in range(3, 10)}
    columns |= {i: [(i, 1.0)] for i in range(10 + BEHIND - 1, 77)}
    cross = {"default": 5, **dict.fromkeys(word, 2)}
    expected = by_hand(pipe, (RED, PURPLE), 3, columns, cross=cross, self_until=0)
    edit = AttentionEdit(cross=1.0, cross_of={"purple": 0.4}, self_attention=0.0)
    close(made(pipe, [RED, PURPLE], edit, seed=3), expected)


def test_refine_and_reweight(pipe):
    longer = "a red sphere left of a green and blue cube"  # two words more at 7 and 8
    columns = {i: [(i, 1.0)] for i in range(7)}
    columns |= {i + 2: [(i, 1.0)] for i in range(7, 10)} | {i: [(i, 1.0)] for i in range(12, 77)}
    expected = by_hand(
        pipe,
        (RED, longer),
        3,
        columns,
        cross={"default": 3},
        self_until=4,
        factors={7: 3.0, 3: -0.5},
    )
    edit = AttentionEdit(
        mode="refine", cross=0.6, self_attention=0.8, weights={"green": 3.0, "sphere": -0.5}
    )
    close(made(pipe, [RED, longer], edit, seed=3), expected)
    without = AttentionEdit(mode="refine", cross=0.6, self_attention=0.8)
    assert (made(pipe, [RED, longer], without, seed=3) - expected).abs().max() > 1e-2


def test_local_blend(pipe):
    """Phrases of which one is in the source alone, one in both."""
    marks = ([2, 3, 8], [8])
    expected = by_hand(
        pipe,
        (RED, GREEN),
        3,
        {i: taken for i, taken in SAME.items() if i != 2},
        cross={"default": 4},
        self_until=2,
        positions=20,
        blend=(*marks, 1, HIGH),
    )
    edit = AttentionEdit(mode="refine", blend=("red sphere", "cube"), threshold=HIGH, positions=20)
    close(made(pipe, [RED, GREEN], edit, seed=3), expected)


HIGH = 0.9


# -- what has to hold whatever the networks are ----------------------------------------------------
EDITS = {
    "replace": AttentionEdit(),
    "refine": AttentionEdit(mode="refine", cross=(0.2, 1.0), self_attention=1.0),
    "blend": AttentionEdit(blend=("sphere",), threshold=HIGH),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_equal_prompts_give_equal_images(pipe, name, guidance):
    """Also from different seeds: the group begins with the noise of its source."""
    pair = made(pipe, [RED, RED], EDITS[name], guidance_scale=guidance)
    close(pair[1:], pair[:1], 1e-6)
    plain = made(pipe, RED, guidance_scale=guidance)
    close(pair[:1], plain)


def test_an_edit_that_is_never_on_leaves_the_same_bits(pipe):
    off = AttentionEdit(cross=0.0, self_attention=0.0, weights={"green": 5.0})
    plain = made(pipe, [RED, GREEN], seed=[3, 3])
    assert torch.equal(made(pipe, [RED, GREEN], off, seed=[3, 3]), plain)
    assert torch.equal(made(pipe, [RED, GREEN], off, seed=[3, 9]), plain)
    apart = made(
        pipe, [RED, GREEN], AttentionEdit(cross=0.0, self_attention=0.0, share_noise=False)
    )
    assert torch.equal(apart, made(pipe, [RED, GREEN]))
    made(pipe, [RED, GREEN], AttentionEdit())
    assert torch.equal(made(pipe, [RED, GREEN], seed=[3, 3]), plain)


def test_the_source_stays_as_it_is_and_the_target_moves(pipe):
    plain = made(pipe, [RED, GREEN], seed=[3, 3])
    for edit in EDITS.values():
        edited = made(pipe, [RED, GREEN], edit, seed=[3, 3])
        close(edited[:1], plain[:1])
        assert (edited[1] - plain[1]).abs().max() > 1e-2
        assert (edited[1] - edited[0]).abs().max() > 1e-2


def test_weights_of_one_change_nothing(pipe):
    refine, by_one = (AttentionEdit(mode="refine", weights=w) for w in ({}, {"green": 1.0}))
    expected = made(pipe, [RED, GREEN], refine)
    assert torch.equal(made(pipe, [RED, GREEN], by_one), expected)


def test_words_of_one_prompt_are_weighed_without_a_source(pipe):
    own = AttentionEdit(source=0, targets=(0,), cross=1.0, weights={"red": 4.0})
    one = made(pipe, RED, own)
    assert (one - made(pipe, RED)).abs().max() > 1e-2
    copy = AttentionEdit(cross=1.0, self_attention=0.0, weights={"red": 4.0}, mode="refine")
    assert (made(pipe, [RED, RED], copy)[1:] - one).abs().max() > 1e-3  # the other's queries


BLUE, CUBE = "a blue cube and a red cube on the table", "a green cube and a red sphere on the table"


def test_groups_do_not_touch_each_other(pipe):
    """Two groups in one batch, sources and targets mixed, different settings per image."""
    first = AttentionEdit(0, (2, 3), cross=0.6, blend=("sphere",), threshold=HIGH)
    second = AttentionEdit(4, 1, mode="refine", weights={"green": 2.0}, self_attention=(0.2, 0.6))
    batch = made(pipe, [RED, CUBE, GREEN, PURPLE, BLUE], first, second, seed=[5, 0, 0, 0, 6])
    alone = made(
        pipe, [RED, GREEN, PURPLE], AttentionEdit(**{**vars(first), "targets": (1, 2)}), seed=5
    )
    close(batch[[0, 2, 3]], alone)
    alone = made(pipe, [BLUE, CUBE], AttentionEdit(**{**vars(second), "source": 0}), seed=6)
    close(batch[[4, 1]], alone)


def test_several_images_per_prompt(pipe):
    edit = EDITS["blend"]
    batch = made(pipe, [RED, GREEN], edit, num_images_per_prompt=2, seed=[5, 6, 0, 0])
    for i, seed in enumerate((5, 6)):
        close(batch[[i, 2 + i]], made(pipe, [RED, GREEN], edit, seed=seed))


def test_prompts_of_several_windows(pipe):
    """Also where another prompt of the call, or the negative one, needs more of them."""
    edit = AttentionEdit(mode="refine", weights={"green": 2.0})
    short = made(pipe, [RED, GREEN], edit)
    long = " ".join(["red sphere"] * 60)
    close(made(pipe, [RED, GREEN, long], edit)[:2], short)
    negative = made(pipe, [RED, GREEN], edit, negative_prompt=long)
    assert torch.isfinite(negative).all()
    pair = made(pipe, [long, long], edit_of(edit, weights={}))
    close(pair[1:], pair[:1], 1e-6)


def edit_of(edit, **changes):
    return AttentionEdit(**{**vars(edit), **changes})


def test_embeddings_with_their_texts(pipe):
    context, negative = pipe.encode_prompt([RED, GREEN])
    told = AttentionEdit(prompts=(RED, GREEN))
    embeds = {"prompt_embeds": context, "negative_prompt_embeds": negative}
    assert torch.equal(made(pipe, None, told, **embeds), made(pipe, [RED, GREEN], AttentionEdit()))
    with pytest.raises(InputError, match=r"AttentionEdit\(prompts=...\)"):
        made(pipe, None, AttentionEdit(), **embeds)
    wrong = AttentionEdit(prompts=(f"{RED} BREAK a", f"{GREEN} BREAK a"))
    with pytest.raises(InputError, match="context has 77 tokens, prompt 0 has windows of 154"):
        made(pipe, None, wrong, **embeds)


@dataclass(frozen=True)
class Keep(Control):
    """The left half of the image stays at given latents, as an inpainting mask does."""

    value: float

    def after_step(self, nn, carry, latents, call):
        return nn.concat((latents[..., :4] * 0 + self.value, latents[..., 4:]), 3), carry


def test_together_with_another_control(pipe):
    both = made(pipe, [RED, GREEN], EDITS["blend"], Keep(0.5))
    assert (both[..., :4] == 0.5).all()
    alone = made(pipe, [RED, GREEN], EDITS["blend"])
    assert (both[..., 4:] - alone[..., 4:]).abs().max() > 1e-3
    pair = made(pipe, [RED, RED], EDITS["blend"], Keep(0.5))
    close(pair[1:], pair[:1], 1e-6)


def test_together_with_a_region(pipe):
    """The edit goes on inside the mask; outside both images are the known one."""
    clean = torch.full((1, 4, 5, 9), 0.3)
    inside = torch.zeros(1, 1, 5, 9)
    inside[..., 4:] = 1.0
    region = Region(inside, latents=clean)
    both = made(pipe, [RED, GREEN], AttentionEdit(), region, seed=[3, 3])
    torch.testing.assert_close(both[..., :4], clean.expand(2, -1, -1, -1)[..., :4])
    plain = made(pipe, [RED, GREEN], region, seed=[3, 3])
    close(both[:1], plain[:1])
    assert (both[1] - plain[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", backends.installed())
def test_the_same_on_every_backend(name):
    edit = AttentionEdit(
        mode="replace", cross_of={"purple": 0.3}, weights={"cube": 2.0}, blend=("sphere",)
    )
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, 4, 5, 9)).astype(np.float32)
    asks = random.standard_normal((4, 2, 15, 77)).astype(np.float32) * 3
    expected = None
    for backend in ("torch", name):
        nn = backends.get(backend).operations
        components = SimpleNamespace(tokenizer=tiny.tokenizer(), compat=None)
        model = SimpleNamespace(_framework=backends.get(backend))
        x = give(backend, latents)
        texts = Conditioning(give(backend, np.zeros((2, 77, 3), np.float32)))
        run = Run(
            nn, model, range(4), texts, prompts=[RED, PURPLE], components=components, latents=x
        )
        carry = edit.prepare(run)
        told = []
        for index in (0, 1, 2):
            call = Call(index, 4, 500.0, True)
            x, sites, carry = edit.before_call(nn, carry, x, call)
            p, extras = nn.softmax(give(backend, asks)), []
            sites = sites.owned(lambda _: 0)
            for hook in (*sites.cross_attention, *sites.self_attention):
                told.append(apply(nn, (hook,), "", p, extras))
            x, carry = edit.after_step(nn, carry, x * 1.0, replace(call, extras=tuple(extras)))
            told.append(x)
        told = [take(backend, value) for value in told]
        if expected is not None:
            assert len(told) == len(expected) == 8
            for mine, theirs in zip(told, expected, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        expected = told


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_every_solver(name):
    pipe = sharp(scheduler=getattr(schedulers, name)(**tiny.SCHEDULE))
    pair = made(pipe, [RED, RED], EDITS["blend"])
    close(pair[1:], pair[:1], 1e-5)


def test_larger_self_attention_keeps_its_fused_kernel(pipe, monkeypatch):
    """Probabilities of all positions are never made where nothing wants them."""
    seen = []
    softmax = type(pipe.unet.nn).softmax

    def look(self, x):
        seen.append(tuple(x.shape[2:]))
        return softmax(self, x)

    monkeypatch.setattr(type(pipe.unet.nn), "softmax", look)
    made(pipe, [RED, GREEN], AttentionEdit(cross=0.0, self_attention=1.0, positions=20))
    assert set(seen) == {(15, 15)}
    seen.clear()
    made(
        pipe,
        [RED, GREEN],
        AttentionEdit(cross=0.0, self_attention=0.0, blend=("cube",), positions=20),
    )
    assert set(seen) == {(15, 77)}


def test_half_precision(pipe):
    half = sharp().to(torch.bfloat16)
    close(
        made(half, [RED, GREEN], AttentionEdit()).float(),
        made(pipe, [RED, GREEN], AttentionEdit()),
        0.2,
    )


@pytest.mark.parametrize(
    ("positions", "sides", "expected"),
    [
        (45, (5, 9), (5, 9)),
        (15, (5, 9), (3, 5)),
        (6, (5, 9), (2, 3)),
        (8, (5, 9), (2, 4)),
        (1, (8, 8), (1, 1)),
    ],
)
def test_sides_of_a_level(positions, sides, expected):
    assert grid(positions, *sides) == expected


def test_no_attention_to_find_places_in(pipe):
    with pytest.raises(InputError, match=r"positions=5\): no cross-attention of this UNet"):
        made(pipe, [RED, GREEN], AttentionEdit(blend=("cube",), positions=5))


def test_positions_of_no_level():
    with pytest.raises(ControlError, match="over 7 positions fits no level of latents of 5 x 9"):
        grid(7, 5, 9)


# -- mistakes --------------------------------------------------------------------------------------
WRONG = [
    ({"source": -1}, InputError, "source=-1 is below 0"),
    ({"source": 1.0}, InputTypeError, "source=1.0 is not a whole number"),
    ({"targets": ()}, InputError, r"targets=\(\) must name at least one"),
    ({"targets": (1, 1)}, InputError, r"targets=\(1, 1\) must name .* each once"),
    ({"targets": (0,)}, InputError, r"targets=\(0,\) holds the source, prompt 0"),
    ({"mode": "swap"}, InputError, "mode='swap' is not known; allowed: 'replace', 'refine'"),
    ({"cross": 1.5}, InputError, r"cross=1.5 is out of range; allowed: finite, 0.0 .. 1.0"),
    ({"cross": (0.6, 0.2)}, InputError, r"cross=\(0.6, 0.2\) ends before it begins"),
    ({"cross": "all"}, InputTypeError, "cross='all' is neither a number nor two"),
    ({"cross_of": {"red": 2.0}}, InputError, r"cross_of\['red'\]=2.0 is out of range"),
    ({"self_attention": (0.1, 0.2, 0.3)}, InputTypeError, "self_attention=.* nor two of them"),
    ({"weights": {"red": float("nan")}}, InputError, r"weights\['red'\]=nan is out of range"),
    ({"weights": {"red": "2"}}, InputTypeError, r"weights\['red'\]='2' is not a number"),
    ({"weights": ["red"]}, InputTypeError, r"weights=\['red'\] is not a mapping from words"),
    ({"blend": ("cube", 3)}, InputTypeError, "blend=.* holds something that is no text"),
    ({"threshold": 1.2}, InputError, "threshold=1.2 is out of range"),
    ({"positions": 0}, InputError, "positions=0 is too small"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        AttentionEdit(**arguments)


@pytest.mark.parametrize(
    ("edit", "prompts", "message"),
    [
        (AttentionEdit(), RED, r"there is no prompt 1; the call has 1"),
        (AttentionEdit(source=2), [RED, GREEN], r"there is no prompt 2; the call has 2"),
        (
            AttentionEdit(weights={"dog": 2.0}),
            [RED, GREEN],
            r"weights: 'dog' is not in .*green, sph",
        ),
        (AttentionEdit(weights={"red": 2.0}), [RED, GREEN], "weights: 'red' is not in 'a green"),
        (AttentionEdit(cross_of={"dog": 0.1}), [RED, GREEN], "cross_of: 'dog' is not in"),
        (
            AttentionEdit(blend=("dog",)),
            [RED, GREEN],
            "blend: 'dog' is not in 'a red .* or 'a green",
        ),
        (AttentionEdit(blend=(" ",)), [RED, GREEN], "' ' holds no word"),
        (AttentionEdit(), ["a BREAK b", "a"], "needs 1 windows of 77 tokens, its source .* 2"),
        (AttentionEdit(prompts=(RED,) * 3), [RED, GREEN], "prompts has 3 entries; .* 2 images"),
    ],
)
def test_what_does_not_fit_the_prompts_is_told_before_any_work(pipe, edit, prompts, message):
    calls = tiny.counted(pipe)
    with pytest.raises(InputError, match=message):
        made(pipe, prompts, edit)
    assert not calls


def test_an_edit_is_a_value():
    edit = AttentionEdit(targets=1, weights={"a": 2}, cross_of={"b": 0.5}, blend="c")
    assert edit == AttentionEdit(weights=(("a", 2),), cross_of=(("b", (0.0, 0.5)),), blend=("c",))
    assert hash(edit) == hash(edit_of(edit))
