"""Ways to compute less: calls that compute everything are exact calls, the others compute what they
promise; with every control, engine and backend, alone and in a batch. `tests/pipelines/peer` holds
whole runs beside diffusers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from engines.runs import apart, begun, ended, unet
from engines.test_batch import in_one
from engines.test_everywhere import calls
from pipelines import ip_adapters, loras, tiny
from pipelines.test_beginnings import picture

import underdraw
from underdraw import (
    AdaptiveGuidance,
    AttentionCache,
    DeepCache,
    EncoderPropagation,
    GuidanceInterval,
    ImagePrompt,
    SparseGuidance,
    Structure,
    TokenDownsampling,
    backends,
    schedulers,
)
from underdraw.backends.torch_operations import Torch
from underdraw.controls.acceleration import method
from underdraw.controls.acceleration.presets import PRESETS, mixed
from underdraw.controls.control import Call
from underdraw.controls.steady import Steady
from underdraw.engines.compiled import Compiled, Regional
from underdraw.engines.eager import EAGER, Eager
from underdraw.engines.engine import answered
from underdraw.errors import InputError, InputTypeError
from underdraw.networks import decoder, encoder
from underdraw.networks.sites import HOOKS, NO_SITES, Sites, Telling
from underdraw.networks.unet import UNET
from underdraw.pictures.writing import METADATA
from underdraw.pipelines.call.record import repeat
from underdraw.pipelines.components.components import Components
from underdraw.sampling.loop import sample

STEPS = 11
WAYS = {
    "deep": (DeepCache(),),
    "deeper": (DeepCache(every=2, branch=1, first=2),),
    "straight": (DeepCache(order=1),),
    "encoder": (EncoderPropagation(),),
    "attention": (AttentionCache(),),
    "interval": (GuidanceInterval(0.5, 5.0),),
    "adaptive": (AdaptiveGuidance(0.9993),),
    "sparse": (SparseGuidance(3),),
    "tokens": (TokenDownsampling(least=8),),
    "much": (DeepCache(every=2), AttentionCache(0.4), GuidanceInterval(0.5)),
    "encoder and sparse": (EncoderPropagation(), SparseGuidance()),
}
ROUNDING = 2e-5
"""Of the largest value, where as many rows are computed by another kernel: 3e-6 in exact runs."""


def controls_of(way):
    return mixed(WAYS[way]).controls()


class Watch:
    """Runs programs as they are. Notes rows and blocks of each call of the UNet, and that a call of
    which nothing is known gives the bits of one that tells nothing."""

    def __init__(self, plain=EAGER):
        self.plain, self.calls, self.others = plain, [], Counter()

    def run(self, question):
        if question.program != UNET:
            self.others[question.program.name] += 1
            return self.plain.run(question)
        blocks = []

        def run(block, *arguments):
            blocks.append(block.__name__)
            return block(*arguments)

        program, nn, model = question.program, question.nn, question.model
        made = program(nn, model, model.config, *question.inputs, run=run)
        x, *inputs, sites = question.inputs
        if not (sites.features or sites.attended):
            bare = {
                name: tuple(h for h in getattr(sites, name) if not isinstance(h, Telling))
                for name in HOOKS
            }
            exact = program(nn, model, model.config, x, *inputs, replace(sites, **bare))
            assert torch.equal(made.sample, exact.sample)
        self.calls.append((x.shape[0], len(blocks)))
        return made


# -- what is computed ----------------------------------------------------------------------------
ALL, BOTH, ATTENTIONS = 18, 4, 14
"""All blocks; rows of a guided call of two images; attentions, of which half are to texts."""
PROMISED = {
    "deep": [(BOTH, ALL), (BOTH, 2), (BOTH, 2)] * 4,
    "deeper": [*[(BOTH, ALL)] * 2, *[(BOTH, ALL), (BOTH, 6)] * 5],
    "straight": [(BOTH, ALL), (BOTH, 2), (BOTH, 2)] * 4,
    "encoder": [(BOTH, ALL)] * 4 + [(BOTH, 10), (BOTH, 10), (BOTH, ALL)] * 3,
    "attention": [(BOTH, ALL)] * 5 + [(2, ALL)] * 6,
    "interval": [(2, ALL)] * 3 + [(BOTH, ALL)] * 6 + [(2, ALL)] * 2,
    "adaptive": [(BOTH, ALL)] * 3 + [(2, ALL)] * 8,
    "sparse": [(BOTH, ALL), (2, ALL), (2, ALL)] * 4,
    "tokens": [(BOTH, ALL)] * STEPS,
    "much": [
        *[(BOTH, ALL), (BOTH, 2)] * 2,
        (BOTH, ALL),
        *[(2, 2), (2, ALL)] * 3,
    ],
    # A half which the last whole call did not have is computed anew.
    "encoder and sparse": [
        *[(BOTH, ALL), (2, ALL)] * 2,
        *[(BOTH, ALL), (2, 10)] * 2,
        (BOTH, 10),
        (2, ALL),
        (BOTH, ALL),
    ],
}


@pytest.fixture(scope="module")
def model():
    return unet(**tiny.DEEP)


@pytest.fixture(scope="module")
def exact(model):
    """The run below with nothing left out."""
    return ended(model, steps=STEPS)


@pytest.mark.parametrize("way", WAYS)
def test_calls_compute_what_is_promised(model, exact, way, monkeypatch):
    attentions, attention = [], Torch.attention
    monkeypatch.setattr(Torch, "attention", lambda *told: attentions.append(1) or attention(*told))
    watch = Watch()
    made = ended(model, engine=watch, steps=STEPS, controls=controls_of(way))
    assert watch.calls == PROMISED[way][:STEPS], watch.calls
    assert apart(made, exact) > 20 * ROUNDING
    if way == "attention":
        whole = 5 * 2  # calls: the first five, looked at twice
        assert len(attentions) == ATTENTIONS * whole + ATTENTIONS // 2 * 6


@dataclass(frozen=True)
class Acting(Steady):
    """Hooks of somebody else."""

    sites: Sites

    def sites_at(self, nn, carry, like, call):
        return self.sites


HOOKED = {
    "nothing": NO_SITES,
    **{name: Sites(**{name: (lambda nn, place, x: x * 1.5,)}) for name in HOOKS},
    "beside_cross_attention": Sites(beside_cross_attention=(lambda nn, place, x: x * 0 + 1.5,)),
    "context": Sites(context=(lambda nn, x: x * 1.5,)),
    "model_input": Sites(model_input=(lambda nn, x: x * 1.5,)),
    "join": Sites(join=(lambda nn, place, x, skip: (x * 1.5, skip * 1.5),)),
    "conv_in": Sites(conv_in=lambda nn, p, x: 1.5 * nn.conv2d(p, x, 16, 3)),
    "mid_residual": Sites(mid_residual=torch.full((1, 1, 1, 1), 1.5)),
    "down_residuals": Sites(down_residuals=[torch.full((1, 1, 1, 1), 1.5)] * 6),
}


@pytest.mark.parametrize("kept", ["deep", "inner", "encoder", "attention"])
def test_what_is_known_changes_nothing(model, kept):
    """A call of the latents of which everything was kept gives their bits, whatever acts in both:
    no hook acts twice, and none that comes later is left out."""
    config = model.config
    units = decoder.units(config)
    hidden = {"deep": units[-1:], "inner": units[-3:-2], "encoder": units[:1], "attention": ()}
    skips = encoder.skip_places(config) if kept == "encoder" else ()
    texts = tuple(
        path.removesuffix(".to_q")
        for path in type(model).layout(config).leaves
        if path.endswith(".attn2.to_q") and kept == "attention"
    )
    telling = Sites(
        up=(Telling(tuple(unit.place for unit in hidden[kept])),),
        skip=(Telling(skips),),
        cross_attention_output=(Telling(texts),),
    )
    telling, plain = telling.owned(lambda _: 0), None
    for name, acts in HOOKED.items():
        question = next(begun(model, steps=4, controls=[Acting(acts)]))
        *inputs, sites = question.inputs
        whole = EAGER.run(replace(question, inputs=(*inputs, sites + telling)))
        plain = whole.sample if plain is None else plain
        assert name == "nothing" or not torch.allclose(whole.sample, plain, rtol=1e-3), name
        values = {extra.place: extra.value for extra in whole.extras}
        assert len(values) == len(hidden[kept]) + len(skips) + len(texts) > 0
        known = Sites(attended=values) if texts else Sites(features=values)
        part = EAGER.run(replace(question, inputs=(*inputs, sites + known)))
        assert torch.equal(part.sample, whole.sample), name
        assert not part.extras


@pytest.mark.parametrize(
    ("after", "calls", "whole"),
    [(0.4, 25, 10), (0.12, 25, 3), (0.28, 25, 7), (0.41, 25, 11), (0.0, 25, 1), (0.999, 10, 10)],
)
def test_how_many_calls_attention_is_computed_in(after, calls, whole):
    """As with the authors' `gate_step`, that part of the run."""
    control = AttentionCache(after).control()
    run = [Call(i, calls, 0.0, True) for i in range(calls)]
    assert [control.guides(None, call) for call in run] == [i < whole for i in range(calls)]


@dataclass(frozen=True)
class UntilCall(Steady):
    """Somebody else who has guidance in calls before this one alone, and from `again` on."""

    index: int
    again: int = STEPS

    def guides(self, carry, call):
        return not self.index <= call.index < self.again


@pytest.mark.parametrize("ends", ["guidance", "another control"])
def test_between_sparse_halves_nothing_guides_where_guidance_is_over(model, ends):
    """From call 4 to 6; then it begins anew, with both halves."""

    def made(*controls):
        watch, output = Watch(), []
        controls = [*controls, *([UntilCall(4, 7)] if ends == "another control" else [])]
        run = begun(model, steps=STEPS, controls=controls)
        for step in answered(run, watch):
            output.append(step.latents)
            if ends == "guidance" and step.index in (3, 6):
                run.gi_frame.f_locals["run"].guidance = 1.0 if step.index == 3 else 3.0
        return output, [rows for rows, _ in watch.calls]

    sparse, rows = made(SparseGuidance(3).control())
    assert rows == [BOTH, 2, 2, BOTH, 2, 2, 2, BOTH, 2, BOTH, 2]

    # The same latents after call 3, and no guidance from there on: calls of the text alone.
    @dataclass(frozen=True)
    class Put(Steady):
        def after_step(self, nn, carry, latents, call):
            return (sparse[3] if call.index == 3 else latents), carry

    plain, _ = made(Put())
    for index in (4, 5, 6):
        assert torch.equal(sparse[index], plain[index])
    assert not torch.equal(sparse[8], plain[8])


# -- everywhere --------------------------------------------------------------------------------
ENGINES = {
    "blocks": lambda: Regional(lambda f: f),
    "programs": lambda: Compiled(lambda f: f),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["much", "encoder and sparse"])
def test_engines(model, way, engine):
    made = ended(model, engine=ENGINES[engine](), steps=STEPS, controls=controls_of(way))
    assert np.array_equal(made, ended(model, steps=STEPS, controls=controls_of(way)))


@pytest.mark.skipif("jax" not in backends.installed(), reason="jax is not installed")
def test_jax_compiles_each_kind_of_call_once():
    engine, controls = Compiled(), controls_of("deep")
    made = ended(unet("jax", **tiny.ONE_LEVEL), engine=engine, steps=10, controls=controls)
    assert apart(made, ended(unet(**tiny.ONE_LEVEL), steps=10, controls=controls)) < 1e-4
    assert sum(program == UNET for program, _ in engine.compiled) == 2


@pytest.mark.parametrize("way", ["much", "adaptive", "encoder and sparse"])
def test_an_image_is_the_same_alone(model, way):
    """Each image of a batch; guidance of each ends at its own call."""
    whole = ended(model, 5, steps=STEPS, controls=controls_of(way), images=3)
    for i in (0, 2):
        assert apart(alone(model, i, controls_of(way)), whole[i : i + 1]) < ROUNDING


def alone(model, image, controls):
    """The run above with one of its images."""
    run = begun(model, 5, steps=STEPS, controls=controls, images=3)
    held = run.gi_frame.f_locals
    made, x = held["run"], held["latents"]
    cut = slice(image, image + 1)
    texts = made.conditioning
    texts = replace(texts, context=texts.context[cut], negative=texts.negative[cut])
    one = replace(made, conditioning=texts)
    *_, step = answered(sample(one, x[cut], controls), EAGER)
    return step.latents.numpy()


def test_runs_in_one_batch(model):
    """Each with another way, or none, at other steps."""
    ways = [None, "deep", "attention", "adaptive", "tokens", "encoder and sparse"]
    told = [
        {"steps": STEPS + i % 2, "tokens": 77, "images": 1 + i % 2}
        | ({"controls": controls_of(way)} if way else {})
        for i, way in enumerate(ways)
    ]
    rows = Rows()
    together = in_one([begun(model, i, **each) for i, each in enumerate(told)], rows)
    for i, (each, made) in enumerate(zip(told, together, strict=True)):
        assert apart(made, ended(model, i, **each)) < ROUNDING, ways[i]
    assert len(rows.calls) < 0.6 * sum(each["steps"] for each in told)


class Rows(Watch):
    """Calls of batches, which tell rows of some runs."""

    def run(self, question):
        self.calls.append(question.program)
        return self.plain.run(question)


SIZE = {"height": 40, "width": 72, "num_inference_steps": STEPS}


def steered(name):
    """A pipeline, arguments of a call that steer it, and what else is asked in a call."""
    pipe = tiny.pipeline(unet=tiny.DEEP)
    controls = []
    if name in ("ControlNet", "T2I-Adapter"):
        net = (
            tiny.controlnet(pipe.unet)
            if name == "ControlNet"
            else tiny.adapter(channels=(16, 32, 32))
        )
        controls = [Structure(net, picture(40, 72))]
    elif name == "IP-Adapter":
        pipe = ip_adapters.pipeline(unet=tiny.DEEP)
        pipe.load_ip_adapter(ip_adapters.adapter(pipe.unet))
        controls = [ImagePrompt(ip_adapters.picture())]
    elif name == "LoRA":
        pipe.load_lora_weights(loras.lora(pipe, unet=("to_q", "conv1"), texts=()))
    return pipe, {**SIZE, "controls": controls}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("ControlNet", "deep"),
        ("ControlNet", "encoder"),
        ("T2I-Adapter", "encoder"),
        ("IP-Adapter", "deep"),
        ("LoRA", "deep"),
    ],
)
def test_networks_beside_it_are_asked_in_whole_calls(name, way):
    pipe, call = steered(name)
    exact = tiny.run(pipe, **call)
    pipe.engine = watch = Watch()
    pipe.enable_acceleration(*WAYS[way])
    made = tiny.run(pipe, **call)
    whole = sum(blocks == ALL for _, blocks in watch.calls)
    assert len(watch.calls) == STEPS and whole == {"deep": 4, "encoder": 6}[way]
    assert watch.others["controlnet"] == (whole if name == "ControlNet" else 0)
    difference = float((made - exact).abs().max() / exact.abs().max())
    assert 1e-4 < difference < 0.2
    without = tiny.run(pipe, **{**call, "controls": []})
    assert name == "LoRA" or not torch.allclose(made, without, rtol=1e-3)


ENDING = {
    "ends": ({"end": 0.5}, range(6), [0, 4, 6, 8]),
    "begins": ({"start": 0.5}, range(6, 12), [0, 4, 6, 8]),
    "each image": ({"start": [0, 0.2], "end": [0.5, 1]}, range(12), [0, 3, 4, 6, 8]),
    "strength": ({"strength": (0.75, 0, 0.25)}, range(9), [0, 4, 8, 9]),
    "T2I-Adapter": ({"end": 0.5}, range(6), [0, 4, 6, 8]),
}


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("way", [DeepCache(4), EncoderPropagation(4, first=1)])
def test_nets_act_in_their_calls_alone(model, name, way):
    """No residuals before a net begins or after it ends, inside of what is kept neither: the call
    with which it does is a whole one."""
    told, acts, whole = ENDING[name]
    seen = []

    class Seen(Watch):
        def run(self, question):
            if question.program == UNET:
                sites = question.inputs[-1]
                if sites.down_residuals is not None or sites.down:
                    seen.append(len(self.calls))
            return super().run(question)

    watch, net = Seen(), tiny.controlnet(model)
    if name == "T2I-Adapter":
        net = tiny.adapter(channels=(16, 32, 32))
    controls = [way.control(), Structure(net, picture(40, 72), **told)]
    ended(model, engine=watch, steps=12, controls=controls)
    assert seen == [*acts]
    assert [i for i, (_, blocks) in enumerate(watch.calls) if blocks == ALL] == whole


CALLS = ("inpaint", "boxes_everywhere", "maps_and_people", "attention")


@pytest.mark.parametrize("name", CALLS)
def test_in_other_pipelines_and_with_other_controls(name, monkeypatch):
    """Recorded calls of few steps, each second of which is computed in part."""
    monkeypatch.setattr(method, "FEWEST_CALLS", 1)
    watch, plain = Watch(), Eager.run
    watch.plain = replace_run(plain)
    monkeypatch.setattr(Eager, "run", lambda _, question: watch.run(question))
    ways = mixed((DeepCache(every=2), AttentionCache(0.7)))
    monkeypatch.setattr(Components, "acceleration", property(lambda _: ways.controls()))
    made = calls.arrays(name)
    blocks = [count for _, count in watch.calls]
    assert min(blocks) < max(blocks)
    assert all(np.isfinite(array).all() for array in made.values())


class replace_run:
    """The engine as it is, while it is watched."""

    def __init__(self, run):
        self.answer = run

    def run(self, question):
        return self.answer(EAGER, question)


# -- settings --------------------------------------------------------------------------------------
def test_a_picture_says_what_was_left_out():
    pipe = tiny.pipeline(unet=tiny.DEEP)
    pipe.enable_acceleration(DeepCache(every=2), GuidanceInterval(0.5, 5))
    image = pipe("a red sphere", seed=3, **SIZE).images[0]
    told = json.loads(image.info[METADATA])["settings"]["acceleration"]
    assert told == {
        "deep_cache": {"every": 2, "branch": 0, "first": 1, "order": 0},
        "guidance_interval": {"low": 0.5, "high": 5.0},
    }
    pipe.disable_acceleration()
    assert pipe.settings.acceleration is None
    again = repeat(pipe, image.info[METADATA])
    assert again.tobytes() == image.tobytes()
    del told["deep_cache"]["order"]  # records of before there was one
    older = json.loads(image.info[METADATA])
    older["settings"]["acceleration"] = told
    assert repeat(pipe, older).tobytes() == image.tobytes()
    exact = pipe("a red sphere", seed=3, **SIZE).images[0]
    assert exact.tobytes() != image.tobytes()
    assert "acceleration" not in json.loads(exact.info[METADATA])["settings"]


RECORDED = {
    "a way that is not known": ({"deep": {}}, "'deep' is not known; allowed: deep_cache, "),
    "a field that is not known": (
        {"deep_cache": {"evry": 3}},
        "deep_cache: 'evry' is not known; allowed: every, branch, first, order$",
    ),
    "a number": ({"deep_cache": {"every": 1}}, "deep_cache: every=1 is not supported; allowed: a"),
    "no fields": ({"deep_cache": 3}, "deep_cache: DeepCache is 3; allowed: an object"),
    "a contradiction": (
        {"guidance_interval": {"low": 5, "high": 1}},
        "guidance_interval: low=5 and high=1; allowed",
    ),
    "two": (
        {"deep_cache": {}, "encoder_propagation": {}},
        "deep_cache and encoder_propagation do not go together",
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_says_nothing_that_is_not_known(name):
    told, message = RECORDED[name]
    pipe = tiny.pipeline(unet=tiny.ONE_LEVEL)
    metadata = {"pipeline": "StableDiffusionPipeline", "missing": [], "call": {"prompt": "x"}}
    metadata |= {"scheduler": {"_class_name": "DDIMScheduler"}}
    with pytest.raises(InputTypeError, match=f": settings: acceleration: {message}"):
        repeat(pipe, {**metadata, "settings": {"acceleration": told}})


def test_steps_are_those_of_exact_runs():
    pipe = tiny.pipeline()
    pipe.enable_acceleration("faster")
    steps = list(pipe.stream("a red sphere", seed=3, **SIZE))
    assert [step.index for step in steps] == list(range(STEPS))
    other = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    other.enable_acceleration("exact")
    assert pipe.settings.acceleration == PRESETS["faster"]
    assert other.settings.acceleration is None


REFUSED = {
    "few calls": (("fast",), {"num_inference_steps": 9}, "this run has 9 calls.*10 calls or more"),
    "a part of a run": (("fast",), {"strength": 0.5}, "this run has 5 calls"),
    "LCM": (("faster",), {"scheduler": "LCMScheduler"}, "consistency solvers"),
    "TCD": ((AttentionCache(),), {"scheduler": "TCDScheduler"}, "consistency solvers"),
    "branch": ((DeepCache(branch=6),), {}, r"branch=6 .* allowed for this UNet: 0 \.\. 5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_computed(name):
    methods, changes, message = REFUSED[name]
    changes, begins = {**SIZE, **changes}, "strength" in changes
    pipe = tiny.pipeline(unet=tiny.DEEP)
    if "scheduler" in changes:
        pipe.scheduler = getattr(schedulers, changes.pop("scheduler"))(**tiny.SCHEDULE)
    if begins:
        pipe = underdraw.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        changes = {"image": picture(40, 72), **changes}
        del changes["height"], changes["width"]
    pipe.engine = watch = Watch()
    pipe.enable_acceleration(*methods)
    with pytest.raises(InputError, match=message):
        tiny.run(pipe, **changes)
    assert not watch.calls and not watch.others
    pipe.disable_acceleration()
    tiny.run(pipe, **{**changes, "num_inference_steps": 3})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("quick",), "methods='quick'; allowed: 'exact', 'fast', 'faster'"),
        ((), "none is given"),
        (("fast", DeepCache()), "methods holds 'fast'"),
        ((DeepCache(), DeepCache(2)), "two DeepCache"),
        ((DeepCache(), EncoderPropagation()), "deep_cache and encoder_propagation"),
        ((AttentionCache(), SparseGuidance()), "attention_cache and sparse_guidance"),
        ((3,), "methods holds 3; allowed: DeepCache, "),
    ],
)
def test_what_does_not_go_together(methods, message):
    pipe = tiny.pipeline()
    pipe.enable_acceleration(DeepCache())
    with pytest.raises((InputError, InputTypeError), match=message):
        pipe.enable_acceleration(*methods)
    assert pipe.settings.acceleration.deep_cache == DeepCache()


def test_inversions_are_exact():
    """Of few steps, too; the way back is refused."""
    scheduler = schedulers.DDIMScheduler(**tiny.SCHEDULE, clip_sample=False)
    parts = tiny.components(scheduler=scheduler)
    pipe = underdraw.StableDiffusionDiffEditPipeline(**parts)
    call = {"image": picture(40, 72), "num_inference_steps": 3}
    exact = pipe.invert("a red sphere", **call).latents
    pipe.enable_acceleration("faster")
    assert torch.equal(pipe.invert("a red sphere", **call).latents, exact)
    with pytest.raises(InputError, match="10 calls or more"):
        mask = np.ones((40, 72), np.float32)
        pipe("a cube", mask_image=mask, image_latents=exact, num_inference_steps=3)
