"""`underdraw.utils`: pictures from files and addresses, and sheets of them."""

import io
import urllib.request

import numpy as np
import pytest
from PIL import Image

from underdraw import utils
from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.utils import load_image, make_image_grid

PICTURE = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14)


def png(picture=PICTURE):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_files_are_read_in_rgb(tmp_path, mode):
    path = tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}"
    PICTURE.convert(mode).save(path)
    for place in (path, str(path), Image.open(path)):
        read = load_image(place)
        assert (read.mode, read.size) == ("RGB", (3, 2))
    assert load_image(path, lambda picture: picture.convert("L")).mode == "L"


def test_sixteen_bits_do_not_become_white(tmp_path):
    Image.fromarray(np.array([[0, 30000, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == [0, 30000, 65535]


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").size == (2, 3)


def test_addresses(monkeypatch):
    asked = []

    def answer(place, timeout):
        asked.append((place, timeout))
        return io.BytesIO(png())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert load_image("https://a.b/c.png").tobytes() == PICTURE.tobytes()
    assert asked == [("https://a.b/c.png", utils.WAIT)]
    monkeypatch.setattr(utils, "LARGEST", 20)
    with pytest.raises(InputError, match="larger than"):
        load_image("https://a.b/c.png")


def test_what_is_no_picture(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "torn.png").write_bytes(png(Image.effect_noise((90, 90), 50))[:2000])
    for place, kind, words in (
        (tmp_path / "none.png", NotFoundError, "neither a file nor an address"),
        (tmp_path, NotFoundError, "neither a file"),
        ("", NotFoundError, "neither a file"),
        (tmp_path / "text.png", InputError, "not a picture"),
        (tmp_path / "torn.png", InputError, "cannot be read"),
        (3, InputTypeError, "image is int"),
        (None, InputTypeError, "image is NoneType"),
        (np.zeros((2, 2, 3)), InputTypeError, "image is ndarray"),
    ):
        with pytest.raises(kind, match=words):
            load_image(place)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    (tmp_path / "large.png").write_bytes(png())
    with pytest.raises(InputError, match="image="):
        load_image(tmp_path / "large.png")


def test_sheets_go_row_by_row():
    several = [PICTURE, PICTURE.rotate(180), PICTURE, PICTURE.rotate(180), PICTURE, PICTURE]
    for rows, cols, resize in ((2, 3, None), (3, 2, 8), (1, 6, None)):
        parts = [one if resize is None else one.resize((resize, resize)) for one in several]
        lines = [parts[i * cols : (i + 1) * cols] for i in range(rows)]
        whole = np.vstack([np.hstack([np.asarray(one) for one in line]) for line in lines])
        assert (np.asarray(make_image_grid(several, rows, cols, resize)) == whole).all()
    for arguments, kind in (((1, 5), InputError), ((0, 6), InputError), ((1.5, 4), InputTypeError)):
        with pytest.raises(kind):
            make_image_grid(several, *arguments)
    with pytest.raises(InputTypeError):
        make_image_grid([1], 1, 1)
