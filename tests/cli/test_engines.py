"""`--engine` and `--backend`, and what a picture says of them."""

import numpy as np
import pytest
from PIL import Image

from underdraw import backends, engines
from underdraw.cli import loading, options
from underdraw.engines.eager import EAGER
from underdraw.pictures.writing import read_metadata, save_png

QUICK = ("--steps", 1, "--dtype", "float32", "--height", 40, "--width", 72, "--seed", 5)


class Fake:
    """Runs programs as they are written, and keeps their names."""

    asked: list[str] = []  # noqa: RUF012

    def run(self, question):
        self.asked.append(question.program.name)
        return EAGER.run(question)


@pytest.fixture
def fake(monkeypatch):
    """An engine under the name "fake"."""
    monkeypatch.setattr(engines, "NAMES", {**engines.NAMES, "fake": Fake})
    monkeypatch.setattr(Fake, "asked", [])
    return Fake


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def rewrite(source, target, **changes):
    """The picture with another record; None leaves a key out."""
    record = {**read_metadata(source), **changes}
    with Image.open(source) as image:
        save_png(image, target, {k: v for k, v in record.items() if v is not None})


def test_a_picture_says_its_engine_and_comes_again_on_it(run, tiny, fake):
    done = run("generate", "a cone", "--model", tiny, *QUICK, "--engine", "fake", "--out", "a.png")
    assert done.stderr.startswith(f"{tiny}: float32 on cpu, fake, PNDMScheduler, 1 steps")
    record = read_metadata("a.png")
    assert (record["engine"], record["backend"], record["missing"]) == ("fake", "torch", [])
    asked = list(fake.asked)
    assert "unet" in asked
    run("generate", "--again", "a.png", "--as-recorded", "--out", "b.png")
    assert fake.asked == 2 * asked
    with open("a.png", "rb") as first, open("b.png", "rb") as second:
        assert first.read() == second.read()
    run("generate", "--again", "a.png", "--as-recorded", "--engine", "eager", "--out", "c.png")
    assert fake.asked == 2 * asked
    assert read_metadata("c.png")["engine"] == "eager"


def test_pictures_of_before_there_were_engines(run, tiny, fake):
    run("generate", "a cone", "--model", tiny, *QUICK, "--out", "a.png")
    assert read_metadata("a.png")["engine"] == "eager"
    rewrite("a.png", "old.png", engine=None, backend=None)
    run("generate", "--again", "old.png", "--as-recorded", "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert read_metadata("b.png") == read_metadata("a.png")


def test_an_engine_without_a_name_has_to_be_said(run, tiny):
    from underdraw import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny, engine=Fake())
    pipe.set_progress_bar_config(disable=True)
    pipe("a cone", 40, 72, 1, seed=3).save("a.png")
    failed = run("generate", "--again", "a.png", "--as-recorded", "--out", "b.png", code=2)
    assert "does not hold its engine" in failed.stderr
    run("generate", "--again", "a.png", "--as-recorded", "--engine", "eager", "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--engine", "warp"), "--engine warp is not known; allowed: eager, compiled, jit"),
        (("--engine", "openvino", "--backend", "jax"), "runs on torch, not on jax"),
        (("--engine", "compiled", "--backend", "mindspore"), "allowed there: eager, jit"),
        (("--engine", "compiled", "--backend", "jax"), "allowed there: eager, jit"),
        (("--backend", "tensorflow"), "--backend"),
    ],
)
def test_what_does_not_run_is_told_before_a_model_is_loaded(run, tmp_path, arguments, says):
    Image.new("RGB", (8, 8)).save("photo.png")
    edit = ("edit", "photo.png", "--from", "a", "--to", "b")
    for command in (("generate", "a cone"), edit):
        failed = run(*command, "--model", "nowhere/at/all", *arguments, code=2)
        assert says in failed.stderr


def test_evaluate_tells_it_before_its_judge_is_loaded(run, monkeypatch):
    from underdraw import evaluation

    monkeypatch.setattr(evaluation, "load_evaluator", lambda: pytest.fail("loaded"))
    failed = run("evaluate", "--engine", "warp", code=2)
    assert "--engine warp is not known" in failed.stderr


def test_a_picture_of_an_engine_that_is_not_here(run, tiny):
    run("generate", "a cone", "--model", tiny, *QUICK, "--out", "a.png")
    rewrite("a.png", "b.png", engine="warp")
    failed = run("generate", "--again", "b.png", "--as-recorded", code=2)
    assert "--engine warp is not known" in failed.stderr


def test_edit_and_evaluate_run_on_it(run, tiny, fake, monkeypatch, tmp_path):
    Image.new("RGB", (61, 43), "red").save("photo.png")
    words = ("--from", "a cone", "--to", "a cube", "--model", tiny, "--dtype", "float32")
    run("edit", "photo.png", *words, "--steps", 3, "--maps", 1, "--engine", "fake")
    assert {"unet", "vae.encode", "vae.decode"} <= set(fake.asked)
    fake.asked.clear()
    words = ("--task", "editing", "--model", tiny, "--count", 1, "--steps", 3, "--engine", "fake")
    run("evaluate", *words, "--dtype", "float32", "--out", "edits")
    assert {"unet", "vae.encode", "vae.decode"} <= set(fake.asked)


def test_help_tells_of_every_engine_and_backend(run):
    assert set(loading.BACKENDS) < set(engines.NAMES)
    for command in ("generate", "edit", "evaluate"):
        shown = run(command, "--help").stdout
        assert all(name in shown for name in engines.NAMES)
    assert tuple(each.value for each in options.Backend) == backends.NAMES


def test_a_device_that_is_not_there(monkeypatch):
    class Broken:
        def array(self, values, device):
            raise RuntimeError(f"Unknown backend {device}")

    from underdraw.errors import InputError

    monkeypatch.setattr(backends, "get", lambda name: Broken())
    with pytest.raises(InputError, match="--device tpu is not there for jax: Unknown backend tpu"):
        loading.resolve_device("tpu", "jax")
    assert loading.resolve_device(None, "jax") is None


@pytest.mark.skipif("jax" not in backends.installed(), reason="needs JAX")
def test_jit_on_jax(run, tiny, monkeypatch):
    compiled = engines.Compiled()  # one for both runs: compiling is what takes time
    monkeypatch.setattr(engines, "NAMES", {**engines.NAMES, "jit": lambda: compiled})
    how = ("--backend", "jax", "--engine", "jit")
    run("generate", "a cone", "--model", tiny, *QUICK, *how, "--out", "a.png")
    run("generate", "a cone", "--model", tiny, *QUICK, "--out", "b.png")
    assert abs(pixels("a.png").astype(int) - pixels("b.png")).max() <= 1
    record = read_metadata("a.png")
    assert (record["engine"], record["backend"]) == ("jit", "jax")
    run("generate", "--again", "a.png", "--as-recorded", "--out", "c.png")
    assert np.array_equal(pixels("a.png"), pixels("c.png"))
