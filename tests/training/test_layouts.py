"""Layouts follow what is done to pictures, and every format of annotations is read as written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from underdraw.errors import InputError, NotFoundError
from underdraw.training.annotations import GroundedFolder, read_coco, read_folder
from underdraw.training.data import render_cache
from underdraw.training.layouts import LEAST_LEFT, MOST, GroundedScenes, Layout

INK = {"red": (255, 0, 0), "blue": (0, 0, 255)}
# Pixels of a picture of 90 x 40: one box in the part that every centred square shows, one beside.
RED, BLUE = (30, 5, 52, 30), (2, 10, 20, 38)
WIDE = (90, 40)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def paint(path: Path, size: tuple[int, int] = WIDE) -> None:
    picture = Image.new("RGB", size, "white")
    for colour, (x0, y0, x1, y1) in (("red", RED), ("blue", BLUE)):
        picture.paste(INK[colour], (x0, y0, x1, y1))
    picture.save(path)


def relative(box: tuple[int, ...], size: tuple[int, int] = WIDE) -> list[float]:
    return [v / side for v, side in zip(box, size * 2, strict=True)]


def objects(pixels: bool = False) -> list[dict]:
    return [
        {"label": f"a {colour} patch", "bbox": list(box) if pixels else relative(box)}
        for colour, box in (("red", RED), ("blue", BLUE))
    ]


def seen(image: np.ndarray, colour: str) -> np.ndarray:
    """The box of a colour in a picture in [-1, 1], in pixels."""
    ink = np.array(INK[colour])[:, None, None] / 127.5 - 1
    rows, columns = np.nonzero((np.abs(image - ink) < 0.9).all(0))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def check_views(folder: GroundedFolder) -> list[Layout]:
    """Every box frames its colour in every view."""
    indices = np.arange(len(folder))
    images, layouts = folder.images(indices).numpy(), folder.layouts(indices, rng())
    for image, layout in zip(images, layouts, strict=True):
        assert layout.boxes.dtype == np.float32
        for phrase, box in zip(layout.phrases, layout.boxes, strict=True):
            found = seen(image, phrase.split()[1])
            np.testing.assert_allclose(box * folder.size, found, atol=1.01)
    return layouts


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")
    return tmp_path


def write(path: Path, *lines: object) -> None:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")


def test_boxes_follow_every_view(pictures: Path) -> None:
    for name in "ab":
        write(pictures / f"{name}.bbox", *objects())
    folder = GroundedFolder(read_folder(pictures), 80, views=8)
    assert len(folder) == 16
    layouts = check_views(folder)
    assert {layout.phrases for layout in layouts[:2]} == {("a red patch",)}
    assert any(len(layout) == 2 for layout in layouts)  # a square further left shows both
    lefts = [layout.boxes[0, 0] for layout in layouts if layout.phrases[0] == "a red patch"]
    assert len({round(float(left), 3) for left in lefts}) > 6
    again = folder.layouts(np.arange(16), rng(1))
    assert all((a.boxes == b.boxes).all() for a, b in zip(layouts, again, strict=True))


def test_tall_pictures_are_cut_above_and_below(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (60, 90))
    boxes = [{"label": "a red patch", "bbox": relative(RED, (60, 90))}]
    boxes += [{"label": "a blue patch", "bbox": relative(BLUE, (60, 90))}]
    write(tmp_path / "a.json", *[boxes])
    (layout,) = check_views(GroundedFolder(read_folder(tmp_path), 120))
    # 15 rows are cut off above: of RED's 25 rows 15 are left, of BLUE's 28 there are 23.
    assert layout.phrases == ("a red patch", "a blue patch")
    np.testing.assert_allclose(layout.boxes[0], [30 / 60, 0, 52 / 60, 15 / 60], atol=1e-6)


@pytest.mark.parametrize("coordinates", ["relative", "pixels"])
def test_all_ways_of_writing_mean_the_same(pictures: Path, coordinates: str) -> None:
    told = objects(coordinates == "pixels")
    write(pictures / "metadata.jsonl", {"file_name": "a.png", "text": ["x", "y"], "objects": told})
    found = [read_folder(pictures, coordinates)]
    (pictures / "metadata.jsonl").unlink()
    for suffix, content in (("bbox", told), ("jsonl", told), ("json", [told])):
        write(pictures / f"a.{suffix}", *content)
        found.append(read_folder(pictures, coordinates))
        (pictures / f"a.{suffix}").unlink()
    write(pictures / "a.json", {"text": "x", "objects": told})
    found.append(read_folder(pictures, coordinates))
    assert [[p.path.name for p in one] for one in found] == [["a.png"]] * 5
    layouts = [check_views(GroundedFolder(one, 40))[0] for one in found]
    assert all(one.phrases == layouts[0].phrases for one in layouts)
    np.testing.assert_array_equal([one.boxes for one in layouts], [layouts[0].boxes] * 5)
    assert [one[0].texts for one in found] == [("x", "y"), (), (), (), ("x",)]


def test_captions_come_from_text_or_phrases(pictures: Path) -> None:
    write(pictures / "a.bbox", *objects())
    write(pictures / "b.bbox", *objects())
    (pictures / "b.txt").write_text("two patches\n")
    folder = GroundedFolder(read_folder(pictures), 40)
    assert folder.captions(np.arange(2), rng()) == ["a red patch, a blue patch", "two patches"]


def coco(folder: Path) -> Path:
    raw = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 90, "height": 40},
            {"id": 9, "file_name": "b.png", "width": 90, "height": 40},
        ],
        "categories": [{"id": 3, "name": "a red patch"}, {"id": 5, "name": "a blue patch"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [30, 5, 22, 25], "iscrowd": 0},
            {"image_id": 7, "category_id": 5, "bbox": [2, 10, 18, 28]},
            {"image_id": 7, "category_id": 5, "bbox": [0, 0, 90, 40], "iscrowd": 1},
            {"image_id": 7, "category_id": 5, "bbox": [4, 4, 0, 10]},
        ],
    }
    (folder / "instances.json").write_text(json.dumps(raw))
    return folder / "instances.json"


def test_coco_is_read_as_it_defines(pictures: Path) -> None:
    told = {"annotations": [{"image_id": 9, "caption": text} for text in ("one ", "two")]}
    (pictures / "captions.json").write_text(json.dumps(told))
    found = read_coco(pictures, coco(pictures), pictures / "captions.json")
    write(pictures / "a.bbox", *objects())
    write(pictures / "b.bbox")
    expected = read_folder(pictures)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.path, mine.layout.phrases) == (theirs.path, theirs.layout.phrases)
    layouts = [check_views(GroundedFolder(one, 40, views=3)) for one in (found, expected)]
    for a, b in zip(*layouts, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-6)
    assert found[1].texts == ("one", "two")
    folder = GroundedFolder(found, 40)
    assert folder.captions(np.arange(1), rng()) == ["a red patch, a blue patch"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"label": "a", "bbox": [10, 10, 20, 20]}, r"reaches over 1.*coordinates='pixels'"),
        ({"label": "a", "bbox": [0.5, 0.1, 0.4, 0.2]}, "0 <= min < max"),
        ({"label": "a", "bbox": [-0.5, 0.1, 0.4, 0.2]}, "0 <= min < max"),
        ({"label": "a", "bbox": [0.1, 0.1, 0.4]}, r"is not \[x_min"),
        ({"label": "a", "bbox": [0.1, 0.1, 0.4, float("nan")]}, r"is not \[x_min"),
        ({"label": " ", "bbox": [0.1, 0.1, 0.4, 0.5]}, "object 1 lacks a label"),
        ({"bbox": [0.1, 0.1, 0.4, 0.5]}, "object 1 lacks a label"),
    ],
)
def test_wrong_objects_are_named(pictures: Path, line: dict, words: str) -> None:
    write(pictures / "a.bbox", line)
    with pytest.raises(InputError, match=words):
        read_folder(pictures)


def test_wrong_files_are_named(pictures: Path) -> None:
    with pytest.raises(NotFoundError, match="no annotated picture"):
        read_folder(pictures)
    with pytest.raises(NotFoundError, match="nowhere is not a folder"):
        read_folder(pictures / "nowhere")
    with pytest.raises(InputError, match="coordinates='cm'"):
        read_folder(pictures, "cm")
    (pictures / "a.bbox").write_text('{"label": "a"\n')
    with pytest.raises(InputError, match=r"a\.bbox:1 is not JSON"):
        read_folder(pictures)
    (pictures / "a.bbox").unlink()
    listed = pictures / "metadata.jsonl"
    for line, words in (
        ({"text": "a"}, "lacks a file_name"),
        ({"file_name": "a.png", "text": 3}, "text=3"),
        ({"file_name": "a.png", "objects": {"bbox": []}}, "is not a list"),
    ):
        write(listed, line)
        with pytest.raises(InputError, match=words):
            read_folder(pictures)
    write(listed, {"file_name": "c.png"})
    with pytest.raises(NotFoundError, match=r"there is no image .*c\.png"):
        read_folder(pictures)
    (pictures / "instances.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="lacks annotations, categories"):
        read_coco(pictures, pictures / "instances.json")
    with pytest.raises(NotFoundError, match="there are no annotations"):
        read_coco(pictures, pictures / "missing.json")
    found = read_coco(pictures, coco(pictures))
    for arguments, words in (((42,), "size=42"), ((40, 0), "views=0")):
        with pytest.raises(InputError, match=words):
            GroundedFolder(found, *arguments)
    with pytest.raises(InputError, match="no annotated picture"):
        GroundedFolder([], 40)


def test_what_is_mostly_cut_off_is_left_out() -> None:
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.6, 0.2, 1.0, 0.6], [0.0, 0.0, 0.01, 0.01]])
    layout = Layout(("a", "b", "c"), boxes)
    share = LEAST_LEFT * 0.4
    for edge, kept in ((0.6 + share - 0.01, ("a",)), (0.6 + share + 0.01, ("a", "b"))):
        cut = layout.cut((0.05, 0.0, edge, 0.8))
        assert cut.phrases == kept
        assert cut.boxes.min() >= 0
        assert cut.boxes.max() <= 1
    np.testing.assert_allclose(layout.cut((0.1, 0.2, 0.9, 0.6)).boxes[0], [0, 0, 0.5, 1], atol=1e-6)
    with pytest.raises(InputError, match="window="):
        layout.cut((0.5, 0, 0.5, 1))
    with pytest.raises(InputError, match="1 phrases"):
        Layout(("a",), boxes)


def test_of_more_than_thirty_boxes_thirty_are_drawn(pictures: Path) -> None:
    many = [{"label": f"patch {i}", "bbox": [0.4, 0.4, 0.5, 0.5 + i / 100]} for i in range(40)]
    write(pictures / "a.bbox", *many)
    folder = GroundedFolder(read_folder(pictures), 40)
    first, second = (folder.layouts(np.array([0]), rng(s))[0] for s in (0, 1))
    assert len(first) == len(second) == MOST
    assert first.phrases != second.phrases
    for layout in (first, second):
        numbers = [int(phrase.split()[1]) for phrase in layout.phrases]
        assert numbers == sorted(numbers)
        heights = [0.5 + n / 100 for n in numbers]
        np.testing.assert_allclose(layout.boxes[:, 3], heights, atol=1e-6)


def test_scenes_know_their_layouts(tmp_path: Path) -> None:
    render_cache(tmp_path, 24, size=64)
    scenes = GroundedScenes(tmp_path, held_back=4)
    indices = np.arange(20)
    drawn = [scenes.layouts(indices, rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0][3].phrases == drawn[1][3].phrases
    assert any(a.phrases != b.phrases for a, b in zip(drawn[0], drawn[2], strict=True))
    lengths = []
    for i, layout in zip(indices, drawn[0], strict=True):
        scene = scenes.scene(int(i))
        assert len(layout) == len(scene.objects)
        np.testing.assert_array_equal(layout.boxes, scenes.boxes(int(i)))
        for obj, phrase in zip(scene.objects, layout.phrases, strict=True):
            assert obj.shape in phrase or "thing" in phrase
            lengths.append(len(phrase.split()))
    assert len(set(lengths)) > 2
