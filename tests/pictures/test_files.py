"""Picture files: every format that Pillow writes, upright, and refused before they are decoded."""

import logging
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from pictures import kinds
from PIL import Image, features

from underdraw.errors import InputError, NotFoundError
from underdraw.pictures import files, modes
from underdraw.pictures.writing import read_metadata

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"]
CAN = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}


@pytest.mark.parametrize("kind", [k for k in FORMATS if features.check(CAN.get(k, "jpg"))])
def test_formats(kind, tmp_path):
    Image.fromarray(kinds.colours()).save(tmp_path / "picture", kind)
    found = files.read_file(tmp_path / "picture")
    shown = np.asarray(modes.plain("picture", found), float)
    assert np.abs(shown - kinds.colours()).mean() < 4


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
def test_upright(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[kinds.EXIF] = orientation
    lying, _, _ = kinds.case(f"EXIF {orientation}")
    lying.copy().save(tmp_path / f"picture{suffix}", exif=exif, quality=100)
    found = files.read_file(tmp_path / f"picture{suffix}")
    assert found.size == (kinds.WIDTH, kinds.HEIGHT)
    assert np.abs(np.asarray(found, float) - kinds.colours()).max() <= 12
    with files.opened(tmp_path / f"picture{suffix}") as head:
        assert modes.upright_size(head) == found.size


def test_the_first_of_several_with_a_note(tmp_path, caplog):
    for name in ("animated PNG", "PNG"):
        moving, still = name != "PNG", Image.fromarray(kinds.colours())
        more = {"save_all": True, "append_images": [Image.new("RGB", still.size)]} if moving else {}
        still.save(tmp_path / "picture.png", **more)
        with caplog.at_level(logging.WARNING, "underdraw"):
            found = files.read_file(tmp_path / "picture.png")
        assert np.array_equal(np.asarray(found.convert("RGB")), kinds.colours())
        assert ("holds several pictures" in caplog.text) == moving
        caplog.clear()


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width, height):
    """A PNG whose head promises a size, and which holds next to nothing."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def bmp(width, height):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def saved(kind, cut=None):
    from io import BytesIO

    file = BytesIO()
    Image.fromarray(kinds.colours()).save(file, kind)
    return file.getvalue()[:cut]


CONTENTS = {
    "12,000 x 12,000": (png(12_000, 12_000), r"12,000 x 12,000 pixels; allowed: 67,108,864"),
    "above Pillow's warning": (png(9_500, 9_500), r"9,500 x 9,500 pixels; allowed: 67,108,864"),
    "above Pillow's limit": (png(2**20, 2**20), r"too large a picture; allowed: 67,108,864"),
    "2**31 - 1": (png(2**31 - 1, 2**31 - 1), r"too large a picture; allowed: 67,108,864"),
    "a bomb in BMP": (bmp(60_000, 60_000), r"too large a picture|60,000 x 60,000"),
    "a text": (b"no picture at all", "is not a picture"),
    "nothing": (b"", "is not a picture"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
        "PostScript",
    ),
    **{
        f"torn {k}": (saved(k, -200), "cannot be read|not a picture")
        for k in ("PNG", "BMP", "WEBP")
    },
    "torn JPEG": (saved("JPEG", -100), "cannot be read"),
    "a bad chunk": (png(8, 8), "cannot be read"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_refused_in_one_line(kind, tmp_path, monkeypatch):
    content, words = CONTENTS[kind]
    (tmp_path / "x.png").write_bytes(content)
    if "allowed" in words:
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with warnings.catch_warnings(), pytest.raises(InputError, match=words) as caught:
        warnings.simplefilter("error")
        files.read_file(tmp_path / "x.png")
    assert "x.png" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder"):
        for read in (files.read_file, read_metadata):
            with pytest.raises(InputError, match=f"{name}' is not a picture: it is no file"):
                read(tmp_path / name)
    with pytest.raises(NotFoundError, match="there is no file"):
        files.read_file(tmp_path / "absent.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "PPM"])
def test_damaged_files_raise_nothing_raw(kind, tmp_path):
    """Bytes changed anywhere: a picture, or one line."""
    whole, rng = saved(kind), np.random.default_rng(7)
    refused = 0
    for _ in range(25):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 400), 4):
            damaged[at] = rng.integers(256)
        (tmp_path / "x").write_bytes(damaged)
        try:
            modes.plain("x", files.read_file(tmp_path / "x"))
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused or kind in ("BMP", "TGA", "PPM")
