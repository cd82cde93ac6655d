"""README and docs: every snippet, as it is written and in its order.

Three things are made smaller, for all snippets alike (`cheaper`): a run has two steps, whatever it
asks for, null text is sought once for each, and `engine="compiled"` leaves the compiler out. What
cannot run here stands in `NOT_RUN` with the reason; it is still compiled and compared with what the
package has, or runs up to what is dear.
"""

from __future__ import annotations

import os
import shlex
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from cli.conftest import make_tiny
from pages import PAGES as WRITTEN, ROOT, blocks, commands, docstrings, examine, mentioned
from PIL import Image
from pipelines import test_gligen as gligen, tiny
from pipelines.loras import lora
from pipelines.test_from_single_file import write as write_single_file
from safetensors.torch import save_file
from typer._click.exceptions import MissingParameter
from typer.testing import CliRunner
from weights.fake_hub import FakeHub

import underdraw
from underdraw import checks, evaluation
from underdraw.cli import app
from underdraw.controls.acceleration import method
from underdraw.sampling.inversion import METHODS, NullTextInversion
from underdraw.training import recipes
from underdraw.weights import files
from underdraw.weights.vocabularies import CLIP_TOKENS

NEEDS = {"docs/training_jax.md": "optax"}
"""Pages that are left out where a package is not here (`tests/backends/test_installed.py`)."""
PAGES = [page for page in WRITTEN if page not in NEEDS or find_spec(NEEDS[page])]
STEPS = 2
LATENTS = torch.ones(1, 4, 8, 8)
NOT_RUN = {
    "Salesforce/blipdiffusion": "downloads 5 GB; small ones are run in tests/pipelines/blip",
    "h94/IP-Adapter": "downloads 3 GB; small ones are run in tests/pipelines/test_image_prompts.py",
    "--ip-adapter": "needs a published file",
    "pipe.qformer.tokenizer": "needs a published vocabulary",
    "generate_then_edit": "needs the pipeline that was not downloaded",
    "--subject photo.png": "needs weights of a subject",
    "train subject-finetune": "needs pictures of a subject, and trains for a minute",
    "toy/subject.safetensors": "needs a subject that was learned",
    "tune_subject": "trains for minutes; small ones are run in tests/training",
    "train lora": "needs pictures, and trains; small ones are run in tests/cli",
    "train textual-inversion": "needs pictures, and trains; small ones are run in tests/cli",
    "train dreambooth": "needs pictures, and trains; small ones are run in tests/cli",
    "clay/pytorch_lora_weights.safetensors": "needs a LoRA that was trained",
    "cat/learned_embeds.safetensors": "needs a word that was learned",
    "train_lora(": "trains for minutes; small ones are run in tests/training",
    "train_textual_inversion(": "trains for minutes; small ones are run in tests/training",
    "train_dreambooth(": "trains for minutes; small ones are run in tests/training",
    "load_captioner()": "downloads a captioner and a writer of several GB",
    "train family --budget": "needs minutes; tiny networks are run in tests/training",
    "underdraw compile": "needs a C++ compiler and minutes; tests/engines/test_aot.py runs it",
    "--packages packages": "needs packages; tests/engines/test_aot.py runs it",
    "Packing": "needs a C++ compiler and minutes; tests/engines/test_aot.py runs it",
    "underdraw bench": "needs a minute; tiny networks are run in tests/benchmark",
    "underdraw train structure": "needs pictures with maps",
    "underdraw train grounding --data scenes": "trains all networks of the family for hours",
    "underdraw evaluate --model underdraw/scenes --task grounding": "makes 128 pictures twice",
    'engine="jit"': "compiles for a minute; small ones are run in tests/pipelines/test_backends.py",
    "pairs.items()": "trains; small ones are run in tests/training/test_optax.py",
    "FlaxStableDiffusion": "compiles for a minute; small ones are run in tests/flax_names",
    "underdraw.mindspore": "needs MindSpore; small ones are run in tests/mindspore_names",
    "python3 -m venv": "asks the package index",
    ".venv/bin/pip install": "asks the package index",
    ".venv/bin/nox": "is this suite",
}
"""What a snippet holds -> why it is not run."""
HUB = {
    "masterful/gligen-1-4-generation-text-box": "gated",
    "some/other-sd15-checkpoint": "folder",
    "some/sd15-checkpoint": "folder",
    "lllyasviel/control_v11p_sd15_canny": "net",
    "openai/clip-vit-large-patch14": "clip",
    "owner/snow": "snow",
    "owner/cat-toy": "toy",
    "madebyollin/taesd": "taesd",
}
"""Repositories that pages name -> folders of small networks."""


class Reached(Exception):
    """What is dear would begin now."""


def reach(*_, **__):
    raise Reached


def reason(text):
    return next((why for part, why in NOT_RUN.items() if part in text), None)


# -- what a reader has ---------------------------------------------------------------------------
def photo(width=96, height=80):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def mask(width=96, height=80):
    drawn = Image.new("L", (width, height))
    drawn.paste(255, (20, 20, width // 2, height // 2))
    return drawn


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A reader's own models, small: a folder, one with gates, files with all networks in one."""
    place = tmp_path_factory.mktemp("shelf")
    tiny.pipeline().save_pretrained(place / "folder")
    gligen.made().save_pretrained(place / "gated")
    tiny.controlnet().save_pretrained(place / "net")
    for name in ("snow", "toy"):
        (place / name).mkdir()
    save_file(lora(tiny.pipeline(), 1), place / "snow" / "snow.safetensors")
    tiny.small_vae().save_pretrained(place / "taesd")
    save_file(tiny.taesd(tiny.small_vae(), "decoder"), place / "taesd_decoder.safetensors")
    word = {"<cat-toy>": torch.ones(2, tiny.WIDTH)}
    save_file(word, place / "toy" / "learned_embeds.safetensors")
    # As a published file has it: no vocabulary inside, and settings that nobody wrote down.
    words = dict(zip(map(str, range(CLIP_TOKENS - 2)), range(CLIP_TOKENS), strict=False))
    ends = {"<|startoftext|>": CLIP_TOKENS - 2, "<|endoftext|>": CLIP_TOKENS - 1}
    published = underdraw.CLIPTokenizer(words | ends, [])
    published.save_pretrained(place / "clip")
    make_tiny(place / "classic", tokenizer=published)
    write_single_file(place / "classic", place / "one.safetensors")
    held = files.open_tensors(place / "one.safetensors")
    tensors = {name: torch.from_numpy(np.array(value.load())) for name, value in held.items()}
    torch.save({"state_dict": tensors}, place / "one.ckpt")
    return place


@pytest.fixture
def desk(tmp_path, shelf, monkeypatch):
    """A folder with the files that pages speak of."""
    for name, held in {
        "folder": "folder",
        "folder-or-file": "folder",
        "sd15": "folder",
        "canny-net": "net",
        "v1-5-pruned.safetensors": "one.safetensors",
        "v1-5.ckpt": "one.ckpt",
        "clay.safetensors": "snow/snow.safetensors",
        "lcm-lora.safetensors": "snow/snow.safetensors",
        "taesd_decoder.safetensors": "taesd_decoder.safetensors",
        "snow.safetensors": "snow/snow.safetensors",
        "easynegative.safetensors": "toy/learned_embeds.safetensors",
    }.items():
        (tmp_path / name).symlink_to(shelf / held)
    photo().save(tmp_path / "photo.png")
    mask().save(tmp_path / "mask.png")
    for name in ("cat.png", "look.png", "edges.png", "depth.png"):
        photo(40, 30).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cheaper(monkeypatch):
    whole = checks.whole

    def fewer(name, value, *bounds):
        told = whole(name, value, *bounds)
        return min(told, STEPS) if name == "num_inference_steps" else told

    monkeypatch.setattr(checks, "whole", fewer)
    monkeypatch.setattr(method, "FEWEST_CALLS", STEPS)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setitem(METHODS, "null-text", NullTextInversion(iterations=1))


@pytest.fixture
def fake_hub(shelf, tmp_path_factory, monkeypatch):
    served = FakeHub()
    served.repositories = {name: {"main": shelf / held} for name, held in HUB.items()}
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path_factory.mktemp("cache"))
    yield served
    served.close()


def parse(root, arguments):
    """What an app makes of a command, of one word or two."""
    name, command, rest = root.resolve_command(typer.Context(root), list(arguments))
    command.make_context(name, rest)


# -- pages ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES)
def test_python(page, desk, cheaper, fake_hub):
    names = {"photo": photo(), "edges": photo(), "mask": mask(), "__name__": page}
    for snippet in blocks(page, "python"):
        if reason(snippet.text):
            examine(snippet, names)
        else:
            exec(compile(snippet.text, snippet.place, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_shell(page, desk, cheaper, fake_hub, monkeypatch):
    for snippet in blocks(page, "json"):
        (desk / "layout.json").write_text(snippet.text)
    monkeypatch.setattr(evaluation, "load_evaluator", reach)
    monkeypatch.setattr(recipes, "train_stage", reach)
    os.unlink("folder")  # commands make it
    for command in commands(page):
        program, *arguments = shlex.split(command)
        if Path(program).name != "underdraw":
            assert reason(command) or (program, len(arguments)) == ("python", 1), command
            for word in arguments:
                assert (ROOT / word).exists() or "/" not in word, command
            continue
        if (reason(command) or "").startswith("needs"):
            parse(typer.main.get_command(app.app), arguments)
            continue
        done = CliRunner().invoke(app.app, arguments)
        if reason(command):
            assert isinstance(done.exception, Reached), f"{command}: {done.output}"
        else:
            assert done.exit_code == 0, f"{command}: {done.output}"


def test_what_is_not_run_is_there():
    texts = [
        c for page in WRITTEN for c in (*commands(page), *[b.text for b in blocks(page, "python")])
    ]
    for part in NOT_RUN:
        assert any(part in text for text in texts), part


def test_every_fence_has_a_language_that_is_tried():
    for page in PAGES:
        tried = blocks(page, "python", "bash", "json", "")
        assert len(tried) == (ROOT / page).read_text().count("```") // 2


def test_commands_in_running_text_and_help():
    root = typer.main.get_command(app.app)
    found = mentioned()
    assert len(found) > 20
    for arguments in found:
        with suppress(MissingParameter):  # of one that is only mentioned
            parse(root, arguments)


# -- docstrings ----------------------------------------------------------------------------------
@pytest.mark.parametrize("snippet", docstrings(), ids=lambda snippet: snippet.place)
def test_docstrings(snippet, desk, cheaper):
    cls = snippet.place.partition(".")[0]
    pipe = tiny.pipeline()
    if cls.endswith("Pipeline"):
        pipe = getattr(underdraw, cls).from_pipe(pipe)
    names = {name: getattr(underdraw, name) for name in underdraw.__all__}
    names |= {"underdraw": underdraw, "closing": closing, "pipe": pipe, "edit": editor(pipe)}
    names |= {"photo": photo(), "mask": mask(), "inside": LATENTS[:, :1], "clean": LATENTS}
    names |= {"unet": pipe.unet, "prompt": "a", "dog": photo(), "edges": photo(), "cat": photo()}
    names |= {"noise": LATENTS, "inverted": [LATENTS, LATENTS]}
    if snippet.place in (
        "ControlNetModel",
        "ImagePrompt",
        "Subject",
    ):  # weights that nobody has here
        examine(snippet, names)
    else:
        exec(compile(snippet.text, snippet.place, "exec"), names)


def editor(pipe):
    return underdraw.StableDiffusionInpaintPipeline.from_pipe(pipe)
