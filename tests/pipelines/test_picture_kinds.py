"""Pipelines make of a picture of any kind what they make of the same in RGB."""

import numpy as np
import pytest
import torch
from pictures import kinds
from PIL import Image
from pipelines import tiny

from underdraw import (
    Region,
    StableDiffusionDiffEditPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from underdraw.errors import InputError
from underdraw.pictures import modes

SOME = ["I;16", "F to 1", "CMYK", "LAB", "RGBA", "P with alpha by index", "animated PNG", "EXIF 6"]


@pytest.fixture(scope="module")
def text():
    return tiny.pipeline()


def mask(kind="L", turned=False):
    cells = np.zeros((kinds.HEIGHT, kinds.WIDTH))
    cells[8:16, 16:32] = 1
    if kind == "I;16":
        return Image.fromarray((cells * 65535).astype(np.uint16))
    if kind == "F":
        return Image.fromarray(cells.astype(np.float32))
    made = Image.fromarray((cells * 255).astype(np.uint8))
    if kind == "EXIF 6":
        exif = Image.Exif()
        exif[kinds.EXIF] = 6
        return kinds.opened(made.transpose(Image.Transpose.ROTATE_90), exif=exif)
    return made.convert(kind)


def img2img(text, image, cells):
    return tiny.run(
        StableDiffusionImg2ImgPipeline.from_pipe(text),
        "a cat",
        image=image,
        strength=0.5,
        num_inference_steps=2,
        seed=3,
    )


def inpainted(text, image, cells, **more):
    pipe = StableDiffusionInpaintPipeline.from_pipe(text)
    call = {"num_inference_steps": 2, "seed": 3, "height": 24, "width": 40, "output_type": "pil"}
    made = pipe("a cat", image, cells, **(call | more)).images
    return torch.from_numpy(np.stack([np.asarray(one) for one in made]))


def edited(text, image, cells):
    pipe = StableDiffusionDiffEditPipeline.from_pipe(text)
    made = pipe.edit(image, "a cat", "a dog", mask_image=cells, num_inference_steps=2, seed=3)
    return torch.from_numpy(np.array(made.images[0]))


WAYS = {
    "img2img": img2img,
    "inpaint": inpainted,
    "pasted": lambda *given: inpainted(*given, paste_back=True),
    "cropped": lambda *given: inpainted(*given, padding_mask_crop=3),
    "edit": edited,
    "region": lambda text, image, cells: tiny.run(
        text, "a cat", height=24, width=40, num_inference_steps=2, seed=3,
        controls=[Region(cells, image=image)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_pictures_and_masks_of_any_kind(text, way):
    for kind, cells in zip(
        SOME, ["I;16", "F", "CMYK", "1", "RGBA", "P", "YCbCr", "EXIF 6"], strict=True
    ):
        image, _, _ = kinds.case(kind)
        wanted = WAYS[way](text, modes.plain("image", kinds.case(kind)[0]).copy(), mask())
        assert torch.equal(WAYS[way](text, image, mask(cells)), wanted), kind


@pytest.mark.parametrize("way", [way for way in WAYS if way != "img2img"])
def test_a_mask_that_a_turned_picture_leaves_behind(text, way):
    image, _, _ = kinds.case("EXIF 6")
    with pytest.raises(InputError, match="EXIF orientation 6 turns it"):
        WAYS[way](text, image, mask().transpose(Image.Transpose.ROTATE_90))


@pytest.mark.parametrize("sides", [(2**14, 2**14), (2**14, 2**12 + 8), (8192, 8200)])
def test_too_large_an_image(text, sides):
    with pytest.raises(InputError, match=r"the image is .* pixels; allowed: 67,108,864 in all"):
        text("a cat", height=sides[0], width=sides[1])


@pytest.mark.parametrize("way", WAYS)
def test_too_many_pixels(text, way):
    large = kinds.Undecoded(12_000, 12_000)
    with pytest.raises(InputError, match="allowed: 67,108,864 in all"):
        WAYS[way](text, large, mask())
