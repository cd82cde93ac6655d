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
