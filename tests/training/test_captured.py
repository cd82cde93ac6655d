"""Steps that a device computes as one program: what the loop does around them.

CUDA's recording itself needs a GPU; what is recorded is `_Run.gradients`, which runs here as it is.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.line import CONFIG, Line, weights

from underdraw.errors import InputError, NonFiniteError
from underdraw.training import loop
from underdraw.training.captured import Captured, PendingFigures, check_alike, quick_products
from underdraw.training.loop import LATE, _Run, train
from underdraw.training.parallel import Group

MATMUL = torch.backends.cuda.matmul


def running(task: Line, folder: Path) -> _Run:
    """A run whose steps are read late, as those of a captured one."""
    run = _Run(task, CONFIG, folder, torch.device("cpu"), Group())

    class Recorded(Captured):
        def record(self, batch, device):
            if not self.first:
                self.function(dict(batch))
                self.first = dict(batch)

        def __call__(self, batch):
            for p in self.parameters:
                p.grad = None
            return self.function(dict(batch))

    run.captured = Recorded(run.gradients, run.parameters)
    run.pending = PendingFigures(run.parameters, LATE)
    return run


def test_figures_read_late_change_nothing(tmp_path: Path) -> None:
    plain, late = Line(), Line()
    train(plain, CONFIG, tmp_path / "plain")
    run = running(late, tmp_path / "late")
    (tmp_path / "late").mkdir()
    for step in range(CONFIG.steps):
        assert not run.advance(False)
        assert len(run.pending.waiting) == min(step + 1, LATE)
    run.save()
    assert not run.pending.waiting
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


def test_no_preview_looks_at_weights_that_turn_out_to_be_no_numbers(tmp_path: Path) -> None:
    task = Line()
    run = running(task, tmp_path)
    task.poison = 0
    run.advance(False)
    with pytest.raises(NonFiniteError, match="step 0"):
        run.preview()
    assert task.previews == []


def test_the_bar_shows_no_loss_before_one_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    class Bar(nullcontext):
        def update(self) -> None:
            shown.append("")

        def set_postfix(self, loss: str, refresh: bool) -> None:
            shown[-1] = loss

    bar = Bar()
    bar.enter_result = bar
    monkeypatch.setattr(loop, "_bar", lambda *how: bar)
    monkeypatch.setattr(loop, "_Run", lambda task, config, folder, *how: running(task, folder))
    train(Line(), CONFIG, tmp_path)
    assert [bool(loss) for loss in shown] == [False] * LATE + [True] * (CONFIG.steps - LATE)
    assert "nan" not in shown


def test_a_run_that_has_ended_holds_no_recording(tmp_path: Path) -> None:
    run = running(Line(), tmp_path)
    held = weakref.ref(run.captured)
    run.close()
    assert held() is None


def test_the_host_waits_for_figures_that_no_event_tells_of() -> None:
    asked: list[bool] = []

    class Elsewhere(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.copy_:
                asked.append((kwargs or {}).get("non_blocking", False))
            return super().__torch_function__(func, types, args, kwargs)

    pending = PendingFigures([], 0)
    pending.add(0, torch.tensor([1.0, 2.0]).as_subclass(Elsewhere))
    assert list(pending.known()) == [(0, [1.0, 2.0])] and asked == [False]


@pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="of newer versions of PyTorch")
def test_who_said_how_products_are_computed_is_heard() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with quick_products(cuda):
        assert MATMUL.allow_tf32
    assert not MATMUL.allow_tf32
    before, MATMUL.fp32_precision = MATMUL.fp32_precision, "tf32"
    try:
        with quick_products(cpu), quick_products(cuda):
            assert MATMUL.fp32_precision == "tf32"
        assert MATMUL.fp32_precision == "tf32"
    finally:
        MATMUL.fp32_precision = before


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
