"""The benchmark scripts run, at a size at which their figures mean nothing."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest

from underdraw.engines import EAGER

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "layers_per_block": 1,
}
ONE_LEVEL = {
    **UNET,
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "mid_block_type": None,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (32, 32),
}
TEXT = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 598,
    "eos_token_id": 599,
    "pad_token_id": 599,
}
FOLDER = {"unet": {**UNET, "cross_attention_dim": 32}, "vae": VAE, "text_encoder": TEXT}
"""What `full_size` changes for a small folder."""


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_comparisons(capsys, tmp_path, monkeypatch):
    import timing

    calls: list[str] = []
    clock = iter(range(100))
    found = timing.compare(
        "work",
        lambda: calls.append("ours"),
        lambda: calls.append("peer"),
        runs=3,
        divide=2,
        clock=lambda: float(next(clock)),
    )
    turns = ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert calls == ["ours", "peer", *turns]  # one of each to warm up, then in turns
    assert (found.ours, found.peer, found.ratio, found.runs) == (0.5, 0.5, 1.0, 3)
    timing.judge("slow", [3.0, 1.0, 2.0], [1.0], bar=1.05)
    assert "ratio  2.00" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    timing.report([found], "figures.json")
    assert json.loads(Path("figures.json").read_text())["results"][0]["ratio"] == 1.0


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_openvino_steps(capsys):
    """The cheapest of its parts; the others differ in what acts in a step."""
    import openvino_step

    made = openvino_step.main(["decode"], sizes=(4,), runs=1, vae=VAE)
    assert [one.name for one in made] == ["VAE decode, 32 px", "VAE decode, 32 px, first call"]
    assert "largest difference" in capsys.readouterr().out


def test_parameters_are_shared():
    import unet_step

    ours, peer = unet_step.pair(UNET, unet_step.torch.float32)
    mine = dict(ours.named_parameters())
    assert all(mine[name] is value for name, value in peer.named_parameters())


@pytest.mark.filterwarnings("ignore")
def test_steps_of_networks(capsys):
    import torch
    import unet_step
    import vae_decode

    shape = {"sizes": (8,), "dtypes": (torch.float32,), "runs": 1}
    assert len(unet_step.main(**shape, config=UNET)) == 2
    assert len(vae_decode.main(**shape, config=VAE)) == 2
    difference = float(capsys.readouterr().out.split("largest difference ")[1].split()[0])
    assert difference < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_grounded_steps(capsys):
    import grounded_step
    import torch

    shape = {"sizes": (8,), "dtypes": (torch.float32,), "runs": 1}
    made = grounded_step.main(**shape, config=UNET)
    assert [one.bar for one in made] == [1.0, 1.02, None, 0.55]
    for line in capsys.readouterr().out.split("largest difference ")[1:]:
        assert float(line.split()[0]) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_prompts_with_subjects():
    """Our side alone: what diffusers does takes an older version."""
    import blip_prompt
    from PIL import Image
    from pipelines.blip.recorded import record

    blip = {**record.BLIP, "qformer_config": {**record.QFORMER, "hidden_size": 32}}
    blip["qformer_config"]["num_attention_heads"] = 4
    pipe = blip_prompt.ours(blip, {**TEXT, "projection_dim": 32})
    context = blip_prompt.encode(pipe, [Image.new("RGB", (9, 7), "red")] * 2)
    assert context.shape == (4, 77, 32)


@pytest.mark.filterwarnings("ignore")
def test_steps_along_maps(capsys):
    import controlnet_step
    import torch

    shape = {"sizes": (8,), "dtypes": (torch.float32,), "runs": 1}
    made = controlnet_step.main(**shape, config=UNET)
    assert [one.bar for one in made] == [0.95] * 4
    for line in capsys.readouterr().out.split("largest difference ")[1:]:
        assert float(line.split()[0]) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_steps_with_a_lora(capsys):
    import lora_step

    made = lora_step.main(sizes=(8,), runs=1, steps=1, config=UNET)
    assert [one.bar for one in made] == [0.5, 1.05, 1.15, 1.15, None]
    assert float(capsys.readouterr().out.split("largest difference ")[1].split()[0]) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_whole_pipelines(capsys, monkeypatch):
    import tiny_step

    monkeypatch.setattr(tiny_step, "STEPS", 2)
    assert len(tiny_step.main(runs=1, solvers=("DDIMScheduler",))) == 2
    difference = float(capsys.readouterr().out.split("largest difference ")[1].split()[0])
    assert difference < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_a_picture(capsys, monkeypatch):
    import picture

    from underdraw import AutoencoderKL, UNet2DConditionModel

    asked = []
    monkeypatch.setattr(picture, "bfloat16_pays", lambda: False)
    making = picture.picture
    monkeypatch.setattr(picture, "picture", lambda of, how: asked.append(how) or making(of, how))
    tiny = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    networks, setting = picture.Networks(*tiny, "here"), picture.Setting(16, steps=11)
    made = picture.main(networks, setting, ("exact", "faster"))
    title = "picture, 16 px, 11 steps, openvino float32"
    assert [(one.name, one.bar, one.runs) for one in made] == [
        (f"{title} (s)", None, 1),
        (f"{title}, faster (s)", 0.35, 1),
    ]
    assert [(how.steps, how.speed) for how in asked] == [
        *((10, "exact"), (11, "exact")),
        *((10, "faster"), (11, "faster")),
        *((1, "exact"), (11, "exact")),
    ]
    apart = capsys.readouterr().out.split("largest difference ")[1:]
    exact, faster = (float(line.split()[0]) for line in apart)
    assert exact < 1e-4 < faster  # float32 in another order; a preset leaves something out


def at_once(command, **options):
    """`subprocess.run` of a program for Python, here, where all imports have been made."""
    arguments, said = command[command.index("-c") + 1 :], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["-c", *arguments[1:]])
        exec(arguments[0], {"__name__": "__main__"})
    return subprocess.CompletedProcess(command, 0, said.getvalue(), "")


def test_cold_start(tmp_path, monkeypatch):
    import cold_start
    import full_size

    full_size.write(tmp_path, FOLDER)
    ours = cold_start.once("ours", tmp_path, "float32")
    assert sys.platform != "linux" or ours["before"] > 0
    assert ours["total"] >= ours["import"] + ours["load"]
    monkeypatch.setattr(subprocess, "run", at_once)  # what diffusers imports takes seconds
    peer = cold_start.once("peer", tmp_path, "float32")
    assert ours["weights"] == pytest.approx(peer["weights"])


@pytest.fixture
def everything(monkeypatch, tmp_path):
    """`run.py` with scripts that measure nothing and keep a list of what ran."""
    import run
    import timing

    ran: list[tuple[str, ...]] = []

    def script(name, *arguments):
        ran.append((name, *arguments))
        if name == "full_size":
            Path(arguments[0]).mkdir()
            return
        if name == "vae_decode" and "stop" in ran[0]:
            raise KeyboardInterrupt
        made = [timing.judge(f"{name} (s)", [2.0] * 5, [4.0] * 5, bar=0.45)]
        made.append(timing.judge(f"{name}, memory", [1.0], [1.0], bar=None))
        timing.report(made, arguments[-1])

    monkeypatch.setattr(run, "run", script)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "RESULTS.md")
    return run, ran, ["--work", str(tmp_path / "work")]


def test_one_command_measures_all_and_writes_the_table(everything, tmp_path):
    run, ran, work = everything
    assert run.main(work) == tmp_path / "RESULTS.md"
    names = [name for name, *_ in ran]
    assert sorted(names) == sorted([*run.SCRIPTS, "full_size"])
    assert names.index("full_size") < names.index("cold_start")
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - {"run", "timing", "pricing"}
    # None is forgotten; one is of pipelines that diffusers of today cannot run, two of peaks of
    # memory by process, one of pictures judged, one of losses, with nothing beside them.
    apart = {"blip_prompt", "memory", "engine_memory", "acceleration", "learning"}
    assert scripts == {*names, *apart}
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| unet_step (s) | 2 | 4 | 0.50 | 0.45 missed |" in text
    assert "| unet_step, memory | 1 | 1 | 1.00 |  |" in text
    assert "median of\n5 turns" in text
    assert not list(tmp_path.rglob("*.partial"))


def test_an_interrupted_run_goes_on_where_it_stopped(everything, tmp_path):
    run, ran, work = everything
    ran.append(("stop",))
    with pytest.raises(KeyboardInterrupt):
        run.main(work)
    assert not (tmp_path / "RESULTS.md").exists()
    before = [name for name, *_ in ran[1:]]
    ran.clear()
    run.main(work)
    assert [name for name, *_ in ran] == [
        "vae_decode",
        "unet_step",
        "grounded_step",
        "controlnet_step",
        "lora_step",
        "picture",
    ]
    assert "import_time" in before
    ran.clear()
    run.main([*work, "--only", "tiny_step", "--fresh"])
    assert [name for name, *_ in ran] == ["tiny_step"]
    assert "unet_step (s)" in (tmp_path / "RESULTS.md").read_text()


def test_quick_figures_stay_out_of_the_results(everything, tmp_path):
    run, ran, work = everything
    assert run.main([*work, "--quick"]) == tmp_path / "work" / "quick" / "RESULTS.md"
    assert ran[-1][:3] == ("picture", "--quick", "--json")
    assert not (tmp_path / "RESULTS.md").exists()
    with pytest.raises(SystemExit):
        run.main([*work, "--only", "nothing"])


@pytest.fixture
def engine_steps():
    import engine_steps

    return engine_steps


@pytest.mark.filterwarnings("ignore")
def test_batches(engine_steps, capsys):
    (found,) = engine_steps.batch(runs=1, steps=2, scenes=False)
    assert found.ours > 0
    assert float(capsys.readouterr().out.split("apart ")[1]) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_compiled_steps(engine_steps, capsys):
    import torch

    traced = lambda function: torch.compile(function, backend="eager")  # noqa: E731
    names = [one.name for one in engine_steps.compiled(1, ONE_LEVEL, traced)]
    assert [name.rsplit(", ", 1)[0] for name in names[:4]] == [
        *("compiled, regional",) * 2,
        *("compiled, whole",) * 2,
    ]
    for line in capsys.readouterr().out.split("largest difference ")[1:]:
        assert float(line.split()[0]) < 1e-5
    torch.compiler.reset()


@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="needs JAX")
def test_steps_on_jax(engine_steps, monkeypatch):
    once = engine_steps.Compiled()  # for what is measured at once, too: it compiles longer
    monkeypatch.setattr(engine_steps, "Compiled", lambda: once)
    monkeypatch.setattr(engine_steps, "EAGER", once)
    assert len(engine_steps.jit(1, ONE_LEVEL)) == 2


@pytest.mark.parametrize("backend", ["torch", *(n for n in ("jax",) if find_spec(n))])
def test_steps_on_frameworks(backend, capsys, monkeypatch, tmp_path):
    """Whole calls of PyTorch, seen by step and not; of JAX a step alone, which compiles less."""
    import framework_steps
    from pipelines import tiny

    tiny.pipeline(unet=tiny.SHORT).save_pretrained(tmp_path)
    other = {"torch": "torch watched", "jax": "jax loop"}[backend]
    ways = {name: framework_steps.WAYS.get(name, lambda: EAGER) for name in ("torch eager", other)}
    monkeypatch.setattr(framework_steps, "WAYS", {**ways, "none eager": None})
    monkeypatch.setattr(framework_steps, "SECOND", (other,))
    works = ("step", "call") if backend == "torch" else ("step",)
    made = framework_steps.main(tuple(framework_steps.WAYS), works, 64, 2, 1, str(tmp_path))
    names = [f"{way}, {work}" for work in works for way in ways]
    both = [f"{name}{end}" for name in names for end in (" (s a step)", ", first (s)")]
    assert [one.name for one in made] == both and all(one.ours > 0 for one in made)
    for line in capsys.readouterr().out.split("apart ")[1:]:
        assert float(line.split()[0]) < 1e-4


def test_two_sources(engine_steps, capsys, monkeypatch, tmp_path):
    import tiny_step

    here, turns = BENCHMARKS.parent, []
    with monkeypatch.context() as patch:
        patch.setattr(tiny_step, "STEPS", 2)
        patch.setattr(subprocess, "run", at_once)  # what diffusers imports takes seconds
        measured = engine_steps._cases(here, (1, 1), False, ONE_LEVEL)

    def cases(folder, *asked):
        turns.append(folder)
        return {name: (ours * len(turns), peer) for name, (ours, peer) in measured.items()}

    monkeypatch.setattr(engine_steps, "_cases", cases)
    made = engine_steps.eager(tmp_path, turns=2, runs=(1, 1), config=ONE_LEVEL)
    assert turns == [here, tmp_path, tmp_path, here]  # what warms up favours neither
    assert made[0].name == "now by before, tiny pipeline step, DDIMScheduler (s)"
    assert [one.ratio for one in made] == [pytest.approx(1.0)] * 8
    assert capsys.readouterr().out.count("diffusers, measured by both: 1.00") == 8


def test_a_source_is_measured_by_itself(engine_steps, monkeypatch, tmp_path):
    """In a process that finds its scripts and its package first."""
    said = "[os.environ['PYTHONPATH'], os.getcwd(), *sys.argv[1:]]"
    code = f"import json, os, sys; print('a word'); print(json.dumps([['|'.join({said}), 1, 2]]))"
    monkeypatch.setattr(engine_steps, "CHILD", code)
    ((told, seconds),) = engine_steps._cases(tmp_path, (3, 4), True, {"a": 1}).items()
    paths, folder, *asked = told.split("|")
    assert paths.split(os.pathsep) == [str(tmp_path / "benchmarks"), str(tmp_path / "src")]
    assert Path(folder).samefile(tmp_path)
    assert (asked, seconds) == (["full", '{"a": 1}', "[3, 4]"], (1, 2))
    monkeypatch.setattr(engine_steps, "CHILD", "raise SystemExit('no such option')")
    with pytest.raises(RuntimeError, match="no such option"):
        engine_steps._cases(tmp_path, (3, 4), True, {})


def test_what_engine_steps_measures_is_chosen(engine_steps, tmp_path, monkeypatch, capsys):
    import timing

    made = [timing.judge("batch (s)", [1.0], [2.0], None)]
    monkeypatch.setattr(engine_steps, "batch", lambda: made)
    assert engine_steps.main(["--only", "batch,eager", "--json", str(tmp_path / "x.json")]) == made
    assert json.loads((tmp_path / "x.json").read_text())["results"][0]["ratio"] == 0.5
    assert capsys.readouterr().out.splitlines()[-1] == "ratios: batch (s) 0.50"
    for wrong in (["--only", "speed"], ["--against", str(tmp_path)]):
        with pytest.raises(SystemExit):
            engine_steps.main(wrong)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_memory_of_engines(tmp_path, capsys):
    """The case that prepares weights runs in a process of its own; what it told is put in words."""
    import engine_memory
    import full_size

    full_size.write(tmp_path, FOLDER)
    case = engine_memory.Case("openvino", "float32", "float16")
    (row,) = engine_memory.main(str(tmp_path), 16, [case])
    assert 0 < row["weights"] < 1e7 and row["most"] >= row["after"] > 0
    assert f"{case}: at most" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_memory(tmp_path):
    """Of one small case each, in this process."""
    import memory

    made = {}
    for way in memory.WAYS:
        row = memory.decode(way, 64, VAE, str(tmp_path / "made.pt"))
        assert row["peak"] >= 0
        made[way] = memory.torch.load(tmp_path / "made.pt")
    assert memory.psnr(made["seamless"], made["whole"]) > 50
    assert memory.psnr(made["diffusers, whole"], made["whole"]) > 50
    kinds = {row["kind"]: row for row in memory.weights({**memory.SD15_UNET, **UNET})}
    assert kinds["float32"]["loss"] == 0 < kinds["int8"]["loss"] < kinds["float8"]["loss"]
    assert kinds["int8"]["bytes"] < kinds["float32"]["bytes"]
