"""Every operation, on every installed backend, against the numpy reference in float64."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from inspect import isfunction, signature
from typing import Any

import numpy as np
import pytest
from backends.cases import CASES, Case
from backends.harness import (
    INSTALLED,
    PRECISIONS,
    dtype_name,
    give,
    relative,
    rounded,
    run,
    take,
    tree,
    values,
)
from backends.reference import Reference

from underdraw import backends
from underdraw.backends.contract import Operations
from underdraw.backends.node import grow
from underdraw.backends.shapes import Path, Shape, Shapes, trace

OPERATIONS = {
    name for name, value in vars(Operations).items() if isfunction(value) and name[0] != "_"
}
EVERYWHERE = pytest.mark.parametrize("case", CASES, ids=str)
TOLERANCE = {
    "float32": 2e-6,  # a dozen roundings of 6e-8, relative to the largest number of the result
    "float16": 2**-10,  # one rounding of the result, one of a step before it
    "bfloat16": 2**-7,
}


def draw(case: Case, dtype: str) -> list[np.ndarray]:
    """Inputs that `dtype` holds exactly, so that only the operation itself can round."""
    drawn = [make(np.random.default_rng(i + 1)) for i, make in enumerate(case.inputs)]
    return [rounded(x, dtype) if x.dtype.kind == "f" else x for x in drawn]


def layout_of(case: Case, inputs: list[np.ndarray]):
    return trace(lambda nn, p: case.call(nn, p, *(Shape(*x.shape) for x in inputs)))


def expected(case: Case, inputs: list[np.ndarray], dtype: str) -> np.ndarray:
    reference = Reference()
    reference.lowest = {
        "float32": float(np.finfo(np.float32).min),
        "float16": float(np.finfo(np.float16).min),
        "bfloat16": -float.fromhex("0x1.fep127"),
    }[dtype]
    drawn = values(layout_of(case, inputs))
    tensors = grow({name: rounded(value, dtype) for name, value in drawn.items()})
    return np.asarray(case.call(reference, tensors, *inputs), np.float64)


def wanted_dtype(case: Case, dtype: str) -> str:
    return {"parameters": dtype, "integer": "int", None: dtype}.get(case.fixed, case.fixed)


def test_every_operation_has_a_case():
    assert {c.operation for c in CASES} - {"python"} == OPERATIONS


@pytest.mark.parametrize(
    "implementation", [Reference, Shapes, *(type(backends.get(n).operations) for n in INSTALLED)]
)
def test_backends_define_exactly_the_contract(implementation):
    settings = {"attention_slice", "precision", "leaves", "lowest"}
    public = {name for name in dir(implementation) if name[0] != "_"}
    assert public - settings - {"name"} == OPERATIONS


@pytest.mark.parametrize("name", INSTALLED)
def test_backends_are_values_with_settings(name):
    operations = backends.get(name).operations
    assert operations.name == name
    assert isinstance(operations, Operations)
    assert operations == type(operations)()
    assert hash(operations) == hash(type(operations)())
    assert {f.name for f in fields(operations)} <= {"name", "attention_slice", "precision"}


@pytest.mark.parametrize("name", INSTALLED)
def test_methods_take_the_arguments_of_the_contract(name):
    for operation in OPERATIONS:
        method = getattr(type(backends.get(name).operations), operation)
        if isfunction(method) and "self" in signature(method).parameters:
            ours, contract = (
                list(signature(f).parameters) for f in (method, getattr(Operations, operation))
            )
            assert ours == contract, operation


@EVERYWHERE
def test_shapes_alone(case):
    inputs = draw(case, "float32")
    out = case.call(Shapes({}), Path(), *(Shape(*x.shape) for x in inputs))
    assert tuple(out.shape) == expected(case, inputs, "float32").shape


@dataclass(frozen=True)
class Made:
    given: list[Any]
    """Inputs on the backend, after the call."""
    out: Any


def made(name: str, dtype: str, cases: Sequence[Case]) -> dict[Case, Made]:
    """What operations give on a backend, all in one program."""
    given, parameters = [], []
    for case in cases:
        inputs = draw(case, dtype)
        layout = layout_of(case, inputs)
        parameters.append(tree(name, layout, values(layout), dtype))
        given.append([give(name, x, dtype) for x in inputs])

    def every(nn: Any, p: Any, given: Any) -> Any:
        return [
            case.call(nn, one, *inputs) for case, one, inputs in zip(cases, p, given, strict=True)
        ]

    outputs = run(name, every, parameters, [given], compiled=True)
    found = zip(given, outputs, strict=True)
    return dict(zip(cases, (Made(*one) for one in found), strict=True))


@cache
def made_on_jax(dtype: str) -> dict[Case, Made]:
    """One program of all operations is compiled in an eighth of the time that one each takes."""
    return made("jax", dtype, CASES)


@EVERYWHERE
@pytest.mark.parametrize("name, dtype", PRECISIONS)
def test_numbers_and_dtype(name, dtype, case):
    inputs = draw(case, dtype)
    found = (made_on_jax(dtype) if name == "jax" else made(name, dtype, [case]))[case]
    out, wanted = found.out, wanted_dtype(case, dtype)
    error = relative(take(name, out), expected(case, inputs, dtype))
    assert error <= TOLERANCE[dtype] * case.scale
    assert dtype_name(out).startswith(wanted) if wanted == "int" else dtype_name(out) == wanted
    for before, after in zip(inputs, found.given, strict=True):
        assert np.array_equal(take(name, after), before), "an input was modified"


@EVERYWHERE
@pytest.mark.parametrize("name", [name for name in INSTALLED if name != "jax"])  # it has no views
def test_views(name, case):
    """Inputs that are views: transposed, and every second number of a larger array."""
    nn = backends.get(name).operations
    inputs = draw(case, "float32")
    layout = layout_of(case, inputs)
    p = tree(name, layout, values(layout))

    def transposed(x: np.ndarray):
        axes = tuple(range(x.ndim))[::-1]
        return nn.permute(give(name, x.transpose(axes)), axes)

    def strided(x: np.ndarray):
        wide = np.repeat(x, 2, axis=-1)
        wide[..., 1::2] = 7
        every_second = (*(slice(None) for _ in x.shape[1:]), slice(None, None, 2))
        return give(name, wide)[every_second]

    for view in (transposed, strided):
        out = case.call(nn, p, *(view(x) for x in inputs))
        assert (
            relative(take(name, out), expected(case, inputs, "float32"))
            <= TOLERANCE["float32"] * case.scale
        )
