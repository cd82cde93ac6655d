"""`underdraw edit` on a tiny random pipeline, and its mistakes."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines.loras import lora
from safetensors.torch import save_file

import underdraw
from underdraw.cli import edit as cli_edit, evaluate
from underdraw.pipelines.diffedit.edit import EditSettings

FROM, TO = "a red sphere", "a blue cube"
SHORT = ("--steps", "5", "--maps", "2", "--threshold", "2", "--dtype", "float32")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).resize((61, 43)).save(path)
    return path


def call(run, tiny, photo, *more, code=0):
    words = ("--from", FROM, "--to", TO, "--model", tiny, *SHORT)
    return run("edit", photo, *words, *more, code=code)


def test_edit_with_mask_and_file(run, tiny, photo, tmp_path):
    out, kept = tmp_path / "out.png", tmp_path / "kept.safetensors"
    more = ("-o", out, "--paste", "--show-mask", "--keep-latents", kept)
    result = call(run, tiny, photo, *more)
    names = [line.rsplit("/", 1)[-1] for line in result.stdout.split()]
    assert names == ["out.png", "out-mask.png", "out-before-after.png"]
    before, after, mask = (np.asarray(Image.open(p)) for p in (photo, out, tmp_path / names[1]))
    assert after.shape == before.shape
    changed = (before != after).any(2)
    assert changed.any()
    assert not changed[mask == 0].any()
    assert "mask: " in result.stderr
    first = out.read_bytes()
    call(run, tiny, photo, *more, "--force")  # from the file
    assert out.read_bytes() == first
    other = call(run, tiny, photo, *more, "--force", "--seed", "4", code=2)
    assert "another seed" in other.stderr


def test_edit_inside_a_drawn_mask(run, tiny, photo, tmp_path):
    drawn = Image.new("L", (61, 43))
    drawn.paste(255, (0, 0, 30, 43))
    drawn.save(tmp_path / "drawn.png")
    more = ("-o", tmp_path / "out.png", "--mask", tmp_path / "drawn.png", "--paste")
    call(run, tiny, photo, *more)
    before, after = (np.asarray(Image.open(p)) for p in (photo, tmp_path / "out.png"))
    changed = (before != after).any(2)
    assert changed[:, :24].mean() > 0.5
    assert not changed[:, 40:].any()


def test_ctrl_c_keeps_what_was_done(run, tiny, photo, tmp_path, monkeypatch):
    from underdraw.pipelines.diffedit.inverting import Trace

    plain, seen = Trace.__call__, []

    def stopped(self, step, ends):
        change = plain(self, step, ends)
        seen.append(step.index)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return change

    monkeypatch.setattr(Trace, "__call__", stopped)
    kept = tmp_path / "kept.safetensors"
    result = call(run, tiny, photo, "-o", "out.png", "--keep-latents", kept, code=130)
    assert f"{kept} holds what was done; the same command goes on" in result.stderr
    assert not (tmp_path / "out.png").exists()
    call(run, tiny, photo, "-o", "out.png", "--keep-latents", kept)
    assert seen == [0, 1, 0, 1]
    assert (tmp_path / "out.png").exists()


def test_what_is_used_is_told_and_another_solver_too(run, tiny, photo):
    told = call(run, tiny, photo, "--seed", "4", "--guidance", "3").stderr.splitlines()
    assert told[0] == "note: PNDMScheduler cannot be turned round; DDIMScheduler is used"
    assert told[1] == (
        f"{tiny}: float32 on cpu, DDIMScheduler, 5 steps, strength 0.8, guidance 3, threshold 2, "
        "2 maps at 0.6, seed 4"
    )
    told = call(run, tiny, photo, "--solver", "euler", "--mask-strength", "0.4").stderr
    assert "threshold 2, 2 maps at 0.4" in told
    assert "turned round" not in told and "EulerDiscreteScheduler, 5 steps" in told


def test_a_large_photo_is_fitted_and_pasted_at_its_own_size(run, tiny, photo, tmp_path):
    with Image.open(photo) as small:
        small.resize((610, 430)).save(tmp_path / "large.png")
    result = call(run, tiny, "large.png", "-o", "a.png", "--paste", "--show-mask")
    assert "large.png (610 x 430 pixels) is worked on at 88 x 64" in result.stderr
    before, after, mask = (np.asarray(Image.open(n)) for n in ("large.png", "a.png", "a-mask.png"))
    assert after.shape == before.shape
    changed = (before != after).any(2)
    assert changed.any() and not changed[mask == 0].any()
    call(run, tiny, "large.png", "-o", "b.png", "--size", "48x40")
    with Image.open("b.png") as made:
        assert made.size == (40, 48)


def test_an_edit_says_how_it_is_made_again(run, tiny, photo):
    call(run, tiny, photo, "-o", "a.png", "--show-mask", "--paste", "--mask-strength", "0.4")
    for name, says in (
        ("a.png", f"underdraw edit photo.png --from '{FROM}' --to '{TO}' --model {tiny} "
         "--threshold 2.0 --maps 2 --mask-strength 0.4 --steps 5 --seed 0 --paste"),
        ("a-mask.png", "shows mask of a.png; --again takes that picture"),
        ("a-before-after.png", "shows before-after of a.png; --again takes that picture"),
    ):  # fmt: skip
        assert says in run("generate", "--again", name, code=2).stderr


def test_an_edit_with_loras_and_words(run, tiny, photo, tmp_path):
    """They act, its record names their files, and what was kept with one is of no use without."""
    pipe = underdraw.StableDiffusionPipeline.from_pretrained(tiny)
    save_file(lora(pipe, 1, texts=()), tmp_path / "clay.safetensors")
    width = pipe.text_encoder.config.hidden_size
    save_file({"<toy>": torch.ones(2, width)}, tmp_path / "toy.safetensors")
    tuned = ("--lora", "clay.safetensors:0.5", "--embedding", "toy.safetensors")
    kept = ("--keep-latents", "kept.safetensors")
    call(run, tiny, photo, "-o", "plain.png")
    call(run, tiny, photo, "-o", "tuned.png", *tuned, *kept)
    plain, made = (np.asarray(Image.open(f"{name}.png")) for name in ("plain", "tuned"))
    assert (plain != made).any()
    says = run("generate", "--again", "tuned.png", code=2).stderr
    assert "clay.safetensors:0.5" in says and "toy.safetensors" in says
    other = call(run, tiny, photo, "-o", "other.png", *kept, code=2)
    assert "another loras" in other.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--lora", "none.safetensors"), "no such file"),
        (("--keep-latents", "x.png"), "must end with .safetensors"),
        (("--mask", "nothing.png"), "there is no file 'nothing.png'"),
        (("--solver", "best"), "best"),
    ],
)
def test_mistakes(run, photo, more, words):
    result = run("edit", photo, "--from", FROM, "--to", TO, *more, code=2)
    assert words in result.stderr


def test_what_is_no_picture(run, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "absent.png"):
        result = run("edit", tmp_path / name, "--from", FROM, "--to", TO, code=2)
        assert name in result.stderr


def test_edits_are_evaluated(run, tiny, tmp_path):
    words = ("--task", "editing", "--model", tiny, "--count", "1", "--steps", "3")
    result = run("evaluate", *words, "--dtype", "float32", "--out", tmp_path / "edits")
    assert "edited as told" in result.stdout
    assert (tmp_path / "edits" / "sheet.png").exists()
    again = run("evaluate", *words, "--dtype", "float32", "--out", tmp_path / "edits")
    assert again.stdout == result.stdout
    run("evaluate", "--task", "editing", "--strength", "1", "0", "0", code=2)


def test_what_the_commands_know_beforehand_is_what_an_edit_takes():
    usual = EditSettings()
    known = cli_edit.DEFAULT_STEPS, cli_edit.DEFAULT_STRENGTH, cli_edit.MASK_STRENGTH
    assert known == (usual.steps, usual.strength, usual.mask_strength)
    assert min(usual.strength, usual.mask_strength) == evaluate.STRENGTH
