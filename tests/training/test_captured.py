"""Steps that a device computes as one program: what the loop does around them.

CUDA's recording itself needs a GPU; what is recorded is `_Run.gradients`, which runs here as it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.line import CONFIG, Line, weights

from underdraw.errors import InputError, NonFiniteError
from underdraw.training.captured import Captured, Told, check_alike
from underdraw.training.loop import LATE, _Run, train
from underdraw.training.parallel import Group


def running(task: Line, folder: Path) -> _Run:
    """A run whose steps are read late, as those of a captured one."""
    run = _Run(task, CONFIG, folder, torch.device("cpu"), Group())

    class Recorded(Captured):
        def __call__(self, batch, device):
            for p in self.parameters:
                p.grad = None
            return self.function(dict(batch))

    run.captured = Recorded(run.gradients, run.parameters)
    run.told = Told(run.parameters, LATE)
    return run


def test_figures_read_late_change_nothing(tmp_path: Path) -> None:
    plain, late = Line(), Line()
    train(plain, CONFIG, tmp_path / "plain")
    run = running(late, tmp_path / "late")
    (tmp_path / "late").mkdir()
    for step in range(CONFIG.steps):
        assert not run.advance(False)
        assert len(run.told.waiting) == min(step + 1, LATE)
    run.save()
    assert not run.told.waiting
    for a, b in zip(weights(plain), weights(late), strict=True):
        assert torch.equal(a, b)
    curves = [
        [[row[0], *row[2:]] for row in (line.split(",") for line in text.splitlines())]
        for text in ((tmp_path / n / "curve.csv").read_text() for n in ("plain", "late"))
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 4  # but for the seconds


@pytest.mark.parametrize("poison", [0, 3])
def test_a_loss_that_is_not_finite_is_told_late_and_no_weight_has_moved(
    tmp_path: Path, poison: int
) -> None:
    task, clean = Line(), Line()
    run, before = running(task, tmp_path), running(clean, tmp_path)
    task.poison = poison
    for _ in range(poison):
        before.advance(False)
    with pytest.raises(NonFiniteError, match=f"step {poison}: the loss is nan; no weight"):
        for _ in range(CONFIG.steps):
            run.advance(False)
    assert run.step == poison + LATE
    for a, b in zip(weights(task), weights(clean), strict=True):
        assert torch.equal(a, b)


def test_a_loss_at_the_end_of_a_run_is_not_missed(tmp_path: Path) -> None:
    task = Line()
    run = running(task, tmp_path)
    task.poison = 1
    run.advance(False)
    run.advance(False)
    with pytest.raises(NonFiniteError, match="step 1"):
        run.save()
    assert not (tmp_path / "state.pt").exists()


def test_batches_of_a_recording_are_alike() -> None:
    first = {"x": torch.zeros(2, 3), "ids": torch.zeros(2, dtype=torch.int64)}
    check_alike({"ids": torch.ones(2, dtype=torch.int64), "x": torch.ones(2, 3)}, first)
    for batch, told in (
        ({**first, "x": torch.zeros(2, 4)}, r"batch\['x'\] is \(2, 4\).*\(2, 3\)"),
        ({**first, "x": torch.zeros(2, 3).double()}, "float64.*float32"),
        ({**first, "texts": ["a"]}, r"batch\['texts'\] is of list; allowed: tensors"),
        ({**first, "more": torch.zeros(1)}, r"batch\['more'\].*None"),
        ({"x": first["x"]}, r"lacks \['ids'\]"),
    ):
        with pytest.raises(InputError, match=told):
            check_alike(batch, first)


def test_on_a_processor_nothing_is_recorded(tmp_path: Path) -> None:
    plain, asked = Line(), Line()
    train(plain, CONFIG, tmp_path / "plain")
    train(asked, replace(CONFIG, graph=True), tmp_path / "asked")
    for a, b in zip(weights(plain), weights(asked), strict=True):
        assert torch.equal(a, b)
