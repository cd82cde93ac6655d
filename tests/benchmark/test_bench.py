"""Timing this machine: what is counted, whose turn it is, and what is told when it ends early."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from underdraw import UNet2DConditionModel
from underdraw.backends import torch_rates
from underdraw.benchmark import bench as benches, peers, report
from underdraw.benchmark.bench import Bench, Plan
from underdraw.benchmark.networks import Networks, networks_of
from underdraw.benchmark.random_weights import random_network, random_tensors
from underdraw.benchmark.turns import clock_of, in_turns, timed
from underdraw.benchmark.ways import Way
from underdraw.benchmark.works import WORKS, Setting
from underdraw.engines.eager import EAGER
from underdraw.errors import InputError, InputTypeError

APART = {"float32": 1e-4, "bfloat16": 0.1}
"""Of the largest number, in decoding: sums in another order, and bfloat16 rounds each number to 8
bits (measured 0.034)."""


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(torch_rates, "SIDES", ((8, 8, 8),))
    monkeypatch.setattr(torch_rates, "CONVOLUTIONS", ((1, 8, 4),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from cli.conftest import make_tiny

    made = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny(made)
    return made


@pytest.fixture(scope="module")
def networks(folder):
    return networks_of(str(folder), "float32", "cpu")


def finished(plan):
    made = Bench(plan)
    done = sum(count for _, count in made.run())
    assert done == plan.calls
    return made


def test_every_other_turn_runs_backwards():
    ran = []
    ways = {name: lambda name=name: ran.append(name) for name in "abc"}
    times = iter([0.0, 1.0, 0.0, 2.0, 0.0, 3.0] * 3)
    taken = list(in_turns(ways, 3, lambda: next(times)))
    assert ran == [*"abc", *"cba", *"abc"]
    assert taken[:4] == [("a", 1.0), ("b", 2.0), ("c", 3.0), ("c", 1.0)]


def test_a_clock_that_stands_still_leaves_something_to_divide_by():
    assert timed(lambda: None, lambda: 5.0)[0] > 0


def test_processor_time_is_that_of_one_thread_on_the_cpu():
    assert clock_of(1)() < clock_of(1)() + 1e9 and clock_of(1) is not clock_of(2)
    assert clock_of(1, "cuda:0") is clock_of(2)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("step", Setting(24)),
        ("step", Setting(24, 3)),
        ("decode", Setting(24, 2)),
        ("picture", Setting(24, 2, steps=3)),
        ("picture", Setting(24, steps=11, speed="faster")),
    ],
)
def test_arithmetic_is_counted_as_pytorch_counts_it(networks, name, setting):
    job = WORKS[name].make(networks, setting)
    call = job.ours(EAGER)
    call()  # keys, values and times are no part of a step
    # PyTorch counts nothing of its fused attention on a CPU.
    whole, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
    with whole, counter as theirs, torch.no_grad():
        call()
    assert theirs.get_total_flops() == job.work.total
    assert 0 < job.work.matrix < job.work.total


def test_random_networks_give_numbers_of_a_sensible_size():
    config = {"block_out_channels": (32, 64), "cross_attention_dim": 24, "sample_size": 8}
    config |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    config |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}
    half = random_network(UNet2DConditionModel, config, "float16")
    assert half.dtype == torch.float16
    unet = random_network(UNet2DConditionModel, config)
    with torch.no_grad():
        made = unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 7, 24)).sample
    assert 1e-3 < made.std() < 1e3
    tensors = random_tensors({"a.weight": (64, 64), "b.weight": (64, 64), "n.weight": (8,)})
    a, b, norm = (one.load() for one in tensors.values())
    assert np.abs(a).max() <= (3 / 64) ** 0.5 and not np.array_equal(a, b)
    assert np.abs(norm - 1).max() <= 0.02


def test_engines_and_diffusers_take_turns(folder):
    sizes = {"sides": (16, 32), "images": (2,), "turns": 2}
    plan = Plan(["eager"], ["diffusers"], **sizes, source=str(folder), dtype="float32")
    made = finished(plan)
    assert [(row.work, row.side, str(row.way)) for row in made.rows] == [
        (work, side, way)
        for work in ("step", "decode")
        for side in (16, 32)
        for way in ("eager", "diffusers")
    ]
    for row in made.rows:
        assert row.failed is None and len(row.seconds) == 2
        assert row.apart < APART["float32"]
    told = report.record(made, True)
    assert json.loads(json.dumps(told)) == told
    for result in told["results"]:
        assert result["ratio"] == 1 if result["way"] == "diffusers" else result["ratio"] > 0
        assert result["ceiling"] > 0 and result["turns"] == 2
    text = "\n".join(report.lines(made))
    for word in ("threads of", "ceilings: products", "step, 32 px, 2 at once", "  diffusers "):
        assert word in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
@pytest.mark.parametrize(("dtype", "work"), [("float32", "picture"), ("bfloat16", "decode")])
def test_graphs_and_their_usual_conversion(folder, monkeypatch, dtype, work):
    monkeypatch.setattr("underdraw.engines.kept.Kept.find", None)  # nothing is looked for on disk
    plan = Plan(["eager", "openvino"], ["diffusers-openvino"], (48,), works=(work,), turns=1)
    made = finished(replace(plan, source=str(folder), dtype=dtype, steps=2))
    assert [row.failed for row in made.rows] == [None] * 3
    assert all(row.apart < APART[dtype] for row in made.rows)


def test_ceilings_are_the_best_of_all_tries():
    ticks = iter(np.cumsum([1.0, 1.0, 1.0, 0.5] * 100))
    found = torch_rates.rates(torch.float32, "cpu", lambda: float(next(ticks)))
    assert (found.matrix, found.convolution) == (2 * 8**3 / 0.5, 2 * 8 * 16 * 72 / 0.5)
    assert found.least(1024, 0) == 0.5


def test_one_way_that_cannot_be_gone_leaves_the_others(folder, monkeypatch):
    def fail(theirs):
        raise RuntimeError("no\ncompiler")

    monkeypatch.setitem(peers.PEERS, "diffusers-compiled", fail)
    plan = Plan(["eager"], ["diffusers-compiled"], (16,), works=("step",), source=str(folder))
    made = finished(plan)
    assert [row.failed for row in made.rows] == [None, "RuntimeError: no compiler"]
    told = report.lines(made)
    assert "  diffusers-compiled failed: RuntimeError: no compiler" in told
    results = report.record(made, True)["results"]
    assert (results[0]["ratio"], results[1]["median"]) == (1.0, None)


def test_the_peer_has_our_parameters(networks):
    peer = networks.peer(networks.unet)
    mine = dict(networks.unet.named_parameters())
    assert all(mine[name] is value for name, value in peer.named_parameters())
    assert networks.peer(networks.unet) is peer


def test_a_distilled_network_takes_no_second_half(networks):
    fields = {**networks.unet.config.to_dict(), "time_cond_proj_dim": 8}
    distilled = random_network(UNet2DConditionModel, fields)
    here, setting = Networks(distilled, networks.vae, "here"), Setting(24)
    job = WORKS["step"].make(here, setting)
    assert job.ours(EAGER)().shape == (1, 4, 3, 3)
    (part,) = job.theirs().parts
    sample, _, context, scale = part.inputs()
    assert (len(sample), len(context), scale.shape) == (1, 1, (1, 8))
    assert job.work.total < WORKS["step"].make(networks, setting).work.total
    picture = WORKS["picture"].make(here, Setting(48, steps=2))
    ours, theirs = picture.ours(EAGER)(), peers.ready(picture.theirs(), "diffusers")()
    assert (ours - theirs).abs().max() < 1e-4


def test_whole_pictures_by_speed(folder):
    plan = Plan(
        engines=["eager"],
        beside=["diffusers"],
        sides=(48,),
        images=(2,),
        works=("decode", "picture"),
        turns=1,
        steps=11,
        speeds=("fast", "exact", "faster"),
        source=str(folder),
        dtype="float32",
    )
    made = finished(plan)
    assert [row.failed for row in made.rows] == [None] * 6
    decodes, pictures = report.grouped(made.rows)
    assert [str(row.way) for row in decodes] == ["eager", "diffusers"]  # nothing to leave out
    rows = {str(row.way): row for row in pictures}
    assert list(rows) == ["eager, fast", "eager", "eager, faster", "diffusers"]
    # 11 steps of float32 in another order were 1e-6 apart at 48 px. (At 16 px norms of the lowest
    # level see one number a channel, of which rounding alone is left.)
    assert rows["eager"].apart == 0 and rows["diffusers"].apart < APART["float32"]
    fast, faster = rows["eager, fast"], rows["eager, faster"]
    assert fast.apart is None and rows["eager"].price is None
    assert 5 < faster.price < fast.price < 100
    assert faster.counted.total < fast.counted.total < rows["eager"].counted.total
    told = report.record(made, True)["results"][2]
    assert (told["way"], told["speed"], told["steps"]) == ("eager, fast", "fast", 11)
    assert (told["apart"], told["price"]) == (None, fast.price)
    text = "\n".join(report.lines(made))
    assert "picture, 48 px, 2 at once, 11 steps" in text and "decode, 48 px, 2 at once  " in text
    assert f" {fast.price:.0f} dB" in text and report.PRICED in text


def test_a_folder_of_networks_alone_is_enough_for_steps(folder, tmp_path):
    for name in ("unet", "vae"):
        (tmp_path / name).symlink_to(folder / name)
    made = finished(Plan(["eager"], [], (16,), works=("step", "picture"), source=str(tmp_path)))
    step, picture = made.rows
    assert step.failed is None and "scheduler_config.json" in picture.failed


def test_what_is_no_number_is_none_in_json(folder):
    made = finished(Plan(["eager"], [], (16,), works=("decode",), turns=1, source=str(folder)))
    made.rows[0].apart = float("nan")
    told = json.dumps(report.record(made, True), allow_nan=False)
    assert json.loads(told)["results"][0]["apart"] is None


def test_a_picture_that_cannot_be_made_leaves_the_rest(folder, tmp_path):
    """A UNet of inpainting steps, but no pipeline of texts alone takes it."""
    from cli.conftest import make_tiny

    make_tiny(tmp_path / "inpainting", in_channels=9)
    here = str(tmp_path / "inpainting")
    plan = Plan(["eager"], [], (16,), works=("picture", "step"), turns=1, steps=2, source=here)
    made = finished(plan)
    assert made.rows[0].failed is not None and "9" in made.rows[0].failed
    assert made.rows[1].failed is None
    told = report.record(made, True)["results"][0]
    assert (told["operations"], told["median"]) == (None, None)
    assert any(line.startswith("  eager failed: ") for line in report.lines(made))


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_precisions_of_openvino_are_ways(networks, monkeypatch):
    plan = Plan(
        ["eager", "openvino"], [], works=("step", "picture"), precisions=("float32", "int8")
    )
    ways = [Way("eager"), Way("openvino", "float32"), Way("openvino", "int8")]
    assert plan.ways("step") == tuple(ways) == plan.ways("picture")
    assert [str(way) for way in ways] == ["eager", "openvino float32", "openvino int8"]
    assert str(Way("openvino", "bfloat16", "fast")) == "openvino bfloat16, fast"
    assert (ways[1].engine.precision, ways[1].engine.kept) == ("float32", None)
    whole, eight = (way.on(networks).unet.get_memory_footprint() for way in ways[1:])
    assert eight < 0.6 * whole and ways[2].on(networks) is ways[2].on(networks)


def test_what_is_named_twice_takes_one_turn():
    plan = Plan(["eager", "eager"], [], works=("picture",), speeds=("exact", "fast", "exact"))
    assert plan.ways("picture") == (Way("eager"), Way("eager", speed="fast"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"engines": ["fast"]}, r"engines='fast' is not known; allowed: 'eager', "),
        ({"engines": "eager"}, r"engines='eager' is not a list"),
        ({"beside": ["torch"]}, r"beside='torch' .*'diffusers-onnxruntime'"),
        ({"works": []}, r"one of each"),
        ({"engines": [], "beside": []}, r"one of each"),
        ({"sides": [100]}, r"sides=100 is no multiple of 8"),
        ({"images": [0]}, r"images=0"),
        ({"turns": 0}, r"turns=0"),
        ({"steps": 0}, r"steps=0"),
        ({"speeds": ["fastest"]}, r"speeds='fastest' .*'faster'"),
        ({"speeds": []}, r"one of each"),
        ({"speeds": ["exact", "fast"]}, r"speeds='fast' .*\['step', 'decode'\].*'picture'"),
        ({"precisions": ["float16"]}, r"precisions='float16' .*'int8'"),
        ({"works": ["picture"], "speeds": ["fast"], "steps": 9}, r"steps=9 .*'fast'.* 10 or more"),
        ({"dtype": "int8"}, r"dtype='int8'"),
        ({"device": "gpu"}, r"device='gpu'"),
    ],
)
def test_plans_that_cannot_be(fields, says):
    with pytest.raises((InputError, InputTypeError), match=says):
        Plan(**fields)


# -- the command ---------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from underdraw.cli.app import app

    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


def test_the_command(folder, run):
    few = (folder, "--sizes", "16", "--works", "step", "--turns", "1", "--beside", "none")
    told = json.loads(run(*few, "--engines", "eager", "--json").stdout)
    assert told["whole"] is True and told["networks"] == str(folder)
    assert told["machine"]["threads"] == torch.get_num_threads()
    assert [one["way"] for one in told["results"]] == ["eager"]
    assert "step, 16 px, 1 at once" in run(*few, "--engines", "eager").stdout


def test_whole_pictures_by_the_command(folder, run):
    few = (folder, "--sizes", "16", "--works", "picture", "--turns", "1", "--beside", "none")
    how = ("--engines", "eager", "--steps", "10", "--speeds", "exact,faster", "--precision", "int8")
    told = json.loads(run(*few, *how, "--json").stdout)
    assert [(one["way"], one["steps"]) for one in told["results"]] == [
        ("eager", 10),
        ("eager, faster", 10),
    ]


def test_an_interrupted_command_shows_what_was_measured(folder, run, monkeypatch):
    def turns(ways, count, clock):
        yield "eager", 0.25
        raise KeyboardInterrupt

    monkeypatch.setattr(benches, "in_turns", turns)
    few = (folder, "--sizes", "16", "--works", "step", "--beside", "none", "--engines", "eager")
    ended = run(*few, "--json", code=130)
    told = json.loads(ended.stdout)
    assert told["whole"] is False
    assert (told["results"][0]["median"], told["results"][0]["turns"]) == (0.25, 1)
    assert "what was measured until then is shown" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sizes", "256,x"), "--sizes '256,x': 'x' is no whole number"),
        (("x", "--full-size"), "--full-size is about random weights"),
        (("--engines", "fast"), "engines='fast' is not known"),
        (("--speeds", "quick"), "speeds='quick' is not known"),
        (("--precision", "half"), "precisions='half' is not known"),
        (("nowhere/at/all",), "no such folder"),
    ],
)
def test_mistakes(run, arguments, says):
    assert says in run(*arguments, code=2).stderr
