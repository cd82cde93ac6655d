"""What a picture's file holds of how it was made, and what is said where that is not enough."""

import json

import numpy as np
import pytest
from PIL import Image

from underdraw.cli import again, boxes, embedded
from underdraw.errors import InputError, UnderdrawError
from underdraw.pictures.writing import FORMATS, read_metadata, save_picture

RECORD = {
    "underdraw": "0.1",
    "pipeline": "StableDiffusionPipeline",
    "model": "underdraw/scenes",
    "dtype": "float32",
    "missing": [],
    "call": {"prompt": "a cone", "seed": 1, "num_inference_steps": 2},
    "scheduler": {"_class_name": "DDIMScheduler"},
    "settings": {},
    "channels_last": [],
    "layout": {"boxes": [{"phrase": "a cone", "box": [0, 0, 1, 1]}], "strength": [1, 0, 0]},
    "inputs": {"image": {"name": "photo.png", "size": [8, 8]}},
}
EDIT = {
    "from": "a",
    "to": "it's b",
    "picture": "p q.png",
    "options": {"steps": 9, "paste": True},
}
WRONG = (None, 3, -1.5, "x", [], [3], {}, {"x": 3}, True)


def noise(width=24, height=16, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def written(record, path="a.png"):
    save_picture(noise(8, 8), path, record)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def places(value, at=()):
    """Every place of a record."""
    yield at
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for name, part in inner:
        yield from places(part, (*at, name))


def changed(record, at, value):
    copy = json.loads(json.dumps(record))
    inner = copy
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    return copy


@pytest.mark.parametrize("at", [at for at in places(RECORD) if at])
def test_records_of_any_kind_are_read_or_refused(at):
    for value in WRONG:
        path = written(changed(RECORD, at, value))
        try:
            request = again.recorded(path)
            if request.layout is not None:
                boxes.controls_of(request.layout)
        except UnderdrawError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"sheet": ["b.png", "c.png"]}, "a sheet of several pictures; --again takes one of b.png"),
        ({"scenes": ["a cone"]}, "shows renders, which `underdraw scenes` makes"),
        ({"view": "boxes", "of": "b.png"}, "shows boxes of b.png; --again takes that picture"),
        ({"preview": "2 of 9"}, "is a preview (step 2 of 9) of a picture that was not finished"),
        (
            {"edit": EDIT},
            """underdraw edit 'p q.png' --from a --to 'it'"'"'s b' --steps 9 --paste""",
        ),
        ({"edit": {"from": "a", "to": "b", "picture": "p.png", "seed": 3}}, "--seed 3"),
        ({"underdraw": "0.0"}, "cannot read: record: there is no pipeline"),
        ({**RECORD, "call": [1]}, "cannot read: record: call=[1] is not supported"),
        ({**RECORD, "call": {"prompt": "x"}}, "does not hold its seed"),
        ({**RECORD, "missing": ["image"]}, "was photo.png, too large to be kept); give --image"),
        ({**RECORD, "missing": ["image"], "inputs": {}}, "does not hold its image; give --image"),
        ({**RECORD, "missing": ["latents"]}, "repeat(pipe, metadata, latents=...) makes it"),
        ({**RECORD, "missing": ["controls"], "layout": None}, "give --box or --layout"),
        (
            {**RECORD, "layout": {"boxes": [{"image": "/old/cat.png", "box": [0, 0, 1, 1]}]}},
            "box 1 shows the picture /old/cat.png, and it holds no copy of that; give the boxes",
        ),
        (
            {**RECORD, "layout": {"boxes": [], "style": {"name": "look.png"}}},
            "style shows look.png, which was too large to be kept; give the boxes with --layout",
        ),
        ({**RECORD, "call": {"output_type": "latent"}}, "no arguments output_type"),
        ({**RECORD, "inputs": {"image": {"name": "x", "png": "????"}}}, "its image is damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_again_says_why(record, says):
    with pytest.raises(InputError) as told:
        again.recorded(written(record))
    assert says in str(told.value)


def test_what_is_given_need_not_be_held():
    record = {**RECORD, "missing": ["image", "engine"], "call": {"prompt": "x"}}
    request = again.recorded(written(record), ["image", "engine", "seed"])
    assert request.inputs["image"]["name"] == "photo.png"


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "I;16"])
def test_small_pictures_are_held_whole(mode):
    picture = noise().convert("L").convert(mode) if mode == "I;16" else noise(mode=mode)
    entry = json.loads(json.dumps(embedded.kept(picture, "b.png")))
    back = embedded.restored(entry, "it")
    assert (back.mode, back.size, back.tobytes()) == (picture.mode, picture.size, picture.tobytes())
    assert embedded.fingerprint(back) == entry["sha256"]


def test_large_pictures_and_odd_pixels_are_held_by_name(monkeypatch):
    assert "png" not in embedded.kept(noise(mode="CMYK"), "b.jpg")
    monkeypatch.setattr(embedded, "MOST_KEPT", 100)
    entry = embedded.kept(noise(), "b.png")
    assert set(entry) == {"name", "size", "sha256"}
    assert embedded.restored(entry, "it") is None


def test_a_bomb_inside_a_record_is_refused():
    entry = embedded.kept(Image.new("1", (5000, 5000)), "b.png")
    assert "png" in entry
    with pytest.raises(InputError, match="its image is damaged: it is too large"):
        embedded.restored(entry, "its image")


def test_boxes_hold_their_pictures():
    noise().save("cat.png")
    shown, told = {"image": "cat.png", "box": [0, 0, 1, 1]}, {"phrase": "x", "box": [0, 0, 1, 1]}
    placed = {"boxes": [shown, told], "style": "cat.png"}
    held = boxes.with_pictures(placed)
    (request,) = [again.recorded(written({**RECORD, "layout": held, "missing": ["controls"]}))]
    (fresh,), (back,) = boxes.controls_of(placed), boxes.controls_of(request.layout)
    for one, other in zip(fresh.boxes, back.boxes, strict=True):
        assert type(one) is type(other)
        if getattr(one, "image", None) is not None:
            assert one.image.tobytes() == other.image.tobytes()
    assert boxes.with_pictures(held) == held
    assert boxes.files_of(placed) == ["cat.png", "cat.png"] and boxes.files_of(held) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_record(suffix):
    record = {**RECORD, "call": {"prompt": "ein grüner Kegel 緑", "seed": 1}}
    save_picture(noise(), f"a{suffix}", record)
    assert read_metadata(f"a{suffix}") == record
    with Image.open(f"a{suffix}") as made:
        assert made.format == FORMATS[suffix]
        difference = np.abs(np.asarray(made).astype(int) - np.asarray(noise()))
    assert difference.max() == 0 if suffix in (".png", ".webp") else difference.mean() < 4


def test_a_jpeg_names_pictures_that_it_has_no_room_for(folder):
    from underdraw.cli import outputs

    inputs = {"image": embedded.kept(noise(200, 200), "b.png")}
    record = {**RECORD, "missing": ["image"], "inputs": inputs}
    outputs.save(noise(), folder / "a.webp", record)
    assert again.recorded(folder / "a.webp").call["image"].size == (200, 200)
    outputs.save(noise(), folder / "a.jpg", record)
    with pytest.raises(InputError, match=r"was b.png, too large to be kept\); give --image"):
        again.recorded(folder / "a.jpg")


def test_records_too_long_for_jpeg_are_left_out_with_a_warning():
    long = {**RECORD, "call": {"prompt": "x" * 70_000, "seed": 1}}
    with pytest.warns(UserWarning, match="JPEG has no room"):
        save_picture(noise(), "a.jpg", long)
    with pytest.raises(InputError, match="holds no underdraw metadata"):
        read_metadata("a.jpg")
    save_picture(noise(), "a.webp", long)
    assert read_metadata("a.webp") == long
