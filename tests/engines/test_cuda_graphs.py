"""Programs recorded as CUDA graphs: once for a structure, anew when weights have moved.

Recording itself needs a GPU. Here it is played: what was recorded runs again on memory that stays
the same, inputs and outputs, as a graph does.
"""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from engines.runs import apart, ended, unet
from engines.test_compiled import Acting, low_rank
from pipelines.tiny import SHORT
from torch import nn

from underdraw import engines
from underdraw.controls import Control
from underdraw.engines.cuda_graphs import CudaGraphs
from underdraw.errors import InputError, InputTypeError
from underdraw.networks.sites import Sites


class Played:
    """As `backends.torch_graphs.Recording`, on the CPU."""

    def __init__(self, function, inputs, device):
        self.function, self.inputs = function, [one.clone() for one in inputs]
        self.outputs = [one.clone() for one in function(self.inputs)]

    def replay(self, inputs):
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        for held, made in zip(self.outputs, self.function(self.inputs), strict=True):
            held.copy_(made)
        return self.outputs


class Here(CudaGraphs):
    """Plays graphs on the CPU."""

    def _kind(self):
        return "cpu"

    def _make(self, framework, function, arrays, device):
        return Played(function, arrays, device)


def steps(engine):
    """Recordings of the UNet."""
    return sum(program.name == "unet" for program, _ in engine.recorded)


def test_other_numbers_record_nothing():
    model, engine = unet(**SHORT), Here()
    for seed, options in enumerate(
        (
            {},
            {"guidance": 7.0},
            {"steps": 6},
            {"solver": "DDIMScheduler"},
            {"solver": "DPMSolverMultistepScheduler"},  # which looks back at earlier outputs
        )
    ):
        assert torch.equal(
            torch.as_tensor(ended(model, seed, engine, **options)),
            torch.as_tensor(ended(model, seed, **options)),
        )
        assert steps(engine) == 1
    ended(model, 1, engine, images=3)
    ended(model, 1, engine, size=(6, 9))
    assert steps(engine) == 3


def test_controls_act_inside_and_tell():
    model, engine, told, plain = unet(**SHORT), Here(), [], []
    made = ended(model, 1, engine, controls=[Acting(1.2, told)])
    assert apart(made, ended(model, 1, controls=[Acting(1.2, plain)])) == 0
    assert told == plain
    count = steps(engine)
    other = ended(model, 2, engine, controls=[Acting(0.7)])  # another strength is another number
    assert apart(other, ended(model, 2, controls=[Acting(0.7)])) == 0
    assert steps(engine) == count
    lora = low_rank(model._framework)
    made = ended(model, 1, engine, controls=[Acting(1.0, leaves=lora)])
    assert apart(made, ended(model, 1, controls=[Acting(1.0, leaves=lora)])) == 0
    assert apart(made, ended(model, 1)) > 1e-4


def test_weights_are_read_where_they_are():
    model, engine = unet(**SHORT), Here()
    before = ended(model, 1, engine)
    with torch.no_grad():
        model.conv_in.weight.mul_(1.5)
    assert apart(ended(model, 1, engine), ended(model, 1)) == 0
    assert apart(ended(model, 1), before) > 1e-4 and steps(engine) == 1
    model.conv_in.weight = nn.Parameter(model.conv_in.weight.detach() * 2)  # lies elsewhere
    assert apart(ended(model, 1, engine), ended(model, 1)) == 0
    assert steps(engine) == 2
    model.conv_in = copy.deepcopy(model.conv_in)
    assert apart(ended(model, 1, engine), ended(model, 1)) == 0
    assert steps(engine) == 3


@dataclass(frozen=True, eq=False)
class ByFunction(Control):
    """Acts by a function, which may do what it likes."""

    def before_call(self, nn, carry, latents, call):
        return latents, Sites(self_attention=(lambda nn, place, x: x * 1.1,)), carry


@pytest.mark.parametrize("odd", ["function", "hook", "replaced"])
def test_what_could_change_unseen_runs_as_it_is_written(odd, caplog):
    model, engine, controls = unet(**SHORT), Here(), []
    if odd == "function":
        controls = [ByFunction()]
    elif odd == "hook":
        model.conv_in.register_forward_hook(lambda module, given, made: made * 1.1)
    else:
        model.conv_in = nn.Sequential(model.conv_in)
        model.conv_in.weight = model.conv_in[0].weight
    with caplog.at_level(logging.WARNING):
        made = ended(model, 1, engine, controls=controls)
        assert apart(made, ended(model, 1, controls=controls)) == 0
    told = [record.message for record in caplog.records if "engine 'graph'" in record.message]
    assert len(told) == 1 and "unet runs as it is written" in told[0]
    assert not steps(engine)


def test_the_longest_unused_goes():
    model, engine = unet(**SHORT), Here(most=2)
    for images in (1, 2, 3, 2, 1):
        ended(model, 1, engine, images=images, steps=1)
    assert steps(engine) == 4  # of 1, 2, 3; and of 1, which went for 3
    assert len(engine._networks[model]) == 2


def test_where_there_is_no_cuda():
    with pytest.raises(InputError, match=r"engine='graph' records CUDA graphs.*on cpu.*'eager'"):
        ended(unet(**SHORT), 1, CudaGraphs())
    for wrong, kind in (({"most": 0}, InputError), ({"fused": 1}, InputTypeError)):
        with pytest.raises(kind, match=next(iter(wrong))):
            CudaGraphs(**wrong)


def test_names_and_copies():
    assert engines.name_of(engines.get("graph")) == "graph"
    assert engines.name_of(CudaGraphs(fused=True)) is None
    model, engine = unet(**SHORT), Here(most=5)
    ended(model, 1, engine, steps=1)
    for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine)), replace(engine)):
        assert twin.most == 5 and not twin.recorded
