"""Boxes in any pipeline: they act, they leave no trace, and each image has its own."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from pipelines.tiny import counted, run, together

from underdraw import Box, Layout, PerImage, Style
from underdraw.controls import Control
from underdraw.errors import ControlError, InputError
from underdraw.models import Grounding
from underdraw.networks.sites import Sites

RED = Box("red sphere", (0.1, 0.2, 0.5, 0.6))
BLUE = Box("a blue cube on the table", (0.5, 0.4, 1.0, 1.0))
GREEN = Box("green", (0.0, 0.7, 0.3, 0.9))
SIZE = {"height": 40, "width": 72}
EVER = (1.0, 0.0, 0.0)


def opened(unet, kind="text", **fields):
    """New grounding weights with open gates: closed ones change nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        part = tiny.shake(Grounding.for_unet(unet, kind, **fields))
    for name, value in part.named_parameters():
        if "alpha" in name:
            value.data.fill_(0.7)
    return part


@pytest.fixture(scope="module")
def bare():
    return tiny.pipeline()


@pytest.fixture
def pipe(bare):
    bare.load_grounding(opened(bare.unet))
    yield bare
    bare.unload_grounding()


def test_boxes_act_and_detach_leaves_the_same_bits(bare):
    before = run(bare, **SIZE)
    state = {name: value.clone() for name, value in bare.unet.state_dict().items()}
    bare.load_grounding(opened(bare.unet))
    grounded = run(bare, **SIZE, controls=[RED, BLUE], num_inference_steps=4)
    plain = run(bare, **SIZE, num_inference_steps=4)
    assert (grounded - plain).abs().max() > 1e-2 * plain.abs().max()
    assert torch.equal(run(bare, **SIZE), before)
    assert not torch.equal(run(bare, **SIZE, controls=[RED], num_inference_steps=4), grounded)
    bare.unload_grounding()
    assert torch.equal(run(bare, **SIZE), before)
    after = bare.unet.state_dict()
    assert state.keys() == after.keys() and all(torch.equal(state[n], after[n]) for n in state)
    with pytest.raises(InputError, match=r"boxes need grounding weights of kind 'text'.*none"):
        run(bare, controls=[RED])


def test_boxes_of_a_list_are_one_layout(pipe):
    wanted = run(pipe, controls=[Layout([RED, BLUE])], num_inference_steps=4)
    assert torch.equal(run(pipe, controls=[RED, BLUE], num_inference_steps=4), wanted)
    nothing = run(pipe, num_inference_steps=4)
    assert torch.equal(run(pipe, controls=[Layout()], num_inference_steps=4), nothing)
    for controls in ([Layout([RED]), BLUE], [Layout([RED]), PerImage([BLUE])]):
        with pytest.raises(ControlError, match="do not go together"):
            run(pipe, controls=controls)


def test_a_closed_gate_is_a_plain_call(pipe):
    """Boxes that never act cost no site; those that stop are the plain network from there on."""
    seen = []

    class Look(Control):
        def prepare(self, run):
            seen.clear()

        def before_call(self, nn, carry, latents, call):
            def note(nn, place, x):
                seen.append(call.index)
                return x

            return latents, Sites(down=(note,)), carry

    plain = run(pipe, num_inference_steps=4, controls=[Look()])
    never = Layout([RED], (0, 0, 1))
    assert torch.equal(run(pipe, num_inference_steps=4, controls=[never, Look()]), plain)
    _, sites, _ = never.before_call(None, None, None, None)
    assert sites == Sites()
    with counted_hooks() as calls:
        run(pipe, num_inference_steps=4, controls=[Layout([RED], (0.5, 0, 0.5))])
    assert len(calls) == 2 * len(pipe.groundings["text"].config.fusers)


def counted_hooks():
    """How often a fuser acts, while this is on."""
    from contextlib import contextmanager

    from underdraw.networks.gligen.grounding import Fusers

    @contextmanager
    def counting():
        calls, plain = [], Fusers.__call__

        def call(self, nn, place, x):
            calls.append(place)
            return plain(self, nn, place, x)

        Fusers.__call__ = call
        try:
            yield calls
        finally:
            Fusers.__call__ = plain

    return counting()


def test_decay_is_between_on_and_off(pipe):
    steps = {"num_inference_steps": 4, "controls": None}
    on, off, fading = (
        run(pipe, **{**steps, "controls": [Layout([RED, BLUE], strength)]})
        for strength in (EVER, (0, 0, 1), (0, 1, 0))
    )
    apart = (on - off).abs().max()
    assert 0 < (fading - off).abs().max() < apart and (fading - on).abs().max() > 0


LAYOUTS = ([RED, BLUE], [GREEN], [], [BLUE, GREEN, RED])
PROMPTS = ["a red sphere", "blue", "the table", "a green cube left of the red"]


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_a_batch_of_layouts_is_the_single_runs(pipe, guidance):
    """Up to rounding: beside images with more boxes a row has null tokens that a run of its own
    counts as one, and guidance raises what the sums of a softmax round (3.4e-6 on one processor,
    under 1e-6 on another, with the same code)."""
    call = {**SIZE, "num_inference_steps": 4, "guidance_scale": guidance}
    batch = run(pipe, PROMPTS, controls=[PerImage(*LAYOUTS)], seed=[5, 6, 7, 8], **call)
    for i, (prompt, layout) in enumerate(zip(PROMPTS, LAYOUTS, strict=True)):
        alone = run(pipe, prompt, controls=layout, seed=5 + i, **call)
        assert (batch[i] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()
    plain = run(pipe, PROMPTS, seed=[5, 6, 7, 8], **call)
    assert [torch.equal(a, b) for a, b in zip(batch, plain, strict=True)] == [
        False,
        False,
        True,
        False,
    ]


def test_strengths_per_image(pipe):
    call = {"num_inference_steps": 4, "seed": [5, 6]}
    each = PerImage(Layout([RED], (0.5, 0, 0.5)), Layout([BLUE], (0, 0.75, 0.25)))
    batch = run(pipe, PROMPTS[:2], controls=[each], **call)
    for i, layout in enumerate(each.each):
        alone = run(pipe, PROMPTS[i], controls=[layout], seed=5 + i, num_inference_steps=4)
        assert (batch[i] - alone[0]).abs().max() <= 1e-6 * alone.abs().max()


def test_two_threads_share_a_model(pipe):
    tasks = [
        lambda: run(pipe, controls=[RED, BLUE], num_inference_steps=6),
        lambda: run(pipe, num_inference_steps=6),
        lambda: run(pipe, "blue", controls=[Layout([GREEN], EVER)], num_inference_steps=6),
    ]
    alone = [task() for task in tasks]
    assert all(torch.equal(a, b) for a, b in zip(alone, together(*tasks), strict=True))


def test_no_padding_where_fewer_boxes_are_given(pipe):
    """Two boxes are filled up to four, and one more null token stands for all the others."""
    sizes = []
    control = Layout([RED, BLUE], EVER)
    ready = {}

    class Look(Control):
        def prepare(self, run):
            ready["carry"] = control.prepare(run)

    run(pipe, controls=[Look()])
    sizes = {k.shape[2] for k, _ in ready["carry"].constants.keys.values()}
    assert sizes == {5}


def test_guidance_that_ends_early(pipe):
    """A callback may turn guidance off: the unconditional half goes, and its tokens with it."""

    def stop(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 1.0

    made = run(
        pipe, controls=[Layout([RED], EVER)], num_inference_steps=4, callback_on_step_end=stop
    )
    plain = run(pipe, num_inference_steps=4, callback_on_step_end=stop)
    assert torch.isfinite(made).all() and not torch.equal(made, plain)


def test_boxes_combine_with_other_controls(pipe):
    class Louder(Control):
        def before_call(self, nn, carry, latents, call):
            return latents, Sites(down=(lambda nn, place, x: x * 1.2,)), carry

    both = run(pipe, controls=[RED, Louder()], num_inference_steps=4)
    assert torch.equal(both, run(pipe, controls=[Louder(), RED], num_inference_steps=4))
    for alone in ([RED], [Louder()]):
        assert not torch.equal(both, run(pipe, controls=alone, num_inference_steps=4))


PHOTO = Box(image=Image.new("RGB", (8, 8)), box=(0, 0, 1, 1))
WRONG = [
    ([PerImage([RED], [BLUE])], "PerImage has 2 layouts; the call makes 1"),
    (
        [Box(image=Image.new("RGB", (8, 8)), box=(0, 0, 1, 1))],
        "kind 'text-image'; attached: 'text'",
    ),
    ([Style(np.zeros((8, 8, 3)))], "images in boxes and styles"),
    ([Box("sphere " * 90, (0, 0, 1, 1))], "tokens; allowed: at most 75"),
    ([RED] * 31, "31 entries; allowed: at most 30"),
]


@pytest.mark.parametrize(("controls", "message"), WRONG, ids=[w[1][:20] for w in WRONG])
def test_errors_come_before_denoising(pipe, controls, message):
    calls = counted(pipe)
    with pytest.raises(InputError, match=message):
        run(pipe, controls=controls)
    assert calls == []


def test_weights_of_another_network(bare):
    other = tiny.components(unet={"block_out_channels": (16, 64)})["unet"]
    with pytest.raises(InputError, match="another UNet"):
        bare.load_grounding(opened(other))
    assert not bare.groundings


def test_weights_are_saved_attached_elsewhere_and_shared(pipe, tmp_path):
    wanted = run(pipe, controls=[RED], num_inference_steps=4)
    pipe.save_grounding(tmp_path / "part")
    other = tiny.pipeline()
    with pytest.raises(InputError, match="kind=None"):
        other.save_grounding(tmp_path / "none")
    other.load_grounding(tmp_path / "part")
    assert torch.equal(run(other, controls=[RED], num_inference_steps=4), wanted)
    again = type(pipe).from_pipe(other)
    assert torch.equal(run(again, controls=[RED], num_inference_steps=4), wanted)
    again.unload_grounding("text")
    assert "text" in other.groundings and "text" not in again.groundings
    with pytest.raises(InputError, match="'text' is not attached; attached: none"):
        again.unload_grounding("text")
    other.to(torch.float64)
    assert other.groundings["text"].dtype == torch.float64
