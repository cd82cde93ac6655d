"""The engine `Packaged(folder)`: packages of programs, found by what they were made for."""

import io
import logging
import pickle
import shutil
import zipfile
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from engines.runs import apart, ended, unet
from engines.test_compiled import Acting, low_rank
from engines.test_openvino import LAYERS, asked, off, x
from pipelines import tiny
from pipelines.tiny import ONE_LEVEL

from underdraw import engines
from underdraw.backends import torch as backend, torch_packages
from underdraw.backends.tree import flatten
from underdraw.engines import Packaged, Packing, aot, keys
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import answer
from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.networks.program import Program


@pytest.fixture
def fake(monkeypatch):
    """Packages that hold the number of a function; which ones were written, in order."""
    functions = []

    def packaged(function, model, arrays, name):
        with torch.no_grad():
            function(model, arrays)  # as an export runs it
        functions.append(function)
        return zipped({"number": str(len(functions) - 1), "made_for": name})

    class Package:
        def __init__(self, file):
            with zipfile.ZipFile(file) as archive:
                self.function = functions[int(archive.read("number"))]
                self.made_for = archive.read("made_for").decode()

        def __call__(self, model, arrays):
            return self.function(model, arrays)

    monkeypatch.setattr(backend, "packaged", packaged)
    monkeypatch.setattr(backend, "Package", Package)
    return functions


def zipped(members):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


@pytest.fixture
def tower():
    return tiny.components()["text_encoder"].requires_grad_(False)


def same(engine, question):
    made, plain = answer(engine, question), answer(EAGER, question)
    return off(made["sum"], plain["sum"]) <= 1e-6 and off(made["mean"], plain["mean"]) <= 1e-6


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_package_is_compiled_and_run(tower, tmp_path, monkeypatch, caplog):
    """With PyTorch's compiler, as little as shows it: numbers are inputs, weights are read where
    they lie, also where others have taken their place."""
    quick = {"compile_wrapper_opt_level": "O0", "precompile_headers": False}
    for name, value in quick.items():
        monkeypatch.setitem(torch_packages.HOW, f"aot_inductor.{name}", value)
    packing = Packing(tmp_path / "packages")
    assert same(packing, asked(tower, x(), 0.5))
    (file,) = packing.written
    engine = Packaged(tmp_path / "packages")
    for seed, more in ((0, 0.5), (1, 2.0)):
        assert same(engine, asked(tower, x(seed=seed), more))
    layer = tower.text_model.encoder.layers[0].mlp.fc1
    layer.weight.data.mul_(2)
    assert same(engine, asked(tower, x(), 0.5))
    layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight), False)
    assert same(engine, asked(tower, x(), 0.5))
    other = deepcopy(tower)
    other.text_model.encoder.layers[0].mlp.fc2.bias.data.add_(1)
    assert same(engine, asked(other, x(), 0.5)) and same(engine, asked(tower, x(), 0.5))
    assert engine.used == {file.name} and "runs as it is written" not in caplog.text
    # Under another's name its code would read past the end of arrays, or for what is not there.
    question = asked(tower, x(3), 0.5)
    fitting = aot.named(question, *flatten(question.inputs)).file
    shutil.copy(file, file.parent / fitting)
    assert same(engine, question)
    assert f"{fitting} was made for {file.name}" in caplog.text
    # Damaged, its code would end the process.
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        (code,) = (one for one in archive.infolist() if one.filename.endswith(".so"))
    for place in range(code.header_offset + 4096, code.header_offset + code.file_size, 97):
        content[place] ^= 0xFF
    file.write_bytes(content)
    assert same(Packaged(file.parent), asked(tower, x(), 0.5))
    assert f"{file} cannot be loaded: {code.filename}: Bad CRC-32" in caplog.text


def test_what_there_is_no_package_for_runs_as_it_is_written(fake, tower, tmp_path, caplog):
    assert same(Packing(tmp_path), asked(tower, x(), 0.5)) and len(fake) == 1
    assert same(Packing(tmp_path), asked(tower, x(seed=1), 0.7)) and len(fake) == 1
    engine = Packaged(tmp_path)
    assert same(engine, asked(tower, x(), 0.5)) and len(engine.used) == 1
    assert caplog.text == ""
    for rows in (3, 3):
        assert same(engine, asked(tower, x(rows), 0.5))
    missing = f": layers runs as it is written: {tmp_path} holds no package for such"
    assert caplog.text.count(missing) == 1
    watched = tower.text_model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *_: None)
    assert same(engine, asked(tower, x(), 0.5))
    assert "fc1' is a Linear that is watched or replaced" in caplog.text
    watched.remove()
    answer(engine, asked(tower, x(), lambda nn, y: {"sum": y}))
    assert "its inputs are no plain data" in caplog.text
    assert len(engine.used) == 1


def test_a_package_is_of_the_layout_of_weights_and_of_its_maker(fake, tower, tmp_path, monkeypatch):
    answer(Packing(tmp_path), asked(tower, x(), 0.5))
    narrow = tower.text_model.encoder.layers[0].mlp.fc1
    narrow.weight.data = narrow.weight.data.t().contiguous().t()
    engine = Packaged(tmp_path)
    assert same(engine, asked(tower, x(), 0.5)) and not engine.used
    narrow.weight.data = narrow.weight.data.contiguous()
    assert same(engine, asked(tower, x(), 0.5)) and len(engine.used) == 1
    monkeypatch.setattr(backend, "maker", lambda: "0")
    engine = Packaged(tmp_path)
    assert same(engine, asked(tower, x(), 0.5)) and not engine.used


def test_a_package_is_of_the_program_and_not_of_its_name(fake, tower, tmp_path, monkeypatch):
    """Names stay when what they name changes: here, or in another version of underdraw."""

    def scaled(by, more=0.0):
        def program(nn, p, config, x, y):
            return {"sum": LAYERS(nn, p, config, x, y)["sum"] * by, "mean": x + more}

        return Program("layers", program)

    packing = Packing(tmp_path)
    programs = (LAYERS, scaled(1.5), scaled(2.5), scaled(1.5, 0.25))
    for count, program in enumerate(programs, 1):
        for _ in range(2):
            answer(packing, asked(tower, x(), 0.5, program=program))
        assert len(packing.written) == count
    engine = Packaged(tmp_path)
    for count, program in enumerate((*programs, scaled(2.5)), 1):
        assert same(engine, asked(tower, x(), 0.5, program=program))
        assert len(engine.used) == min(count, 4)
    monkeypatch.setattr(keys, "sources", lambda: "of another version")
    engine = Packaged(tmp_path)
    assert same(engine, asked(tower, x(), 0.5)) and not engine.used


def test_a_package_is_of_what_acts_in_the_program(fake, tower, tmp_path):
    """A control of one's own is another one when its method is written anew."""

    def hook(by):
        @dataclass(frozen=True)
        class Hook:
            offset: torch.Tensor

            def __call__(self, nn, y):
                return {"sum": y * by + self.offset, "mean": nn.mean(y, (1,))}

        return Hook(torch.ones(1))

    packing = Packing(tmp_path)
    for by in (1.5, 2.5, 1.5):
        answer(packing, asked(tower, x(), hook(by)))
    assert len(packing.written) == 2
    engine = Packaged(tmp_path)
    assert all(same(engine, asked(tower, x(), hook(by))) for by in (1.5, 2.5, 3.5))
    assert len(engine.used) == 2


def test_the_sources_of_programs_are_told_apart(tmp_path):
    def told(**files):
        for name, text in files.items():
            file = tmp_path / name / "layers" / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return keys.sources.__wrapped__(tmp_path)

    steps = ({}, {"networks": "a"}, {"networks": "b"}, {"backends": "a"}, {"controls": "a"})
    seen = [told(**files) for files in steps]
    assert len({*seen, keys.sources()}) == len(steps) + 1
    assert told(cli="a") == seen[-1]


def test_a_damaged_package_is_told(fake, tower, tmp_path, caplog):
    packing = Packing(tmp_path)
    answer(packing, asked(tower, x(), 0.5))
    packing.written[0].write_bytes(b"x")
    assert same(Packaged(tmp_path), asked(tower, x(), 0.5))
    assert f"{packing.written[0]} cannot be loaded" in caplog.text


def test_a_package_under_the_name_of_another_is_told(fake, tower, tmp_path, caplog):
    packing = Packing(tmp_path)
    answer(packing, asked(tower, x(), 0.5))
    answer(packing, asked(tower, x(3), 0.5))
    mine, other = packing.written
    shutil.copy(other, mine)
    assert same(Packaged(tmp_path), asked(tower, x(), 0.5))
    assert f"layers runs as it is written: {mine} was made for {other.name}" in caplog.text


def test_a_run_and_one_with_a_control(fake, tmp_path, caplog):
    """What a control brings as data is an input of a package of its own."""
    model = unet(**ONE_LEVEL).requires_grad_(False)
    packing, controls = Packing(tmp_path), {"controls": [Acting(1.2)]}
    ended(model, 1, packing)
    engine = Packaged(tmp_path)
    assert apart(ended(model, 2, engine), ended(model, 2)) <= 1e-6
    assert len(engine.used) == len(fake) == 1 and caplog.text == ""
    assert apart(ended(model, 2, engine, **controls), ended(model, 2, **controls)) <= 1e-6
    assert len(engine.used) == 1 and "unet runs as it is written" in caplog.text
    ended(model, 1, packing, **controls)
    more = Packaged(tmp_path)
    made = ended(model, 2, more, controls=[Acting(0.7)])
    assert apart(made, ended(model, 2, controls=[Acting(0.7)])) <= 1e-6
    assert len(more.used) == 1 and len(fake) == 2


def test_a_run_with_differences_to_layers(fake, tmp_path, caplog):
    """Those of a LoRA are inputs: another one of its places and ranks runs the same package."""
    model = unet(**ONE_LEVEL).requires_grad_(False)

    def differing(seed):
        return {"controls": [Acting(1.2, leaves=low_rank(model._framework, seed))]}

    ended(model, 1, Packing(tmp_path), **differing(0))
    engine = Packaged(tmp_path)
    for seed in (0, 1):
        made = ended(model, 2, engine, **differing(seed))
        assert apart(made, ended(model, 2, **differing(seed))) <= 1e-6
    assert len(engine.used) == len(fake) == 1 and caplog.text == ""
    assert apart(made, ended(model, 2, **differing(0))) > 1e-3


def test_gradients_are_recorded_as_ever(fake, tower, tmp_path):
    answer(Packing(tmp_path), asked(tower, x(), 0.5))
    given = x().requires_grad_(True)
    engine = Packaged(tmp_path)
    assert engine.run(asked(tower, given, 0.5))["sum"].requires_grad and not engine.used


def test_what_cannot_be_packed(fake, tower, tmp_path):
    with pytest.raises(InputError, match=r"layers cannot be packed: its inputs are no plain data"):
        answer(Packing(tmp_path), asked(tower, x(), lambda nn, y: {"sum": y}))
    lying = Program(
        "lying", lambda *a: {**LAYERS(*a), **({"b": a[3]} if a[0].name == "torch" else {})}
    )
    with pytest.raises(InputError, match=r"lying gives something else than its shapes tell"):
        answer(Packing(tmp_path), asked(tower, x(), 0.5, program=lying))
    once = Program("once", LAYERS.function, once=True)
    answer(Packing(tmp_path / "none"), asked(tower, x(), program=once))
    assert not (tmp_path / "none").exists()
    with pytest.raises(NotFoundError, match=r"none holds no packages"):
        Packaged(tmp_path / "none")
    for wrong in (3, None):
        with pytest.raises(InputTypeError, match="folder="):
            Packaged(wrong)


def test_no_name_and_no_record_leads_to_packages(fake, tower, tmp_path):
    """A picture's record names engines; one that names a folder would run a stranger's code."""
    answer(Packing(tmp_path), asked(tower, x(), 0.5))
    engine = Packaged(tmp_path)
    assert engines.name_of(engine) is None
    for text in ("aot", f"aot:{tmp_path}", str(tmp_path)):
        with pytest.raises(InputError, match="is not known"):
            engines.get(text)
    for made in (pickle.loads(pickle.dumps(engine)), deepcopy(engine)):
        assert made.folder == engine.folder and not made._files


def test_the_command(fake, tmp_path, monkeypatch):
    from cli.conftest import make_tiny
    from typer.testing import CliRunner

    from underdraw.cli.app import app

    logging.getLogger("underdraw").disabled = False
    make_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    made = run("compile", "model", "packages", "--sizes", "64x48")
    files = made.stdout.split()
    assert [file.split("/")[1].split("-")[0] for file in files] == [
        "clip.text",
        "unet",
        "vae.decode",
    ]
    assert "nothing new" in run("compile", "model", "packages", "--sizes", "64x48").stderr
    size = ("--height", "64", "--width", "48", "--model", "model", "--steps", "2", "--seed", "3")
    run("generate", "a red sphere", *size, "--out", "plain.png")
    packaged = ("--packages", "packages", "--verbose")
    told = run("generate", "a red sphere", *size, *packaged, "--out", "packed.png").stderr
    assert "runs as it is written" not in told
    from PIL import Image

    plain, packed = (np.asarray(Image.open(f"{name}.png"), float) for name in ("plain", "packed"))
    assert np.abs(plain - packed).max() <= 1
    again = ("generate", "--again", "packed.png", "--as-recorded")
    assert "give --engine (or --packages)" in run(*again, code=2).stderr
    run(*again, *packaged, "--out", "again.png")
    assert np.array_equal(np.asarray(Image.open("again.png")), packed)
    plainly = ("generate", "--again", "plain.png", "--as-recorded", *packaged)
    assert "runs as it is written" not in run(*plainly, "--out", "replaced.png").stderr
    assert np.array_equal(np.asarray(Image.open("replaced.png")), packed)
    elsewhere = ("--packages", "packages", "--backend", "jax")
    assert "--packages is for PyTorch" in run("generate", "x y", *elsewhere, code=2).stderr
    wrong = (*size, "--packages", "packages", "--engine", "eager")
    assert "--packages replaces --engine" in run("generate", "x y", *wrong, code=2).stderr
    nowhere = (*size, "--packages", "nowhere")
    assert "holds no packages" in run("generate", "x y", *nowhere, code=2).stderr
    (tmp_path / "file").write_text("")
    assert "is a file" in run("compile", "model", "file", code=2).stderr
