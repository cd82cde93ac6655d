"""Calls of a run made several at a time give what they give one by one: with every control that
tells ahead what it does, however the run is looked at, changed and ended.

They run on PyTorch, where the program of many calls is run as it is written; what JAX compiles of
it is counted in `tests/pipelines/test_backends.py`.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from controls.test_grounding import BLUE, EVER, RED, opened
from controls.test_subject import CUBE, OVERLAY, SPHERE, encoder, timed
from pipelines import ip_adapters, tiny
from pipelines.loras import lora
from pipelines.test_gligen import photo

import underdraw
from underdraw import backends, schedulers
from underdraw.backends.tree import flatten
from underdraw.controls import Control
from underdraw.controls.lora import Lora
from underdraw.controls.steady import Steady
from underdraw.engines.eager import EAGER
from underdraw.errors import ControlError, NonFiniteError
from underdraw.networks.sites import Sites
from underdraw.pipelines.inversion import invert_pictures
from underdraw.sampling import windows
from underdraw.sampling.inversion import FixedPoint, NegativePrompt, NullTextInversion, finish
from underdraw.sampling.whole import Acts, ByCall, _in_python

SIZE = {"height": 40, "width": 72}  # latents 5 x 9
PROMPTS = ["a red sphere left of the cube", "a green sphere left of the cube"]
BOUND = 2e-5
"""Of the largest value: a solver's sums in another order in each call; measured to 4e-6."""
JAX = pytest.mark.skipif("jax" not in backends.installed(), reason="needs JAX")


class Looping:
    """An engine that takes many calls at once, and remembers what it was asked."""

    loops = True

    def __init__(self):
        self.asked, self.counts = [], []

    def run(self, question):
        self.asked.append(question.program.name)
        if question.program.loops:
            begin, end = question.inputs[1].tolist()
            self.counts.append(end - begin)
        return EAGER.run(question)


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(backends.get("torch"), "repeated", _in_python, raising=False)
    return Looping()


@pytest.fixture(scope="module")
def pipe():
    made = tiny.pipeline(unet=tiny.ONE_LEVEL)
    made.load_grounding(opened(made.unet))
    reader = encoder()
    reader.overlay = OVERLAY
    made.load_subject(reader)
    made.load_lora_weights(lora(made, 1, texts=()), "clay")
    made.set_adapters([])
    made.load_ip_adapter(ip_adapters.adapter(made.unet, "face-id-plus", lora=2), shortcut=True)
    return made


def mask():
    pixels = np.zeros((40, 72), np.float32)
    pixels[8:30, 16:56] = 1
    return pixels


def prompt_of_a_face():
    random = np.random.default_rng(0)
    hidden = random.standard_normal((2, 1, 5, ip_adapters.HIDDEN)).astype(np.float32)
    given = {"embedding": hidden[0], "negative": hidden[1], "face": ip_adapters.faces().numpy()}
    return underdraw.ImagePrompt(scale=0.8, strength=(0.4, 0.4, 0.2), mask=np.eye(40, 72), **given)


def maps():
    return [photo((72, 40), seed) for seed in (1, 2)]


def net():
    return tiny.controlnet({**tiny.UNET, **tiny.ONE_LEVEL})


def contexts():
    random = torch.Generator().manual_seed(1)
    return [torch.randn(1, 77, tiny.WIDTH, generator=random) for _ in range(6)]


def subjects():
    return [timed(SPHERE, 0.5, 0, 0.5), CUBE]


CONTROLS = {
    "boxes": lambda: [underdraw.PerImage(underdraw.Layout([RED, BLUE], (0.4, 0.4, 0.2)), [BLUE])],
    "region": lambda: [underdraw.Region(mask(), image=photo((72, 40), 3))],
    "net": lambda: [underdraw.Structure(net(), maps(), [0.4, 1.2], start=0.2)],
    "guess": lambda: [underdraw.Structure(net(), maps(), guess=True)],
    "adapter": lambda: [
        underdraw.Structure(tiny.adapter(channels=(16,)), maps(), 0.5, strength=(0, 1, 0))
    ],
    "face": lambda: [prompt_of_a_face()],
    "lora": lambda: [Lora("clay", [1.0, 0.2])],
    "null texts": lambda: [
        underdraw.NullText(contexts()),
        underdraw.Structure(net(), maps()),
    ],
    "edit": lambda: [underdraw.AttentionEdit(weights={"sphere": 1.5}, cross=0.6)],
    "subjects": subjects,
    "interval": lambda: [
        underdraw.GuidanceInterval(0.3, 5.0).control(),
        underdraw.Layout([RED], EVER),
    ],
    "all": lambda: [
        underdraw.Layout([RED], EVER),
        underdraw.Region(mask(), image=photo((72, 40), 3)),
        underdraw.Structure(net(), maps()),
    ],
}


def run(pipe, engine=None, **changes):
    pipe.engine = engine
    try:
        call = {**SIZE, "num_inference_steps": 6, "seed": 3, **changes}
        return tiny.run(pipe, changes.pop("prompt", PROMPTS), **call)
    finally:
        pipe.engine = None


def alike(made, expected, bound=BOUND):
    return bool((made - expected).abs().max() <= bound * expected.abs().max())


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_that_tell_ahead(pipe, engine, name):
    controls = CONTROLS[name]()
    made = run(pipe, engine, controls=controls)
    assert alike(made, run(pipe, controls=controls))
    assert not alike(made, run(pipe), 1e-3)
    assert "unet" not in engine.asked and "controlnet" not in engine.asked
    assert sum(engine.counts) == 6


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        ("DPMSolverMultistepScheduler", 20),
        ("EulerAncestralDiscreteScheduler", 18),
        ("HeunDiscreteScheduler", 5),
        ("PNDMScheduler", 5),
        ("LCMScheduler", 4),
    ],
)
def test_solvers(pipe, engine, solver, steps, monkeypatch):
    """More calls than one question takes; those that draw noise, and that make several calls a
    step. The bar counts steps."""
    plain = pipe.scheduler
    pipe.scheduler = getattr(schedulers, solver)(**{**tiny.SCHEDULE, "steps_offset": 0})
    bar = _Bar()
    monkeypatch.setattr(type(pipe), "progress_bar", lambda self, total: bar.begun(total))
    try:
        expected = run(pipe, num_inference_steps=steps, guidance_scale=[3.0, 5.0])
        assert bar.ended()
        made = run(pipe, engine, num_inference_steps=steps, guidance_scale=[3.0, 5.0])
        assert bar.ended()
    finally:
        pipe.scheduler = plain
    assert alike(made, expected, 1e-4)
    assert "unet" not in engine.asked
    assert max(engine.counts) > 1 == engine.counts[0]


class _Bar:
    def begun(self, total):
        self.total, self.done = total, 0
        return self

    def update(self, count=1):
        self.done += count

    def ended(self):
        return self.done == self.total

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_distilled_and_half(engine):
    """Guidance as an input of the network; numbers keep what they meet in its dtype."""
    pipe = tiny.pipeline(unet={"time_cond_proj_dim": 8})
    given = {"guidance_scale": [3.0, 8.0]}
    assert alike(run(pipe, engine, **given), run(pipe, **given))
    half = tiny.pipeline().to(torch.bfloat16)
    assert torch.equal(run(half, engine), run(half))
    assert "unet" not in engine.asked


def test_a_stream_hands_out_each_step(pipe, engine):
    """The bits of the call, with previews of each; what was handed out stays."""
    control = [underdraw.Region(mask(), image=photo((72, 40), 3))]
    call = {"num_inference_steps": 6, "seed": 3, "output_type": "latent", **SIZE}
    expected = run(pipe, engine, controls=control)
    pipe.engine = engine
    try:
        stream = pipe.stream(PROMPTS, **call, controls=control)
        seen = [(step.index, step.latents, step.clean()) for step in stream]
        assert engine.counts[-6:] == [1] * 6
        assert [index for index, *_ in seen] == list(range(6))
        assert torch.equal(stream.output.images, expected) and torch.equal(seen[-1][1], expected)
        short = pipe.stream(PROMPTS, **call, controls=control)
        next(short)
        short.interrupt()
        assert list(short) == [] and torch.equal(short.output.images, seen[0][1])
    finally:
        pipe.engine = None


def test_callbacks_change_a_run(pipe, engine):
    """Latents, texts, guidance, and at last that there is none; what was drawn for calls that were
    then made otherwise is theirs."""
    other = torch.cat(pipe.encode_prompt(PROMPTS[::-1])[::-1])

    def changed(pipe, step, timestep, tensors):
        if step == 3:
            pipe._guidance_scale = 1.0
        if step == 1:
            pipe._guidance_scale = 2.0
        changes = {0: {"latents": tensors["latents"] * 0.9}, 2: {"prompt_embeds": other}}
        return changes.get(step, {})

    given = {
        "callback_on_step_end": changed,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
        "controls": [underdraw.Layout([RED], EVER)],
    }
    plain = pipe.scheduler
    pipe.scheduler = schedulers.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE)
    try:
        made = run(pipe, engine, **given)
        assert alike(made, run(pipe, **given)) and engine.counts == [1] * 6
        assert not alike(made, run(pipe, controls=given["controls"]), 1e-3)
    finally:
        pipe.scheduler = plain


@pytest.mark.parametrize("values", [False, True])
def test_texts_handed_back_leave_what_is_known_of_times(pipe, engine, values, monkeypatch):
    """And what is known of them, too, where an array cannot have been changed in place."""
    if values:
        monkeypatch.setattr(backends.get("torch"), "arrays_are_values", True, raising=False)
    given = {
        "callback_on_step_end": lambda pipe, step, timestep, tensors: tensors,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        "controls": [underdraw.Structure(net(), maps())],
    }
    assert alike(run(pipe, engine, **given), run(pipe, **given))
    counts = {name: engine.asked.count(name) for name in ("unet.times", "unet.context")}
    assert counts == {"unet.times": 1, "unet.context": 1 if values else 6}


@pytest.mark.parametrize("watched", [True, False])
def test_an_interrupted_run_draws_no_more_than_it_made(pipe, engine, watched, monkeypatch):
    """Whoever goes on with the same generators gets the pictures that call by call gives."""

    def interrupts(pipe, step, timestep, tensors):
        pipe._interrupt = step == 2
        return {}

    class Bar(_Bar):
        def update(self, count=1):
            super().update(count)
            if self.done == 3:
                pipe._interrupt = True

    def made(engine=None, watched=True):
        noise = [torch.Generator().manual_seed(i) for i in range(2)]
        with monkeypatch.context() as patch:
            if not watched:
                patch.setattr(type(pipe), "progress_bar", lambda self, total: Bar().begun(total))
                patch.setattr(windows._Speed, "note", lambda self, *_: setattr(self, "calls", 2))
            given = {"callback_on_step_end": interrupts} if watched else {}
            run(pipe, engine, seed=None, generator=noise, **given)
        return run(pipe, seed=None, generator=noise)

    plain = pipe.scheduler
    pipe.scheduler = schedulers.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE)
    try:
        assert torch.equal(made(engine, watched), made())
        assert engine.counts == ([1, 1, 1] if watched else [1, 2])
    finally:
        pipe.scheduler = plain


@dataclass(frozen=True)
class Cut:
    """Gives back fewer images than there are."""

    def __call__(self, nn, latents):
        return latents[:1]


@pytest.mark.parametrize(("moment", "told"), [("before", "before_call"), ("after", "after_step")])
def test_changes_keep_the_shape(pipe, engine, moment, told):
    class Wrong(Steady):
        pass

    setattr(Wrong, moment, lambda self, carry, call: [Cut()])
    for chosen in (None, engine):
        with pytest.raises(ControlError, match=rf"at '{told}' returned \(1, 4, 5, 9\)"):
            run(pipe, chosen, controls=[Wrong()])
    assert "unet" not in engine.asked and engine.counts == ([1] if moment == "after" else [])


@dataclass(frozen=True)
class Own(Control):
    """Somebody's, with moments of its own."""

    def after_step(self, nn, carry, latents, call):
        return latents * 0.99, carry


@dataclass(frozen=True)
class Function(Steady):
    """Tells of something that is no data."""

    def sites_at(self, nn, carry, like, call):
        return Sites(after_self_attention=(lambda nn, place, x: x * 1.01,))


class Overridden(underdraw.Region):
    """A steady one with a moment of its own."""

    def after_step(self, nn, carry, latents, call):
        return super().after_step(nn, carry, latents * 0.99, call)


OTHERS = {
    "own": lambda: [Own()],
    "function": lambda: [Function()],
    "overridden": lambda: [Overridden(mask(), image=photo((72, 40), 3))],
    "places in mind": lambda: [underdraw.AttentionEdit(blend=("sphere",))],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_goes_call_by_call(pipe, engine, name):
    controls = OTHERS[name]()
    expected = run(pipe, controls=controls)
    assert torch.equal(run(pipe, engine, controls=controls), expected)
    assert engine.asked.count("unet") == 6 and not engine.counts


def test_runs_that_share_their_calls(pipe, engine):
    """`batched` declines many calls at once: it has those of several runs share one. What was
    drawn for them, and what happened before the first, stays as it is."""
    plain = pipe.scheduler
    pipe.scheduler = schedulers.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE)
    soft = torch.rand(1, 1, 5, 9, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 4, "output_type": "latent", **SIZE}
    given = [
        {"prompt": PROMPTS[0], "controls": [underdraw.Region(soft, image=photo((72, 40), 3))]},
        {"prompt": PROMPTS[1], "controls": []},
    ]

    def made():
        noise = [torch.Generator().manual_seed(i) for i in range(2)]
        return [
            pipe.stream(**call, **one, generator=each)
            for one, each in zip(given, noise, strict=True)
        ]

    try:
        alone = [[*stream] and stream.output.images for stream in made()]
        pipe.engine = engine
        shared = made()
        next(shared[0])  # has begun by itself
        for _ in (runs := underdraw.batched(shared)):
            pass
    finally:
        pipe.scheduler, pipe.engine = plain, None
    assert engine.counts == [1] and engine.asked.count("unet") == 4
    for stream, expected in zip(runs.streams, alone, strict=True):
        assert alike(stream.output.images, expected)


def test_nan_is_told(engine):
    pipe = tiny.pipeline(unet=tiny.ONE_LEVEL)

    def breaks(pipe, step, timestep, tensors):
        pipe.unet.conv_out.bias.data.fill_(np.nan)
        return {}

    for message in ("after the first step", "the first step gave NaN"):
        with pytest.raises(NonFiniteError, match=message):
            run(pipe, engine, callback_on_step_end=breaks)


def test_how_often_the_host_looks():
    speed = windows._Speed()
    for calls, seconds, wanted in ((1, 9.0, 1), (1, 0.1, 5), (5, 0.01, 16), (16, 100.0, 1)):
        speed.note(calls, seconds)
        assert speed.calls == wanted


# -- JAX -------------------------------------------------------------------------------------------
@JAX
def test_numbers_keep_the_dtype_that_they_meet():
    """Floats that differ from call to call do not lift a network in half precision."""
    framework = backends.get("jax")
    half = framework.resolve_dtype("bfloat16")
    acts = Acts(after=((framework.array(1.0), 0.5),))
    structure = flatten((acts,))[1]

    def at(array, first, second, i):
        by_call = ByCall(structure, (array, None), (None, (first, second)))
        ((x, number),) = by_call.at(framework.operations, i).after
        return x * number

    made = framework.compiled(at)(framework.array(np.ones(2), half), 0.5, 0.25, 1)
    assert made.dtype == half and made.tolist() == [0.25, 0.25]


INVERSIONS = {
    "plain": ("plain", {"guidance_scale": 3.0}, 4, 4),
    "negative-prompt": (NegativePrompt(), {"strength": 0.6}, 2, 2),
    "null-text": (NullTextInversion(iterations=1, rate=0.1), {}, 4, 0),
    "fixed-point": (FixedPoint(iterations=2), {}, 0, 4),
    "negative-prompt, solved": (NegativePrompt(FixedPoint(iterations=2)), {}, 0, 4),
}
"""What each is asked for, and how many calls of the way up and of that down are calls of a loop."""


@pytest.mark.parametrize("name", INVERSIONS)
def test_inversions_go_up_and_down_by_the_loop(pipe, engine, name):
    """Where the next call is known before the last one has answered; each level is handed out."""
    method, changes, up, down = INVERSIONS[name]
    given = {"num_inference_steps": 4, "guidance_scale": 3.0, **changes}

    def inverted(engine, resume=None):
        pipe.engine = engine
        try:
            pictures = [photo((72, 40), seed) for seed in (1, 2)]
            yield from invert_pictures(pipe, pictures, PROMPTS, method, resume=resume, **given)
        finally:
            pipe.engine = None

    expected, made = finish(inverted(None)), [*inverted(engine)]
    levels = [len(one.latents) for one in made]
    assert levels[: made[-1].calls] == [*range(2, 2 + made[-1].calls)]
    assert len(engine.counts) <= up + down and sum(engine.counts) == up + down
    assert engine.counts[:up] == [1] * up
    assert ("unet.nearer" in engine.asked) == (name == "null-text")
    half, once = made[1], len(engine.counts)
    resumed = finish(inverted(engine, half))
    assert len(engine.counts) - once <= max(up - 2, 0) + down
    for found in (made[-1], resumed):
        for mine, theirs in zip(found.latents, expected.latents, strict=True):
            assert alike(mine, theirs, 1e-5)
        np.testing.assert_allclose(found.error.latents, expected.error.latents, 1e-3)
