"""The engine `openvino`: what programs give, once compiled per structure, never of old weights."""

import logging
import pickle
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engines.runs import apart, ended, unet
from engines.test_compiled import Warmer, low_rank
from pipelines import tiny
from pipelines.elsewhere import DEVICE

from underdraw import AttentionCache, DeepCache, backends, engines
from underdraw.backends import hardware, torch_leaves
from underdraw.backends.deltas import Full
from underdraw.controls import Control
from underdraw.engines.auto import Auto, choice
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question, answer
from underdraw.engines.kept import Kept
from underdraw.engines.openvino import OpenVino
from underdraw.errors import ControlError, InputError, InputTypeError
from underdraw.networks.program import Program
from underdraw.networks.sites import Sites, UpTo
from underdraw.networks.unet import UNET

EXACT = 1e-5
"""Of the largest value: sums in another order; 4.8e-6 were measured on a whole Stable Diffusion."""


def layers(nn, p, config, x, more=0.0):
    """Six layers of the text tower, which compile in a tenth of the time of a UNet."""
    block = p.text_model.encoder.layers[0]
    y = nn.layer_norm(block.layer_norm1, x)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        y = y + nn.linear(getattr(block.self_attn, name), y, tiny.WIDTH)
    y = nn.linear(block.mlp.fc2, nn.gelu(nn.linear(block.mlp.fc1, y, 48)), tiny.WIDTH)
    if callable(more):
        return more(nn, y)
    return {"sum": y + more, "mean": nn.mean(y, (1,))}


LAYERS = Program("layers", layers)


@pytest.fixture
def engine():
    return OpenVino(kept=None)


@pytest.fixture
def tower():
    """A network for `LAYERS`, always with the same numbers."""
    return tiny.components()["text_encoder"].requires_grad_(False)


def x(rows=2, seed=0):
    return torch.randn(rows, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))


def asked(model, *inputs, program=LAYERS):
    return Question(program, model, inputs, model.nn)


def off(a, b):
    """How far numbers are apart, beside the largest."""
    return apart(a.double().numpy(), b.double().numpy())


def equal(engine, question):
    """Whether an engine gives what the eager one gives, up to rounding."""
    made, plain = answer(engine, question), answer(EAGER, question)
    assert made["sum"].dtype == plain["sum"].dtype
    return off(made["sum"], plain["sum"]) <= EXACT


# -- what programs give
def test_other_numbers_are_the_same_graph(engine, tower):
    assert equal(engine, asked(tower, x()))
    assert all(equal(engine, asked(tower, x(seed=seed), by)) for seed, by in ((1, 0.5), (2, -3.0)))
    assert len(engine.compiled) == 2  # with a number, and without
    view = x(seed=3).mT.contiguous().mT
    assert equal(engine, asked(tower, view, 0.5)) and len(engine.compiled) == 2
    assert equal(engine, asked(tower, x(rows=3), 0.5)) and len(engine.compiled) == 3
    made = answer(engine, asked(tower, x()))
    before = made["mean"].clone()
    answer(engine, asked(tower, x(seed=4)))
    assert torch.equal(made["mean"], before)  # outputs are not written into again


@dataclass(frozen=True, eq=False)
class Louder:
    """Acts at whatever site it is put into: a hook that is data."""

    by: Any

    def __call__(self, nn, *arguments):
        *_, x = arguments
        return x * self.by


@dataclass(frozen=True, eq=False)
class Beginning:
    """A first convolution of its own."""

    weight: Any

    def __call__(self, nn, p, x):
        return nn.conv2d(p, x, 16, 3) + nn.clip(x[:, :1] * self.weight, -0.5, 0.5)


@dataclass(frozen=True, eq=False)
class Turned:
    """At `join`."""

    by: Any

    def __call__(self, nn, place, hidden, skip):
        return hidden * self.by, skip - nn.mean(hidden, (1, 2, 3))


@dataclass(frozen=True, eq=False)
class Everywhere(Control):
    """Acts at every site of a UNet of one level, and keeps what it is told."""

    by: float
    told: list
    leaves: Any

    def before_call(self, nn, carry, latents, call):
        by, random = self.by, torch.Generator().manual_seed(1)
        array = lambda *shape: torch.randn(shape, generator=random) * by  # noqa: E731
        return (
            latents,
            Sites(
                after_self_attention=(Louder(by),),
                self_attention=(UpTo(50, Warmer(by)), Louder(torch.full((1, 1, 45, 1), by))),
                cross_attention=(Warmer(by),),
                beside_cross_attention=(Louder(0.1 * by),),
                down=(Louder(array(1, 16, 1, 1)),),
                join=(Turned(by),),
                down_residuals=[array(4, 16, 5, 9), array(1, 16, 1, 1)],
                mid_residual=array(4, 16, 5, 9),
                conv_in=Beginning(array(1, 1, 5, 1)),
                model_input=(Louder(by),),
                leaves=self.leaves,
            ),
            carry,
        )

    def after_step(self, nn, carry, latents, call):
        self.told.append([float(extra.value) for extra in call.extras])
        return latents, carry


def test_every_site_of_a_call(engine):
    """In one graph, for another strength, too; what hooks tell comes out."""
    model, random = unet(**tiny.ONE_LEVEL), torch.Generator().manual_seed(3)
    leaves = {
        **low_rank(model._framework),
        "mid_block.resnets.0.norm1": Full(torch.ones(16), torch.ones(16), 0.3),
        "down_blocks.0.resnets.0.conv1": Full(
            0.1 * torch.randn(16, 16, 3, 3, generator=random), None, torch.tensor([0, 1.0, 2, 3])
        ),
    }
    for by in (1.2, 0.7):
        told, plain = [], []
        made = ended(model, 1, engine, controls=[Everywhere(by, told, leaves)], steps=2)
        expected = ended(model, 1, controls=[Everywhere(by, plain, leaves)], steps=2)
        assert apart(made, expected) <= EXACT
        np.testing.assert_allclose(told, plain, rtol=1e-4)
        assert len(told) == 2 and len(told[0]) > 2
    assert [program for program, _ in engine.compiled] == [UNET]


def test_calls_in_part(engine):
    """What a call tells and another takes as known: a graph for each kind of call."""
    model = unet(**tiny.ONE_LEVEL)
    for way, kinds in ((DeepCache(2), 2), (AttentionCache(0.5), 3)):
        before, controls = len(engine.compiled), [way.control()]
        made = ended(model, 1, engine, controls=controls, steps=10)
        assert (
            apart(made, ended(model, 1, controls=controls, steps=10)) <= 4 * EXACT
        )  # of ten calls
        assert len(engine.compiled) - before == kinds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(engine, tower, dtype):
    """Computed in float32 on weights as they are stored: nearer to the truth than PyTorch."""
    truth = answer(EAGER, asked(tower.to(torch.float64), x().double()))["sum"]
    model = tower.to(dtype)
    exact = answer(EAGER, asked(deepcopy(model).to(torch.float64), x().to(dtype).double()))["sum"]
    made = answer(engine, asked(model, x().to(dtype)))["sum"]
    plain = answer(EAGER, asked(model, x().to(dtype)))["sum"]
    assert made.dtype == dtype and off(made, truth) <= 0.1
    assert off(made, exact) <= min(off(plain, exact), torch.finfo(dtype).eps)  # of the result


def test_bfloat16_products_where_they_pay(monkeypatch, tower):
    hints = []
    for pays in (False, True):
        monkeypatch.setattr(hardware, "bfloat16_pays", lambda pays=pays: pays)
        for precision in ("auto", "float32", "bfloat16"):
            how = OpenVino(precision, kept=None)._settings(tower.to(torch.bfloat16))
            hints.append(how["INFERENCE_PRECISION_HINT"])
    assert hints == ["f32", "f32", "bf16", "bf16", "f32", "bf16"]
    assert OpenVino(kept=None)._settings(tower.float())["INFERENCE_PRECISION_HINT"] == "f32"


# -- weights that change
def writes(tower):
    """Ways to give a layer other numbers."""
    layer = tower.text_model.encoder.layers[0].mlp.fc1
    weight = layer.weight

    def in_place():
        with torch.no_grad():
            weight.add_(0.1)

    def by_data():
        weight.data += 0.1

    def one_number():
        weight.data[3, 5] += 3.0

    def rows_change_places():
        weight.data[[2, 7]] = weight.data[[7, 2]]

    def other_data():
        weight.data = weight.data * 1.5

    def a_turned_view():
        attention = tower.text_model.encoder.layers[0].self_attn.q_proj
        attention.weight.data = attention.weight.data.T

    def another_parameter():
        layer.weight = torch.nn.Parameter(weight.detach() * 1.5, False)

    def another_layer():
        made = torch.nn.Linear(tiny.WIDTH, 48)
        tower.text_model.encoder.layers[0].mlp._modules["fc1"] = made.requires_grad_(False)

    def loaded():
        tower.load_state_dict({k: v * 1.1 for k, v in tower.state_dict().items()})

    return locals()


WAYS = (
    "in_place by_data one_number rows_change_places other_data a_turned_view another_parameter "
    "another_layer loaded"
).split()


@pytest.mark.parametrize("way", WAYS)
def test_changed_weights_are_seen(tower, way):
    watch = tower._framework.Watch(tower)
    assert watch.look(whole=True) is None
    state, fingerprint = watch.state, watch.fingerprint
    assert watch.look(whole=True) is None and watch.state == state
    writes(tower)[way]()
    assert watch.look(whole=True) is None
    assert watch.state != state and watch.fingerprint != fingerprint


def test_a_changed_weight_never_gives_old_numbers(engine, tower):
    for change in (lambda: None, writes(tower)["one_number"], writes(tower)["another_layer"]):
        change()
        assert equal(engine, asked(tower, x()))
    assert len(engine.compiled) == 3
    assert len(engine._networks[tower].graphs) == 1  # of old weights nothing is held


def test_a_step_looks_at_some_numbers_and_a_run_at_all(engine, tower):
    """Steps of a loop do not read all weights each time; what begins a run does."""
    step = Program("step", layers, in_blocks=True)
    begins = Program(
        "begins",
        lambda nn, p, config, x: nn.linear(p.text_model.encoder.layers[0].mlp.fc1, x, 48),
        once=True,
    )
    watch = lambda: engine._watches[tower].state  # noqa: E731
    answer(engine, asked(tower, x(), program=step))
    before = watch()
    writes(tower)["one_number"]()
    answer(engine, asked(tower, x(), program=begins))
    answer(engine, asked(tower, x(), program=step))
    assert watch() != before
    before = watch()
    writes(tower)["by_data"]()  # what adapters are merged by: most numbers change
    answer(engine, asked(tower, x(), program=step))
    assert watch() != before


def test_a_run_looks_at_all_numbers_one_time(engine, tower, monkeypatch):
    """What runs once in it does not look at all of them again."""
    summed: list[Any] = []
    watch = type(engine._watch(tower, tower._framework))
    plain = watch._summed
    monkeypatch.setattr(watch, "_summed", lambda self: summed.append(self) or plain(self))
    linear = lambda nn, p, config, x: nn.linear(p.text_model.encoder.layers[0].mlp.fc1, x, 48)  # noqa: E731
    once = [Program(name, linear, once=True) for name in ("times", "context")]
    step = Program("step", layers, in_blocks=True)
    for run in range(3):
        for program in (*once, step, step):
            answer(engine, asked(tower, x(), program=program))
        assert len(summed) == run + 1


def test_what_is_compiled_within_a_run_is_of_the_numbers_as_they_are(engine, tower):
    """On disk it is kept under their sums."""
    step = Program("step", layers, in_blocks=True)
    answer(engine, asked(tower, x(), program=step))
    watch = engine._watches[tower]
    before = watch.fingerprint
    writes(tower)["one_number"]()  # which a step does not see
    assert equal(engine, asked(tower, x(rows=3), program=step))
    assert watch.fingerprint != before
    assert equal(engine, asked(tower, x(), program=step))


# -- what no graph can hold
def hooked(tower):
    tower.text_model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *_: None)


def replaced(tower):
    class Other(torch.nn.Linear):
        pass

    made = Other(tiny.WIDTH, 48).requires_grad_(False)
    tower.text_model.encoder.layers[0].mlp._modules["fc1"] = made


def double(tower):
    tower.double()


def python(nn, y):
    return {"sum": y * (2.0 if float(y.reshape(-1)[0]) > 0 else 3.0)}


def foreign(nn, y):
    return {"sum": torch.relu(y)}


@dataclass(frozen=True, eq=False)
class Asks:
    """A value that a program calls."""

    call: Any


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (hooked, "'text_model.encoder.layers.0.mlp.fc1' is a Linear that is watched or replaced"),
        (replaced, "is a Other that is watched or replaced"),
        (double, "the network is in torch.float64"),
    ],
)
def test_networks_that_run_as_they_are_written(engine, tower, change, says, caplog):
    change(tower)
    given = x().to(tower.dtype)
    for _ in range(2):
        assert torch.equal(
            answer(engine, asked(tower, given))["sum"], answer(EAGER, asked(tower, given))["sum"]
        )
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and says in told[0] and "layers runs as it is written" in told[0]
    assert not engine.compiled


@pytest.mark.parametrize(("hook", "says"), [(python, "is no data"), (foreign, "is no data")])
def test_functions_run_as_they_are_written(engine, tower, hook, says, caplog):
    """They may hold what changes unseen."""
    question = asked(tower, x(), hook)
    for _ in range(2):
        assert torch.equal(answer(engine, question)["sum"], answer(EAGER, question)["sum"])
    assert [says in record.getMessage() for record in caplog.records] == [True]


@dataclass(frozen=True, eq=False)
class Hook:
    """Data, whose method does what no graph can."""

    kind: str

    def __call__(self, nn, y):
        return (python if self.kind == "python" else foreign)(nn, y)


@pytest.mark.parametrize(("kind", "says"), [("python", "asks for the numbers"), ("", "TypeError")])
def test_programs_that_cannot_be_expressed(engine, tower, kind, says, caplog):
    question = asked(tower, x(), Hook(kind))
    for _ in range(2):
        assert torch.equal(answer(engine, question)["sum"], answer(EAGER, question)["sum"])
    assert [says in record.getMessage() for record in caplog.records] == [True]
    assert not engine.compiled


def test_a_broken_contract_is_told_as_it_is(engine, caplog):
    model = unet(**tiny.ONE_LEVEL)

    @dataclass(frozen=True, eq=False)
    class Wrong(Control):
        def before_call(self, nn, carry, latents, call):
            return latents, Sites(mid_residual=torch.ones(1, 3, 1, 1)), carry

    with pytest.raises(ControlError, match="the residual at 'mid_residual' is"):
        ended(model, 1, engine, controls=[Wrong()])
    assert not caplog.records


def test_a_gradient_is_recorded_as_written(engine, tower, caplog):
    given = x().requires_grad_()
    engine.run(asked(tower, given))["sum"].sum().backward()
    assert given.grad is not None and "a gradient is recorded" in caplog.text


def test_programs_for_which_no_graph_is_worth_it(engine, tower, caplog):
    small = Program("small", lambda nn, p, c, x: nn.layer_norm(p.text_model.final_layer_norm, x))
    once = Program("once", layers, once=True)
    ordered = Program("ordered", layers, as_written=True)
    for program in (small, once, once, ordered):
        made, plain = (answer(e, asked(tower, x(), program=program)) for e in (engine, EAGER))
        if program is not small:
            made, plain = made["mean"], plain["mean"]
        assert torch.equal(made, plain)
    assert not engine.compiled and not caplog.records


# -- weights in 8 bits
@pytest.fixture
def small_ones_too(monkeypatch):
    monkeypatch.setattr(torch_leaves, "LEAST", 256)


def test_weights_in_8_bits_stay_so(small_ones_too, engine, tower):
    eight = tower.quantized("int8")
    assert equal(engine, asked(tower, x())) and equal(engine, asked(eight, x()))
    assert len(engine.compiled) == 2
    plain, small = (network.graphs for network in engine._networks.values())
    sizes = [next(iter(graphs.values())).size for graphs in (plain, small)]
    assert sizes[1] < 0.4 * sizes[0]  # scales and biases of so small layers count, too
    kinds = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in next(iter(small.values())).compiled._compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert kinds == ["i8"] * 6


def test_numbers_in_8_bits_that_change_are_seen(small_ones_too, engine, tower):
    eight = tower.quantized("int8")
    layer = eight.text_model.encoder.layers[0].mlp.fc1
    changes = (
        lambda: None,
        lambda: layer.scale.mul_(2),
        lambda: layer.codes.neg_(),
        lambda: setattr(layer, "codes", layer.codes.roll(1, 0)),
        lambda: layer.bias.data.add_(1),
    )
    for count, change in enumerate(changes, 1):
        change()
        assert equal(engine, asked(eight, x())) and len(engine.compiled) == count


def test_whole_networks_in_8_bits(small_ones_too):
    model, engine = unet(**tiny.ONE_LEVEL).quantized("int8"), OpenVino(kept=None)
    assert apart(ended(model, 1, engine), ended(model, 1)) <= 1e-4  # four steps under guidance
    assert len(engine.compiled) == 1
    given = {"controls": [low_rank_control()]}
    assert apart(ended(model, 2, engine, **given), ended(model, 2, **given)) <= 1e-4
    assert len(engine.compiled) == 2


def low_rank_control():
    """A difference over a layer in 8 bits."""
    from engines.test_compiled import Acting

    return Acting(1.2, None, low_rank(backends.get("torch")))


def test_graphs_in_8_bits_are_kept(small_ones_too, tower, tmp_path):
    kept, eight = Kept(tmp_path / "kept", 1 << 30), tower.quantized("int8")
    for loaded in (0, 1):
        engine = OpenVino(kept=kept)
        assert equal(engine, asked(eight, x())) and engine.loaded == loaded
    eight.text_model.encoder.layers[0].mlp.fc1.codes.neg_()
    engine = OpenVino(kept=kept)
    assert equal(engine, asked(eight, x())) and engine.loaded == 0


def test_inputs_in_8_bits_are_asked_for(small_ones_too, tower, monkeypatch):
    """Where the processor is faster by it, which is tried, and nowhere else."""
    eight, plain = tower.quantized("int8"), OpenVino(kept=None)
    for pays, group in ((False, 0), (True, 32)):
        monkeypatch.setattr(hardware, "int8_pays", lambda pays=pays: pays)
        engine = OpenVino("int8", kept=None)
        assert engine._settings(eight)["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == group
        assert plain._settings(eight)["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
        made, exact = (answer(one, asked(eight, x()))["sum"] for one in (engine, EAGER))
        assert off(made, exact) <= (0.05 if pays else EXACT)


def test_float8_runs_as_it_is_written(small_ones_too, engine, tower, caplog):
    assert equal(engine, asked(tower.quantized("float8"), x())) and not engine.compiled
    assert "keeps its weight in float8" in caplog.text


def test_whether_8_bits_pay(monkeypatch):
    told = {"avx512_vnni": True, "avx2": False}
    for flag, known in told.items():
        for seconds, pays in (([0.1, 1.0], True), ([0.9, 1.0], False)):
            left = iter(seconds)
            monkeypatch.setattr(hardware, "_least", lambda call, left=left: next(left))
            cpu = SimpleNamespace(flags=(flag,))
            monkeypatch.setattr(hardware, "processor", lambda cpu=cpu: cpu)
            hardware.int8_pays.cache_clear()
            assert hardware.int8_pays() == (pays and known)
    hardware.int8_pays.cache_clear()


# -- what is refused
def test_networks_elsewhere(engine, tower):
    elsewhere = SimpleNamespace(_framework=tower._framework, device=DEVICE)
    with pytest.raises(
        InputError, match=r"'openvino' computes on the CPU; .* is on meta:0; .*'eager'"
    ):
        engine.run(Question(LAYERS, elsewhere, (x(),), tower.nn))


def test_networks_of_another_backend(engine, tower):
    other = SimpleNamespace(_framework=SimpleNamespace())
    with pytest.raises(InputError, match=r"the backend 'torch', not of 'jax'; .*'eager', 'jit'"):
        engine.run(Question(LAYERS, other, (x(),), SimpleNamespace(name="jax")))


def test_bad_settings(monkeypatch):
    with pytest.raises(InputError, match=r"precision='int3' .* 'auto', 'float32', 'bfloat16'"):
        OpenVino("int3")
    for wrong in ({"memory": -1}, {"memory": "1 GB"}, {"kept": "/tmp"}):
        with pytest.raises((InputError, InputTypeError), match=f"{next(iter(wrong))}="):
            OpenVino(**wrong)
    monkeypatch.setattr(backends, "graphs_installed", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'underdraw\[openvino\]'"):
        engines.get("openvino")


# -- threads, memory, copies
def test_threads_share_a_graph(engine, tower):
    inputs = [x(seed=seed) for seed in range(4)]
    made = tiny.together(*(lambda i=i: answer(engine, asked(tower, inputs[i])) for i in range(4)))
    for one, given in zip(made, inputs, strict=True):
        assert off(one["sum"], answer(EAGER, asked(tower, given))["sum"]) <= EXACT
    assert len(engine.compiled) == 1


def test_graphs_hold_no_more_than_memory(tower):
    engine = OpenVino(memory=1, kept=None)
    for rows in (1, 2, 1):
        assert equal(engine, asked(tower, x(rows)))
    assert len(engine.compiled) == 3 and len(engine._networks[tower].graphs) == 1


def test_networks_that_are_gone_are_let_go(engine):
    tower = tiny.components()["text_encoder"].requires_grad_(False)
    answer(engine, asked(tower, x()))
    assert len(engine._networks) == 1
    del tower
    assert len(engine._networks) == 0


def test_it_is_pickled_without_what_it_compiled(tower):
    engine = OpenVino("float32", 7, None)
    answer(engine, asked(tower, x()))
    for made in (pickle.loads(pickle.dumps(engine)), deepcopy(engine)):
        assert (made.precision, made.memory, made.compiled) == ("float32", 7, [])


# -- auto
def test_auto_says_what_it_chose_and_why(tower, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    engine = Auto()
    assert engines.name_of(engine) == "auto"
    assert equal(engine, asked(tower, x()))
    assert engines.name_of(engine) == engine.chosen == "openvino"
    assert "engine 'auto': openvino, compiled graphs are faster on this processor" in caplog.text
    assert choice(SimpleNamespace(nn=tower.nn, device=DEVICE)) == (
        "eager",
        "the network is on meta:0",
    )
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert choice(tower) == ("eager", "nothing was measured on riscv64")
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    monkeypatch.setattr(backends, "graphs_installed", lambda: False)
    assert choice(tower) == ("eager", "openvino is not installed")
    assert isinstance(engines.get("auto"), Auto)
    assert engines.name_of(OpenVino(kept=None)) == "openvino"
    assert engines.name_of(OpenVino("float32", kept=None)) is None
