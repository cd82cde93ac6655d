"""Maps on the command line."""

import json
import re
import shutil

import numpy as np
import pytest
from cli.test_generate_boxes import pixels_of
from PIL import Image

from underdraw.cli.embedded import restored
from underdraw.cli.structure import read_maps
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
    "a path of its own": [{"net": "edges", "map": "/etc/passwd", "scale": 1.0, "own": True}],
    "own": [{"net": "edges", "map": {"name": "a.png"}, "scale": 1.0, "own": "yes"}],
    "lines": [{"net": "edges", "map": {"name": "a.png"}, "scale": 1.0, "lines": [0, 8]}],
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
    (entry,) = read_maps(['["net", "edges.png", "1"]']) or []
    assert entry == {"net": "net", "map": str(edges), "scale": 1.0}
    assert read_maps(None) is None


@pytest.fixture(scope="session")
def family(tiny, tmp_path_factory):
    """The tiny model with nets of its own for edges and for depth."""
    from pipelines.tiny import controlnet

    from underdraw import UNet2DConditionModel

    place = tmp_path_factory.mktemp("family") / "family"
    shutil.copytree(tiny, place)
    unet = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    for seed, name in enumerate(("edges", "depth")):
        controlnet(unet, seed=seed).save_pretrained(place / "structure" / name)
    return place


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """Larger than any result, and not square."""
    place = tmp_path_factory.mktemp("photos") / "photo.jpg"
    pixels = np.full((300, 400, 3), 30, np.uint8)
    pixels[100:200, 150:250] = (200, 40, 40)
    Image.fromarray(pixels).save(place)
    return place


def test_edges_of_a_photograph_and_a_depth_map(run, family, photo, edges, tmp_path):
    size = ("--model", str(family), "--size", "64x48")
    names = {"edges": photo, "depth": edges}
    made = {}
    for name, path in names.items():
        made[name] = tmp_path / f"{name}.png"
        run(*CALL, *size, f"--{name}", str(path), "--out", str(made[name]))
        (entry,) = read_metadata(made[name])["structures"]
        assert (entry["net"], entry["own"], entry["map"]["name"]) == (name, True, path.name)
        assert "lines" not in entry
    # What is recorded of a photograph is the map that was made of it, at the size of the result.
    lines = restored(read_metadata(made["edges"])["structures"][0]["map"], "map")
    assert lines.mode == "L" and lines.size == (48, 64)
    assert set(np.unique(lines)) == {0, 255}
    both = tmp_path / "both.png"
    run(*CALL, *size, "--edges", str(photo), "--depth", str(edges), "--out", str(both))
    run(*CALL, *size, "--out", str(tmp_path / "plain.png"))
    pictures = [pixels_of(one) for one in (*made.values(), both, tmp_path / "plain.png")]
    assert len(set(pictures)) == 4
    lines.save(tmp_path / "lines.png")
    named = ("--structure", str(family / "structure" / "edges"), str(tmp_path / "lines.png"), "1")
    run(*CALL, *size, *named, "--out", str(tmp_path / "named.png"))
    assert pixels_of(tmp_path / "named.png") == pictures[0]


def test_own_nets_are_used_again_without_being_asked_for(run, family, photo, tmp_path, monkeypatch):
    from underdraw.cli import again

    first, second = tmp_path / "first.png", tmp_path / "second.png"
    run(*CALL, "--model", str(family), "--edges", str(photo), "--out", str(first))
    monkeypatch.setattr(again, "SCENES", str(family))  # as if it were the shipped one
    run("generate", "--again", str(first), "--out", str(second))
    assert pixels_of(first) == pixels_of(second)
    third = tmp_path / "third.png"
    run("generate", "--again", str(first), "--depth", str(photo), "--out", str(third))
    (entry,) = read_metadata(third)["structures"]
    assert entry["net"] == "depth" and pixels_of(third) != pixels_of(first)


def test_edges_follow_the_picture_that_a_call_begins_with(run, family, photo, tmp_path):
    made = tmp_path / "made.png"
    begun = ("--image", str(photo), "--strength", "0.7", "--edges", str(photo))
    run(*CALL, "--model", str(family), *begun, "--out", str(made))
    (entry,) = read_metadata(made)["structures"]
    with Image.open(made) as picture:
        assert restored(entry["map"], "map").size == picture.size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--edges", "nowhere.png"), "--edges: there is no picture"),
        (("--depth", "nowhere.png"), "--depth: there is no picture"),
        (("--edges", "NET"), "."),
        (("--edges", "TEXT"), "is not a picture"),
        (("--edges", "EDGES"), "--edges needs a net of the model's own, and .* has none for edges"),
        (("--depth", "EDGES"), "name one with --structure NET MAP SCALE"),
    ],
)
def test_mistakes_of_own_nets_are_told_before_a_model_is_loaded(
    run, tiny, net, edges, options, says, tmp_path, monkeypatch
):
    from underdraw.cli import loading

    monkeypatch.setattr(loading, "load_pipeline", None)
    (tmp_path / "text.png").write_text("no picture")
    known = {"NET": str(net), "EDGES": str(edges), "TEXT": str(tmp_path / "text.png")}
    given = [known.get(one, one) for one in options]
    made = run(*CALL, "--model", tiny, *given, code=2)
    assert re.search(says, made.stderr.replace("\n", " ")), made.stderr
    assert "Traceback" not in made.stderr


def test_an_edit_follows_maps(run, family, net, edges, tmp_path):
    """Made again by the command that its record tells."""
    words = (
        "--from",
        "a red sphere",
        "--to",
        "a blue cube",
        "--model",
        str(family),
        "--size",
        "64",
    )
    words += ("--steps", "4", "--maps", "1", "--threshold", "1")
    made = {}
    for name, maps in (
        ("plain", ()),
        ("none", ("--structure", str(net), str(edges), "0")),
        ("net", ("--structure", str(net), str(edges), "1")),
        ("own", ("--edges", str(edges), "--depth", str(edges))),
    ):
        out = tmp_path / f"{name}.png"
        run("edit", edges, *words, *maps, "--out", str(out))
        made[name] = pixels_of(out)
        told = run("generate", "--again", str(out), code=2).stderr.replace("\n", " ")
        assert all(word in told for word in map(str, maps)), told
    assert made["plain"] == made["none"]
    assert len(set(made.values())) == 3
    refused = run("edit", edges, *words, "--structure", "no/such/net", edges, "1", code=2)
    assert "no/such/net" in refused.stderr
