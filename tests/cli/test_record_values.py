"""Records of pictures and layout files, each value in turn replaced by what it is not meant to be:
they are read, or an error of ours names the file, before anything is loaded."""

import itertools
import json
from functools import partial

import pytest
from PIL import Image
from trying import JSON, LEFT_OUT, outcome, paths, put

from underdraw.cli import again, boxes, embedded
from underdraw.errors import InputError
from underdraw.pictures.writing import save_png
from underdraw.pipelines.call.record import repeat
from underdraw.schedulers import PNDMScheduler
from underdraw.schema import shown

SCHEDULER = {**PNDMScheduler(skip_prk_steps=True).config}
BOX = {"phrase": "a red sphere", "box": [0.1, 0.2, 0.4, 0.6]}
PHOTO = embedded.kept(Image.new("RGB", (8, 16)), "photo.png")
NEWER = {
    "structures": [{"net": "canny", "map": PHOTO, "scale": 0.5, "own": False, "lines": None}],
    "subjects": [{"image": PHOTO, "category": "dog", "word": "corgi"}],
    "subject": "somebody/subject",
}
"""What records of later versions hold besides."""
RECORD = {
    "underdraw": "0.5",
    "pipeline": "StableDiffusionPipeline",
    "model": "underdraw/scenes",
    "backend": "torch",
    "engine": "eager",
    "dtype": "float32",
    "channels_last": ["unet"],
    "compat": None,
    "settings": {"attention_slice": None, "vae_slicing": False, "vae_tiling": False},
    "scheduler": SCHEDULER,
    "call": {"prompt": "a", "seed": 5, "num_inference_steps": 5, "guidance_scale": 2.5, "eta": 0.0},
    "missing": [],
    "variant": "fp16",
    "tokenizer": "underdraw/scenes",
    "grounding": "underdraw/scenes",
    "layout": {"boxes": [BOX, BOX], "strength": [0.5, 0.25, 0.25]},
}
PIPELINES = ("StableDiffusionInpaintPipeline", "DiffusionPipeline", "os", "CLIPTokenizer")
VALUES = (
    *(*JSON, *PIPELINES, "euler", "float16", ["seed"], [999, 1], {"boxes": []}, {"boxes": [5]}),
    *({"name": "x"}, {"name": "x", "png": "AAAA"}, {"_class_name": "DDIMScheduler"}, 2**64, True),
    *({"boxes": [{"box": [0, 0, 1]}]}, {"boxes": [BOX], "strength": [1, "a", 0]}),
)
FURTHER = [("inputs",), ("call", "image"), ("call", "sigmas"), ("call", "timesteps")]
FURTHER += [("call", "clip_skip"), ("call", "negative_prompt"), ("layout", "style"), ("call", "x")]


@pytest.fixture
def picture(tmp_path):
    """Writes a picture with a record; where it is."""

    def write(record):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "p.png", record)
        return tmp_path / "p.png"

    return write


def cases(content, further=(), each=16):
    """Place, content and value; every place with `each` values, in turn."""
    values = itertools.cycle(VALUES)
    for place in (*paths(content), *further):
        for value in itertools.islice(values, each):
            yield place, put(content, place, value), shown(value)
        if place and place not in further:
            yield place, put(content, place, LEFT_OUT), "left out"


def test_records(picture):
    newer = [
        (place, {**RECORD, **changed}, value) for place, changed, value in cases(NEWER) if place
    ]
    assert {place[0] for place, _, _ in newer} == set(NEWER)
    for place, record, value in (*cases(RECORD, FURTHER), *newer):
        path = picture(record)
        wrong = outcome(partial(again.recorded, path, (), True), str(path))
        assert wrong is None, (place, value)


def test_records_of_pictures_from_pictures(picture):
    held = {"image": PHOTO}
    record = {**RECORD, "pipeline": "StableDiffusionImg2ImgPipeline", "inputs": held}
    assert again.recorded(picture(record)).call["image"].size == (8, 16)
    for value in VALUES:
        for place in (("inputs",), ("inputs", "image"), *(("inputs", "image", n) for n in held)):
            path = picture(put(record, place, value))
            assert outcome(partial(again.recorded, path, (), True), str(path)) is None, place


def test_records_in_python():
    """`repeat` reads the same; of a pipeline it is not of it never asks for anything."""
    for place, record, value in cases(RECORD):
        assert outcome(partial(repeat, None, record)) is None, (place, value)


@pytest.mark.parametrize("name", ["model", "tokenizer", "grounding"])
@pytest.mark.parametrize("value", ["somebody/model", "/etc/passwd", "../x.safetensors", "~"])
def test_a_picture_chooses_nothing_that_is_loaded(picture, name, value):
    path = picture({**RECORD, name: value})
    with pytest.raises(InputError) as error:
        again.recorded(path)
    assert f"--{name} " in str(error.value) and "--as-recorded" in str(error.value)
    assert again.recorded(path, trusted=True).loading[name] == value
    again.recorded(path, given=[name])  # the command names another


@pytest.mark.parametrize("value", ["somebody/model", "/etc/passwd", "../x.safetensors", "~"])
def test_a_picture_chooses_neither_nets_nor_subject_weights(picture, value):
    net = {"structures": [{**NEWER["structures"][0], "net": value}]}
    for changes, option in (({"subject": value}, "--subject-weights"), (net, "--structure")):
        path = picture({**RECORD, **changes})
        with pytest.raises(InputError) as error:
            again.recorded(path)
        assert f"{option} " in str(error.value) and "--as-recorded" in str(error.value)
        found = again.recorded(path, trusted=True)
        assert value in (found.loading.get("subject"), *(e["net"] for e in found.structures or ()))
    for entry in ("structures", "subjects"):  # a path in the place of a picture
        inner = "map" if entry == "structures" else "image"
        path = picture({**RECORD, entry: [{**NEWER[entry][0], inner: value}]})
        with pytest.raises(InputError, match=r"damaged|was tuned"):
            again.recorded(path, trusted=True)


def test_a_model_that_is_named_brings_its_own_vocabulary(picture):
    path = picture({**RECORD, "model": "somebody/model", "tokenizer": "somebody/words"})
    assert "tokenizer" not in again.recorded(path, given=["model"]).loading


@pytest.mark.parametrize("style", ["/etc/passwd", "https://x.org/y.png"])
def test_a_picture_reads_no_files(picture, style):
    for layout in ({"boxes": [], "style": style}, {"boxes": [{**BOX, "image": style}]}):
        with pytest.raises(InputError, match="give the boxes with --layout"):
            again.recorded(picture({**RECORD, "layout": layout}), trusted=True)
        again.recorded(picture({**RECORD, "layout": layout}), given=["controls"])
    for name in ("image", "mask_image", "controls", "generator"):
        call = RECORD["call"] | {name: style}
        with pytest.raises(InputError, match=name):
            again.recorded(picture({**RECORD, "call": call}), trusted=True)


LAYOUT = {
    "prompt": "a table",
    "boxes": [BOX, {"label": "a cube", "bbox": [0, 0, 1, 1], "image": "p.png"}],
    "style": "p.png",
    "strength": [0.5, 0.25, 0.25],
}


@pytest.mark.parametrize("content", [LAYOUT, LAYOUT["boxes"]], ids=["object", "list"])
def test_layouts(content, picture, tmp_path):
    picture(RECORD)
    path = tmp_path / "layout.json"
    for place, layout, value in cases(content):
        path.write_text(json.dumps(layout))
        wrong = outcome(partial(boxes.read_boxes, None, path), str(path))
        assert wrong is None, (place, value)
