"""Subject-driven editing: a picture, and the same with another subject."""

import warnings

import pytest
from pipelines.blip import recorded

import underdraw
from underdraw.controls.attention_edit import AttentionEdit
from underdraw.controls.subject import Subject
from underdraw.pipelines.inversion import ddim, invert_pictures
from underdraw.sampling.inversion import finish

record = recorded.record
CALL = {"num_inference_steps": 4, "output_type": "latent"}
SIZES = {"height": 24, "width": 36}
GIVEN = ("on the table", recorded.pictures()[0], "sphere", "red cube")


@pytest.fixture(scope="module")
def pipe():
    made = recorded.pipeline()
    made.scheduler = recorded.scheduler("DDIMScheduler")
    return made


def host(pipe):
    """The plain pipeline on the same networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recorded scheduler has no offset
        made = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    made.scheduler = pipe.scheduler
    made.set_progress_bar_config(disable=True)
    return made


def far(a, b):
    return float((a - b).abs().max() / b.abs().max())


def test_the_first_picture_is_the_one_without_an_edit(pipe):
    made = pipe.generate_then_edit(*GIVEN, seed=3, **CALL, **SIZES).images
    plain = host(pipe)("a sphere on the table", seed=3, **CALL, **SIZES).images
    assert far(made[:1], plain) <= 1e-5
    assert far(made[1:], plain) > 1e-2


def test_it_is_these_two_controls(pipe):
    """What LAVIS does in one method: words that both prompts have keep their attention for 0.8 of
    the run, self-attention for 0.4, and what does not look at the source's subject is kept."""
    plain = host(pipe)
    plain.load_subject(pipe.qformer, image_processor=pipe.parts.subject_processor)
    subject = Subject(GIVEN[1], "red cube", word="red cube", prompts=(1,))
    edit = AttentionEdit(mode="refine", cross=0.8, self_attention=0.4, blend=("sphere",))
    prompts = ["a sphere on the table", "a red cube on the table"]
    ours = plain(prompts, controls=[subject, edit], seed=[3, 3], **CALL, **SIZES).images
    pipe.qformer.image_processor = None
    made = pipe.generate_then_edit(*GIVEN, seed=3, **CALL, **SIZES).images
    assert far(ours, made) <= 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"cross": 0.0},
        {"self_attention": 1.0},
        {"threshold": 0.99},
        {"reference_subject_category": "toy"},
        {"guidance_scale": 1.0},
        {"negative_prompt": "blue"},
    ],
)
def test_settings(pipe, changes):
    usual = pipe.generate_then_edit(*GIVEN, seed=3, **CALL, **SIZES).images
    other = pipe.generate_then_edit(*GIVEN, seed=3, **CALL, **SIZES, **changes).images
    assert far(other[1:], usual[1:]) > 1e-5


def test_a_real_picture(pipe):
    """The first image is the way back of its inversion; the second begins where it begins."""
    photo = recorded.pictures()[1]
    made = pipe.edit(photo, *GIVEN, method="plain", **CALL).images
    assert made.shape == (2, 4, 5, 7)
    found = finish(
        invert_pictures(
            pipe, photo, "a sphere on the table", "plain", num_inference_steps=4, measure=False
        )
    )
    plain = host(pipe)
    plain.scheduler = ddim(pipe)
    back = plain("a sphere on the table", latents=found.noise, guidance_scale=1.0, **CALL).images
    assert far(made[:1], back) <= 1e-5
    assert far(made[1:], back) > 1e-3
    again = pipe.edit(photo, *GIVEN, inversion=found, **CALL).images
    assert far(again, made) <= 1e-5
    other = pipe.edit(photo, *GIVEN, **CALL).images  # fixed points
    assert far(other, made) > 1e-4


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("generate_then_edit", {"prompt": ["a", "b"]}, "prompt=.* is a list; allowed: one text"),
        ("generate_then_edit", {"reference_image": None}, "reference_image=None; give a picture"),
        ("generate_then_edit", {"seed": -1}, "seed=-1 is too small"),
        ("generate_then_edit", {"cross": 2}, "cross=2.* is out of range"),
        ("generate_then_edit", {"target_subject_category": 3}, "target_subject_category=3 is not"),
        ("edit", {"image": None}, "image"),
        ("edit", {"image": [recorded.pictures()[0]] * 2}, "image has 2 pictures; allowed: 1"),
        ("edit", {"method": "null-text"}, "method='null-text' is not known; allowed: 'plain'"),
        ("edit", {"guidance_scale": 0.5}, "guidance_scale=0.5 is out of range"),
    ],
)
def test_bad_edits(pipe, method, changes, message):
    names = ("prompt", "reference_image", "source_subject_category", "target_subject_category")
    given = dict(zip(names, GIVEN, strict=True))
    if method == "edit":
        given["image"] = recorded.pictures()[1]
    with pytest.raises((underdraw.InputError, underdraw.InputTypeError), match=message):
        getattr(pipe, method)(**{**given, **changes}, num_inference_steps=2)
