"""Controls that do not fit a call: of another number of images, another size, other weights. Every
control with everything that can be wrong with it, in every call that takes controls: an error of
ours in one line, and no network has run by then."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from controls.test_grounding import opened
from controls.test_grounding_maps import KINDS, SMALL, control
from controls.test_subject import BALL, encoder
from pipelines import test_gligen as gligen, tiny
from pipelines.blip import recorded as blip
from pipelines.test_arguments import CALLS, MASK, PICTURE, Reached, Stop, written

import underdraw
from underdraw import (
    AttentionEdit,
    Box,
    CannyMap,
    Keypoints,
    NullText,
    PerImage,
    Region,
    SemanticMap,
    Structure,
    Style,
    Subject,
    schedulers,
)
from underdraw.controls import Control, Run
from underdraw.controls.inpainting import InpaintingChannels
from underdraw.controls.lora import Lora
from underdraw.controls.maps import Map
from underdraw.controls.run import Conditioning
from underdraw.errors import ControlError, InputError, InputTypeError
from underdraw.models import Grounding
from underdraw.sampling.loop import sample
from underdraw.schedulers.foreign import ForeignSolver

NAN = float("nan")
WIDE = PICTURE.resize((72, 40))
POSE = [[(0.5, 0.5)] * 17]
NOBODY = "no such phrase is in the prompt"
TAKING = [call for call in CALLS if "controls" in written(getattr(underdraw, call[0]), call[1])]


class Looks(Control):
    """Sees what is fixed, and lets nothing run."""

    def check(self, planned):
        self.planned = planned
        raise Reached


def filled(shape, value=0.0, **changes):
    """An array of a shape; `changes` are other sizes by axis."""
    shape = [changes.get(f"axis{i}", side) for i, side in enumerate(shape)]
    return torch.full(shape, value)


def blend(planned, **fields):
    return Region(filled(planned.shape, 1.0, axis1=1), **fields)


def masked(planned, mask=None, rest=None):
    mask = filled(planned.shape, axis1=1) if mask is None else mask
    return InpaintingChannels(mask, filled(planned.shape) if rest is None else rest)


def nulls(planned, count=None, images=None, width=None, fill=0.0):
    config = planned.model.config
    shape = (images or planned.images, 77, width or config.cross_attention_dim)
    return NullText([filled(shape, fill)] * (count or planned.calls))


# What is wrong: from what is fixed of a run (`Planned`) to controls, and what is said of them where
# all weights are attached.
WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    # the latent blend
    "mask count": (lambda p: Region(filled(p.shape, 1.0, axis0=5, axis1=1), image=WIDE), "mask"),
    "mask axes": (lambda p: Region(filled(p.shape, 1.0), image=WIDE), "mask has shape"),
    "mask range": (lambda p: Region(filled(p.shape, 1.5, axis1=1), image=WIDE), "0 to 1"),
    "mask NaN": (lambda p: Region(filled(p.shape, NAN, axis1=1), image=WIDE), "mask"),
    "mask pictures": (lambda p: Region([MASK] * 5, image=WIDE), "mask has shape"),
    "mask kind": (lambda p: Region("mask", image=WIDE), "mask"),
    "image count": (lambda p: blend(p, image=[WIDE] * 5), "image holds 5 pictures; allowed: 1 or"),
    "image kind": (lambda p: blend(p, image="photo"), "image"),
    "image NaN": (lambda p: blend(p, image=np.full((40, 72, 3), NAN)), "image"),
    "latents size": (lambda p: blend(p, latents=filled(p.shape, axis3=3)), "latents has shape"),
    "latents count": (lambda p: blend(p, latents=filled(p.shape, axis0=5)), "latents has shape"),
    "latents channels": (lambda p: blend(p, latents=filled(p.shape, axis1=3)), "latents"),
    "latents NaN": (lambda p: blend(p, latents=filled(p.shape, NAN)), "latents holds NaN"),
    "latents whole": (lambda p: blend(p, latents=filled(p.shape).long()), "latents has dtype"),
    "latents numpy": (lambda p: blend(p, latents=np.zeros(p.shape)), "torch array is needed"),
    "noise size": (
        lambda p: blend(p, image=WIDE, noise=filled(p.shape, axis2=2)),
        "noise has shape",
    ),
    "noise NaN": (lambda p: blend(p, image=WIDE, noise=filled(p.shape, NAN)), "noise holds NaN"),
    "trail short": (lambda p: blend(p, trail=[filled(p.shape)] * (p.calls + 1)), "trail has"),
    "trail size": (lambda p: blend(p, trail=[filled(p.shape, axis3=3)] * p.calls), "trail has"),
    "trail NaN": (lambda p: blend(p, trail=[filled(p.shape, NAN)] * p.calls), "trail holds NaN"),
    # channels of inpainting
    "channels count": (lambda p: masked(p, filled(p.shape, axis0=5, axis1=1)), "mask has shape"),
    "channels size": (lambda p: masked(p, None, filled(p.shape, axis3=3)), "masked has shape"),
    "channels NaN": (lambda p: masked(p, None, filled(p.shape, NAN)), "masked holds NaN"),
    "channels numpy": (lambda p: masked(p, np.zeros(p.shape)), "mask=.* array is needed"),
    # null text
    "contexts short": (lambda p: nulls(p, count=max(2, p.calls - 1)), "contexts has"),
    "contexts count": (lambda p: nulls(p, images=5), "contexts holds an array of shape"),
    "contexts width": (lambda p: nulls(p, width=7), "contexts has shape"),
    "contexts NaN": (lambda p: nulls(p, fill=NAN), "contexts holds NaN"),
    # edits
    "target": (lambda p: AttentionEdit(targets=(7,)), "there is no prompt 7"),
    "source": (lambda p: AttentionEdit(source=7, targets=(0,)), "there is no prompt 7"),
    "own prompts": (lambda p: AttentionEdit(prompts=("a",) * 7), "prompts has 7 entries"),
    "weights": (lambda p: AttentionEdit(targets=0, weights={NOBODY: 2.0}), "weights: 'no such"),
    "cross_of": (lambda p: AttentionEdit(cross_of={NOBODY: 0.5}), "cross_of: 'no such"),
    "blend words": (lambda p: AttentionEdit(blend=NOBODY), "blend: 'no such"),
    "positions": (lambda p: AttentionEdit(blend="a", positions=1), "positions=1"),
    # grounding
    "layouts": (lambda p: PerImage(*[[Box("a", (0, 0, 1, 1))]] * 5), "5 layouts; the call makes"),
    "joined": (lambda p: [PerImage([]), PerImage([])], "2 layouts"),
    "boxes": (lambda p: [Box("a", (0, 0, 1, 1))] * 31, "31 entries; allowed: at most 30"),
    "phrase": (lambda p: Box("a " * 99, (0, 0, 1, 1)), "tokens; allowed: at most"),
    "box image": (lambda p: Box(None, (0, 0, 1, 1), WIDE), "'text-image'; attached"),
    "style": (lambda p: Style(WIDE), "'text-image'; attached"),
    "box subject": (lambda p: Box("a cube", (0, 0, 1, 1), None, Subject(BALL, "toy")), "toy"),
    "people": (lambda p: Keypoints.per_image(*[POSE] * 5), "people for 5 images"),
    **{
        f"{kind} count": (lambda p, kind=kind: type(kind)([WIDE] * 5), "pictures for 5 images")
        for kind in (control(kind) for kind in KINDS)
        if isinstance(kind, Map) and not isinstance(kind, SemanticMap)
    },
    "classes": (lambda p: SemanticMap(np.full((4, 6), 9)), "classes 9 .. 9; the attached"),
    "class maps": (lambda p: SemanticMap([np.zeros((4, 6), int)] * 5), "pictures for 5 images"),
    # structure
    "maps": (lambda p: Structure(None, [WIDE] * 5), "5 entries; the call makes"),
    "scale": (lambda p: Structure(None, WIDE, scale=[0.5] * 5), r"\(scale\) has 5 entries"),
    "start": (lambda p: Structure(None, WIDE, start=[0.1] * 5), r"\(start\) has 5 entries"),
    "strength": (lambda p: Structure(None, WIDE, strength=[(1, 0, 0)] * 5), r"\(strength\) has 5"),
    "net": (lambda p: Structure("other", WIDE), "'other'\\) is not attached; attached: 'edges'"),
    "base": (lambda p: Structure(other_net(), WIDE), "net|another|UNet"),
    "map channels": (lambda p: Structure(grey_net(), np.zeros((8, 8, 3))), "3 channels; the net"),
    # differences to layers
    "lora": (lambda p: Lora("elsewhere"), "'elsewhere' is not attached; attached: none"),
    # subjects
    "prompt": (lambda p: Subject(BALL, "toy", word="a", prompts=(9,)), "there is no prompt 9"),
    "word": (lambda p: Subject(BALL, "toy", word=NOBODY), "not in prompt"),
    "encoder": (lambda p: Subject(BALL, "toy", word="a", encoder="b"), "encoder='b'"),
    "embedding": (lambda p: Subject(word="a", embedding=torch.ones(1, 4, 7)), "embedding"),
    "many tokens": (lambda p: Subject(word="a", embedding=ones(p, 90)), "90"),
    "embedding NaN": (lambda p: Subject(word="a", embedding=ones(p, 4, NAN)), "NaN|holds"),
}


@cache
def other_net():
    return tiny.controlnet({**tiny.UNET, "cross_attention_dim": 24})


@cache
def grey_net():
    return tiny.adapter(in_channels=1)


def ones(planned, count, fill=1.0):
    width = planned.components.text_encoder.config.hidden_size
    return torch.full((1, count, width), fill)


@cache
def pipelines():
    """One of each class, with weights of every kind attached."""
    text = tiny.pipeline()
    for kind in KINDS:
        fields = {} if kind == "keypoints" else SMALL
        fields = {**fields, "classes": 5} if kind == "semantic" else fields
        text.load_grounding(Grounding.for_unet(text.unet, kind, **fields))
    text.load_grounding(opened(text.unet))
    text.load_subject(encoder())
    text.load_structure(tiny.adapter(), name="edges")
    made = {"StableDiffusionPipeline": text}
    for name in ("StableDiffusionGLIGENPipeline", "StableDiffusionGLIGENTextImagePipeline"):
        made[name] = gligen.made("text-image" if "TextImage" in name else "text")
        made[name].load_subject(encoder())
    net = blip.shared()["controlnet"]
    made["BlipDiffusionPipeline"] = blip.pipeline()
    made["BlipDiffusionControlNetPipeline"] = blip.pipeline(
        underdraw.BlipDiffusionControlNetPipeline, controlnet=net
    )
    config = {**tiny.SCHEDULE, "clip_sample": False, "set_alpha_to_one": False}
    for name, _ in CALLS:
        given = {}
        if "DiffEdit" in name:
            given = {"scheduler": schedulers.DDIMScheduler(**config)}
        elif "ControlNet" in name:
            given = {"controlnet": tiny.controlnet(text.unet)}
        elif "Adapter" in name:
            given = {"adapter": tiny.adapter()}
        if name not in made:
            made[name] = getattr(underdraw, name).from_pipe(text, **given)
    for pipe in made.values():
        pipe.engine = Stop()
    return made


def base_of(name, method):
    """Arguments that work: two prompts where the call takes several, and higher than wide."""
    base, takes = dict(CALLS[name, method]), written(getattr(underdraw, name), method)
    for argument, value in base.items():
        if value is PICTURE or value is MASK:
            base[argument] = value.resize((72, 40))
    if "Blip" not in name and method == "__call__":
        base["prompt"] = ["a red sphere", "a blue cube"]
    base["num_inference_steps"] = 5
    if "image_latents" in base:
        base["image_latents"] = torch.ones(2, 4, 4, 5, 9)
    if "Blip" not in name and {"height", "width"} <= set(takes):
        base |= {"height": 40, "width": 72}
    return base


def called(pipe, method, way, arguments):
    """A call in one of the ways there are."""
    if way == "call" or method != "__call__":
        return getattr(pipe, method)(**arguments)
    if way == "stream":
        return next(pipe.stream(**arguments))
    return list(underdraw.batched([pipe.stream(**arguments)]))


WAYS = ("call", "stream", "batched")


@pytest.mark.parametrize(("name", "method"), TAKING)
def test_what_does_not_fit_is_told_before_anything_runs(name, method):
    pipe, base, looks = pipelines()[name], base_of(name, method), Looks()
    with pytest.raises(Reached):
        getattr(pipe, method)(**base, controls=[looks])
    assert looks.planned.calls > 2
    found = {}
    for number, (what, (make, told)) in enumerate(WRONG.items()):
        controls = make(looks.planned)
        controls = controls if isinstance(controls, list) else [controls]
        way = WAYS[(number + TAKING.index((name, method))) % len(WAYS)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                called(pipe, method, way, {**base, "controls": controls})
        except (InputError, InputTypeError, ControlError) as error:
            if (
                len(str(error)) > 500
                or "\n" in str(error)
                or (name == "StableDiffusionPipeline" and not re.search(told, str(error)))
            ):
                found[what, way] = str(error)
        except BaseException as error:
            found[what, way] = f"{type(error).__name__}: {error!s:.150}"
        else:
            found[what, way] = "accepted"
    assert found == {}


# -- what is fixed by then -------------------------------------------------------------------------
class Compares(Control):
    """Sees what was fixed, and what became of it."""

    def check(self, planned):
        self.planned = planned

    def prepare(self, run):
        self.run = run
        raise Reached


PROMPTS = ["a red toy left of the cube", "BREAK a toy on the table BREAK cube"]
SUBJECTS = [Subject(BALL, "toy"), Subject(BALL, "toy", word="cube", strength=(0.5, 0, 0.5))]


@pytest.mark.parametrize("compat", [None, "diffusers"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_run_is_what_was_planned(compat, guidance_scale):
    """Tokens with those of subjects, too, which are put in after a network was asked."""
    pipe, seen = tiny.pipeline(compat), Compares()
    pipe.load_subject(encoder())
    prompts = PROMPTS if compat is None else [text.replace("BREAK", "") for text in PROMPTS]
    call = {"num_images_per_prompt": 2, "guidance_scale": guidance_scale, "height": 40, "width": 72}
    with pytest.raises(Reached):
        pipe(prompts, num_inference_steps=3, controls=[seen, *SUBJECTS], **call)
    planned, run = seen.planned, seen.run
    assert planned.shape == tuple(run.latents.shape) == run.planned.shape == (4, 4, 5, 9)
    assert planned.size == run.planned.size == (40, 72)
    assert planned.calls == run.calls and planned.images == run.batch
    assert planned.guided == run.planned.guided == (guidance_scale > 1)
    assert planned.prompts == run.prompts == prompts
    for before, after in zip(planned.ids, run.conditioning.ids, strict=True):
        assert (before < 0).any() and np.array_equal(before, after)
    embeds = pipe.encode_prompt(["a cube", "a sphere"])[0]
    with pytest.raises(Reached):
        pipe(prompt_embeds=embeds, num_inference_steps=3, controls=[seen], guidance_scale=1.0)
    assert seen.planned.ids is seen.planned.prompts is None
    assert seen.planned.tokens == seen.run.planned.tokens == 77


class Whispers(Control):
    """From outside: changes words, and does not say where."""

    def words(self, nn, words):
        return words


def test_words_that_change_nobody_knows_where():
    """Then edits look for words when texts are encoded, as they always could."""
    pipe, told = pipelines()["StableDiffusionPipeline"], []
    looks = Compares()
    with pytest.raises(Reached):
        pipe("a cube", controls=[Whispers(), looks, AttentionEdit(targets=0, weights={NOBODY: 2})])
    assert looks.planned.ids == ()
    own = underdraw.StableDiffusionPipeline(**tiny.components())
    own.set_progress_bar_config(disable=True)
    engine = own.engine
    own.engine = type("Telling", (), {"run": lambda _, q: told.append(1) or engine.run(q)})()
    with pytest.raises(InputError, match=NOBODY):
        own("a cube", controls=[Whispers(), AttentionEdit(targets=0, weights={NOBODY: 2})])
    assert told


def test_a_loop_without_a_pipeline_asks_too():
    """There is neither an autoencoder nor anything attached."""
    pipe = pipelines()["StableDiffusionPipeline"]
    texts = Conditioning(torch.zeros(2, 77, tiny.WIDTH), torch.zeros(2, 77, tiny.WIDTH))
    x, table = torch.ones(2, 4, 5, 9), pipe.scheduler.make_table(4)
    for wrong, told in (
        (NullText([torch.ones(3, 77, tiny.WIDTH)]), "contexts holds an array of shape"),
        (Region(torch.ones(1, 1, 5, 9), image=WIDE), "give latents"),
        (Region(MASK, latents=x), "give latents"),
        (Box("a", (0, 0, 1, 1)), "act in a pipeline alone"),
        (CannyMap(WIDE), "act in a pipeline alone"),
        (Structure(None, WIDE), "not attached; attached: none"),
        (Subject(BALL, "toy"), "embeddings; it acts on texts alone"),
        (AttentionEdit(prompts=("a", "b")), "tokenizer=None"),
    ):
        run = Run(pipe.unet.nn, pipe.unet, table, texts)
        with pytest.raises(InputError, match=told):
            next(sample(run, x, [wrong]))


# -- what a refused call leaves alone --------------------------------------------------------------
class Foreign:
    """Another library's scheduler: methods, and state of its own."""

    init_noise_sigma, order = 1.0, 1

    def __init__(self):
        self.inner = schedulers.DDIMScheduler(**{**tiny.SCHEDULE, "clip_sample": False})
        self.config, self.told, self.timesteps = self.inner.config, [], torch.arange(1000)

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None):
        self.told.append((num_inference_steps, timesteps))
        if timesteps is not None and timesteps[0] < timesteps[-1]:
            raise ValueError("they must\nfall")
        self.inner.set_timesteps(num_inference_steps, timesteps=timesteps)
        self.timesteps = self.inner.timesteps

    def set_begin_index(self, begin):
        self.told.append(begin)

    def scale_model_input(self, x, t):
        return x

    def step(self, output, t, x, eta=0.0, generator=None):
        return self.inner.step(output, t, x)

    def add_noise(self, clean, noise, times):
        return self.inner.add_noise(clean, noise, times)


@pytest.mark.parametrize(("name", "method"), [call for call in TAKING if call[1] == "__call__"])
def test_another_librarys_scheduler_and_generators_are_left_alone(name, method, monkeypatch):
    pipe, base, looks = pipelines()[name], base_of(name, method), Looks()
    scheduler, generator = Foreign(), torch.Generator().manual_seed(3)
    monkeypatch.setitem(pipe.parts.named, "scheduler", scheduler)
    drawn, random = generator.get_state(), torch.get_rng_state()
    with pytest.raises(Reached):
        pipe(**base, controls=[looks])
    for make, _ in list(WRONG.values())[::9]:
        controls = make(looks.planned)
        controls = controls if isinstance(controls, list) else [controls]
        with pytest.raises((InputError, InputTypeError, ControlError)):
            pipe(**base, controls=controls, generator=generator)
    if "timesteps" in written(type(pipe), method):
        with pytest.raises(
            InputError, match=r"timesteps=\[1, 500\]: Foreign does not take it: they must fall"
        ):
            pipe(**{**base, "timesteps": [1, 500]})
        with pytest.raises(InputTypeError, match="timesteps='abc'"):
            pipe(**{**base, "timesteps": "abc"})
    assert scheduler.told == [] and len(scheduler.timesteps) == 1000
    assert torch.equal(generator.get_state(), drawn) and torch.equal(torch.get_rng_state(), random)


def test_another_librarys_scheduler_is_told_when_the_run_begins():
    scheduler = Foreign()
    solver = ForeignSolver(scheduler, 4).tail(2)
    x = torch.ones(1, 4, 5, 9)
    assert len(solver) == 2 and solver.noised(0, x, x).shape == x.shape and scheduler.told == []
    solver.model_input(0, x)
    solver.model_input(1, x)
    assert scheduler.told == [(4, None), 2]
    assert solver.scheduler is scheduler and len(scheduler.timesteps) == 4
    assert torch.equal(solver.timesteps, scheduler.timesteps[2:])


def test_contexts_of_other_lengths_are_told_before_texts_are_encoded():
    """Embeddings beside a text: one has to be a multiple of the other."""
    pipe = pipelines()["StableDiffusionPipeline"]
    for length, told in ((100, "tokens; give both as text"), (70, None), (154, None)):
        embeds = torch.ones(1, length, tiny.WIDTH)
        for call in (
            {"prompt": "a cube", "negative_prompt_embeds": embeds},
            {"prompt_embeds": embeds, "negative_prompt": "a cube"},
        ):
            known = told or (length == 70 and "prompt" in call and "77 and 70 tokens")
            with pytest.raises(InputError if known else Reached, match=known or "clip.text"):
                pipe(num_inference_steps=2, **call)
