"""`underdraw train lora`, `textual-inversion`, `dreambooth`: that they are reached, and their files
used; what is trained belongs to tests/training."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

QUICK = ("--steps", 2, "--batch", 1, "--precision", "float32", "--size", 32)


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, wide and square, without captions."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i, width in enumerate([70, 110]):
        array = rng.integers(0, 255, (70, width, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


def test_a_lora(run, tiny, pictures):
    lines = [{"file_name": f"{i}.png", "text": "a red sphere"} for i in range(2)]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = ("train", "lora", "--data", pictures, "--model", tiny, "--out", "work", *QUICK)
    how = ("--rank", 2, "--alpha", 1, "--conv-rank", 2, "--text", "--flip", "--min-snr", 5)
    shown = ("--preview", "a red sphere", "--preview", "a cone", "--offset-noise", 0.1)
    done = run(*asked, *how, *shown, "--checkpointing", "--format", "kohya")
    assert done.stdout == "work/lora.safetensors\n"
    assert "on 2 pictures, 2 steps" in done.stderr
    with Image.open("work/samples/000002.png") as sheet:
        assert sheet.size == (64, 32)
    tensors = load_file("work/lora.safetensors")
    assert tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"] == 1
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in tensors
    drawn = ("generate", "a cone", "--model", tiny, "--steps", 1, "--out", "a.png")
    run(*drawn, "--lora", "work/lora.safetensors:0.5")
    # The same command goes on where it stopped, and has nothing left to do.
    again = run(*asked, *how, *shown, "--format", "kohya")
    assert again.stdout == done.stdout


def test_a_word(run, tiny, pictures):
    asked = ("train", "textual-inversion", "--data", pictures, "--model", tiny, "--out", "work")
    how = ("--word", "<toy>", "--vectors", 2, "--initialiser", "cone", *QUICK)
    assert run(*asked, *how).stdout == "work/learned_embeds.safetensors\n"
    assert load_file("work/learned_embeds.safetensors")["<toy>"].shape == (2, 32)
    drawn = ("generate", "a <toy>", "--model", tiny, "--steps", 1, "--out", "a.png")
    run(*drawn, "--embedding", "work/learned_embeds.safetensors")
    (pictures / "1.txt").write_text("a red sphere")
    assert "lacks the word '<toy>'" in run(*asked, *how, code=2).stderr


@pytest.mark.parametrize("whole", [False, True])
def test_a_subject(run, tiny, pictures, whole):
    asked = ("train", "dreambooth", "--data", pictures, "--model", tiny, "--out", "work", *QUICK)
    how = ("--prompt", "a red cone", "--class-prompt", "a cone", "--class-count", 1)
    done = run(*asked, *how, *(["--whole"] if whole else ["--rank", 2]))
    made = "work/model" if whole else "work/pytorch_lora_weights.safetensors"
    assert done.stdout == f"{made}\n"
    assert len(list((pictures.parent / "work" / "class").glob("*.png"))) == 1
    used = ("--model", made) if whole else ("--model", tiny, "--lora", made)
    run("generate", "a red cone", *used, "--steps", 1, "--out", "a.png")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lora"], "nothing is said of it; wanted are metadata.jsonl in the folder, 0.txt"),
        (["lora", "--caption", "x", "--size", 36], "--size=36 is not a multiple of 8"),
        (["lora", "--caption", "x", "--precision", "int8"], "precision='int8'"),
        (["lora", "--caption", "x", "--optimizer", "muon"], "muon needs --learning-rate"),
        (["lora", "--caption", "x", "--format", "peft"], "--format"),
        (
            ["lora", "--caption", "x", "--optimizer", "adamw8bit"],
            "pip install 'underdraw[adam8bit]",
        ),
        (["lora", "--caption", "x", "--alpha", "0"], "alpha"),
        (["lora", "--caption", "x", "--data", "nowhere"], "there is no such folder"),
        (["textual-inversion"], "--word"),
        (["textual-inversion", "--word", "a cat"], "one word"),
        (["dreambooth"], "nothing is said of it"),
        (["dreambooth", "--prompt", "x", "--whole", "--rank", "4"], "are not for --whole"),
        (["dreambooth", "--prompt", "x", "--class-data", "y"], "--class-data needs --class-prompt"),
        (["lroa"], "lroa"),
    ],
)
def test_mistakes(run, tiny, pictures, monkeypatch, arguments, says):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    recipe, *rest = arguments
    asked = ("train", recipe, "--data", pictures, "--model", tiny, "--out", "work", *rest)
    assert says in run(*asked, code=2).stderr
    assert not (pictures.parent / "work").exists()
