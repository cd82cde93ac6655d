"""One picture and one mask in every form in which PIL has them, with the values they mean."""

from io import BytesIO

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 40
EXIF = 0x0112


def greys():
    """`(height, width)` in [0, 1]: a ramp from left to right, brighter below."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (0.7 * x / (WIDTH - 1) + 0.3 * y / (HEIGHT - 1)).astype(np.float64)


def colours():
    """uint8 `(height, width, 3)`: soft, with nothing alike in two directions."""
    ramp = greys()
    whole = np.stack((ramp, ramp[:, ::-1], 0.25 + 0.5 * ramp[::-1]), 2)
    return (whole * 255).round().astype(np.uint8)


def opened(picture, kind="PNG", **options):
    """As a file of its own."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return Image.open(BytesIO(file.getvalue()))


def lab(rgb):
    """L*a*b* of sRGB by the equations of CIE 1976, white of D50 (Bradford), as bytes."""
    x = rgb.astype(np.float64) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    matrix = [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
    t = linear @ np.array(matrix).T / (0.96422, 1.0, 0.82521)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    parts = (
        (116 * f[..., 1] - 16) * 2.55,
        500 * (f[..., 0] - f[..., 1]),
        200 * (f[..., 1] - f[..., 2]),
    )
    return np.stack(parts, 2).round().astype(np.int16).astype(np.uint8)  # a*, b* are signed


class Undecoded(Image.Image):
    """A picture as it is before its pixels are decoded; decoding it would fill memory."""

    def __init__(self, width, height):
        super().__init__()
        self._mode, self._size = "RGB", (width, height)

    def load(self):
        raise AssertionError("pixels were decoded")


def luminance(rgb):
    """`(height, width)` in [0, 1], as Rec. 601 weighs."""
    return rgb @ np.array([0.299, 0.587, 0.114]) / 255


def seen_through():
    """RGBA whose right half is not there, under colours of its own; and what is seen on white."""
    pixels = np.concatenate((colours(), np.full((HEIGHT, WIDTH, 1), 255, np.uint8)), 2)
    pixels[:, WIDTH // 2 :, 3] = 0
    seen = colours()
    seen[:, WIDTH // 2 :] = 255
    return Image.fromarray(pixels), seen


def palette():
    """Four colours, of which index 0 is transparent and black underneath."""
    index = (np.mgrid[:HEIGHT, :WIDTH][1] * 4 // WIDTH).astype(np.uint8)
    table = np.array([[0, 0, 0], [200, 30, 30], [20, 180, 60], [30, 40, 250]], np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette(table.tobytes())
    return picture, index, table


def _palette_file(transparency, first):
    picture, index, table = palette()
    seen = table.copy()
    seen[0] = first
    return opened(picture, transparency=transparency), seen[index]


def _animated(kind):
    frames = [Image.fromarray(colours()), Image.fromarray(255 - colours())]
    file = BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=40, **options)
    return Image.open(BytesIO(file.getvalue())), colours()


def _turned(orientation):
    exif = Image.Exif()
    exif[EXIF] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # to how the camera held it
    lying = Image.fromarray(colours()).transpose(Image.Transpose(undo[orientation]))
    return opened(lying, exif=exif), colours()


def _grey(array, mode=None):
    picture = Image.fromarray(array)
    assert mode is None or picture.mode == mode
    return picture, greys()


def _form(mode):
    rgb = Image.fromarray(colours())
    return rgb.convert(mode), colours()


PICTURES = {
    "RGB": lambda: (Image.fromarray(colours()), colours()),
    "L": lambda: _grey((greys() * 255).round().astype(np.uint8), "L"),
    "I;16": lambda: _grey((greys() * 65535).round().astype(np.uint16), "I;16"),
    "I;16B": lambda: _grey((greys() * 65535).round().astype(">u2"), "I;16B"),
    "I;16 in PNG": lambda: (opened(_grey((greys() * 65535).astype(np.uint16))[0]), greys()),
    "I;16 in TIFF": lambda: (
        opened(_grey((greys() * 65535).astype(np.uint16))[0], "TIFF"),
        greys(),
    ),
    "I of 16 bits": lambda: _grey((greys() * 65535).round().astype(np.int32), "I"),
    "I of 8 bits": lambda: _grey((greys() * 255).round().astype(np.int32), "I"),
    "F to 1": lambda: _grey(greys().astype(np.float32), "F"),
    "F to 255": lambda: _grey((greys() * 255).astype(np.float32), "F"),
    "F to 65535": lambda: _grey((greys() * 65535).astype(np.float32), "F"),
    "F in TIFF": lambda: (opened(_grey(greys().astype(np.float32))[0], "TIFF"), greys()),
    "CMYK": lambda: _form("CMYK"),
    "CMYK in JPEG": lambda: (opened(_form("CMYK")[0], "JPEG", quality=100), colours()),
    "YCbCr": lambda: _form("YCbCr"),
    "HSV": lambda: _form("HSV"),
    "LAB": lambda: (Image.fromarray(lab(colours()), "LAB"), colours()),
    "LAB in TIFF": lambda: (opened(Image.fromarray(lab(colours()), "LAB"), "TIFF"), colours()),
    "RGBX": lambda: _form("RGBX"),
    "RGBA opaque": lambda: _form("RGBA"),
    "RGBA": seen_through,
    "RGBa": lambda: (seen_through()[0].convert("RGBa"), seen_through()[1]),
    "RGBA in WebP": lambda: (opened(seen_through()[0], "WEBP", lossless=True), seen_through()[1]),
    "LA": lambda: (seen_through()[0].convert("LA"), luminance(seen_through()[1])),
    "La": lambda: (seen_through()[0].convert("LA").convert("La"), luminance(seen_through()[1])),
    "P": lambda: (palette()[0], palette()[2][palette()[1]]),
    "P with an index that is transparent": lambda: _palette_file(0, 255),
    "P with alpha by index": lambda: _palette_file(bytes([0, 255, 255]), 255),
    "P half seen through": lambda: _palette_file(bytes([128]), 127),
    "RGB with a colour that is transparent": lambda: (
        opened(Image.fromarray(palette()[2][palette()[1]]), transparency=(0, 0, 0)),
        np.where(palette()[1][..., None] == 0, 255, palette()[2][palette()[1]]),
    ),
    "1": lambda: (Image.fromarray(greys() >= 0.5), (greys() >= 0.5).astype(float)),
    "animated GIF": lambda: _animated("GIF"),
    "animated PNG": lambda: _animated("PNG"),
    "animated WebP": lambda: _animated("WEBP"),
    **{f"EXIF {n}": (lambda n=n: _turned(n)) for n in range(2, 9)},
}
# A GIF has 256 colours; bytes of HSV and of JPEG are coarse; and where sRGB is steep, near 0 beside
# other colours, a step of L*a*b* is up to 25: Little CMS comes back from its own bytes no nearer.
TOLERANCES = {"LAB": 26, "LAB in TIFF": 26, "HSV": 5, "YCbCr": 4, "CMYK in JPEG": 12}
TOLERANCES |= {"animated GIF": 24}


def case(name):
    """A picture, its colours `(height, width, 3)` in 0 .. 255, and how far off they may be."""
    picture, values = PICTURES[name]()
    if values.ndim == 2:
        values = np.repeat(values[..., None] * 255, 3, 2)
    return picture, values, TOLERANCES.get(name, 3)
