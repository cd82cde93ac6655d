import json

import numpy as np
import pytest
from PIL import Image

from underdraw.errors import InputError, InputTypeError, NotFoundError, UnderdrawError
from underdraw.training.adapters.pictures import TrainingPictures, read_folder


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate([(20, 10), (10, 20), (16, 16)]):
        Image.fromarray(np.full((*size[::-1], 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_captions_from_wherever_they_are(folder):
    (folder / "1.txt").write_text("a red\n cube ")
    found = read_folder(folder, ["a thing", "one thing"])
    assert [found.texts(i) for i in range(3)] == [
        ("a thing", "one thing"),
        ("a red cube",),
        ("a thing", "one thing"),
    ]
    assert [found.size(i) for i in range(3)] == [(10, 20), (20, 10), (16, 16)]
    assert found.cut(1, 8, 16).shape == (8, 16, 3)
    assert {found.says(0, np.random.default_rng(i)) for i in range(20)} == set(found.texts(0))
    lines = [{"file_name": "2.png", "text": ["x", "y"]}, {"file_name": "0.png", "text": "z"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_folder(folder)
    assert [found.texts(i) for i in range(len(found))] == [("x", "y"), ("z",)]


@pytest.mark.parametrize(
    ("prepare", "error", "says"),
    [
        (lambda f: None, InputError, "0.png: nothing is said of it"),
        (lambda f: (f / "metadata.jsonl").write_text("{}"), InputError, "lacks a file_name"),
        (
            lambda f: (f / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "x"}'),
            NotFoundError,
            "there is no picture",
        ),
        (lambda f: (f / "metadata.jsonl").write_text(""), NotFoundError, "holds no picture"),
        (
            lambda f: (
                [(f / f"{i}.{end}").write_text("x") for i in range(3) for end in ("txt",)]
                and (f / "0.png").write_bytes(b"no picture")
            ),
            UnderdrawError,
            "0.png",
        ),
    ],
)
def test_folders_that_cannot_be_learned_from(folder, prepare, error, says):
    prepare(folder)
    with pytest.raises(error, match=says):
        read_folder(folder)
    with pytest.raises(NotFoundError, match="no such folder"):
        read_folder(folder / "nowhere")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (([], []), InputError),
        (([np.zeros((4, 4, 3))], ["a", "b"]), InputError),
        (([np.zeros((4, 4, 3))], "a"), InputTypeError),
        (([np.zeros((4, 4, 3))], [3]), InputTypeError),
        (([np.zeros((4, 4, 3))], [[]]), InputTypeError),
    ],
)
def test_pictures_and_captions_that_do_not_fit(given, error):
    with pytest.raises(error):
        TrainingPictures(*given)
