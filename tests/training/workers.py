"""What `test_loop` runs in a process of its own: `python workers.py FOLDER`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.line import CONFIG, Line, weights

from underdraw.errors import InputError, NonFiniteError
from underdraw.training import checkpoints
from underdraw.training.loop import Stopped, train
from underdraw.training.parallel import alone

FORK = multiprocessing.get_context("fork")


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


def process_saves_first_at_a_signal_to_all(tmp_path: Path) -> None:
    """As `timeout`, Slurm and service managers send it."""

    def slow(task: Any, draw: Any) -> Any:
        time.sleep(0.5)
        return Line.draw(task, draw)

    def run() -> None:
        os.setsid()
        sys.stdout = sys.stderr = open(tmp_path / "log", "w", buffering=1)  # noqa: SIM115
        task = Line()
        task.poison, task.draw = -2, partial(slow, task)  # type: ignore[method-assign]
        train(task, replace(CONFIG, steps=1000, workers=2, log_steps=1), tmp_path)

    process = FORK.Process(target=run)
    process.start()
    log, deadline = tmp_path / "log", time.monotonic() + 600
    while not (log.exists() and "step 2" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid or 0, signal.SIGTERM)
    process.join(300)
    assert "Stopped: stopped before step" in log.read_text()
    assert checkpoints.load(tmp_path / "state.pt")["step"] >= 2


def as_by_torchrun(run: Callable[[int], None], number: int) -> None:
    """Run two processes with `torchrun`'s variables to their ends; each call has another number."""
    port = str(20000 + (os.getpid() + number) % 20000)

    def ranked(rank: int) -> None:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update(address, WORLD_SIZE="2", RANK=str(rank))
        run(rank)

    processes = [FORK.Process(target=ranked, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]


def process_shares_a_step(tmp_path: Path) -> None:
    """Two processes with `torchrun`'s variables take the same steps to the same weights."""

    def run(rank: int) -> None:
        task = Line()
        train(task, CONFIG, tmp_path)
        torch.save((weights(task), task.firsts), tmp_path / f"out{rank}.pt")

    as_by_torchrun(run, 0)
    (a, firsts_a), (b, firsts_b) = (torch.load(tmp_path / f"out{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert firsts_a == [0, 6, 12, 18, 24, 30, 36]
    assert firsts_b == [f + 3 for f in firsts_a]


def processes_of_one_run_are_refused_together(tmp_path: Path) -> None:
    """None of them is left to wait for the others."""

    def run(rank: int) -> None:
        task = Line()
        try:
            train(task, CONFIG, tmp_path / "run")
        except InputError as error:
            assert "another run is at work there (training)" in str(error)
            assert task.firsts == []
            (tmp_path / f"refused{rank}").touch()

    with alone(tmp_path / "run", "training"):
        as_by_torchrun(run, 1)
    assert all((tmp_path / f"refused{rank}").exists() for rank in (0, 1))
    assert list((tmp_path / "run").iterdir()) == []


def process_that_was_killed_leaves_no_lock(tmp_path: Path) -> None:
    """Nor do processes that drew its examples, and have not noticed yet."""
    told, folder = tmp_path / "worker", tmp_path / "run"

    def draw(asked: Any) -> Any:
        beside = told.with_suffix(".part")
        beside.write_text(str(os.getpid()))
        beside.rename(told)
        time.sleep(600)

    def run() -> None:
        task = Line()
        task.draw = draw  # type: ignore[method-assign]
        train(task, replace(CONFIG, workers=1), folder)

    process, deadline = FORK.Process(target=run), time.monotonic() + 600
    process.start()
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    worker = int(told.read_text())
    try:
        with pytest.raises(InputError, match="another run is at work there"):
            train(Line(), CONFIG, folder)
        process.kill()
        process.join()  # with a timeout it would wait for the worker, too
        os.kill(worker, 0)  # it lives
        assert (folder / ".training.lock").exists()
        task = Line()
        train(task, CONFIG, folder)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert len(task.firsts) == CONFIG.steps
    assert not (folder / ".training.lock").exists()


CHECKS = {
    name: check
    for name, check in list(globals().items())
    if name.startswith(("worker_", "process"))
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, check in CHECKS.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        check(folder)
        print(name, "passed", flush=True)
