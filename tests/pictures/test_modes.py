"""Every kind of picture means the same wherever a picture is taken."""

import numpy as np
import pytest
from pictures import kinds
from PIL import Image

from underdraw import backends
from underdraw.controls.boxes import Box, Style
from underdraw.controls.maps import DepthMap, SemanticMap
from underdraw.errors import InputError, InputTypeError
from underdraw.evaluation.images import as_image
from underdraw.models.image_processor import MEAN, STD, CLIPImageProcessor
from underdraw.pictures import cropping, modes, pasting, reading
from underdraw.scenes.draw import to_image

TORCH = backends.get("torch")


def in_bytes(signed):
    return (np.asarray(signed)[0].transpose(1, 2, 0) + 1) * 127.5


def processed(picture):
    pixels = CLIPImageProcessor(kinds.HEIGHT, (kinds.HEIGHT, kinds.WIDTH))(picture).pixel_values
    return (pixels[0].transpose(1, 2, 0) * STD + MEAN) * 255


PLACES = {
    "read_pictures": lambda p: in_bytes(reading.read_pictures("image", [p, p], TORCH)),
    "read_pictures at a size": lambda p: in_bytes(
        reading.read_pictures("image", p, TORCH, kinds.HEIGHT, kinds.WIDTH)
    ),
    "Box": lambda p: Box(image=p, box=(0, 0, 1, 1)).image,
    "Style": lambda p: Style(p).image,
    "DepthMap": lambda p: DepthMap(p).image[0],
    "CLIPImageProcessor": processed,
    "evaluation": lambda p: as_image(enlarged(p))[4::8, 4::8] * 255,
    "scenes": to_image,
    "originals": lambda p: pasting.originals(p, None, "pil")[0],
    "paste": lambda p: pasting.paste(
        p, Image.new("RGB", (3, 5)), np.zeros((kinds.HEIGHT, kinds.WIDTH), np.float32)
    ),
    "overlaid": lambda p: pasting.overlaid(
        p,
        Image.new("RGB", (8, 8)),
        Image.new("L", (kinds.WIDTH, kinds.HEIGHT)),
        cropping.Crop(0, 0, 8, 8),
    ),
    "cut_to": lambda p: cropping.cut_to(reading.as_picture("image", p), kinds.HEIGHT, kinds.WIDTH),
}


def enlarged(picture):
    """The evaluator takes no sides under 32; pixels stay as they are."""
    picture = modes.upright("image", picture)
    return picture.resize((kinds.WIDTH * 8, kinds.HEIGHT * 8), Image.Resampling.NEAREST)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", kinds.PICTURES)
def test_a_picture_shows_the_same_everywhere(kind, place):
    picture, wanted, tolerance = kinds.case(kind)
    found = np.asarray(PLACES[place](picture), np.float64)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance


MASKS = {
    "read_masks": lambda p: reading.read_masks("mask", p, TORCH, kinds.HEIGHT, kinds.WIDTH).numpy()[
        0, 0
    ],
    "crop_around": lambda p: filled_crop(cropping.crop_around(p, kinds.WIDTH, kinds.HEIGHT, 0)),
}


def filled_crop(crop):
    mask = np.zeros((kinds.HEIGHT, kinds.WIDTH))
    mask[crop.top : crop.bottom, crop.left : crop.right] = 1
    return mask


def drawn():
    """What a mask sets: a box of the picture's proportions."""
    inside = np.zeros((kinds.HEIGHT, kinds.WIDTH), bool)
    inside[6:18, 10:30] = True
    return inside


def mask_of(mode):
    inside = drawn()
    by_mode = {
        "I;16": lambda: Image.fromarray(inside * np.uint16(65535)),
        "I;16B": lambda: Image.fromarray((inside * 65535).astype(">u2")),
        "I": lambda: Image.fromarray(inside * np.int32(65535)),
        "I 8": lambda: Image.fromarray(inside * np.int32(255)),
        "F": lambda: Image.fromarray(inside * np.float32(1)),
        "F 8": lambda: Image.fromarray(inside * np.float32(255)),
        "LAB": lambda: Image.fromarray(
            kinds.lab(np.repeat(inside[..., None] * np.uint8(255), 3, 2)), "LAB"
        ),
        "transparent outside": lambda: Image.fromarray(
            np.stack([np.full(inside.shape, 255), inside * 255], 2).astype(np.uint8), "LA"
        ),
        "colours outside are hidden": lambda: Image.fromarray(
            np.stack([np.full(inside.shape, 255)] * 3 + [inside * 255], 2).astype(np.uint8)
        ),
        "transparent palette": lambda: kinds.opened(
            Image.fromarray(inside * np.uint8(255)).convert("P"), transparency=0
        ),
    }
    made = by_mode.get(mode)
    return made() if made else Image.fromarray(inside * np.uint8(255)).convert(mode)


MASK_MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "I;16", "I;16B", "I"]
MASK_MODES += ["I 8", "F", "F 8", "LAB", "transparent outside", "colours outside are hidden"]
MASK_MODES += ["transparent palette"]


@pytest.mark.parametrize("place", MASKS)
@pytest.mark.parametrize("mode", MASK_MODES)
def test_a_mask_sets_the_same_everywhere(mode, place):
    assert np.array_equal(MASKS[place](mask_of(mode)), drawn())


def test_a_turned_mask_is_turned_back():
    exif = Image.Exif()
    exif[kinds.EXIF] = 6
    lying = mask_of("L").transpose(Image.Transpose.ROTATE_90)
    turned = kinds.opened(lying, exif=exif)
    assert turned.size == (kinds.HEIGHT, kinds.WIDTH)
    for read in MASKS.values():
        assert np.array_equal(read(turned), drawn())


@pytest.mark.parametrize("mode", ["L", "P", "1", "I", "I;16", "F", "LA", "PA", "RGB"])
def test_classes_are_numbers(mode):
    numbers = np.arange(kinds.HEIGHT * kinds.WIDTH).reshape(kinds.HEIGHT, kinds.WIDTH)
    numbers = numbers % (2 if mode == "1" else 150)
    kind = {"1": bool, "I": np.int32, "I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)
    picture = Image.fromarray(numbers.astype(kind))
    if mode in ("P", "PA"):
        picture.putpalette(bytes(range(255, -1, -1)) * 3)
    picture = picture if picture.mode == mode else picture.convert(mode)
    assert np.array_equal(SemanticMap(picture).image[0], numbers)


def test_classes_have_no_colours_or_fractions():
    for wrong in (Image.fromarray(kinds.colours()), Image.new("F", (4, 3), 0.5)):
        with pytest.raises(InputError, match="SemanticMap\\(image\\) has colours or fractions"):
            SemanticMap(wrong)


# -- arrays ----------------------------------------------------------------------------------------

DTYPES = {"uint8": 255, "uint16": 65535, "float32": 1, "float64": 1, "float16": 1}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of", ["numpy", "torch"])
def test_arrays_of_every_dtype(dtype, of):
    most = DTYPES[dtype]
    scaled = kinds.colours() / 255 * most
    pixels = (scaled.round() if most > 1 else scaled).astype(dtype)
    mask = (drawn() * most).astype(dtype)
    if of == "torch":
        import torch

        pixels, mask = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask)
    for read in (
        lambda: in_bytes(reading.read_pictures("image", pixels, TORCH)),
        lambda: np.asarray(reading.as_picture("image", pixels)),
        lambda: np.asarray(Box(image=pixels, box=(0, 0, 1, 1)).image),
    ):
        assert np.abs(read() - kinds.colours().astype(float)).max() <= 1
    if of == "numpy":
        assert np.abs(processed(pixels) - kinds.colours()).max() <= 1
    assert np.array_equal(MASKS["read_masks"](mask), drawn())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "bool"])
def test_labels_as_masks(dtype):
    labels = drawn().astype(dtype)
    set_ = {"uint8": 0}.get(dtype, 1)  # 1 of 255 is nearly black, as in a picture
    assert np.array_equal(MASKS["read_masks"](labels), drawn() * set_)


# -- what is refused -------------------------------------------------------------------------------

HUGE = (12_000, 12_000)
LIMIT = modes.MOST_PIXELS
REFUSED = {
    "empty": (lambda: Image.new("RGB", (0, 8)), "0 x 8 pixels"),
    "large": (lambda: kinds.Undecoded(*HUGE), "12,000 x 12,000 pixels; allowed: 67,108,864"),
    "long": (lambda: kinds.Undecoded(LIMIT + 1, 1), "pixels; allowed: 67,108,864"),
    "F below 0": (lambda: Image.fromarray(np.float32([[-1, 1]])), "'F' with numbers from -1 to 1"),
    "F above 1": (lambda: Image.fromarray(np.float32([[0, 1.2]])), "from 0 to 1.2; allowed: 0"),
    "F NaN": (lambda: Image.fromarray(np.float32([[0, np.nan]])), "from nan to nan"),
    "F infinite": (lambda: Image.fromarray(np.float32([[0, np.inf]])), "from 0 to inf"),
    "I below 0": (lambda: Image.fromarray(np.int32([[-1, 1]])), "'I' with numbers from -1 to 1"),
    "I above": (lambda: Image.fromarray(np.int32([[0, 65536]])), "allowed: 0 .. 255, 0 .. 65535"),
    "torn": (lambda: torn(), "cannot be read"),
    "closed": (lambda: closed(), "cannot be read"),
}
TAKERS = {
    "read_pictures": lambda p: reading.read_pictures("image", p, TORCH, 8, 8),
    "read_masks": lambda p: reading.read_masks("image", p, TORCH, 8, 8),
    "read_mask": lambda p: reading.read_mask(TORCH.operations, p, 1, (4, 4), 8),
    "as_picture": lambda p: reading.as_picture("image", p),
    "SemanticMap": SemanticMap,
    "CLIPImageProcessor": CLIPImageProcessor(),
    "originals": lambda p: pasting.originals(p, None, "pil"),
    "evaluation": as_image,
    "crop_around": lambda p: cropping.crop_around(p, 8, 8, 0),
}


def torn():
    from io import BytesIO

    file = BytesIO()
    Image.fromarray(kinds.colours()).save(file, "JPEG")
    return Image.open(BytesIO(file.getvalue()[:700]))


def closed():
    picture = kinds.opened(Image.fromarray(kinds.colours()))
    picture.close()
    return picture


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_read_says_so_in_a_line(fault, taker):
    make, words = REFUSED[fault]
    if taker == "SemanticMap" and fault[0] in "FI":  # any numbers may be classes
        return
    with pytest.raises(InputError) as caught:
        TAKERS[taker](make())
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(10**6, 10**6), (3, 10**5, 10**5), (1, 3, 9000, 9000)])
@pytest.mark.parametrize("of", ["numpy", "torch"])
@pytest.mark.parametrize("taker", ["read_pictures", "read_masks", "as_picture"])
def test_arrays_are_no_larger_than_pictures(taker, of, shape):
    """Broadcast ones, so that the test itself allocates nothing."""
    huge = np.broadcast_to(np.float16(0), shape)
    if of == "torch":
        import torch

        huge = torch.zeros(1, dtype=torch.float16).expand(shape)
    with pytest.raises(InputError, match="allowed: 67,108,864 pixels"):
        TAKERS[taker](huge)


def test_a_black_mask_with_transparency_is_no_mask():
    strokes = np.zeros((kinds.HEIGHT, kinds.WIDTH, 4), np.uint8)
    strokes[..., 3] = drawn() * 255
    with pytest.raises(InputError, match=r'give mask\.getchannel\("A"\)'):
        MASKS["read_masks"](Image.fromarray(strokes))
    assert np.array_equal(MASKS["read_masks"](Image.fromarray(strokes).getchannel("A")), drawn())


def test_numbers_of_the_processor_are_not_cut():
    for wrong in (np.full((30, 30, 3), 200.0), np.full((30, 30, 3), np.nan)):
        with pytest.raises(InputError, match="images has values from"):
            CLIPImageProcessor()(wrong)
    with pytest.raises(InputTypeError):
        CLIPImageProcessor()("photo.png")


# -- turned pictures beside masks ------------------------------------------------------------------


def lying(orientation, height=kinds.HEIGHT, width=kinds.WIDTH):
    exif = Image.Exif()
    exif[kinds.EXIF] = orientation
    return kinds.opened(Image.new("RGB", (width, height)), exif=exif)


FITS = {
    "both are turned": (lying(6), lying(6), True),
    "the mask is upright": (lying(6), Image.new("L", (kinds.HEIGHT, kinds.WIDTH)), True),
    "an upright array": (lying(8), np.zeros((kinds.WIDTH, kinds.HEIGHT)), True),
    "nothing is turned": (lying(1), Image.new("L", (3, 3)), True),
    "made from the file": (lying(6).convert("RGB").copy(), Image.new("L", (3, 3)), True),
    "no mask": (lying(6), None, True),
    "the mask lies": (lying(6), Image.new("L", (kinds.WIDTH, kinds.HEIGHT)), False),
    "upside down": (lying(3), Image.new("L", (kinds.WIDTH, kinds.HEIGHT)), False),
    "square": (lying(6, 8, 8), Image.new("L", (8, 8)), False),
    "turned by itself": (lying(6), lying(8), True),
    "one of two": ([lying(1), lying(3)], [lying(1), lying(1)], False),
    "an array that lies": (lying(6), np.zeros((kinds.HEIGHT, kinds.WIDTH)), False),
}


@pytest.mark.parametrize("case", FITS)
def test_masks_of_turned_pictures(case):
    image, mask, fits = FITS[case]
    if fits:
        reading.check_alike(image, mask)
        return
    with pytest.raises(InputError, match=r"EXIF orientation \d turns it, and mask_image may not"):
        reading.check_alike(image, mask)
