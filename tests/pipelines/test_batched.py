"""Streams that share each call of their UNet: each gives what it gives alone."""

from contextlib import closing

import pytest
import torch
from controls.test_grounding import BLUE, RED, opened
from engines.test_batch import Counting
from pipelines import tiny
from pipelines.test_beginnings import masked, picture

import underdraw
from underdraw import AttentionEdit, Layout, PerImage, Region, schedulers
from underdraw.controls import Control
from underdraw.errors import ControlError, InputError, InputTypeError
from underdraw.networks.sites import Sites

CALL = {"height": 40, "width": 72, "num_inference_steps": 4, "output_type": "latent"}
TWO = ["a red sphere left of a blue cube", "a green sphere left of a blue cube"]


class Broken(Control):
    """Breaks its contract at the second call."""

    def before_call(self, nn, carry, latents, call):
        hook = (lambda nn, place, x: x[:, 1:],) if call.index else ()
        return latents, Sites(down=hook), carry


@pytest.fixture(scope="module", autouse=True)
def as_users_have_it():
    """With oneDNN (`tests/conftest.py`): a batch differs from its rows alone by 1e-5 at most."""
    torch.backends.mkldnn.enabled = True
    yield
    torch.backends.mkldnn.enabled = False


@pytest.fixture(scope="module")
def pipe():
    made = tiny.pipeline(unet=tiny.DEEP)
    made.load_grounding(opened(made.unet))
    return made


@pytest.fixture(scope="module")
def others(pipe):
    """Other pipelines on the same networks."""
    kinds = {
        "img2img": underdraw.StableDiffusionImg2ImgPipeline,
        "inpaint": underdraw.StableDiffusionInpaintPipeline,
        "gligen": underdraw.StableDiffusionGLIGENPipeline,
    }
    made = {name: kind.from_pipe(pipe) for name, kind in kinds.items()}
    for one in made.values():
        one.load_grounding(pipe.groundings["text"])
    made["img2img"].scheduler = schedulers.DPMSolverMultistepScheduler(
        **{**tiny.SCHEDULE, "steps_offset": 0}
    )
    return made


def close(stream, expected, bound=1e-5):
    made = stream.output.images
    assert (made - expected).abs().max() <= bound * expected.abs().max()


def test_streams_of_several_pipelines(pipe, others):
    """Layouts, an attention edit, a region, other beginnings, solvers, guidance and prompts."""
    sized = {key: value for key, value in CALL.items() if key not in ("height", "width")}
    boxes = PerImage(Layout([RED, BLUE], (0.5, 0.25, 0.25)), [BLUE])
    edit = AttentionEdit(weights={"green": 2.0}, blend=("sphere",))
    box = {"gligen_boxes": [[0.1, 0.2, 0.5, 0.6]], "gligen_phrases": ["red sphere"]}
    arguments = [
        (pipe, {"prompt": "a cube", "seed": 1, **CALL}),
        (pipe, {"prompt": TWO, "seed": 2, "controls": [boxes], **CALL, "guidance_scale": 3.0}),
        (pipe, {"prompt": TWO, "seed": [5, 5], "controls": [edit], **CALL}),
        (pipe, {"prompt": "a " * 100, "seed": 4, **CALL, "guidance_scale": 1.0}),
        (
            pipe,
            {
                "prompt": "a cube",
                "seed": 4,
                **CALL,
                "controls": [Region(masked(40, 72), image=picture(40, 72)), RED],
            },
        ),
        (others["img2img"], {"prompt": "a", "image": picture(40, 72), "seed": 6, **sized}),
        (
            others["inpaint"],
            {
                "prompt": TWO[0],
                "image": picture(40, 72),
                "mask_image": masked(40, 72),
                "seed": 7,
                **CALL,
            },
        ),
        (others["gligen"], {"prompt": TWO[0], "seed": 8, **box, **CALL}),
    ]
    alone = [of(**given).images for of, given in arguments]
    engine = Counting()
    for of in (pipe, *others.values()):
        of.engine = engine
    streams = [of.stream(**given) for of, given in arguments]
    told = list(underdraw.batched(streams))
    for of in (pipe, *others.values()):
        of.engine = None
    for stream, expected in zip(streams, alone, strict=True):
        close(stream, expected)
    assert len(engine.rows) == 4  # the img2img run makes three, all others four
    assert [sum(which == i for which, _ in told) for i in range(8)] == [4, 4, 4, 4, 4, 3, 4, 4]
    assert all(step.latents.shape[2:] == (5, 9) for _, step in told)


def test_streams_join_and_leave_at_any_tick(pipe):
    runs = underdraw.batched([pipe.stream("a", seed=1, **CALL), pipe.stream("a", seed=2, **CALL)])
    seen = []
    for which, step in runs:
        seen.append((which, step.index))
        if (which, step.index) == (0, 1):
            assert runs.add(pipe.stream("a cube", seed=3, **CALL)) == 2
            runs.drop(1)
    steps = {number: [step for which, step in seen if which == number] for number in range(3)}
    assert steps[0] == steps[2] == [0, 1, 2, 3] and steps[1] in ([0], [0, 1])
    assert seen.index((2, 0)) > seen.index((0, 1))
    close(runs.streams[0], pipe("a", seed=1, **CALL).images)
    close(runs.streams[2], pipe("a cube", seed=3, **CALL).images)
    assert runs.streams[1].output is None and not runs.errors


def test_an_error_is_told_when_all_others_are_done(pipe):
    streams = [
        pipe.stream("a", seed=1, **CALL),
        pipe.stream("a cube", seed=2, controls=[Broken()], **CALL),
        pipe.stream("a", seed=3, num_inference_steps=0, output_type="latent"),
        pipe.stream("blue", seed=4, **CALL),
    ]
    runs = underdraw.batched(streams)
    with pytest.raises((ControlError, InputError)):
        for _ in runs:
            pass
    assert {which: type(error) for which, error in runs.errors.items()} == {
        1: ControlError,
        2: InputError,
    }
    close(streams[0], pipe("a", seed=1, **CALL).images)
    close(streams[3], pipe("blue", seed=4, **CALL).images)


def test_closing_ends_all(pipe):
    streams = [pipe.stream("a", seed=seed, **CALL) for seed in (1, 2)]
    with closing(underdraw.batched(streams)) as runs:
        next(runs)
    assert all(stream.output is None for stream in streams)
    assert list(runs) == []
    with pytest.raises(StopIteration):
        next(streams[1])


def test_previews_and_pictures(pipe):
    streams = [pipe.stream("a", seed=seed, **{**CALL, "output_type": "pil"}) for seed in (1, 2)]
    for _, step in underdraw.batched(streams):
        (shown,) = step.preview()
        assert shown.size == (72, 40)
    assert all(stream.output.images[0].size == (72, 40) for stream in streams)


def test_what_is_no_stream(pipe):
    with pytest.raises(InputTypeError, match=r"streams holds Tensor; allowed: what pipe.stream"):
        underdraw.batched([torch.zeros(1)])
    assert list(underdraw.batched([])) == []


# -- what comes at odd moments ---------------------------------------------------------------------
def test_an_interrupt_ends_all_streams(pipe):
    def interrupt(pipe, index, timestep, tensors):
        raise KeyboardInterrupt

    calls = [{}, {"callback_on_step_end": interrupt}, {}]
    streams = [pipe.stream("a", seed=1, **one, **CALL) for one in calls]
    with pytest.raises(KeyboardInterrupt):
        list(underdraw.batched(streams))
    assert not pipe.views._going
    with pytest.raises(StopIteration):
        next(streams[2])


@pytest.mark.parametrize("end", [lambda runs: runs.drop(1), lambda runs: runs.close()])
def test_a_callback_may_end_its_own_stream(pipe, end):
    def stop(pipe, index, timestep, tensors):
        if index == 1:
            end(runs)

    streams = [
        pipe.stream("a", seed=1, **CALL),
        pipe.stream("a", seed=2, callback_on_step_end=stop, **CALL),
        pipe.stream("a", seed=3, **CALL),
    ]
    runs = underdraw.batched(streams)
    told = [which for which, _ in runs]
    assert told.count(1) == 1 and streams[1].output is None and not runs.errors
    assert not pipe.views._going


def test_a_callback_may_close_a_stream_by_itself(pipe):
    def stop(pipe, index, timestep, tensors):
        stream.close()

    stream = pipe.stream("a", seed=2, callback_on_step_end=stop, **CALL)
    assert list(stream) == [] and stream.output is None and not pipe.views._going


def test_a_stream_may_be_asked_elsewhere(pipe):
    """While its question waits for the others."""
    streams = [pipe.stream("a", seed=seed, **CALL) for seed in (1, 2)]
    seen = [0, 0]
    for which, _ in underdraw.batched(streams):
        seen[which] += 1
        if which == 1:
            next(streams[0], None)
    assert sum(seen) < 8
    for seed, stream in enumerate(streams, 1):
        assert next(stream, None) is None  # and what it gave stays
        close(stream, pipe("a", seed=seed, **CALL).images)


def test_what_cannot_be_added_or_dropped(pipe):
    stream = pipe.stream("a", seed=1, **CALL)
    with pytest.raises(InputError, match="twice; it is number 0"):
        underdraw.batched([stream, stream])
    runs = underdraw.batched([stream])
    with pytest.raises(InputError, match="number=7 is too large"):
        runs.drop(7)
    list(runs)
    with pytest.raises(InputError, match="have ended"):
        runs.add(pipe.stream("a", seed=1, **CALL))
