"""Checkpoints merged, LoRAs extracted and merged, everything written anew; each way round."""

import json
import weakref

import numpy as np
import pytest
import torch
from controls.test_structure import close
from pipelines import tiny
from pipelines.loras import lora
from safetensors.torch import load_file, save_file

import underdraw
from underdraw import checkpoints
from underdraw.checkpoints import merging
from underdraw.checkpoints.extracting import decomposed
from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError

SIZE = {"height": 24, "width": 40, "num_inference_steps": 2}
PARTS = ("unet", "vae", "text_encoder")
ROUNDING = 1e-6
"""Of sums of three float32 numbers below 4, in another order."""


def moved_by(pipe, seed, spread=0.05, rank=None):
    """The pipeline after a training that moved all weights, or layers by a low rank."""
    g = torch.Generator().manual_seed(seed)
    for name in PARTS:
        for key, value in getattr(pipe, name).named_parameters():
            if rank is None:
                value.data += spread * torch.randn(value.shape, generator=g)
            elif value.ndim > 1 and "embedding" not in key:
                up, down = (
                    torch.randn(n, rank, generator=g) for n in (len(value), value[0].numel())
                )
                value.data += spread * (up @ down.T).reshape(value.shape)
    return pipe


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Folders of a base, of three that were trained from it, and a file with one of them."""
    place = tmp_path_factory.mktemp("shelf")
    tiny.pipeline().save_pretrained(place / "base")
    for i, name in enumerate(("one", "two", "three")):
        moved_by(tiny.pipeline(), i + 1).save_pretrained(place / name)
    moved_by(tiny.pipeline(), 5, rank=2).save_pretrained(place / "low")
    checkpoints.convert(place / "two", place / "two.safetensors")
    return place


def weights(folder):
    """All numbers of a pipeline folder by component and name."""
    found = {}
    for name in PARTS:
        (path,) = (folder / name).glob("*.safetensors")
        found |= {f"{name}.{key}": value for key, value in load_file(path).items()}
    return found


def drawn(folder):
    pipe = underdraw.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return tiny.run(pipe, **SIZE)


@pytest.mark.parametrize(
    ("models", "options", "shares"),
    [
        (["one", "two"], {}, {"one": 0.5, "two": 0.5}),
        (["one", "two.safetensors"], {"weights": 0.3}, {"one": 0.7, "two": 0.3}),
        (
            ["one", "two", "three"],
            {"weights": [0.5, 0.75, -0.25]},
            {"one": 0.5, "two": 0.75, "three": -0.25},
        ),
        (["one", "two"], {"base": "base"}, {"one": 1, "two": 1, "base": -1}),
        (
            ["one", "two", "three"],
            {"base": "base", "weights": [0.5, 2]},
            {"one": 1, "two": 0.5, "three": 2, "base": -2.5},
        ),
    ],
    ids=["mean", "share", "three", "difference", "differences"],
)
def test_sums_and_differences(shelf, tmp_path, models, options, shares):
    options = {k: shelf / v if k == "base" else v for k, v in options.items()}
    made = checkpoints.merge([shelf / name for name in models], tmp_path / "made", **options)
    held = {name: weights(shelf / name) for name in shares}
    for key, value in weights(made).items():
        wanted = sum(share * held[name][key].double() for name, share in shares.items())
        assert value.dtype == torch.float32
        assert (value - wanted).abs().max() <= ROUNDING * max(1, wanted.abs().max())
    assert drawn(made).isfinite().all()


def test_blocks_have_weights_of_their_own(shelf, tmp_path):
    blocks = {"unet": 0.25, "unet.up_blocks.1": 1, "vae": [1, 0], "text_encoder": 0.0}
    made = checkpoints.merge([shelf / "one", shelf / "two"], tmp_path / "made", blocks=blocks)
    one, two = weights(shelf / "one"), weights(shelf / "two")
    for key, value in weights(made).items():
        if key.startswith(("vae.", "text_encoder.")):
            assert torch.equal(value, one[key])  # to the bit
        elif key.startswith("unet.up_blocks.1."):
            assert torch.equal(value, two[key])
        else:
            assert close(value, 0.75 * one[key] + 0.25 * two[key], ROUNDING)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_rounded_once(shelf, tmp_path, dtype):
    sources = [shelf / "one", shelf / "two"]
    made = checkpoints.merge(sources, tmp_path / "made.safetensors", dtype=dtype)
    wide = checkpoints.merge(sources, tmp_path / "wide.safetensors")
    held, wanted = load_file(made), load_file(wide)
    assert held.keys() == wanted.keys() and "model.diffusion_model.out.2.weight" in held
    for key, value in held.items():
        assert torch.equal(value, wanted[key].to(getattr(torch, dtype)))


def test_an_inpainting_model_learns_what_another_learned(shelf, tmp_path):
    """Its further input channels stay as they are."""
    wide = tiny.pipeline(unet={"in_channels": 9})
    wide.save_pretrained(tmp_path / "wide")
    made = checkpoints.merge(
        [tmp_path / "wide", shelf / "one"], tmp_path / "made", base=shelf / "base"
    )
    key = "unet.conv_in.weight"
    before, after = weights(tmp_path / "wide")[key], weights(made)[key]
    change = weights(shelf / "one")[key] - weights(shelf / "base")[key]
    assert torch.equal(after[:, 4:], before[:, 4:])
    assert close(after[:, :4] - before[:, :4], change, 1e-5)
    with pytest.raises(WeightError, match=r"conv_in.weight is \[16, 9, 3, 3\] and \[16, 4, 3, 3\]"):
        checkpoints.merge([tmp_path / "wide", shelf / "one"], tmp_path / "sum")


def test_loras_are_merged_as_the_pipeline_merges_them(shelf, tmp_path):
    pipe = underdraw.StableDiffusionPipeline.from_pretrained(shelf / "one")
    pipe.set_progress_bar_config(disable=True)
    files = {}
    for name, seed, scale in (("clay", 1, 0.7), ("snow", 2, -0.5)):
        files[tmp_path / f"{name}.safetensors"] = scale
        save_file(lora(pipe, seed), tmp_path / f"{name}.safetensors")
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", name)
    made = checkpoints.merge([shelf / "one"], tmp_path / "made", loras=files)
    pipe.set_adapters(["clay", "snow"], [0.7, -0.5])
    pipe.fuse_lora()
    wanted = tiny.run(pipe, **SIZE)
    assert close(drawn(made), wanted, 1e-4)
    assert not close(drawn(shelf / "one"), wanted, 1e-2)


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_a_fine_tune_of_low_rank_comes_back_whole(shelf, tmp_path, spelling):
    """Extracted from it and merged into its base, convolutions, too."""
    file = tmp_path / "low.safetensors"
    told = []
    options = {"error": 1e-3, "dtype": "float32", "spelling": spelling, "tell": told.append}
    done = checkpoints.extract_lora(shelf / "low", shelf / "base", file, **options)
    assert set(done.ranks) == {2} and done.error <= 1e-3
    assert done.left_out == 0 and not told
    made = checkpoints.merge([shelf / "base"], tmp_path / "made", loras={file: 1.0})
    low = weights(shelf / "low")
    for key, value in weights(made).items():
        if not key.startswith("vae."):
            assert close(value, low[key], 1e-4), key


def test_ranks_and_errors(shelf, tmp_path):
    """Of a change of full rank: more rank, less error; the error that is told is measured."""
    found = {}
    for rank in (1, 4, 64):
        file = tmp_path / f"{rank}.safetensors"
        found[rank] = checkpoints.extract_lora(
            shelf / "one", shelf / "base", file, rank=rank, dtype="float32"
        )
        assert max(found[rank].ranks) <= rank
    assert 1 > found[1].error > found[4].error > 0.1
    assert found[64].error <= 1e-5 and found[64].left_out > 0
    held, one, base = (
        load_file(tmp_path / "4.safetensors"),
        *map(weights, (shelf / "one", shelf / "base")),
    )
    left = whole = 0.0
    for key, down in held.items():
        if ".lora_A." in key:
            up = held[key.replace("lora_A", "lora_B")].double()
            name = key.replace(".lora_A", "")
            change = (one[name] - base[name]).double()
            rest = change.flatten(1) - up.flatten(1) @ down.double().flatten(1)
            left, whole = left + rest.square().sum(), whole + change.square().sum()
    assert float((left / whole) ** 0.5) == pytest.approx(found[4].error, rel=1e-3)
    bounded = checkpoints.extract_lora(
        shelf / "one", shelf / "base", tmp_path / "e.safetensors", error=0.3
    )
    assert bounded.error <= 0.3 and min(bounded.ranks) > 1
    plain = checkpoints.extract_lora(
        shelf / "one", shelf / "base", tmp_path / "p.safetensors", convolutions=False, rank=1
    )
    assert plain.layers < bounded.layers
    assert not any("conv1" in key for key in load_file(tmp_path / "p.safetensors"))


@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (5, 3, 3, 3), (1, 7)])
def test_singular_values(shape):
    """What is kept is what numpy's own decomposition keeps."""
    change = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    down, up, lost = decomposed(change, 2, None)
    matrix = change.reshape(len(change), -1).astype(np.float64)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    wanted = (u[:, :2] * s[:2]) @ v[:2]
    assert down.shape[1:] == shape[1:] and up.shape == (shape[0], len(down), *(1,) * len(shape[2:]))
    assert np.abs(up.reshape(len(up), -1) @ down.reshape(len(down), -1) - wanted).max() <= 1e-5
    assert lost == pytest.approx(float((s[2:] ** 2).sum()), abs=1e-9)


def test_memory_is_that_of_a_few_tensors(shelf, tmp_path, monkeypatch):
    alive, most, read = weakref.WeakSet(), [0], merging.numbers_of

    class Counted(np.ndarray):
        """numpy's own arrays cannot be told apart by weak references of their hash."""

        __hash__ = object.__hash__

    def counted(tensor):
        made = read(tensor).view(Counted)
        alive.add(made)
        most[0] = max(most[0], len(alive))
        return made

    monkeypatch.setattr(merging, "numbers_of", counted)
    sources = [shelf / name for name in ("one", "two", "three")]
    for target in ("made.safetensors", "made"):
        checkpoints.merge(sources, tmp_path / target, base=shelf / "base")
        assert 1 < most[0] <= 3 and not alive  # the base's, a model's, and what was added last


WRONG = {
    "one model": ({"sources": ["one"]}, InputError, "two models, or one and loras"),
    "of several": (
        {"sources": ["one"], "loras": {"x.safetensors": 1.0}, "weights": 0.5},
        InputError,
        "are for several models",
    ),
    "no list": ({"sources": "one"}, InputTypeError, "sources='one' is not a list"),
    "not there": ({"sources": ["one", "nobody/nothing/x"]}, NotFoundError, "nobody"),
    "too many": (
        {"weights": [0.5, 0.25, 0.25]},
        InputError,
        "3 numbers; 2 models need 2",
    ),
    "not 1": ({"weights": [0.5, 0.6]}, InputError, "is 1.1 together; needed is 1"),
    "no number": ({"weights": "half"}, InputTypeError, "weights='half'"),
    "NaN": ({"weights": float("nan")}, InputError, "weights=nan"),
    "no block": (
        {"blocks": {"unet.middle": 1}},
        InputError,
        "in 'unet.middle'; there are",
    ),
    "no blocks": ({"blocks": [1]}, InputTypeError, "blocks="),
    "dtype": ({"dtype": "float8"}, InputError, "dtype='float8'"),
    "suffix": ({"target": "x.ckpt"}, InputError, "written as .safetensors only"),
    "no folder": ({"target": "no/where/x"}, NotFoundError, "no such folder"),
    "no LoRA": ({"loras": {"two.safetensors": 1.0}}, WeightError, "two.safetensors"),
    "no scale": ({"loras": {"two.safetensors": "much"}}, InputTypeError, "much"),
    "another kind": ({"sources": ["one", "wide"]}, WeightError, "unet of .*one and .*wide differ"),
    "nothing to merge": (
        {"sources": ["one/unet", "two/vae"]},
        InputError,
        "no network in common, .*one/unet: unet; two/vae: vae",
    ),
    "another target": ({"sources": ["one", "v"]}, InputError, "predict different things"),
    "damaged": ({"sources": ["one", "cut.safetensors"]}, WeightError, "cut.safetensors"),
    "infinite": (
        {"sources": ["one", "inf"]},
        WeightError,
        "conv_out.bias: merging gives NaN",
    ),
}


@pytest.fixture(scope="module")
def faulty(shelf):
    whole = (shelf / "two.safetensors").read_bytes()
    (shelf / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    tiny.pipeline(unet={"block_out_channels": (16, 48)}).save_pretrained(shelf / "wide")
    pipe = tiny.pipeline()
    pipe.unet.conv_out.bias.data[:] = torch.inf
    pipe.save_pretrained(shelf / "inf")
    pipe.unet.conv_out.bias.data[:] = 0
    pipe.save_pretrained(shelf / "v")
    config = shelf / "v" / "scheduler" / "scheduler_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"})
    )
    return shelf


@pytest.mark.parametrize(("changes", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_merges_write_nothing(faulty, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.chdir(faulty)
    arguments = {"sources": ["one", "two"], "target": tmp_path / "made", **changes}
    with pytest.raises(error, match=message):
        checkpoints.merge(**arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rank": 0}, InputError, "rank=0"),
        ({"error": 1.5}, InputError, "error=1.5; allowed: above 0 and below 1"),
        ({"components": ["vae"]}, InputError, "components='vae'"),
        (
            {"base": "base/unet", "components": ["text_encoder"]},
            InputError,
            "and base/unet unet; needed is one that both have",
        ),
        ({"spelling": "own"}, InputError, "spelling='own'"),
        ({"target": "folder"}, InputError, "ending in .safetensors"),
        ({"tuned": "base"}, InputError, "there is nothing to extract"),
        ({"tuned": "wide"}, WeightError, "they are not of one base"),
        ({"tuned": "inf"}, WeightError, r"unet\.conv_out\.bias holds NaN or infinity"),
    ],
)
def test_wrong_extractions_write_nothing(faulty, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.chdir(faulty)
    arguments = {"tuned": "one", "base": "base", "target": tmp_path / "x.safetensors", **changes}
    with pytest.raises(error, match=message):
        checkpoints.extract_lora(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_unless_it_is_said(shelf, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="overwrite=True writes over it"):
        checkpoints.merge([shelf / "one", shelf / "two"], tmp_path / "made")
    checkpoints.merge([shelf / "one", shelf / "two"], tmp_path / "made", overwrite=True)
    assert (tmp_path / "made" / "mine.txt").read_text() == "mine"
