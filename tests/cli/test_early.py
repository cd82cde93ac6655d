"""What is refused before a model is loaded: all numbers of all commands, and where results go."""

import json
import os
from typing import Annotated, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import typer
from PIL import Image

from underdraw.cli.app import app
from underdraw.pictures.writing import save_picture

BASES = {
    "generate": ("a cone", "--box", "a cone", "0", "0", "1", "1"),
    "edit": ("photo.png", "--from", "a red sphere", "--to", "a blue cube"),
    "evaluate": (),
    "train": ("autoencoder", "--data", "pictures", "--out", "out"),
    "train lora": ("--data", "pictures", "--out", "out", "--caption", "a cone"),
    "train textual-inversion": ("--data", "pictures", "--out", "out", "--word", "x"),
    "train dreambooth": ("--data", "pictures", "--out", "out", "--prompt", "a cone"),
    "scenes": (),
    "info": ("photo.png",),
    "convert": ("photo.png", "out"),
    "cache": (),
    "bench": (),
    "compile": ("photo.png", "out"),
    "doctor": (),
    "merge": ("photo.png", "photo.png", "--out", "out"),
    "extract-lora": ("photo.png", "photo.png", "out.safetensors"),
}
COMMANDS = {
    command.name or command.callback.__name__.replace("_", "-"): command.callback
    for command in app.registered_commands
}
# None of these is a number that any option takes.
NOWHERE = {float: ("nan", "inf", "-inf", "1e999", "x"), int: ("1e3", "nan", "x", "9" * 30)}


def numbers():
    """Of all options that take numbers: command, option, how many, and one that cannot be."""
    found, known = [], set()
    for command, function in COMMANDS.items():
        hints = get_type_hints(function, include_extras=True)
        for name, hint in hints.items():
            if get_origin(hint) is not Annotated or hint in known:
                continue
            if command.startswith("train "):  # of options that these share one is tried
                known.add(hint)
            names = (*(hint.__metadata__[0].param_decls or ()), f"--{name}".replace("_", "-"))
            option = next(name for name in names if name.startswith("--"))
            parts = [hint.__origin__, *get_args(hint.__origin__)]
            several = next((get_args(part) for part in parts if get_origin(part) is tuple), ())
            for kind in {*parts, *several} & set(NOWHERE):
                found += [(command, option, len(several) or 1, bad) for bad in NOWHERE[kind]]
    return found


@pytest.fixture
def unloaded(tmp_path, monkeypatch):
    """A folder of inputs, in which loading anything is a failure."""

    def fail(*_, **__):
        raise AssertionError("a model was loaded")

    from underdraw import evaluation
    from underdraw.cli import loading

    monkeypatch.setattr(loading, "load_pipeline", fail)
    monkeypatch.setattr(evaluation, "load_evaluator", fail)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "text.txt").write_text("no picture")
    return tmp_path


def snapshot(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_all_commands_are_tried():
    assert set(BASES) == set(COMMANDS)
    tried = {(command, option) for command, option, *_ in numbers()}
    assert len(tried) > 30
    assert {("generate", "--guidance"), ("edit", "--threshold"), ("train", "--minutes")} <= tried


@pytest.mark.parametrize(("command", "option", "count", "value"), numbers())
def test_numbers(run, unloaded, command, option, count, value):
    before = snapshot(unloaded)
    failed = run(*command.split(), *BASES[command], option, *[value] * count, code=2)
    assert option in failed.stderr or (command, option) == ("generate", "--box")
    assert snapshot(unloaded) == before


SPHERE = ("edit", "photo.png", "--from", "a red sphere", "--to")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "x", "--steps", 1001), "--steps=1001 is too large; allowed: 1 .. 1000"),
        (("generate", "x", "--height", 30), "--height=30 is not a multiple of 8"),
        (("generate", "x", "--width", 65), "--width=65 is not a multiple of 8"),
        (("generate", "x", "--size", 65), "--size=65 is not a multiple of 8"),
        (("generate", "x", "--size", "64x65"), "--width=65 is not a multiple of 8"),
        (("generate", "x", "--size", "64y64"), "is not HEIGHTxWIDTH"),
        (("generate", "x", "--size", "0"), "is not HEIGHTxWIDTH"),
        (("generate", "x", "--size", 64, "--width", 64), "--size does not go with"),
        (("generate", "x", "--guidance", 1e30), "--guidance=1e+30 is out of range"),
        (("generate", "x", "--seed", 2**63 - 1, "-n", 2), "--seed 9223372036854775807 is out"),
        (("generate", "x", "--grounding", "no/such"), "no/such"),
        (("generate", "x", "--speed", "fast", "--steps", 9), "allowed: 10 steps or more, or"),
        (("evaluate", "--speed", "faster", "--steps", 9), "allowed: 10 steps or more, or"),
        (
            ("generate", "x", "--speed", "fast", "--steps", 5, "--solver", "heun"),
            "5 steps are 9 calls of the UNet, which have nothing of that; allowed: 6 steps or",
        ),
        (
            ("generate", "x", "--image", "photo.png", "--speed", "fast", "--steps", 11),
            "11 steps are 8 calls of the UNet, which have nothing of that; allowed: 13 steps or",
        ),
        (
            ("generate", "x", "--speed", "fast", "--solver", "lcm", "--steps", 20),
            "allowed: another --solver",
        ),
        (("generate", "x", "--engine", "warp"), "--engine warp is not known"),
        (("generate", "(x"), "("),
        (("generate", "x", "--image", "photo.png", "--height", 30), "--height=30 is not"),
        (("generate", "x", "--image", "photo.png", "--steps", 1), "--steps 1 at a strength of 0.8"),
        (
            ("generate", "x", "--image", "photo.png", "--strength", 0.1, "--steps", 9),
            "needed are 10 steps",
        ),
        (("generate", "x", "--image", "photo.png", "--strength", 1.5), "--strength 1.5 is out"),
        (("generate", "x", "--mask", "photo.png"), "--mask needs --image"),
        ((*SPHERE, "a red sphere"), "--from and --to both say"),
        ((*SPHERE, " A red  SPHERE"), "--from and --to both say"),
        ((*SPHERE, "a cube", "--steps", 2000), "--steps=2000 is too large"),
        ((*SPHERE, "a cube", "--steps", 1), "--steps 1 at a strength of 0.6 leaves none"),
        ((*SPHERE, "a cube", "--strength", 0), "leaves none"),
        ((*SPHERE, "a cube", "--threshold", 0), "--threshold 0.0 is out of range"),
        ((*SPHERE, "a cube", "--guidance", 1e5), "--guidance=100000.0 is out of range"),
        ((*SPHERE, "a cube", "--height", 20), "--height=20 is not a multiple of 8"),
        ((*SPHERE, "a [cube"), "["),
        ((*SPHERE, "a cube", "--keep-latents", "x.png"), "must end with .safetensors"),
        ((*SPHERE, "a cube", "--keep-latents", "no/x.safetensors"), "there is no folder no"),
        (("evaluate", "--steps", 2000), "--steps=2000 is too large"),
        (("evaluate", "--solver", "foo"), "--solver foo is not known"),
        (("evaluate", "--task", "editing", "--steps", 1), "leaves none"),
        (("evaluate", "--task", "grounding", "--grounding", "no/such"), "no/such"),
        (("evaluate", "--task", "grounding", "--strength", 1, 1, 1), "add up to 1"),
        (("scenes", "--size", "99999"), "makes a sheet of 1,279,974,400,128 pixels"),
        (("train", "autoencoder", "--data", "pictures", "--out", "o", "--size", 30), "--size=30"),
        (
            ("train", "grounding", "--data", "pictures", "--out", "o", "--precision", "half"),
            "precision='half'",
        ),
        (
            ("train", "text-to-image", "--data", "pictures", "--out", "o", "--model", "no/such"),
            "no/such",
        ),
    ],
)
def test_what_does_not_fit_the_model(run, unloaded, arguments, says):
    before = snapshot(unloaded)
    assert says in run(*arguments, code=2).stderr
    assert snapshot(unloaded) == before


DDIM = {"_class_name": "DDIMScheduler"}
RECORD = {
    "underdraw": "0.1",
    "pipeline": "StableDiffusionPipeline",
    "dtype": "float32",
    "missing": ["controls"],
    "call": {"prompt": "a cone", "seed": 1, "num_inference_steps": 2},
    "settings": {},
}
PLACED = {"boxes": [{"phrase": "a cone", "box": [0, 0, 1, 1]}], "strength": [1, 0, 0]}


@pytest.mark.parametrize("how", ["--box", "--layout", "--again", "evaluate"])
@pytest.mark.parametrize("held", ["nothing", "gates", "weights beside"])
def test_boxes_that_nothing_acts_on(run, unloaded, tmp_path, held, how):
    """Where the configs show something that does, the model is loaded."""
    model, gated = tmp_path / "model", {"attention_type": "gated"} if held == "gates" else {}
    parts = {"unet": gated | {"in_channels": 4}, "vae": {}, "scheduler": {}}
    if held == "weights beside":
        parts["grounding"] = {"kind": "text"}
    for name, config in parts.items():
        (model / name).mkdir(parents=True)
        (model / name / "config.json").write_text(json.dumps(config))
    (model / "model_index.json").write_text(json.dumps({"_class_name": "X"}))
    (tmp_path / "layout.json").write_text(json.dumps(PLACED))
    record = {**RECORD, "layout": PLACED, "model": str(model), "scheduler": DDIM}
    save_picture(Image.new("RGB", (8, 8)), "made.png", record)
    commands = {
        "--box": ("generate", "a", "--model", model, *BASES["generate"][1:]),
        "--layout": ("generate", "a", "--model", model, "--layout", "layout.json"),
        "--again": ("generate", "--again", "made.png", "--as-recorded"),
        "evaluate": ("evaluate", "--model", model, "--task", "grounding"),
    }
    if held == "nothing":
        told = run(*commands[how], code=2).stderr
        assert "has no grounding weights for boxes; name some with --grounding" in told
    else:
        with pytest.raises(AssertionError, match="a model was loaded"):
            run(*commands[how])


# -- where results go ------------------------------------------------------------------------------
WRITERS = {
    "generate": ("generate", "x"),
    "generate --again": ("generate", "x", "--image", "photo.png"),
    "edit": (*SPHERE, "a blue cube"),
    "scenes": ("scenes", "-n", 1),
}
PLACES = {
    "text.txt/a.png": "text.txt is a file",
    "text.txt": "pictures are written as .png",
    "/proc/a.png": "/proc cannot be written to",
    "/proc/in/a.png": "cannot be written to",
    "a" * 300 + ".png": "File name too long",
    "b" * 300 + "/a.png": "File name too long",
    "a.gif": "pictures are written as .png",
    "photo.png": "photo.png",
    "absent/../photo.png": "there is no folder",
    "linked.png": "linked.png",
    "hard.png": "hard.png",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("writer", WRITERS)
def test_places_that_cannot_be_written_to(run, unloaded, writer, place):
    (unloaded / "linked.png").symlink_to("photo.png")
    os.link("photo.png", "hard.png")
    before = snapshot(unloaded)
    failed = run(*WRITERS[writer], "--out", place, code=2)
    assert PLACES[place] in failed.stderr
    assert snapshot(unloaded) == before


@pytest.mark.parametrize("out", ["photo.png", "./photo.png", "linked.png", "hard.png"])
@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize(
    "command",
    [
        (*SPHERE, "a blue cube"),
        ("edit", "other.png", "--from", "a", "--to", "b", "--mask", "photo.png"),
        ("generate", "x", "--image", "photo.png"),
        ("generate", "x", "--image", "other.png", "--mask", "photo.png"),
        ("generate", "x", "--layout", "layout.json"),
    ],
)
def test_no_input_is_written_over(run, unloaded, command, force, out):
    (unloaded / "linked.png").symlink_to("photo.png")
    (unloaded / "other.png").write_bytes((unloaded / "photo.png").read_bytes())
    os.link("photo.png", "hard.png")
    (unloaded / "layout.json").write_text('[{"image": "photo.png", "box": [0, 0, 1, 1]}]')
    before = snapshot(unloaded)
    assert "would be lost" in run(*command, "--out", out, *force, code=2).stderr
    assert snapshot(unloaded) == before


@pytest.mark.parametrize(
    ("command", "there"),
    [
        (("generate", "x", "--out", "a.png"), "a.png"),
        (("generate", "x", "-n", 2, "--out", "a.png"), "a-1.png"),
        (("generate", "x", "-n", 2, "--out", "a.png"), "a.png"),
        (("generate", "x", "--box", "x", 0, 0, 1, 1, "--draw-boxes", "-o", "a.png"), "a-boxes.png"),
        ((*SPHERE, "a cube", "--show-mask", "-o", "a.jpg"), "a-before-after.jpg"),
        (("scenes", "-o", "a.webp"), "a.webp"),
    ],
)
def test_files_that_are_there_need_force(run, unloaded, command, there):
    (unloaded / there).write_text("mine")
    failed = run(*command, code=2)
    assert f"{there} exists; --force writes over it" in failed.stderr
    assert (unloaded / there).read_text() == "mine"
    if command[0] != "scenes":
        with pytest.raises(AssertionError, match="a model was loaded"):
            run(*command, "--force")


def test_a_person_at_a_terminal_is_asked(unloaded, monkeypatch):
    from underdraw.cli import outputs
    from underdraw.errors import InputError

    class Terminal:
        def isatty(self):
            return True

    asked = []
    monkeypatch.setattr(outputs.sys, "stdin", Terminal())
    monkeypatch.setattr(outputs.sys, "stderr", Terminal())
    for answer in (True, False):
        monkeypatch.setattr(typer, "confirm", lambda text, err, a=answer: asked.append(text) or a)
        if answer:
            outputs.check_free([unloaded / "photo.png"], {})
        else:
            with pytest.raises(InputError, match="nothing was written"):
                outputs.check_free([unloaded / "photo.png"], {})
    assert len(asked) == 2
    assert "photo.png exists; write over it?" in asked[0]


def test_a_picture_in_the_way_of_a_sheet_that_is_not_made(run, unloaded):
    (unloaded / "a.png").write_text("mine")
    with pytest.raises(AssertionError, match="a model was loaded"):
        run("generate", "x", "-n", 2, "--no-grid", "--out", "a.png")


@pytest.mark.parametrize(
    ("solver", "steps", "strength"), [("heun", 6, None), ("ddim", 10, 1.0), ("heun", 12, 0.5)]
)
def test_calls_are_counted_as_runs_count_them(solver, steps, strength):
    """Not steps: one fewer has too few."""
    from underdraw.cli.early import Facts, check_speed
    from underdraw.controls.acceleration.presets import PRESETS
    from underdraw.errors import InputError

    def check(steps, preset="fast"):
        check_speed(Facts(), steps, strength, solver, PRESETS[preset], "--speed fast")

    check(steps)
    check(steps - 2, "exact")
    with pytest.raises(InputError, match=f"allowed: {steps} steps or more, or --speed exact"):
        check(steps - 2)
