"""Differences of all kinds beside LoRA: the same laid over a layer, merged into it, and per row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from backends.harness import INSTALLED, give, relative, run, take, tree, values

from underdraw import backends
from underdraw.backends.adapted import Adapted
from underdraw.backends.deltas import LowRank, Sum, on_rows
from underdraw.backends.lycoris import (
    Decomposed,
    Factors,
    Hadamard,
    Kronecker,
    OfInput,
    Rescaled,
    Rotated,
)
from underdraw.backends.shapes import Shape, trace
from underdraw.errors import ControlError

EVERY = pytest.mark.parametrize("name", INSTALLED)
BOUND = 1e-5
OUT, INSIDE, ROWS = 12, 8, 3
LAYERS = {
    "linear": (lambda nn, p, x: nn.linear(p.block.leaf, x, OUT), (ROWS, 5, INSIDE)),
    "bare": (lambda nn, p, x: nn.linear(p.block.leaf, x, OUT, False), (ROWS, INSIDE)),
    "conv": (lambda nn, p, x: nn.conv2d(p.block.leaf, x, OUT, 3, 2), (ROWS, INSIDE, 5, 6)),
}


def numbers(seed, *shape):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def turned(*shape):
    """Orthogonal matrices."""
    return np.linalg.qr(numbers(7, *shape).astype(np.float64))[0].astype(np.float32)


def kinds(name, leaf):
    """A delta of each kind for a leaf, beside the weight it makes in float64."""
    kernel = leaf.shape[2:]
    columns = INSIDE * int(np.prod(kernel, dtype=int))
    ones = (1,) * len(kernel)

    def array(seed, *shape):
        return give(name, numbers(seed, *shape))

    def factors(seed, out, inside):
        return Factors(array(seed, out, 2), array(seed + 1, 2, inside))

    low = LowRank(array(20, 2, INSIDE, *kernel), array(21, OUT, 2, *ones), 0.5)
    made = {
        "loha": Hadamard(factors(1, OUT, columns), factors(3, OUT, columns)),
        "lokr": Kronecker(array(5, 3, 2), factors(6, 4, columns // 2)),
        "lokr whole": Kronecker(factors(5, 3, 2), array(6, 4, 4, *kernel)),
        "glora": Sum((OfInput(array(8, 2, INSIDE), array(9, INSIDE, 2)), low)),
        "ia3": Rescaled(array(10, OUT)),
        "ia3 on input": Rescaled(array(10, INSIDE), True),
        "oft": Rotated(give(name, turned(1, 3, 4, 4)), array(11, OUT)),
        "boft": Rotated(give(name, turned(2, 6, 2, 2)), None, True),
        "dora": Decomposed(low, give(name, 1 + np.abs(numbers(12, OUT)))),
        "dora on input": Decomposed(low, give(name, 1 + np.abs(numbers(12, INSIDE))), True),
    }
    if kernel:

        def apart(seed, out, inside):
            return replace(factors(seed, out, inside), mid=array(seed + 2, 2, 2, *kernel))

        made["loha with a kernel"] = Hadamard(apart(30, OUT, INSIDE), apart(33, OUT, INSIDE))
        made["lokr with a kernel"] = Kronecker(array(5, 3, 2), apart(40, 4, 4))
    return made


def single(name, key):
    """A layer: its leaf, its path, an input, and what it gives under each of several deltas."""
    call, shape = LAYERS[key]
    layout = trace(lambda nn, p: call(nn, p, Shape(*shape)))
    ((path, leaf),) = layout.leaves.items()
    tensors = values(layout)

    def answers(deltas, x):  # on JAX as one compiled program
        p = tree(name, layout, tensors)
        trees = [p if delta is None else Adapted(p, {path: delta}) for delta in deltas]

        def every(nn, trees, x):
            return [call(nn, one, x) for one in trees]

        found = run(name, every, trees, [give(name, x)], compiled=True)
        return [take(name, one) for one in found]

    def merged(delta, x):  # on PyTorch, where an operation is not compiled for each shape
        nn, weight = backends.get("torch").operations, give("torch", tensors[f"{path}.weight"])
        more, _ = delta.difference(nn, leaf, weight)
        new = {**tensors, f"{path}.weight": tensors[f"{path}.weight"] + take("torch", more)}
        return take("torch", call(nn, tree("torch", layout, new), give("torch", x)))

    return leaf, path, numbers(50, *shape) * 2, answers, merged


@EVERY
@pytest.mark.parametrize("key", LAYERS)
def test_laid_over_or_merged(name, key):
    leaf, _, x, answers, merged = single(name, key)
    there, reference = kinds(name, leaf), kinds("torch", leaf)
    (plain,) = answers([None], x)
    for scale in (-0.7, 0.0):
        laid = answers([delta.weighed(scale) for delta in there.values()], x)
        for (kind, delta), found in zip(reference.items(), laid, strict=True):
            wanted = merged(delta.weighed(scale), x)
            assert relative(found, wanted) <= BOUND, kind
            assert (relative(plain, wanted) > 0.01) == bool(scale), kind


@EVERY
@pytest.mark.parametrize("key", ["linear", "conv"])
def test_each_row_has_its_own_amount(name, key):
    leaf, path, x, answers, merged = single(name, key)
    nn, reference = backends.get(name).operations, kinds("torch", leaf)
    amounts = [0.5, 0.0, -2.0]
    there = kinds(name, leaf)
    mixed = [delta.weighed(give(name, np.array(amounts, np.float32))) for delta in there.values()]
    limited = [on_rows(nn, {path: delta}, 1, 2, ROWS)[path] for delta in there.values()]
    (plain,) = answers([None], x)
    for kind, rows, one in zip(there, answers(mixed, x), answers(limited, x), strict=True):
        for i, amount in enumerate(amounts):
            wanted = merged(reference[kind].weighed(amount), x)
            assert relative(rows[i], wanted[i]) <= BOUND, kind
        wanted = merged(reference[kind], x)
        assert relative(one[1], wanted[1]) <= BOUND, kind
        assert relative(one[[0, 2]], plain[[0, 2]]) <= BOUND, kind
    for delta in mixed:
        assert delta.by_row
        with pytest.raises(ControlError, match="rows differently"):
            delta.difference(nn, leaf, None)


def test_rotations_keep_lengths():
    """What OFT is about: angles between the columns of a weight stay."""
    leaf, _, _, _, _ = single("torch", "linear")
    nn, weight = backends.get("torch").operations, give("torch", numbers(3, OUT, INSIDE))
    for kind in ("oft", "boft"):
        delta = replace(kinds("torch", leaf)[kind], factors=None)
        new = weight + delta.difference(nn, leaf, weight).weight
        assert relative(take("torch", new.T @ new), take("torch", weight.T @ weight)) <= 1e-5


def test_what_does_not_fit_is_named():
    leaf, *_ = single("torch", "conv")

    def array(*shape):
        return give("torch", numbers(0, *shape))

    wrong = {
        "loha": {"first": Factors(array(OUT, 2), array(2, 3))},
        "lokr": {"first": array(5, 2)},
        "ia3": {"factors": array(OUT + 1)},
        "oft": {"blocks": array(1, 2, 4, 4)},
        "boft": {"blocks": array(4, 6, 2, 2)},
        "dora": {"magnitude": array(INSIDE)},
    }
    for kind, change in wrong.items():
        delta = kinds("torch", leaf)[kind]
        delta.check(leaf)
        with pytest.raises(ControlError, match=rf"{type(delta).__name__} has .*\(12, 8, 3, 3\)"):
            replace(delta, **change).check(leaf)
        with pytest.raises(ControlError, match="fits linear and conv2d, not group_norm"):
            delta.check(replace(leaf, kind="group_norm", shape=(OUT,)))
