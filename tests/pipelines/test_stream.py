"""A call handed out step by step: the same numbers, cancelled between steps, seen on the way."""

from contextlib import closing
from inspect import isgeneratorfunction

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny

import underdraw
from underdraw import StableDiffusionPipeline, scenes, schedulers
from underdraw.controls.control import Control
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question
from underdraw.errors import InputError, NonFiniteError
from underdraw.networks.sites import Sites
from underdraw.pictures.writing import METADATA
from underdraw.pipelines.call.stream import fit_colours

CALL = {"height": 40, "width": 72, "num_inference_steps": 3, "seed": 5}
SOLVERS = {
    "euler": schedulers.EulerDiscreteScheduler(**tiny.SCHEDULE),
    "heun": schedulers.HeunDiscreteScheduler(**tiny.SCHEDULE),
    "ancestral": schedulers.EulerAncestralDiscreteScheduler(**tiny.SCHEDULE),
    "pndm": schedulers.PNDMScheduler(**tiny.SCHEDULE, skip_prk_steps=True),
}
PROMPTS = ["a red sphere", "blue cube", "a table"]


class Louder(Control):
    """Cross-attention a little louder."""

    def before_call(self, nn, carry, latents, call):
        return latents, Sites(cross_attention=(lambda nn, place, x: x * 1.1,)), carry


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("guidance", [7.5, 1.0, [1.0, 3.0, 7.5]])
def test_the_bits_of_a_call(pipe, solver, guidance):
    pipe = StableDiffusionPipeline.from_pipe(pipe, scheduler=SOLVERS[solver])
    call = {**CALL, "guidance_scale": guidance, "output_type": "np", "controls": [Louder()]}
    expected = pipe(PROMPTS, **call).images
    run = pipe.stream(PROMPTS, **call)
    assert run.output is None
    steps = list(run)
    assert np.array_equal(run.output.images, expected)
    assert [step.index for step in steps] == list(range(pipe.num_timesteps))
    assert {step.calls for step in steps} == {len(steps)}
    times = [step.timestep for step in steps]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]
    latents = tiny.run(pipe, PROMPTS, **{**call, "output_type": "latent"})
    assert torch.equal(steps[-1].latents, latents)
    assert {tuple(step.latents.shape) for step in steps} == {(3, 4, 5, 9)}


def test_what_it_returns_and_what_stands_in_pictures(pipe):
    def consumer():
        made = yield from pipe.stream("a red sphere", **CALL, return_dict=False)
        return made

    run, expected = consumer(), pipe("a red sphere", **CALL, return_dict=False)
    with pytest.raises(StopIteration) as end:
        while True:
            next(run)
    (image,), flags = end.value.value
    assert flags is expected[1] is None
    assert np.array_equal(np.asarray(image), np.asarray(expected[0][0]))
    assert image.info[METADATA] == expected[0][0].info[METADATA]


def test_callbacks_of_the_call_act_and_steps_show_it(pipe):
    def halve(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] / 2}

    call = {**CALL, "callback_on_step_end": halve, "output_type": "latent"}
    run = pipe.stream("a red sphere", **call)
    *_, last = run
    assert torch.equal(last.latents, run.output.images)
    assert torch.equal(run.output.images, pipe("a red sphere", **call).images)


def test_closing_cancels_between_steps():
    pipe = tiny.pipeline()
    calls = tiny.counted(pipe)
    with closing(pipe.stream("a red sphere", **CALL)) as run:
        assert calls == []
        next(run)
        next(run)
    assert len(calls) == 2
    assert run.output is None
    with pytest.raises(StopIteration):
        next(run)
    run.close()
    assert len(calls) == 2


def test_interrupting_ends_it_as_it_ends_a_call(pipe):
    run = pipe.stream("a red sphere", **CALL, output_type="latent")
    first = next(run)
    pipe._interrupt = True
    assert list(run) == []
    assert torch.equal(run.output.images, first.latents)


def test_an_error_of_the_consumer_ends_the_run(pipe):
    run = pipe.stream("a red sphere", **CALL)
    next(run)
    with pytest.raises(KeyError, match="mine"):
        run.throw(KeyError("mine"))
    assert list(run) == []


@pytest.mark.parametrize("full", [False, True])
def test_previews_are_pictures_and_change_nothing(full):
    pipe = tiny.pipeline(unet=tiny.DEEP)  # whose pictures change from step to step
    expected = pipe(PROMPTS, **CALL, output_type="np").images
    run = pipe.stream(PROMPTS, **CALL, output_type="np")
    shown = [step.preview(full) for step in run]
    assert np.array_equal(run.output.images, expected)
    for pictures in shown:
        assert [(p.mode, p.size) for p in pictures] == [("RGB", (72, 40))] * 3
    assert np.asarray(shown[0][0]).std() > 0
    assert not np.array_equal(shown[0][0], shown[0][1])
    assert not np.array_equal(shown[0][0], shown[-1][0])


def test_the_last_full_preview_is_the_picture(pipe):
    """With Euler the last step ends where the model aims."""
    run = pipe.stream("a red sphere", **CALL)
    *_, last = run
    assert (
        np.abs(np.asarray(last.preview(full=True)[0]).astype(int) - run.output.images[0]).max() <= 1
    )


def test_cheap_previews_show_the_colours():
    """Of a rendered scene, encoded by an autoencoder that is trained."""
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    scene = scenes.sample_scene(scenes.scene_rng(3, 1, "held_out"), 3, "held_out")
    image = scenes.render(scene, 128, 128).image
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] * 2 - 1
        z = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    colours = fit_colours(pipe.parts)
    assert colours.shape == (pipe.vae.config.latent_channels + 1, 3)
    from underdraw.pipelines.call.stream import coloured

    (shown,) = coloured(pipe.parts, z, colours)
    small = Image.fromarray((image * 255).astype(np.uint8)).resize((16, 16), Image.Resampling.BOX)
    expected = np.asarray(small.resize((128, 128), Image.Resampling.BILINEAR), np.float32)
    assert abs(np.asarray(shown, np.float32) - expected).mean() < 0.08 * 255


def test_streams_in_one_thread_keep_their_own_guidance(pipe):
    """Taken in turns, and with calls between their steps."""
    scales = (2.0, 7.5)
    expected = [tiny.run(pipe, guidance_scale=scale) for scale in scales]
    call = {"num_inference_steps": 3, "output_type": "latent", "seed": 3}
    runs = [pipe.stream("a red sphere", guidance_scale=scale, **call) for scale in scales]
    for _ in range(3):
        for run in runs:
            next(run)
        assert torch.equal(tiny.run(pipe, guidance_scale=2.0), expected[0])
    for run, wanted in zip(runs, expected, strict=True):
        assert list(run) == []
        assert torch.equal(run.output.images, wanted)


def test_threads_may_stream_from_one_pipeline(pipe):
    tasks = [(f"a {colour} sphere", scale) for colour, scale in (("red", 2.0), ("green", 7.5))]

    def work(prompt, scale):
        def go():
            run = pipe.stream(prompt, guidance_scale=scale, **CALL, output_type="latent")
            pictures = [step.preview()[0] for step in run]
            return run.output.images, len(pictures)

        return go

    found = tiny.together(*[work(*task) for task in tasks * 2])
    for (made, count), (prompt, scale) in zip(found, tasks * 2, strict=True):
        assert count == 3
        alone = tiny.run(pipe, prompt, guidance_scale=scale, **CALL)
        assert torch.equal(made, alone)


def test_a_stream_may_change_threads(pipe):
    run = pipe.stream("a red sphere", **CALL, output_type="latent")
    next(run)
    (rest,) = tiny.together(lambda: list(run))
    assert len(rest) == 2
    assert torch.equal(run.output.images, tiny.run(pipe, **CALL))


def test_mistakes_are_those_of_the_call():
    pipe = tiny.pipeline()
    with pytest.raises(TypeError, match="promt"):
        pipe.stream(promt="a red sphere")
    with pytest.raises(InputError, match="height=41"):
        next(pipe.stream("a red sphere", height=41))
    pipe.unet.conv_in.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError):
        next(pipe.stream("a red sphere", **CALL))


@pytest.mark.parametrize("name", [name for name in underdraw.__all__ if name.endswith("Pipeline")])
def test_every_pipeline_streams(name):
    kind = getattr(underdraw, name)
    if issubclass(kind, underdraw.DiffusionPipeline) and kind is not underdraw.DiffusionPipeline:
        assert isgeneratorfunction(kind.__call__.steps)


# -- interrupting ----------------------------------------------------------------------------------
STEPS = {"num_inference_steps": 3, "output_type": "latent", "seed": 3}


def test_a_callback_interrupts_its_own_run_only(pipe):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    expected = tiny.run(pipe)
    one = pipe.stream("a red sphere", callback_on_step_end=stop, **STEPS)
    two = pipe.stream("a red sphere", **STEPS)
    first = next(two)
    assert [step.index for step in one] == [0] and pipe.interrupt
    assert torch.equal(one.output.images, first.latents)
    assert len(list(two)) == 2 and not pipe.interrupt
    assert torch.equal(two.output.images, expected)


def test_another_thread_interrupts_all_runs_in_progress(pipe):
    runs = [pipe.stream("a red sphere", **STEPS) for _ in range(2)]
    firsts = [next(run) for run in runs]

    def stop():
        pipe._interrupt = True

    tiny.together(stop)
    for run, first in zip(runs, firsts, strict=True):
        assert list(run) == []
        assert torch.equal(run.output.images, first.latents)


def test_a_new_run_does_not_clear_what_was_asked_of_another(pipe):
    expected = tiny.run(pipe)
    run = pipe.stream("a red sphere", **STEPS)
    first = next(run)
    pipe._interrupt = True
    assert torch.equal(tiny.run(pipe), expected)
    assert list(run) == []
    assert torch.equal(run.output.images, first.latents)


def test_questions_may_be_answered_from_outside(pipe):
    """As whoever runs several streams at once does."""
    expected = tiny.run(pipe)
    run = pipe.stream("a red sphere", **STEPS)
    seen = []
    with pytest.raises(StopIteration):
        while True:
            item = run.ask()
            if isinstance(item, Question):
                run.answer(EAGER.run(item))
            seen.append(type(item).__name__)
    assert seen == ["Question", "Progress"] * 3
    assert torch.equal(run.output.images, expected)


# -- an interruption belongs to a run --------------------------------------------------------------
def three(pipe, **further):
    return [pipe.stream("a red sphere", **{**STEPS, "seed": i}, **further) for i in range(3)]


def ends(runs):
    """How many more steps each run makes."""
    return [len(list(run)) for run in runs]


@pytest.mark.parametrize("which", range(3))
def test_between_steps_it_is_the_run_that_was_handed_out_last(pipe, which):
    runs = three(pipe)
    for run in runs:
        next(run)
    next(runs[which])
    pipe._interrupt = True
    assert ends(runs) == [0 if i == which else 2 for i in range(3)]


@pytest.mark.parametrize("which", range(3))
def test_a_stream_is_interrupted_by_itself_from_any_thread(pipe, which):
    runs = three(pipe)
    firsts = [next(run) for run in runs]
    tiny.together(runs[which].interrupt)
    assert ends(runs) == [0 if i == which else 2 for i in range(3)]
    assert torch.equal(runs[which].output.images, firsts[which].latents)
    before = pipe.stream("a red sphere", **STEPS)
    before.interrupt()
    assert len(list(before)) == 1 and before.output is not None


def test_batched_streams_are_interrupted_each_by_itself(pipe):
    seen = []
    for which, step in (runs := underdraw.batched(three(pipe))):
        seen.append(which)
        if which == 1 and step.index == 0:
            pipe._interrupt = True
    assert sorted(seen) == [0, 0, 0, 1, 2, 2, 2]
    assert all(stream.output is not None for stream in runs.streams)


@pytest.mark.parametrize("later", ["nothing", "false", "a new run"])
def test_nothing_takes_back_what_was_asked_from_outside(pipe, later):
    run = pipe.stream("a red sphere", **STEPS)
    next(run)
    tiny.together(lambda: setattr(pipe, "_interrupt", True))
    if later != "nothing":
        pipe._interrupt = False
    if later == "a new run":
        assert len(list(pipe.stream("a cube", **STEPS))) == 3
    assert list(run) == []


def test_a_callback_takes_back_what_it_said_itself_alone(pipe):
    def asked(pipe, index, *_):
        if from_outside and index == 0:
            tiny.together(lambda: setattr(pipe, "_interrupt", True))
        pipe._interrupt = True
        pipe._interrupt = False  # as callbacks of diffusers do: `index == 7`

    for from_outside in (False, True):
        run = pipe.stream("a red sphere", **STEPS, callback_on_step_end=asked)
        assert len(list(run)) == (1 if from_outside else 3)


def test_threads_interrupt_their_own_run(pipe):
    expected = [list(run)[-1].latents for run in three(pipe)]

    def call(i):
        def stop(pipe, index, *_):
            pipe._interrupt = i == 1 and index == 0

        seen = []
        made = tiny.run(
            pipe,
            **{**STEPS, "seed": i},
            callback_on_step_end=stop,
            callback=lambda *step: seen.append(step),
        )
        return len(seen), made

    made = tiny.together(*[lambda i=i: call(i) for i in range(3)])
    assert [steps for steps, _ in made] == [3, 1, 3]
    for i in (0, 2):
        assert torch.equal(made[i][1], expected[i])
