"""What `test_loop` runs in a process of its own: `python workers.py FOLDER`."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.line import CONFIG, Line

from underdraw.errors import InputError, NonFiniteError
from underdraw.training.loop import Stopped, train


def worker_draws_are_the_same(tmp_path: Path) -> None:
    here, ahead, again = Line(), Line(), Line()
    ahead.poison = again.poison = -2  # -1 is what no draw in this process looks like
    expected = train(here, CONFIG, tmp_path / "here")
    config = replace(CONFIG, workers=2)
    with pytest.raises(Stopped):
        train(ahead, config, tmp_path / "ahead", stop_after=3)
    found = train(again, config, tmp_path / "ahead")
    assert again.firsts == []  # nothing was drawn in this process
    assert all(torch.equal(value, found.shadow[name]) for name, value in expected.shadow.items())


def worker_ends_with_its_run(tmp_path: Path) -> None:
    task, before = Line(), set(multiprocessing.active_children())
    task.poison = -2
    long = replace(CONFIG, steps=1000, workers=2)
    with pytest.raises(Stopped):
        train(task, long, tmp_path, stop_after=2)
    assert set(multiprocessing.active_children()) <= before
    task.poison = 0
    with pytest.raises(NonFiniteError):  # an error ends them, too
        task.firsts = [0]
        train(task, long, tmp_path)
    assert set(multiprocessing.active_children()) <= before


def worker_tells_bad_input_as_it_is(tmp_path: Path) -> None:
    def refuse(asked: Any) -> Any:
        raise InputError("folder/metadata.jsonl:7 is not JSON")

    task = Line()
    task.draw = refuse  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"^folder/metadata.jsonl:7 is not JSON$"):
        train(task, replace(CONFIG, workers=1), tmp_path)


def worker_errors_are_the_runs(tmp_path: Path) -> None:
    task = Line()
    draw, task.poison = task.draw, -2
    task.draw = lambda asked: draw(asked) if asked.first < 24 else 1 / 0  # type: ignore
    with pytest.raises(ZeroDivisionError):
        train(task, replace(CONFIG, workers=1), tmp_path)


if __name__ == "__main__":
    for name, check in list(globals().items()):
        if name.startswith("worker_"):
            folder = Path(sys.argv[1]) / name
            folder.mkdir()
            check(folder)
            print(name, "passed", flush=True)
