"""Boxes on the command line."""

import json
import re

import pytest
from PIL import Image

from underdraw.cli.boxes import read_boxes, read_layout
from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.pictures.writing import read_metadata

CALL = ("generate", "a table", "--seed", "3", "--steps", "3")
BOXES = ("--box", "a red sphere", "0.1", "0.2", "0.4", "0.6", "--box", "a cube", "0", "0", "1", "1")


@pytest.fixture(scope="session")
def part(tiny, tmp_path_factory):
    """Grounding weights with open gates for the tiny model."""
    from underdraw import UNet2DConditionModel
    from underdraw.models import Grounding

    made = Grounding.for_unet(UNet2DConditionModel.from_pretrained(tiny, subfolder="unet"), "text")
    for name, value in made.named_parameters():
        if "alpha" in name:
            value.data.fill_(0.7)
    place = tmp_path_factory.mktemp("part")
    made.save_pretrained(place)
    return place


def pixels_of(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_boxes_layouts_drawings_and_again(run, tiny, part, tmp_path):
    weights = ("--model", tiny, "--grounding", str(part))
    picture, drawn = tmp_path / "a.png", tmp_path / "a-boxes.png"
    run(*CALL, *weights, *BOXES, "--draw-boxes", "--out", str(picture))
    assert picture.exists() and drawn.exists()
    pixels = pixels_of(picture)
    assert len(pixels_of(drawn)) >= 3 * 512**2 and read_metadata(drawn)["of"] == "a.png"
    record = read_metadata(picture)
    assert record["layout"]["boxes"][0] == {"phrase": "a red sphere", "box": [0.1, 0.2, 0.4, 0.6]}

    again = tmp_path / "again.png"
    run("generate", "--again", str(picture), "--as-recorded", "--out", str(again))
    assert pixels_of(again) == pixels

    labels = [{"label": "a red sphere", "bbox": [0.1, 0.2, 0.4, 0.6]}]
    labels += [{"label": "a cube", "bbox": [0, 0, 1, 1]}]
    layout = tmp_path / "layout.json"
    layout.write_text(json.dumps({"prompt": "a table", "boxes": labels}))
    same = tmp_path / "same.png"
    call = ("generate", "--layout", str(layout), "--seed", "3", "--steps", "3", "--out", str(same))
    run(*call, *weights)
    assert pixels_of(same) == pixels

    plain = tmp_path / "plain.png"
    run(*CALL, "--model", tiny, "--out", str(plain))
    assert pixels_of(plain) != pixels


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--box", "a red sphere", "0.1", "0.2", "0.4"), "a phrase and four numbers"),
        (("--box", "a", "0.1", "0.2", "0.4", "much"), "a phrase and four numbers"),
        (("--box", "a", "0.5", "0.2", "0.4", "0.6"), "box 1: .*x_max=0.4 not above x_min=0.5"),
        (("--box", "a", "0", "0", "512", "512"), "0 .. 1"),
        (("--draw-boxes",), "needs --box or --layout"),
        (("--layout", "nowhere.json"), "nowhere.json: no such file"),
        (("--layout", "nowhere.json", *BOXES), "only one of them"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(run, options, says):
    made = run(*CALL, "--model", "no/such/model", *options, code=2)

    assert re.search(says, made.stderr), made.stderr


def test_boxes_without_weights(run, tiny):
    made = run(*CALL, "--model", tiny, *BOXES, code=2)
    assert "boxes need grounding weights" in made.stderr


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("{", InputError, "not readable as JSON"),
        ("3", InputTypeError, "neither a list"),
        ('{"boxes": 3}', InputTypeError, "neither a list"),
        ('{"boxen": []}', InputError, "'boxen'; allowed"),
        ('[{"phrase": "a", "position": []}]', InputError, r"boxes\[0\]"),
        ('[{"phrase": "a"}]', InputError, "box 1: .* has 0 numbers"),
        ('[{"bbox": [0, 0, 1, 1]}]', InputError, "neither phrase nor image"),
        ('{"boxes": [], "strength": [1, 1, 1]}', InputError, "add up to 1"),
        (
            '[{"image": "no.png", "bbox": [0, 0, 1, 1]}]',
            NotFoundError,
            "box 1: .* no picture",
        ),
    ],
)
def test_layout_files(tmp_path, content, error, says):
    (tmp_path / "layout.json").write_text(content)
    with pytest.raises(error, match=says):
        read_boxes(None, tmp_path / "layout.json")


def test_pictures_of_a_layout_are_found_from_any_folder(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = {"boxes": [{"image": "a.png", "box": [0, 0, 1, 1]}], "style": "a.png"}
    (tmp_path / "layout.json").write_text(json.dumps(content))
    found = read_layout(tmp_path / "layout.json")
    monkeypatch.chdir("/")
    assert found["style"] == found["boxes"][0]["image"] == str(tmp_path / "a.png")
    assert read_boxes(None, tmp_path / "layout.json") == found
