"""Evaluations killed, stopped or out of space at any file operation go on where they were."""

import errno
import json
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from weights.kills import FAULTS, Disk, files_in

from underdraw.errors import InputError, NotFoundError
from underdraw.evaluation import edits, examples, grounding, report
from underdraw.evaluation.layouts import held_out_layouts

SETTINGS = {"model": "m", "count": 3}


def draw(made, seeds):
    """Pictures 5 high and 9 wide, by their seeds."""

    def generate(items, numbers):
        made.extend(numbers)
        return np.stack([np.full((5, 9, 3), 10 * number, np.uint8) for number in numbers])

    return generate


def captions(folder, made):
    """The skeleton of an evaluation of captions, and of each part of one of boxes."""
    report.claim(folder, SETTINGS)
    pictures = report.generate_kept(draw(made, ()), ["a", "b", "c"], 0, 2, folder, False)
    told = {"mean": float(pictures.mean())}
    found = SimpleNamespace(table=lambda: str(told), to_json=lambda: told)
    report.write_report(folder, found)
    report.write_picture(folder / report.SHEET, Image.fromarray(pictures[0]))


def changed(folder, made):
    """An evaluation of edits, with a pipeline, pairs and a judge that cost nothing."""

    def edited(pipe, chosen, seed, *_):
        made.extend(range(seed, seed + len(chosen)))
        return {name: np.full((len(chosen), 2, 3), seed + 1) for name in ("edits", "mask")}

    def found(pairs, arrays, *_):
        told = {"sum": int(arrays["edits"].sum())}
        return SimpleNamespace(table=lambda: str(told), to_json=lambda: told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edits, "held_out_pairs", lambda count: list(range(count)))
        patch.setattr(edits, "_edited", edited)
        patch.setattr(edits, "_report", found)
        patch.setattr(edits, "_sheet", lambda *_: Image.new("RGB", (3, 2)))
        edits.evaluate_editing(
            None, 3, batch=2, folder=folder, evaluator=SimpleNamespace(), progress=False
        )


def renders(folder, made):
    """The judge's own renders."""

    def example(seed, index):
        made.append(index)
        zeros = np.zeros((4, 4), "f4"), np.zeros((4, 2), "f4"), np.zeros((4, 6), "i1")
        return (np.full((2, 2, 3), index, np.uint8), *zeros)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "example_at", example)
        patch.setattr(examples, "CHUNK", 2)
        examples.render_examples(folder, 3)


def grounded(folder, made):
    """An evaluation of boxes, with pictures and a detector that cost nothing."""
    layouts = held_out_layouts(2, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grounding, "_renders", lambda some: np.zeros((len(some), 32, 32, 3), "u1"))
        grounding.evaluate_grounding(
            lambda some, seeds: np.stack([make(seed, made) for seed in seeds]),
            layouts,
            batch=1,
            folder=folder,
            progress=False,
            evaluator=SimpleNamespace(detect=lambda pictures: [[] for _ in pictures]),
        )


def make(seed, made):
    made.append(seed)
    return np.full((32, 32, 3), 10 * seed, np.uint8)


RUNS = {
    "boxes": (grounded, 4),
    "captions": (captions, 3),
    "edits": (changed, 3),
    "renders": (renders, 4),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", RUNS)
def test_the_same_command_goes_on(name, fault, tmp_path, monkeypatch):
    run, count = RUNS[name]
    run(tmp_path / "whole", [])
    expected = files_in(tmp_path / "whole")
    disk, at, spared = Disk(monkeypatch), 0, 0
    while True:
        at += 1
        folder, made = tmp_path / "run", []
        error = disk.run(fault, at, lambda folder=folder, made=made: run(folder, made))
        if error is None:
            break
        again = []
        run(folder, again)
        assert files_in(folder).keys() == expected.keys()  # nothing is left over
        same = {path for path, held in files_in(folder).items() if held == expected[path]}
        assert same | {p for p in expected if p.endswith(".npz")} == expected.keys()
        spared += count - len(again)
        shutil.rmtree(folder)
    assert at > 10
    assert spared > at // 3  # what was finished was not made again


def test_of_two_that_claim_a_folder_at_once_one_wins(tmp_path, monkeypatch):
    """Both have seen an empty folder, and made ready what they want to write."""
    gate, link = threading.Barrier(2), os.link

    def together(*places):
        gate.wait(60)
        link(*places)

    monkeypatch.setattr(os, "link", together)
    told = []

    def claim(name):
        try:
            report.claim(tmp_path, {"model": name})
            told.append(name)
        except InputError as error:
            told.append(str(error))

    threads = [threading.Thread(target=claim, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (won,) = {"a", "b"} & set(told)
    assert "has just become another evaluation's" in max(told, key=len)
    assert files_in(tmp_path).keys() == {"run.json"}
    assert json.loads((tmp_path / "run.json").read_text()) == {"model": won}


def test_disks_without_links_take_evaluations(tmp_path, monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    report.claim(tmp_path, {"model": "a"})
    assert files_in(tmp_path).keys() == {"run.json"}
    report.claim(tmp_path, {"model": "a"})
    with pytest.raises(InputError, match="a run with other model"):
        report.claim(tmp_path, {"model": "b"})


def test_a_claim_that_comes_while_another_one_looks_is_seen(tmp_path, monkeypatch):
    def late(folder):
        (folder / "run.json").write_text('{"model": "a"}')
        return False

    monkeypatch.setattr(report, "is_empty", late)
    with pytest.raises(InputError, match="has just become another evaluation's"):
        report.claim(tmp_path, {"model": "b"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"model": "a"}


@pytest.mark.parametrize("torn", [b"", b"\x89PNG\r\n\x1a\n", "half", b"PK\x03\x04", b"text"])
@pytest.mark.parametrize("name", RUNS)
def test_torn_parts_are_made_again(name, torn, tmp_path):
    run, _ = RUNS[name]
    folder = tmp_path / "run"
    run(folder, whole := [])
    expected = files_in(folder)
    for path in (p for p in expected if p.endswith((".png", ".npz")) and "sheet" not in p):
        half = expected[path][: len(expected[path]) // 2]
        (folder / path).write_bytes(half if torn == "half" else torn)
    if name == "renders":  # of renders it is said which
        with pytest.raises(NotFoundError, match=r"_0000\.npz is not there or damaged; remove it"):
            run(folder, [])
        return
    run(folder, made := [])
    assert made == whole
    assert files_in(folder).keys() == expected.keys()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", b"", "the file is empty"),
        ("run.json", b'{"model": "m", ', "not readable as JSON"),
        ("run.json", b"[1]", "a JSON object was expected"),
        ("run.json", b"\xff\xfe", "not readable as JSON"),
        ("run.json", json.dumps({"model": "other", "count": 3}).encode(), "a run with other model"),
        ("mine.txt", b"mine", r"not empty and holds no run\.json"),
        ("run.json.tmp", b"{}", r"not empty and holds no run\.json"),
    ],
)
def test_folders_that_are_not_this_run(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        report.claim(tmp_path, SETTINGS)
    assert files_in(tmp_path) == {name: content}
