"""Every call of every pipeline, solver and control asks an engine for its networks, and runs on one
that was written outside of the package."""

import importlib.util
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from underdraw.backends.torch_operations import Torch
from underdraw.backends.tree import flatten, is_array, is_parameters, signature, unflatten
from underdraw.engines.eager import Eager

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("calls", ROOT / "scripts" / "record_calls.py")
calls = importlib.util.module_from_spec(spec)
spec.loader.exec_module(calls)

DIRECTLY = {"inversions", "half"}
"""Null-text inversion differentiates through the network by itself; bfloat16 has no other side."""
CHOSEN = {"diffedit_upwards", "solver_ddpm"}
"""A guided inversion, and clipping at each step, make of rounding what they like."""


def arrays(name):
    torch.manual_seed(11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = calls.CALLS[name]()
    listed = made if isinstance(made, list) else [made]
    return [x.numpy() if hasattr(x, "numpy") else np.asarray(x) for x in listed]


@pytest.mark.parametrize("name", sorted(set(calls.CALLS) - {"inversions"}))
def test_no_network_runs_beside_the_engine(name, monkeypatch):
    """Layers are computed inside of `run` and nowhere else."""
    depth, outside, seen = [0], [], []
    run, linear, conv2d = Eager.run, Torch.linear, Torch.conv2d

    def asked(self, question):
        depth[0] += 1
        seen.append(question.program.name)
        try:
            return run(self, question)
        finally:
            depth[0] -= 1

    def watched(operation):
        def layer(self, p, *arguments, **options):
            if not depth[0]:
                outside.append(p)
            return operation(self, p, *arguments, **options)

        return layer

    monkeypatch.setattr(Eager, "run", asked)
    monkeypatch.setattr(Torch, "linear", watched(linear))
    monkeypatch.setattr(Torch, "conv2d", watched(conv2d))
    arrays(name)
    assert "unet" in seen and "clip.text" in seen
    assert not outside


@pytest.mark.parametrize("name", sorted(set(calls.CALLS) - DIRECTLY - CHOSEN))
def test_an_engine_in_float64(name, monkeypatch):
    """It gets all that a program needs, so it may run it in another precision."""
    plain, networks = arrays(name), {}

    def double(network):
        key = id(network)
        if key not in networks:
            networks[key] = (network, deepcopy(network).double())
        return networks[key][1]

    def change(value, to):
        """A tree in another precision; parameters in it (grounding layers), too."""
        leaves, structure = flatten(value)
        changed = [
            double(leaf)
            if is_parameters(leaf)
            else leaf.to(to)
            if is_array(leaf) and leaf.is_floating_point()
            else leaf
            for leaf in leaves
        ]
        return unflatten(structure, changed)

    def run(self, question):
        model, inputs = double(question.model), change(tuple(question.inputs), torch.float64)
        return change(question.program(question.nn, model, model.config, *inputs), torch.float32)

    monkeypatch.setattr(Eager, "run", run)
    for mine, theirs in zip(arrays(name), plain, strict=True):
        if theirs.dtype.kind in "iub" or theirs.max() > 50:  # masks and pictures
            assert (np.abs(mine - theirs) > 1).mean() <= 0.02
        else:
            assert np.abs(mine - theirs).max() <= 2e-4 * np.abs(theirs).max()


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
