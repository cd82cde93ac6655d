"""Maps on the command line."""

import json
import re

import numpy as np
import pytest
from cli.test_generate_boxes import pixels_of
from PIL import Image

from underdraw.cli.structure import read_structures
from underdraw.pictures.writing import METADATA, read_metadata, save_png

CALL = ("generate", "a table", "--seed", "3", "--steps", "3")


@pytest.fixture(scope="session")
def net(tiny, tmp_path_factory):
    """A ControlNet for the tiny model."""
    from pipelines.tiny import controlnet

    from underdraw import UNet2DConditionModel

    place = tmp_path_factory.mktemp("net")
    controlnet(UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")).save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def edges(tmp_path_factory):
    place = tmp_path_factory.mktemp("maps") / "edges.png"
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[20:24], pixels[:, 40:44] = 255, 255
    Image.fromarray(pixels).save(place)
    return place


def test_a_map_acts_and_is_recorded(run, tiny, net, edges, tmp_path):
    model, made = ("--model", tiny), {}
    for scale in ("0.8", "0"):
        made[scale] = tmp_path / f"{scale}.png"
        structure = ("--structure", str(net), str(edges), scale)
        run(*CALL, *model, *structure, "--out", str(made[scale]))
    run(*CALL, *model, "--out", str(tmp_path / "plain.png"))
    assert pixels_of(made["0"]) == pixels_of(tmp_path / "plain.png") != pixels_of(made["0.8"])
    record = read_metadata(made["0.8"])
    (entry,) = record["structures"]
    assert (entry["net"], entry["scale"], entry["map"]["name"]) == (str(net), 0.8, "edges.png")

    again = tmp_path / "again.png"
    refused = run("generate", "--again", str(made["0.8"]), "--out", str(again), code=2)
    assert re.search("--structure.*--as-recorded", refused.stderr.replace("\n", " "))
    run("generate", "--again", str(made["0.8"]), "--as-recorded", "--out", str(again))
    assert pixels_of(again) == pixels_of(made["0.8"])
    other = tmp_path / "other.png"
    changed = ("--structure", str(net), str(edges), "0")
    run("generate", "--again", str(made["0.8"]), *model, *changed, "--out", str(other))
    assert pixels_of(other) == pixels_of(tmp_path / "plain.png")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("NET", "EDGES"), "takes a net, a map and a number"),
        (("NET", "EDGES", "much"), "takes a net, a map and a number"),
        (("NET", "EDGES", "nan"), "scale"),
        (("NET", "EDGES", "1e9"), "scale=1000000000.0"),
        (("NET", "nowhere.png", "1"), "map 1: there is no picture"),
        (("NET", "NET", "1"), "."),
        (("no/such/net", "EDGES", "1"), "no/such/net"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(run, tiny, net, edges, options, says):
    known = {"NET": str(net), "EDGES": str(edges)}
    given = [known.get(one, one) for one in options]
    made = run(*CALL, "--model", tiny, "--structure", *given, code=2)
    assert re.search(says, made.stderr), made.stderr
    assert "Traceback" not in made.stderr


def test_a_net_of_another_kind_is_told(run, tiny, edges):
    made = run(*CALL, "--model", tiny, "--structure", f"{tiny}/vae", str(edges), "1", code=2)
    assert "is of a 'AutoencoderKL'" in made.stderr


DAMAGED = {
    "no list": {"net": "n"},
    "numbers": [1],
    "a path": [{"net": "n", "map": "/etc/passwd", "scale": 1.0}],
    "no net": [{"map": {"name": "a"}, "scale": 1.0}],
    "too large to be kept": [{"net": "n", "map": {"name": "a.png"}, "scale": 1.0}],
    "a broken picture": [{"net": "n", "map": {"name": "a.png", "png": "AAAA"}, "scale": 1.0}],
    "a scale": [{"net": "n", "map": {"name": "a.png"}, "scale": "much"}],
}


def test_damaged_records_are_refused(run, tiny, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    run(*CALL, "--model", tiny, "--out", str(good))
    for name, structures in DAMAGED.items():
        record = {**read_metadata(good), "structures": structures}
        with Image.open(good) as image:
            image.info[METADATA] = json.dumps(record)
            save_png(image, bad)
        made = run("generate", "--again", str(bad), "--as-recorded", "--force", code=2)
        assert "Traceback" not in made.stderr and "bad.png" in made.stderr, name


def test_options_are_read_in_any_folder(edges, monkeypatch):
    monkeypatch.chdir(edges.parent)
    (entry,) = read_structures(['["net", "edges.png", "1"]']) or []
    assert entry == {"net": "net", "map": str(edges), "scale": 1.0}
    assert read_structures(None) is None
