"""What diffusers' GLIGEN pipelines get wrong, shown on them, and what ours do instead."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.peer import gligen, oracle
from pipelines.peer.test_peer_gligen import BOXES, IMAGES, PHRASES, RED
from pipelines.tiny import counted

import underdraw
from underdraw.errors import InputError

CALL = {"prompt": RED, "gligen_boxes": BOXES, "gligen_phrases": PHRASES, "num_inference_steps": 4}


def images(pipe, **arguments):
    return oracle.images(pipe, **{**CALL, **arguments})


def test_beta_does_nothing_with_images():
    theirs, ours = gligen.pair("image")
    call = {"gligen_images": IMAGES}
    some, every = (
        [images(pipe, gligen_scheduled_sampling_beta=beta, **call) for beta in (0.25, 1.0)]
        for pipe in (theirs, ours)
    )
    assert np.array_equal(*some)  # diffusers computes the number of steps and drops it
    assert np.abs(every[0] - every[1]).max() > 1e-3
    assert np.abs(images(ours, **call) - some[0]).max() <= 1e-4  # all calls, if not told
    try:
        ours.compat = "diffusers"
        old = images(ours, gligen_scheduled_sampling_beta=0.25, **call)
    finally:
        ours.compat = None
    assert np.abs(old - some[0]).max() <= 1e-4


def test_no_boxes_are_thirty_null_tokens():
    theirs, ours = gligen.pair("image")
    call = {"gligen_boxes": [], "gligen_phrases": [], "gligen_images": [], "num_inference_steps": 3}
    wanted = images(theirs, **call)
    plain = underdraw.StableDiffusionPipeline.from_pipe(ours)
    made = images(ours, **call)
    beginning = {"prompt": RED, "num_inference_steps": 3}
    assert np.array_equal(made, oracle.images(plain, **beginning))
    assert np.abs(made - wanted).max() > 1e-3
    old = underdraw.StableDiffusionGLIGENTextImagePipeline.from_pipe(ours, compat="diffusers")
    assert np.abs(images(old, **call) - wanted).max() <= 1e-4
    assert np.array_equal(images(old, **{**call, "gligen_boxes": None}), made)


def test_two_guided_passes_where_one_does():
    theirs, ours = gligen.pair("image")
    passes = []
    for pipe in (theirs, ours):
        calls = counted(pipe)
        images(pipe, gligen_images=IMAGES)
        passes.append(len(calls))
    assert passes == [2 * passes[1], len(ours.scheduler.make_table(4))]


def test_masks_swap_width_and_height():
    theirs, ours = gligen.pair("text")
    box, size = [[0.25, 0.5, 0.5, 1.0]], (16, 32)  # height, width
    wanted = np.ones(size)
    wanted[8:16, 8:16] = 0
    assert np.array_equal(ours.draw_inpaint_mask_from_boxes(box, size).numpy(), wanted)
    assert not np.array_equal(theirs.draw_inpaint_mask_from_boxes(box, size).numpy(), wanted)
    square = (16, 16)
    assert torch.equal(
        ours.draw_inpaint_mask_from_boxes(BOXES, square),
        theirs.draw_inpaint_mask_from_boxes(BOXES, square),
    )


def test_inpainting_at_another_size_than_the_trained_square():
    theirs, ours = gligen.pair("text, inpainting")
    call = {"gligen_inpaint_image": gligen.picture((72, 40)), "height": 40, "width": 72}
    with pytest.raises(RuntimeError, match="size of tensor"):  # it was cut to a square
        images(theirs, **call)
    assert images(ours, **call).shape == (1, 40, 72, 3)


def test_a_generator_does_not_make_inpainting_repeatable():
    theirs, ours = gligen.pair("text, inpainting")
    call = {"gligen_inpaint_image": gligen.picture(), "seeds": (4,)}
    pairs = [[images(pipe, **call) for _ in range(2)] for pipe in (theirs, ours)]
    assert np.abs(pairs[0][0] - pairs[0][1]).max() > 1e-3
    assert np.array_equal(*pairs[1])


def test_a_call_switches_the_shared_network():
    """diffusers leaves its network's fusers off; what shares it gives other numbers then."""
    theirs, ours = gligen.pair("text")
    theirs.enable_fuser(True)
    switched = []
    for pipe in (theirs, ours):
        before = [vars(m).get("enabled") for m in pipe.unet.modules()]
        images(pipe)
        switched.append(before != [vars(m).get("enabled") for m in pipe.unet.modules()])
    theirs.enable_fuser(True)
    assert switched == [True, False]


def test_two_requests_on_one_network():
    """One call inside another, as of two threads that take turns: diffusers' outer one goes on
    without boxes when the inner one has closed the gate."""

    def interrupted(pipe, inner):
        def call(step, *_):
            if step == 0 and inner:
                short = {"num_inference_steps": 1, "guidance_scale": 2.0}
                images(pipe, gligen_scheduled_sampling_beta=0.0, **short)

        return images(pipe, gligen_scheduled_sampling_beta=1.0, callback=call, guidance_scale=2.0)

    theirs, ours = gligen.pair("text")
    # The solver of diffusers has a state of its own, too; DDIM has none that a call would change.
    kept = theirs.scheduler, ours.scheduler
    theirs.scheduler = diffusers.DDIMScheduler(clip_sample=False, **tiny.SCHEDULE)
    ours.scheduler = underdraw.DDIMScheduler(clip_sample=False, **tiny.SCHEDULE)
    try:
        theirs.scheduler.set_timesteps = _fixed(theirs.scheduler)
        changed = [
            np.abs(interrupted(pipe, True) - interrupted(pipe, False)).max()
            for pipe in (theirs, ours)
        ]
    finally:
        theirs.scheduler, ours.scheduler = kept
        theirs.enable_fuser(True)
    assert changed[0] > 1e-4 and changed[1] == 0


def _fixed(scheduler):
    plain = type(scheduler).set_timesteps

    def set_timesteps(steps, **options):
        plain(scheduler, 4, **options)

    return set_timesteps


def test_the_callers_dictionary_is_changed():
    mine: dict = {}
    theirs, ours = gligen.pair("text")
    images(ours, cross_attention_kwargs=mine)
    assert mine == {}
    images(theirs, cross_attention_kwargs=mine)
    assert "gligen" in mine


def test_surplus_boxes_go_without_a_name():
    theirs, ours = gligen.pair("text")
    call = {**CALL, "gligen_boxes": BOXES * 16, "gligen_phrases": [*PHRASES * 15, "last", "lost"]}
    said = []
    for pipe in (theirs, ours):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe(**call, output_type="latent")
        said.append(" ".join(str(one.message) for one in caught))
    assert "'lost'" in said[1] and "lost" not in said[0]


@pytest.mark.parametrize("box", [[0.2, 0.2, 1.7, 0.9], [0.8, 0.2, 0.3, 0.9], [-1, 0, 0.5, 0.5]])
def test_impossible_boxes(box):
    theirs, ours = gligen.pair("text")
    assert images(theirs, gligen_boxes=[BOXES[0], box]).std() > 0
    with pytest.raises(InputError, match=r"gligen_boxes\[1\]"):
        images(ours, gligen_boxes=[BOXES[0], box])


def test_a_checkpoint_without_grounding():
    theirs, ours = gligen.pair("text")
    bare = {**theirs.components, "requires_safety_checker": False}
    bare["unet"] = tiny.shake(diffusers.UNet2DConditionModel(**tiny.DEEP))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = oracle.quiet(type(theirs)(**bare))
    with pytest.raises((AttributeError, TypeError)):  # "... object has no attribute 'position_net'"
        images(plain)
    mine = oracle.quiet(type(ours)(**{**ours.components, "unet": bare["unet"]}))
    with pytest.raises(InputError, match=r"need grounding weights of kind 'text'.*load_grounding"):
        images(mine)


def test_the_peer_reads_what_ours_writes(tmp_path):
    for kind in ("text", "image"):
        theirs, ours = gligen.pair(kind)
        ours.save_pretrained(tmp_path / kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = type(theirs).from_pretrained(tmp_path / kind, local_files_only=True)
        call = {"gligen_images": IMAGES} if kind == "image" else {}
        # Where tensors lie in memory decides in which order float32 sums are taken.
        assert np.abs(images(oracle.quiet(again), **call) - images(theirs, **call)).max() <= 4e-6
