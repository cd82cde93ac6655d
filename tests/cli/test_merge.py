"""`underdraw merge`, `underdraw extract-lora`: what they do belongs to tests/checkpoints."""

import pytest
import torch
from pipelines import tiny as small
from pipelines.loras import lora
from safetensors.torch import load_file, save_file


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two pipelines, "a" and "b", and a LoRA."""
    for name in ("a", "b"):
        pipe = small.pipeline()
        pipe.unet.conv_out.bias.data += float(name == "b")
        pipe.save_pretrained(tmp_path / name)
    save_file(lora(pipe), tmp_path / "snow.safetensors")
    return tmp_path


def bias(folder):
    (path,) = (folder / "unet").glob("*.safetensors")
    return load_file(path)["conv_out.bias"]


def test_sums_blocks_and_loras(run, folders):
    before = bias(folders / "a")
    done = run("merge", "a", "b", "--weights", 0.25, "--out", "c")
    assert done.stdout == "c\n"
    assert torch.allclose(bias(folders / "c"), before + 0.25)
    run("merge", "a", "b", "--base", "a", "--weights", "0.5", "--out", "d", "--dtype", "float16")
    assert torch.allclose(bias(folders / "d").float(), before + 0.5, atol=1e-3)
    run("merge", "a", "b", "--block", "unet=0.5", "--block", "unet.conv_out=1,0", "--out", "e")
    assert torch.equal(bias(folders / "e"), before)
    run("merge", "a", "--lora", "snow.safetensors:0.5", "--out", "f.safetensors")
    done = run("extract-lora", "f.safetensors", "a", "g.safetensors", "--error", 0.01)
    assert done.stdout == "g.safetensors\n"
    assert "ranks 2 to 2" in done.stderr and "of the change is missing" in done.stderr
    assert load_file(folders / "g.safetensors").keys() == load_file("snow.safetensors").keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge", "a", "--out", "c"), "two models, or one and loras"),
        (("merge", "a", "b", "--out", "a"), "a exists; --force writes over it"),
        (("merge", "a", "b", "--out", "c", "--weights", "half"), "--weights 'half'; allowed: 0.3"),
        (("merge", "a", "b", "--out", "c", "--block", "unet"), "--block 'unet'; allowed: a path"),
        (("merge", "a", "b", "--out", "c", "--lora", "x.pt"), "--lora 'x.pt': no such file"),
        (("extract-lora", "a", "a", "c.safetensors"), "there is nothing to extract"),
        (("extract-lora", "b", "a", "c"), "ending in .safetensors"),
    ],
)
def test_mistakes(run, folders, arguments, message):
    assert message in run(*arguments, code=2).stderr
    assert sorted(p.name for p in folders.iterdir()) == ["a", "b", "snow.safetensors"]
