"""The loop: resuming, accumulation, averaging, interruptions."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import workers
from training.line import CONFIG, Line, weights

from underdraw.errors import InputError, NonFiniteError, NotFoundError, WeightError
from underdraw.formats import leftovers
from underdraw.training import checkpoints
from underdraw.training.ema import Average
from underdraw.training.lanes import lanes_for
from underdraw.training.loop import Stopped, TrainingConfig, _means, _Run, train
from underdraw.training.parallel import Group, alone


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("cut", [1, 4])
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    whole, halves = Line(), Line()
    expected = train(whole, CONFIG, tmp_path / "whole")
    with pytest.raises(Stopped, match=f"before step {cut}.*same command"):
        train(halves, CONFIG, tmp_path / "halves", stop_after=cut)
    again = Line()
    found = train(again, CONFIG, tmp_path / "halves")
    for a, b in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(a, b)
    for name, value in expected.shadow.items():
        assert torch.equal(value, found.shadow[name])
    assert again.firsts == [6 * k for k in range(cut, 7)]
    curves = [table(tmp_path / name / "curve.csv") for name in ("whole", "halves")]
    assert [row["step"] for row in curves[0]] == ["2", "4", "6"]
    assert curves[0][-1]["loss"] == curves[1][-1]["loss"]
    assert (tmp_path / "whole" / "curve.png").stat().st_size > 0


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """What forks: this process may run threads of other frameworks, and a new one for each check
    would import PyTorch anew."""
    program = [sys.executable, workers.__file__, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" passed")]
    assert passed == list(workers.CHECKS)


@pytest.mark.parametrize("there", [False, True])
def test_processes_with_accelerators_agree_on_the_host_too(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    told: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.distributed, "init_process_group", told.append)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert Group.join() == Group(2, 1)
    assert told == (["cpu:gloo,cuda:nccl"] if there else ["gloo"])


def test_figures_are_matched_by_name() -> None:
    told = _means([{"loss": torch.tensor(1.0), "a": 10, "b": 20}, {"b": 40, "loss": 3, "a": 30}])
    assert told.tolist() == [2, 20, 30]
    with pytest.raises(InputError, match="different figures"):
        _means([{"loss": 1.0}, {"loss": 1.0, "a": 2.0}])


def test_how_a_device_steps_is_not_read_from_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(Line(), CONFIG, tmp_path, stop_after=2)
    state = checkpoints.load(tmp_path / "state.pt")
    for part in state["optimizer"]["param_groups"]:
        part.update(foreach=True, fused=False)  # as another device would have it
    checkpoints.save(tmp_path / "state.pt", state)
    task = Line()
    run = _Run(task, CONFIG, tmp_path, torch.device("cpu"), Group())
    run.restore(checkpoints.load(tmp_path / "state.pt"))
    adamw, _ = run.optimizers.all["optimizer"]
    assert [(g["foreach"], g["fused"]) for g in adamw.param_groups] == [(False, True)]


def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    first, second = Line(), Line()
    train(first, CONFIG, tmp_path)
    train(second, CONFIG, tmp_path, resume=False)
    assert second.firsts == first.firsts
    third = Line()
    train(third, CONFIG, tmp_path)  # already complete: nothing is left to do
    assert third.firsts == []
    assert torch.equal(weights(third)[0], weights(first)[0])


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_parts_equal_the_whole_batch(tmp_path: Path, parts: int) -> None:
    whole, split = Line(dropout=0.0), Line(dropout=0.0)
    # Adam divides by the size of a gradient: where that is rounding error, so is the step.
    config = replace(CONFIG, clip_norm=None)
    train(whole, config, tmp_path / "whole")
    train(split, replace(config, accumulate=parts), tmp_path / "split")
    for a, b in zip(weights(whole), weights(split), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_threads_take_the_steps_of_accumulated_parts(tmp_path: Path, optimizer: str) -> None:
    """The same bits: each part is computed alone, and gradients are summed in order."""
    before = torch.get_num_threads()
    config = replace(CONFIG, optimizer=optimizer)
    tasks = [Line(dropout=0.0) for _ in range(3)]
    train(tasks[0], replace(config, accumulate=3), tmp_path / "parts")
    expected = train(tasks[1], replace(config, threads=3), tmp_path / "threads")
    with pytest.raises(Stopped):
        train(Line(dropout=0.0), replace(config, threads=3), tmp_path / "cut", stop_after=3)
    found = train(tasks[2], replace(config, threads=3), tmp_path / "cut")
    for a, b, c in zip(*map(weights, tasks), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        assert torch.equal(b, c)
    assert all(torch.equal(value, found.shadow[name]) for name, value in expected.shadow.items())
    assert torch.get_num_threads() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_threads_are_refused_where_results_could_not_be_repeated(tmp_path: Path) -> None:
    config = replace(CONFIG, threads=2)
    with pytest.raises(InputError, match=r"threads=2: net has dropout.*allowed: 0"):
        train(Line(), config, tmp_path)
    with pytest.raises(InputError, match="threads=2 is for training on the CPU"):
        train(Line(dropout=0.0), config, tmp_path, device="meta")
    train(Line(dropout=0.0), CONFIG, tmp_path)
    with pytest.raises(InputError, match=r"optimizer='muon', but the checkpoint.*'adamw'"):
        train(Line(dropout=0.0), replace(CONFIG, optimizer="muon"), tmp_path)


@pytest.mark.parametrize(
    ("batch", "accumulate", "threads"), [(32, 1, 16), (24, 1, 12), (6, 1, 3), (6, 2, 0), (2, 1, 0)]
)
def test_as_many_threads_as_share_a_batch_evenly(
    batch: int, accumulate: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert lanes_for(replace(CONFIG, batch=batch, accumulate=accumulate)) == threads


def test_an_error_in_a_thread_is_the_runs(tmp_path: Path) -> None:
    task, clean = Line(dropout=0.0), Line(dropout=0.0)
    task.poison = 2
    with pytest.raises(Stopped):
        train(clean, CONFIG, tmp_path / "clean", stop_after=2)
    with pytest.raises(NonFiniteError, match=r"step 2: the loss is nan"):
        train(task, replace(CONFIG, threads=2), tmp_path / "poisoned")
    for a, b in zip(weights(task), weights(clean), strict=True):
        torch.testing.assert_close(a, b)


def test_moving_average_follows_its_formula() -> None:
    p = torch.zeros(3, requires_grad=True)
    average, expected = Average({"p": p}, 0.9), np.zeros(3)
    for t in range(1, 30):
        with torch.no_grad():
            p.copy_(torch.tensor([t, t**0.5, -1.0]))
        average.update(t)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * np.array([t, t**0.5, -1.0])
    np.testing.assert_allclose(average.shadow["p"].numpy(), expected, rtol=1e-5)
    own = p.detach().clone()
    with average.applied():
        assert torch.equal(p.detach(), average.shadow["p"])
    assert torch.equal(p.detach(), own)


def test_signal_saves_and_a_second_run_goes_on(tmp_path: Path) -> None:
    task = Line()
    draw = task.draw

    def interrupting(d):
        if d.first == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(d)

    task.draw = interrupting  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="before step 3"):
        train(task, CONFIG, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    again, whole = Line(), Line()
    train(again, CONFIG, tmp_path)
    train(whole, CONFIG, tmp_path / "whole")
    assert torch.equal(weights(again)[0], weights(whole)[0])


def test_interrupted_write_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / checkpoints.NAME
    state = {"step": 1, "modules": {}, "average": {}}
    checkpoints.save(path, state)

    def torn(value, file) -> None:
        file.write(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(path, {**state, "step": 2})
    assert checkpoints.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [checkpoints.NAME]


def test_damaged_states_are_refused(tmp_path: Path) -> None:
    path = tmp_path / checkpoints.NAME
    with pytest.raises(NotFoundError, match=r"state\.pt"):
        checkpoints.load(path)
    path.write_bytes(b"not a state")
    with pytest.raises(WeightError, match="readable"):
        checkpoints.load(path)
    torch.save({"step": 1}, path)
    with pytest.raises(WeightError, match="not a training state"):
        checkpoints.load(path)
    torch.save({"step": print, "modules": {}, "average": {}}, path)  # a function: code
    with pytest.raises(WeightError, match="readable"):
        checkpoints.load(path)


def test_nan_loss_stops_before_any_weight_changes(tmp_path: Path) -> None:
    task = Line()
    task.poison = 2
    clean = Line()
    with pytest.raises(Stopped):
        train(clean, CONFIG, tmp_path / "clean", stop_after=2)
    with pytest.raises(NonFiniteError, match=r"step 2: the loss is nan.*learning_rate"):
        train(task, CONFIG, tmp_path / "poisoned")
    assert all(torch.equal(a, b) for a, b in zip(weights(task), weights(clean), strict=True))


def test_previews_see_the_average_and_change_nothing(tmp_path: Path) -> None:
    looked, plain = Line(), Line()
    average = train(looked, replace(CONFIG, preview_minutes=0.0), tmp_path / "a")
    train(plain, CONFIG, tmp_path / "b")
    assert looked.previews == [1, 2, 3, 4, 5, 6, 7, 7]
    assert plain.previews == [7]
    assert all(torch.equal(a, b) for a, b in zip(weights(looked), weights(plain), strict=True))
    last = table(tmp_path / "a" / "measured.csv")[-1]
    assert float(last["first"]) == average.shadow["net.0.weight"][0, 0].item()


def test_rates_warm_up_and_fall() -> None:
    config = TrainingConfig(100, learning_rate=2.0, warmup=10, schedule="linear", decay=0.5)
    rates = [config.rate(k, k / 100) for k in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:51] == [2.0] * 42
    assert rates[75] == pytest.approx(1.0)
    assert rates[100] == 0.0
    cosine = replace(config, schedule="cosine", decay=1.0)
    assert cosine.rate(50, 0.5) == pytest.approx(1.0)
    assert replace(config, schedule="constant").rate(99, 0.99) == 2.0
    timed = replace(config, minutes=1.0, warmup=1000)
    assert timed.rate(1, 0.05) == pytest.approx(1.0) and timed.rate(1, 0.2) == pytest.approx(2.0)


def test_minutes_end_a_run(tmp_path: Path) -> None:
    task = Line()
    train(task, replace(CONFIG, steps=10**9, minutes=0.003), tmp_path)
    assert 0 < len(task.firsts) < 10**6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": "sudden"}, "schedule='sudden'.*constant"),
        ({"precision": "int8"}, "precision='int8'.*bfloat16"),
        ({"steps": 0}, "steps=0"),
        ({"accumulate": 4}, "batch=6.*accumulate=4"),
        ({"accumulate": 2, "threads": 2}, "batch=6.*accumulate=2 times threads=2"),
        ({"threads": -1}, "threads=-1"),
        ({"optimizer": "sgd"}, "optimizer='sgd'.*muon"),
        ({"muon_rate": 0.0}, r"muon_rate=0\.0"),
        ({"minutes": 0.0}, r"minutes=0\.0"),
        ({"minutes": float("nan")}, "minutes=nan"),
        ({"ema": 1.0}, r"ema=1\.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ],
)
def test_bad_settings_are_named(change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(CONFIG, **change)


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_run_in_a_folder_is_refused(tmp_path: Path, resume: bool) -> None:
    config = replace(CONFIG, log_steps=1, checkpoint_steps=1)
    first, second, whole = Line(), Line(), Line()
    draw, before = first.draw, weights(second)

    def intruded(d):
        if d.first == 18:
            with pytest.raises(InputError, match=f"folder='{tmp_path}/run': another run.*training"):
                train(second, config, tmp_path / "run", resume=resume)
            train(Line(), config, tmp_path / "beside")  # which is another folder
        return draw(d)

    first.draw = intruded  # type: ignore[method-assign]
    train(first, config, tmp_path / "run")
    assert second.firsts == second.previews == []
    assert all(torch.equal(a, b) for a, b in zip(weights(second), before, strict=True))
    train(whole, config, tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(whole), strict=True))
    tables = [table(tmp_path / name / "curve.csv") for name in ("run", "whole")]
    curves = [[(row["step"], row["loss"]) for row in rows] for rows in tables]
    assert curves[0] == curves[1]
    names = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("run", "whole")]
    assert names[0] == names[1]
    assert not [name for name in names[0] if name.startswith(".")]
    train(second, config, tmp_path / "run", resume=resume)  # the first has ended


def test_a_run_that_failed_lets_its_folder_go(tmp_path: Path) -> None:
    task = Line()
    task.poison = 2
    with pytest.raises(NonFiniteError):
        train(task, CONFIG, tmp_path)
    assert list(tmp_path.glob(".*")) == []
    train(Line(), CONFIG, tmp_path)


def test_a_lock_that_vanishes_while_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run ends between the moments in which this one opens its file and locks it."""
    original, met = leftovers.hold, []

    def hold(file, path):
        if not met:
            met.append(path)
            path.unlink()
        return original(file, path)

    monkeypatch.setattr(leftovers, "hold", hold)
    with alone(tmp_path, "training"):
        assert [p.name for p in tmp_path.iterdir()] == [".training.lock"]
        with pytest.raises(InputError), alone(tmp_path, "training"):
            pass
        with alone(tmp_path, "renders"):
            pass
    assert met == [tmp_path / ".training.lock"]
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    train(Line(), CONFIG, tmp_path)
    with pytest.raises(InputError, match=r"batch=12.*made with 6"):
        train(Line(), replace(CONFIG, batch=12), tmp_path)
    other = Line()
    other.modules = {"other": other.net}
    with pytest.raises(InputError, match=r"\['net'\].*\['other'\]"):
        train(other, CONFIG, tmp_path)
    frozen = Line()
    frozen.net.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter"):
        train(frozen, CONFIG, tmp_path / "new")
