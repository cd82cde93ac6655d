"""Pictures with ICC profiles show their colours; what is no profile changes nothing."""

import io
import itertools
import logging
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from underdraw import backends
from underdraw.pictures import modes, reading
from underdraw.pictures.files import read_file

P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
"""Red, green and blue of Display P3 as XYZ under D50."""
WHITE = (0.9642, 1.0, 0.8249)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)


def fixed(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space, kind, connection, tags):
    """An ICC profile of version 2 (ICC.1:2001-04)."""
    head, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        head += name + struct.pack(">II", at + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = struct.pack(">I", 128 + len(head) + len(body))
    header = size + b"test" + b"\x02\x10\0\0" + kind + space + connection + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + fixed(*WHITE)
    return header.ljust(128, b"\0") + head + body


def xyz(values):
    return b"XYZ \0\0\0\0" + fixed(*values)


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def named():
    text = b"test\0"
    return {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"wtpt": xyz(WHITE),
    }


def wide():
    colours = {
        name + b"XYZ": xyz(values) for name, values in zip((b"r", b"g", b"b"), P3, strict=True)
    }
    curves = {name + b"TRC": gamma(2.2) for name in (b"r", b"g", b"b")}
    return profile(b"RGB ", b"mntr", b"XYZ ", {**named(), **colours, **curves})


def grey():
    return profile(b"GRAY", b"mntr", b"XYZ ", {**named(), b"kTRC": gamma(1.4)})


def press():
    """Of inks that are all grey: how light paper is says how much there is of any."""
    curve = bytes(range(256))
    inks = itertools.product((0, 1), repeat=4)
    grid = b"".join(bytes((round(255 * (1 - sum(ink) / 4)), 128, 128)) for ink in inks)
    matrix = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + curve * 4 + grid + curve * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {**named(), b"A2B0": table})


def encode(linear):
    """sRGB, IEC 61966-2-1."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def shown_wide(pixels):
    to_srgb = np.linalg.inv(
        np.array(
            ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
        )
    )
    return encode((pixels / 255.0) ** 2.2 @ np.array(P3) @ to_srgb)


def shown_inks(pixels):
    lightness = 100 * (1 - pixels.mean(-1, keepdims=True) / 255)
    y = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    return encode(y).repeat(3, -1)


GREYS, FULL = PIXELS[..., 0], np.full((8, 16), 255, np.uint8)


def shown_greys(pixels):
    return encode((pixels / 255.0) ** 1.4)[..., None].repeat(3, -1)


KINDS = {
    "RGB": ("RGB", PIXELS, wide, shown_wide),
    "RGBA": ("RGBA", np.dstack([PIXELS, FULL]), wide, lambda p: shown_wide(p[..., :3])),
    "L": ("L", GREYS, grey, shown_greys),
    "LA": ("LA", np.dstack([GREYS, FULL]), grey, lambda p: shown_greys(p[..., 0])),
    "CMYK": ("CMYK", np.dstack([PIXELS, GREYS]), press, shown_inks),
}
ROUNDING = 4
"""Of 255: tables of Little CMS have 8 bits, and Lab of the press has them, too."""


@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_those_that_are_meant(kind):
    mode, pixels, made, shown = KINDS[kind]
    picture = Image.fromarray(pixels, mode)
    bare = np.asarray(modes.plain("image", picture))
    picture.info["icc_profile"] = made()
    found = modes.plain("image", picture)
    assert np.abs(np.asarray(found) - shown(pixels)).max() <= ROUNDING
    assert np.abs(np.asarray(found).astype(int) - bare).max() > 2 * ROUNDING
    again = modes.plain("image", found)  # it is not converted twice, and written without
    assert np.array_equal(again, found)
    assert "icc_profile" not in again.info


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_files_carry_them(form, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a", form, icc_profile=wide(), lossless=True)
    picture = read_file(tmp_path / "a")
    signed = reading.read_pictures("image", picture, backends.get("torch"))
    found = (np.asarray(signed)[0].transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(found - shown_wide(PIXELS)).max() <= ROUNDING


def test_a_picture_in_srgb_keeps_its_bits():
    picture = Image.fromarray(PIXELS)
    picture.info["icc_profile"] = SRGB
    assert np.array_equal(modes.plain("image", picture), PIXELS)


def test_brightness_of_masks_is_what_the_file_holds():
    mask = Image.fromarray(PIXELS[..., 0])
    mask.info["icc_profile"] = grey()
    assert np.array_equal(modes.as_mask("mask", mask), PIXELS[..., 0])


BROKEN = {
    "nothing": b"\0",
    "text": b"no profile",
    "half": wide()[:200],
    "of another space": press(),
    "of greys": grey(),
    "huge": wide() + bytes(2**23),
    "tags without end": wide()[:128] + b"\xff\xff\xff\xff" + wide()[132:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_profile_is_told_and_changes_nothing(name, caplog):
    picture = Image.fromarray(PIXELS)
    picture.info["icc_profile"] = BROKEN[name]
    with caplog.at_level(logging.WARNING, "underdraw"):
        found = modes.plain("image", picture)
    assert np.array_equal(found, PIXELS)
    assert caplog.messages[0].startswith("image: its colour profile is ignored (")
    assert len(caplog.messages[0]) < 300
    assert picture.info["icc_profile"] == BROKEN[name]  # the caller's own picture is as it was


def test_a_photo_of_a_phone_is_turned_and_converted(tmp_path):
    exif = Image.Exif()
    exif[modes.ORIENTATION] = 6
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif, icc_profile=wide())
    found = modes.plain("image", Image.open(file))
    assert np.abs(np.rot90(np.asarray(found), 1) - shown_wide(PIXELS)).max() <= ROUNDING
