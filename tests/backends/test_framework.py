"""Every backend's module offers the names of the `Framework` protocol, and no others in silence."""

import re
from inspect import isclass, isfunction, signature
from pathlib import Path

import pytest

from underdraw import backends
from underdraw.backends.contract import Operations
from underdraw.backends.framework import EXTRAS, Framework

NAMES = {name for name in vars(Framework) if name[0] != "_"}
FUNCTIONS = {name for name in NAMES if isfunction(vars(Framework)[name])}
EVERY = pytest.mark.parametrize("name", backends.installed())


def test_every_backend_is_described():
    assert set(EXTRAS) == set(backends.NAMES)
    assert {"operations", "Root", "float32", "no_grad"} == NAMES - FUNCTIONS
    for name in NAMES:
        assert vars(Framework)[name].__doc__, f"{name} promises nothing"


@EVERY
def test_backends_offer_exactly_the_framework(name):
    module = backends.get(name)
    listed = module.__all__
    assert len(listed) == len(set(listed))
    assert set(listed) == NAMES | EXTRAS[name]
    for one in listed:
        assert hasattr(module, one)
    own = {
        key
        for key, value in vars(module).items()
        if key[0] != "_" and isfunction(value) and value.__module__ == module.__name__
    }
    assert own <= set(listed), "a public function that no protocol describes"


@EVERY
def test_functions_take_the_arguments_of_the_protocol(name):
    module = backends.get(name)
    for one in FUNCTIONS - {"move"}:  # PyTorch's takes whatever `nn.Module.to` takes
        promised = list(signature(vars(Framework)[one]).parameters)[1:]
        assert list(signature(getattr(module, one)).parameters) == promised, one
    assert isclass(module.Root)
    with module.no_grad():
        assert module.is_array(module.array([1.0]))


@EVERY
def test_what_backends_promise_is_documented(name):
    module = backends.get(name)
    for one in set(module.__all__) - {"operations", "Root", "float32", "no_grad"}:
        value = getattr(module, one)
        assert not callable(value) or value.__doc__, one


def test_the_page_lists_the_operations():
    """docs/frameworks.md tells of each, and of no other."""
    page = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text(encoding="utf-8")
    table = page.partition("## The closed list")[2].partition("## Add")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    listed = {name for name in vars(Operations) if name[0] != "_"} - {"name"}
    assert sorted(told) == sorted(listed)
