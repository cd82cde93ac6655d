"""Trees: leaves taken out and put back, structures that are equal where programs are."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from backends.harness import give, take

from underdraw import backends
from underdraw.backends.tree import alike, flatten, map_arrays, signature, unflatten
from underdraw.networks.gligen.config import GroundingConfig

EVERY = pytest.mark.parametrize("name", backends.installed())


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True, eq=False)
class Hook:
    array: Any
    strength: float = 0.5
    count: int = 2
    owner: Any = field(default=None, metadata={"static": True})


def tree(name, strength=0.5, count=2, owner=None):
    array = give(name, np.arange(6.0).reshape(2, 3))
    hook = Hook(array, strength, count, owner)
    return {"a": [hook, None, "text"], "b": Pair(array * 2, (True, 1.5)), "c": ()}


@EVERY
def test_there_and_back(name):
    leaves, structure = flatten(tree(name))
    assert [type(leaf) is float for leaf in leaves] == [False, True, False, True]
    made = unflatten(structure, leaves)
    assert type(made["a"][0]) is Hook and type(made["b"]) is Pair
    assert made["a"][0].array is leaves[0] and made["a"][1:] == [None, "text"]
    assert made["b"].second == (True, 1.5) and made["c"] == ()
    doubled = map_arrays(lambda x: x * 2, made)
    assert take(name, doubled["b"].first).tolist() == [[0, 4, 8], [12, 16, 20]]
    assert doubled["a"][0].strength == 0.5


@EVERY
def test_other_numbers_are_no_other_structure(name):
    first, structure = flatten(tree(name))
    second, same = flatten(tree(name, strength=0.7))
    assert structure == same and hash(structure) == hash(same)
    assert signature(first) == signature(second)
    for other in (tree(name, count=3), tree(name, owner=1), {**tree(name), "d": 1}):
        assert flatten(other)[1] != structure
    shorter = map_arrays(lambda x: x[:1], tree(name))
    assert flatten(shorter)[1] == structure
    assert signature(flatten(shorter)[0]) != signature(first)


@EVERY
def test_the_very_same_arrays(name):
    one = tree(name)
    leaves, structure = flatten(one)
    assert alike(one, unflatten(structure, leaves))
    assert not alike(one, tree(name))
    assert not alike(one, unflatten(structure, [leaves[0], 0.6, *leaves[2:]]))


def test_configs_and_what_has_no_hash_are_structure():
    config = GroundingConfig()
    leaves, structure = flatten((config, np.array([1.0])))
    assert len(leaves) == 1 and unflatten(structure, leaves)[0] is config
    assert flatten((GroundingConfig(), leaves[0]))[1] == structure

    class Odd:
        __hash__ = None  # type: ignore[assignment]

    odd = Odd()
    assert flatten(odd)[1] == flatten(odd)[1] != flatten(Odd())[1]
    assert unflatten(flatten(odd)[1], []) is odd


def test_parameter_trees_are_leaves():
    from engines.runs import unet

    model = unet()
    (leaf,), structure = flatten({"network": model})
    assert leaf is model and unflatten(structure, [model]) == {"network": model}
