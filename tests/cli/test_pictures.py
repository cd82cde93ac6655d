"""`underdraw generate --image`: begin with a picture, or make a part of it anew."""

import numpy as np
import pytest
from PIL import Image

QUICK = ("--steps", 4, "--dtype", "float32", "--seed", 5)


@pytest.fixture
def files(tmp_path):
    """A picture whose sides are no multiples of 8, and a mask of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (45, 75, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = np.zeros((45, 75), np.uint8)
    mask[8:24, 16:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask.T).save(tmp_path / "turned.png")
    return pixels, mask > 0


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_from_a_picture(run, tiny, files):
    from underdraw import StableDiffusionImg2ImgPipeline

    begin = ("--image", "photo.png", "--strength", 0.5)
    run("generate", "a cone", "--model", tiny, *QUICK, *begin, "--out", "a.png")
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    with Image.open("photo.png") as photo:
        call = {"num_inference_steps": 4, "seed": 5}
        made = pipe("a cone", photo, 0.5, **call).images[0]
    assert np.array_equal(pixels("a.png"), np.asarray(made)) and made.size == (72, 40)
    again = run(
        "generate", "--again", "a.png", "--as-recorded", "--image", "photo.png", "--out", "b.png"
    )
    assert again.exit_code == 0 and np.array_equal(pixels("a.png"), pixels("b.png"))
    run(
        "generate", "--again", "a.png", "--as-recorded", "--out", "c.png"
    )  # which holds the picture
    assert np.array_equal(pixels("a.png"), pixels("c.png"))


def test_a_part_made_anew_leaves_every_other_pixel(run, tiny, files):
    photo, inside = files
    begin = ("--image", "photo.png", "--mask", "mask.png")
    run("generate", "a cone", "--model", tiny, *QUICK, *begin, "--out", "a.png")
    made = pixels("a.png")
    assert made.shape == photo.shape
    assert np.array_equal(made[~inside], photo[~inside])
    assert not np.array_equal(made[inside], photo[inside])
    run("generate", "--again", "a.png", "--as-recorded", *begin, "--out", "b.png")
    assert np.array_equal(made, pixels("b.png"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mask", "mask.png"), "--mask needs --image"),
        (("--strength", 0.5), "--strength needs --image"),
        (("--image", "none.png"), "there is no file 'none.png'"),
        (("--image", "photo.png", "--mask", "turned.png"), "--mask is 45 x 75 pixels"),
        (("--image", "photo.png", "--strength", 0), "--strength 0.0 is out of range"),
        (("--image", "text.txt"), "is not a picture"),
    ],
)
def test_mistakes_before_a_model_is_loaded(run, files, options, words):
    with open("text.txt", "w") as file:
        file.write("no picture")
    done = run("generate", "a cone", "--model", "no/such/model", *options, code=2)
    assert words in done.stderr


@pytest.fixture
def large(tmp_path):
    """A photo larger than the model can bear, and a mask of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).resize((600, 400)).save(tmp_path / "large.png")
    mask = np.zeros((400, 600), np.uint8)
    mask[100:200, 100:300] = 255
    Image.fromarray(mask).save(tmp_path / "large-mask.png")


@pytest.mark.parametrize(
    ("options", "size", "note"),
    [
        (
            (),
            (96, 64),
            "large.png (600 x 400 pixels) is worked on at 96 x 64, a size for this model",
        ),
        (("--size", 40), (64, 40), "is worked on at 64 x 40"),
        (("--size", "48x48"), (48, 48), "is worked on at 48 x 48"),
        (("--height", 48), (72, 48), "is worked on at 72 x 48"),
        (("--width", 48), (48, 32), "is worked on at 48 x 32"),
    ],
)
def test_a_large_photo_is_fitted_to_the_model(run, tiny, large, options, size, note):
    """The tiny model was trained at 64 x 64."""
    begin = ("generate", "a cone", "--model", tiny, *QUICK, "--image", "large.png", *options)
    done = run(*begin, "--out", "a.png")
    assert note in done.stderr and done.stderr.count("note: ") == 1
    assert pixels("a.png").shape == (size[1], size[0], 3)


def test_a_fitted_photo_comes_again(run, tiny, large):
    begin = ("--image", "large.png", "--size", 40)
    run("generate", "a cone", "--model", tiny, *QUICK, *begin, "--out", "a.png")
    again = run("generate", "--again", "a.png", "--as-recorded", "--out", "b.png")
    assert "note: " not in again.stderr
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    # The photo itself is brought to the size that it had then.
    given = run(
        "generate", "--again", "a.png", "--as-recorded", "--image", "large.png", "--out", "c.png"
    )
    assert "is not the picture" not in given.stderr
    assert np.array_equal(pixels("a.png"), pixels("c.png"))
    other = run(
        "generate",
        "--again",
        "a.png",
        "--as-recorded",
        "--image",
        "large-mask.png",
        "--out",
        "d.png",
    )
    assert "large-mask.png is not the picture (large.png) of before" in other.stderr
    assert pixels("d.png").shape == pixels("a.png").shape


def test_outside_a_mask_a_large_photo_keeps_its_pixels(run, tiny, large, monkeypatch):
    from underdraw.cli import embedded

    monkeypatch.setattr(embedded, "MOST_KEPT", 20_000)  # the mask, not the photo
    begin = ("--image", "large.png", "--mask", "large-mask.png")
    done = run("generate", "a cone", "--model", tiny, *QUICK, *begin, "--out", "a.png")
    assert "is worked on at 96 x 64" in done.stderr
    made, photo, inside = pixels("a.png"), pixels("large.png"), pixels("large-mask.png") > 0
    assert made.shape == photo.shape
    assert np.array_equal(made[~inside], photo[~inside])
    assert not np.array_equal(made[inside], photo[inside])
    alone = run("generate", "--again", "a.png", "--as-recorded", code=2)
    assert "does not hold its image (image was large.png, too large" in alone.stderr
    run("generate", "--again", "a.png", "--as-recorded", "--image", "large.png", "--out", "b.png")
    assert np.array_equal(made, pixels("b.png"))


def test_a_photo_or_a_mask_in_addition_to_what_a_record_holds(run, tiny, files):
    plain = ("generate", "a cone", "--model", tiny, *QUICK)
    run(*plain, "--height", 40, "--width", 72, "--out", "a.png")
    run("generate", "--again", "a.png", "--as-recorded", "--image", "photo.png", "--out", "b.png")
    run(*plain, "--image", "photo.png", "--out", "c.png")
    assert np.array_equal(pixels("b.png"), pixels("c.png"))
    run("generate", "--again", "c.png", "--as-recorded", "--mask", "mask.png", "--out", "d.png")
    begin = ("--image", "photo.png", "--mask", "mask.png", "--strength", 0.8)  # as recorded
    run(*plain, *begin, "--out", "e.png")
    assert np.array_equal(pixels("d.png"), pixels("e.png"))
    failed = run("generate", "--again", "a.png", "--as-recorded", "--strength", 0.5, code=2)
    assert "--strength needs --image" in failed.stderr


def test_pictures_made_in_python_need_their_picture_again(run, tiny, files):
    from underdraw import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    with Image.open("photo.png") as photo:
        made = pipe("a cone", photo, num_inference_steps=4, seed=5)
    made.save("a.png")
    alone = run("generate", "--again", "a.png", "--as-recorded", code=2)
    assert "does not hold its image; give --image" in alone.stderr
    run("generate", "--again", "a.png", "--as-recorded", "--image", "photo.png", "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
