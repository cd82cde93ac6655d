"""Compiled programs give what programs give, and are compiled once for a structure."""

import pickle
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engines.runs import apart, begun, ended, unet
from pipelines.tiny import DEEP, SHORT

from underdraw import engines
from underdraw.backends import get, installed
from underdraw.backends.deltas import LowRank
from underdraw.controls import Control
from underdraw.engines.auto import Auto
from underdraw.engines.compiled import Compiled, Regional
from underdraw.engines.engine import Engine, Question, answered
from underdraw.errors import InputError, InputTypeError
from underdraw.networks.sites import Observed, Sites, UpTo, owner_field
from underdraw.networks.unet import CONTEXT, TIMES, UNET
from underdraw.sampling.windows import asked_together

JAX = pytest.mark.skipif("jax" not in installed(), reason="needs JAX")


@pytest.fixture(autouse=True)
def forget():
    torch.compiler.reset()


def by_dynamo(seen):
    """Compiles through PyTorch's tracer without the minutes that C++ takes: each graph is noted,
    and run as it was traced."""

    def backend(graph, inputs):
        seen.append(len(graph.graph.nodes))
        return graph.forward

    return lambda function: torch.compile(function, backend=backend, fullgraph=True)


@dataclass(frozen=True, eq=False)
class Warmer:
    """A hook on attention whose strength is a number, and which tells something."""

    by: float
    owner: Any = owner_field()  # noqa: RUF009

    def __call__(self, nn, place, x):
        return Observed(x * self.by, nn.mean(nn.float32(x), (0, 1, 2, 3)).reshape(1)[0])


@dataclass(frozen=True, eq=False)
class Acting(Control):
    """Acts at several sites, more or less strongly; tells what it saw."""

    by: float = 1.2
    told: Any = None
    leaves: Any = None

    def before_call(self, nn, carry, latents, call):
        hooks = {"self_attention": (UpTo(20, Warmer(self.by)),)}
        return latents, Sites(**hooks, leaves=self.leaves or {}), carry

    def after_step(self, nn, carry, latents, call):
        if self.told is not None:
            self.told.append(sum(float(extra.value) for extra in call.extras))
        return latents, carry


def low_rank(framework, seed=0):
    random = np.random.default_rng(seed)
    down, up = random.standard_normal((2, 32)), random.standard_normal((16, 2))
    array = lambda x: framework.array(x.astype(np.float32))  # noqa: E731
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    return {path: LowRank(array(down), array(up), 0.5)}


# -- PyTorch ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [Compiled, Regional])
def test_a_run_is_the_same_and_other_numbers_compile_nothing(kind):
    model, seen = unet(**SHORT), []
    engine = kind(by_dynamo(seen))
    assert apart(ended(model, 1, engine), ended(model, 1)) <= 1e-6
    graphs = len(seen)
    assert graphs > 0
    for options in ({"guidance": 7.0}, {"steps": 6}, {"solver": "DDIMScheduler"}):
        assert apart(ended(model, 2, engine, **options), ended(model, 2, **options)) <= 1e-6
    assert len(seen) == graphs


def test_a_block_is_compiled_once_for_all_places_of_its_shape():
    """Four levels of one width: fewer graphs than places."""
    same = {**DEEP, "block_out_channels": (16, 16, 16), "layers_per_block": 2}
    model, seen = unet(**same), []
    ended(model, 1, Regional(by_dynamo(seen)), steps=1)
    places = sum("transformer_blocks.0.attn1.to_q" in name for name, _ in model.named_modules())
    blocks = places + sum(name.endswith("conv2") for name, _ in model.named_modules())
    assert places == 11 and blocks > 2 * len(seen)


def test_a_control_acts_inside_compiled_programs():
    model, seen = unet(**SHORT), []
    told, plain = [], []
    engine = Compiled(by_dynamo(seen))
    made = ended(model, 1, engine, controls=[Acting(1.2, told)])
    assert apart(made, ended(model, 1, controls=[Acting(1.2, plain)])) <= 1e-6
    np.testing.assert_allclose(told, plain, rtol=1e-5)
    graphs = len(seen)
    ended(model, 2, engine, controls=[Acting(0.7)])  # another strength is another number
    assert len(seen) == graphs


def test_a_layer_in_float16_compiles_whole(monkeypatch):
    """It asks what the processor has, which PyTorch's tracer cannot follow."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
    nn, seen = get("torch").operations, []
    layer, x = torch.nn.Linear(8, 4).half(), torch.randn(3, 8).half()
    made = by_dynamo(seen)(lambda x: nn.linear(layer, x, 4))(x)
    assert torch.equal(made, nn.linear(layer, x, 4)) and len(seen) == 1


def test_a_wrapped_unet_is_honoured():
    """`torch.compile(unet)` in place of the UNet: its calls run compiled, as it was told to."""
    model, seen = unet(**SHORT), []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    wrapped = torch.compile(model, backend=backend, fullgraph=True)
    made = ended(wrapped, 1)
    assert len(seen) > 0
    assert apart(made, ended(model, 1)) <= 1e-6
    graphs = len(seen)
    ended(wrapped, 2)
    assert len(seen) == graphs


# -- JAX -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def jitted():
    """A network on JAX, the engine that ran it, and the latents."""
    model, engine = unet("jax", **SHORT), Compiled()
    return model, engine, ended(model, 1, engine)


@JAX
def test_jit_is_the_same_and_compiles_once_for_a_structure(jitted):
    """Another prompt, seed, guidance, strength, number of steps or solver compiles nothing."""
    (model, engine, made), reference = jitted, unet(**SHORT)
    assert apart(made, ended(reference, 1)) <= 1e-4
    programs = [program for program, _ in engine.compiled]
    assert programs[:3] == [CONTEXT, TIMES, UNET]
    already = len(programs)
    assert all(whole._compiled._cache_size() == 1 for whole in engine._programs.values())
    for options in ({"guidance": 7.0}, {"solver": "DPMSolverMultistepScheduler"}):
        assert apart(ended(model, 2, engine, **options), ended(reference, 2, **options)) <= 1e-4
    assert len(engine.compiled) == already
    assert all(whole._compiled._cache_size() == 1 for whole in engine._programs.values())
    controlled = lambda by, of, told=None: [  # noqa: E731
        Acting(by, told, low_rank(of._framework))
    ]
    told, plain = [], []
    made = ended(model, 3, engine, controls=controlled(1.3, model, told))
    expected = ended(reference, 3, controls=controlled(1.3, reference, plain))
    assert apart(made, expected) <= 1e-4
    np.testing.assert_allclose(told, plain, rtol=1e-3)
    count = len(engine.compiled)
    ended(model, 4, engine, controls=controlled(0.6, model))
    assert len(engine.compiled) == count
    assert all(whole._compiled._cache_size() == 1 for whole in engine._programs.values())


@JAX
def test_jit_shares_what_it_compiled_between_networks_of_one_config(jitted):
    first, engine, before = jitted
    count = len(engine.compiled)
    tensors = {
        name: t.derive(t.shape, lambda a: a * 0.9) for name, t in first.stored_tensors().items()
    }
    second, reference = (
        type(first)._written.from_tensors(first.config.to_dict(), tensors, backend=backend)
        for backend in ("jax", "torch")
    )
    made = ended(second, 1, engine)
    assert len(engine.compiled) == count
    assert apart(made, ended(reference, 1)) <= 1e-4
    assert apart(made, before) > 1e-2


@JAX
def test_auto_is_jit_on_jax(jitted):
    """And like it asked for whole loops there, which PyTorch has none of."""
    model, engine, made = jitted
    auto, count = Auto(), len(engine.compiled)
    auto._jit = engine
    assert apart(ended(model, 1, auto), made) == 0 and len(engine.compiled) == count
    assert engines.name_of(auto) == "jit" and "compiles" in auto.why
    runs = (SimpleNamespace(engine=auto, framework=get(name)) for name in ("jax", "torch"))
    assert [asked_together(run) for run in runs] == [True, False]


# -- engines from outside --------------------------------------------------------------------------
class Recording:
    """Remembers programs and shapes of what they were given."""

    def __init__(self):
        self.seen = []

    def run(self, question: Question) -> Any:
        from underdraw.backends.tree import flatten

        leaves, _ = flatten(question.inputs)
        self.seen.append((question.program.name, sum(hasattr(leaf, "shape") for leaf in leaves)))
        return question.program(
            question.nn, question.model, question.model.config, *question.inputs
        )


class Double:
    """Runs programs in float64: all that they need is in the question."""

    def __init__(self):
        self.networks = {}

    def run(self, question: Question) -> Any:
        from copy import deepcopy

        from underdraw.backends.tree import is_array, map_arrays

        key = id(question.model)
        if key not in self.networks:
            self.networks[key] = deepcopy(question.model).double()

        def change(to):
            return lambda x: x.to(to) if is_array(x) and x.is_floating_point() else x

        inputs = map_arrays(change(torch.float64), tuple(question.inputs))
        model = self.networks[key]
        return map_arrays(
            change(torch.float32), question.program(question.nn, model, model.config, *inputs)
        )


def test_an_engine_from_outside_is_an_engine():
    model, engine = unet(), Recording()
    assert isinstance(engine, Engine)
    assert np.array_equal(ended(model, 1, engine), ended(model, 1))
    names = [name for name, _ in engine.seen]
    assert names == ["unet.context", "unet.times", *["unet"] * 4]
    assert len(set(engine.seen[2:])) == 1  # the same structure in each call


def test_an_engine_in_float64_is_closer_to_the_truth_than_none():
    """Its predictions differ from float32's by rounding, no more and no less."""
    model = unet()
    made = ended(model, 1, Double(), controls=[Acting(1.2)])
    plain = ended(model, 1, controls=[Acting(1.2)])
    assert 0 < apart(made, plain) <= 1e-4


def test_engines_by_name():
    assert isinstance(engines.get("eager"), Engine)
    assert isinstance(engines.get("compiled"), Regional)
    assert isinstance(engines.get("jit"), Compiled)
    mine = Recording()
    assert engines.get(mine) is mine
    assert engines.get(None) is engines.get("eager")
    with pytest.raises(InputError, match=r"engine='fast' is not known; allowed: 'eager', "):
        engines.get("fast")
    with pytest.raises(InputTypeError, match=r"engine=3 .*'eager'"):
        engines.get(3)


@JAX
def test_blocks_are_not_compiled_on_jax():
    with pytest.raises(InputError, match=r"'compiled' .* 'jax' does not; .*'eager', 'jit'"):
        ended(unet("jax", **SHORT), 1, Regional())


def test_an_error_of_the_engine_ends_the_run():
    class Failing:
        def run(self, question):
            if question.program == UNET:
                raise RuntimeError("no more")
            return question.program(
                question.nn, question.model, question.model.config, *question.inputs
            )

    run = begun(unet(), 1, engine=Failing())
    with pytest.raises(RuntimeError, match="no more"):
        next(answered(run, Failing()))
    with pytest.raises(StopIteration):
        next(run)


def test_blocks_of_many_shapes_are_all_compiled():
    """PyTorch compiles a function for a few shapes and then no more."""
    model, seen = unet(**SHORT), []
    engine = Regional(by_dynamo(seen))  # which refuses to go on uncompiled
    with torch._dynamo.config.patch(recompile_limit=2):  # of 8
        for images in (1, 2):
            made = ended(model, images, engine, images=images, steps=1)
            assert apart(made, ended(model, images, images=images, steps=1)) <= 1e-6


@pytest.mark.parametrize("engine", [Compiled(abs), Regional(abs), engines.get()])
def test_engines_are_pickled_without_what_they_compiled(engine):
    for made in (pickle.loads(pickle.dumps(engine)), deepcopy(engine)):
        assert type(made) is type(engine) and getattr(made, "compiler", abs) is abs
    assert pickle.loads(pickle.dumps(engines.get())) is engines.get()
