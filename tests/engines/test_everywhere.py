"""Every call of every pipeline, solver and control asks an engine for its networks, and runs on one
that was written outside of the package."""

import importlib.util
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from underdraw.backends.torch_operations import Torch
from underdraw.backends.tree import flatten, is_array, is_parameters, signature, unflatten
from underdraw.engines.eager import EAGER, Eager

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("calls", ROOT / "scripts" / "record_calls.py")
calls = importlib.util.module_from_spec(spec)
spec.loader.exec_module(calls)

PLAIN = Eager.run
DIRECTLY = {"inversions", "half"}
"""Null-text inversion differentiates through the network by itself; bfloat16 has no other side."""
CHOSEN = {"diffedit_upwards", "solver_ddpm"}
"""A guided inversion, and clipping at each step, make of rounding what they like."""


@pytest.fixture(scope="module")
def recorded():
    """What the calls gave in float32, array by array (`tests/test_recorded_calls.py`)."""
    with np.load(ROOT / "tests" / "data" / "calls.npz") as arrays:
        return dict(arrays)


class Double:
    """Runs programs in float64: it gets all that they need. Counts how deep in it we are."""

    def __init__(self):
        self.networks, self.depth, self.seen = {}, 0, set()

    def double(self, network):
        key = id(network)
        if key not in self.networks:
            self.networks[key] = (network, deepcopy(network).double())
        return self.networks[key][1]

    def change(self, value, to):
        """A tree in another precision; parameters in it (grounding layers), too."""
        leaves, structure = flatten(value)
        changed = [
            self.double(leaf)
            if is_parameters(leaf)
            else leaf.to(to)
            if is_array(leaf) and leaf.is_floating_point()
            else leaf
            for leaf in leaves
        ]
        return unflatten(structure, changed)

    def run(self, question):
        self.seen.add(question.program.name)
        self.depth += 1
        try:
            return self.answer(question)
        finally:
            self.depth -= 1

    def answer(self, question):
        model = self.double(question.model)
        inputs = self.change(tuple(question.inputs), torch.float64)
        made = question.program(question.nn, model, model.config, *inputs)
        return self.change(made, torch.float32)


class Same(Double):
    """Runs programs as they are."""

    def answer(self, question):
        return PLAIN(EAGER, question)


@pytest.mark.parametrize("name", sorted(set(calls.CALLS) - {"inversions"}))
def test_every_network_runs_on_the_engine(name, monkeypatch, recorded):
    """Layers are computed inside of `run` and nowhere else, and an engine that runs them in another
    precision gives what was recorded."""
    exact = name not in DIRECTLY | CHOSEN
    engine, outside = Double() if exact else Same(), []

    def watched(operation):
        def layer(self, p, *arguments, **options):
            if not engine.depth:
                outside.append(p)
            return operation(self, p, *arguments, **options)

        return layer

    monkeypatch.setattr(Eager, "run", lambda self, question: engine.run(question))
    monkeypatch.setattr(Torch, "linear", watched(Torch.linear))
    monkeypatch.setattr(Torch, "conv2d", watched(Torch.conv2d))
    made = calls.arrays(name)
    assert engine.seen >= {"unet", "clip.text"}
    assert not outside
    for key, mine in made.items() if exact else ():
        theirs = recorded[key]
        assert mine.shape == theirs.shape, key
        if theirs.dtype.kind in "iub" or theirs.max() > 50:  # masks and pictures
            assert (np.abs(mine - theirs) > 1).mean() <= 0.02, key
        else:
            assert np.abs(mine - theirs).max() <= 2e-4 * np.abs(theirs).max(), key


def test_calls_of_one_structure_are_told_by_it(monkeypatch):
    """An engine that records structures: steps of a run are one, what is asked once another."""
    structures, run = [], Eager.run

    def recorded(self, question):
        leaves, structure = flatten(question.inputs)
        structures.append((question.program.name, structure, signature(leaves)))
        return run(self, question)

    monkeypatch.setattr(Eager, "run", recorded)
    calls.CALLS["solver_deis"]()
    steps = [entry for entry in structures if entry[0] == "unet"]
    assert len(steps) == 6 and len(set(steps)) == 1
    assert len(set(structures)) == 4  # texts, times, keys and values, steps
