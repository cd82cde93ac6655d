"""Folders: variants, shards, indexes, and readable errors."""

import json

import numpy as np
import pytest

from underdraw.errors import NotFoundError, WeightError
from underdraw.weights import folders
from underdraw.weights.save import save_tensors

D, M, P, *_ = folders.STEMS


@pytest.mark.parametrize(
    ("names", "variant", "use_safetensors", "expected"),
    [
        ([f"{D}.bin", f"{D}.safetensors"], None, None, ([f"{D}.safetensors"], None)),
        ([f"{D}.bin", f"{D}.safetensors"], None, False, ([f"{D}.bin"], None)),
        ([f"{P}.bin"], None, True, None),
        ([f"{P}.bin", "tf_model.h5", "flax_model.msgpack"], None, None, ([f"{P}.bin"], None)),
        ([f"{M}.safetensors", f"{P}.bin"], None, None, ([f"{M}.safetensors"], None)),
        ([f"{D}.fp16.safetensors"], None, None, None),
        ([f"{D}.fp16.safetensors", f"{D}.bin"], "fp16", None, ([f"{D}.fp16.safetensors"], None)),
        ([f"{D}.fp16.bin", f"{D}.safetensors"], "fp16", None, ([f"{D}.fp16.bin"], None)),
        ([f"{D}.fp16.bin", f"{D}.safetensors"], "bf16", None, None),
        (
            [f"{M}.fp16-00001-of-00002.safetensors", f"{M}.safetensors.index.fp16.json"],
            "fp16",
            None,
            ([f"{M}.fp16-00001-of-00002.safetensors"], f"{M}.safetensors.index.fp16.json"),
        ),
        (
            [f"{M}-00001-of-00002.fp16.safetensors", f"{M}.safetensors.fp16.index.json"],
            "fp16",
            None,
            ([f"{M}-00001-of-00002.fp16.safetensors"], f"{M}.safetensors.fp16.index.json"),
        ),
        (
            [f"{M}.fp16-00001-of-00001.safetensors", f"{M}.fp16.safetensors.index.json"],
            "fp16",
            None,
            ([f"{M}.fp16-00001-of-00001.safetensors"], f"{M}.fp16.safetensors.index.json"),
        ),
        ([f"{P}-00001-of-00003.bin"], None, None, ([f"{P}-00001-of-00003.bin"], None)),
        (["config.json", "other.safetensors"], None, None, None),
        ([], None, None, None),
    ],
)
def test_choice_among_names(names, variant, use_safetensors, expected):
    chosen = folders.choose_weights(names, variant, use_safetensors)
    assert chosen == (expected and folders.WeightFiles(tuple(expected[0]), expected[1]))


def weights(folder, name, **tensors):
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / name, tensors or {"x": np.zeros(2, "f4")})


def test_a_missing_variant_names_those_there_are(tmp_path):
    weights(tmp_path / "unet", f"{D}.safetensors")
    weights(tmp_path / "unet", f"{D}.fp16.safetensors")
    with pytest.raises(NotFoundError, match=r"variant=None\), 'fp16'$"):
        folders.component_files(tmp_path, "unet", "bf16")
    weights(tmp_path / "vae", f"{D}.fp16.safetensors")
    with pytest.raises(NotFoundError, match=r"no plain weights .*there are: 'fp16'"):
        folders.component_files(tmp_path, "vae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no weights; expected .* found nothing"):
        folders.component_files(tmp_path, "empty")
    with pytest.raises(NotFoundError, match="no such folder"):
        folders.component_files(tmp_path, "none")


def test_variants_of_a_pipeline_fall_back_by_component(tmp_path):
    weights(tmp_path / "unet", f"{D}.fp16.safetensors")
    weights(tmp_path / "unet", f"{D}.safetensors")
    weights(tmp_path / "vae", f"{D}.safetensors")
    chosen = folders.pick_variants(tmp_path, ["unet", "vae", "tokenizer"], "fp16")
    assert chosen == {"unet": "fp16", "vae": None, "tokenizer": None}
    assert set(folders.pick_variants(tmp_path, ["unet", "vae"], None).values()) == {None}
    with pytest.raises(NotFoundError, match=r"no component has variant 'bf16'.*: 'fp16'"):
        folders.pick_variants(tmp_path, ["unet", "vae"], "bf16")


def sharded(folder):
    weights(folder, f"{M}-00001-of-00002.safetensors", a=np.ones(3, "f4"))
    weights(folder, f"{M}-00002-of-00002.safetensors", b=np.ones((2, 3), "f4"))
    first, second = (f"{M}-0000{i}-of-00002.safetensors" for i in (1, 2))
    return {"metadata": {}, "weight_map": {"a": first, "b": second}}


def put(folder, content, name=f"{M}.safetensors.index.json"):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)


def read(folder):
    return folders.open_weights(folder, folders.component_files(folder))


def test_shards_with_and_without_an_index(tmp_path):
    index = sharded(tmp_path)
    assert read(tmp_path).keys() == {"a", "b"}
    put(tmp_path, index)
    assert read(tmp_path).keys() == {"a", "b"}


def test_broken_sets_of_shards(tmp_path):
    index = sharded(tmp_path)
    first = index["weight_map"]["a"]
    for content, kind, says in (
        ("{", WeightError, "not readable as JSON"),
        ({}, WeightError, "no weight_map"),
        ({"weight_map": {"a": "../secret.safetensors"}}, WeightError, "no weight file's name"),
        ({"weight_map": {"a": "/etc/passwd"}}, WeightError, "no weight file's name"),
        ({"weight_map": {"a": 3}}, WeightError, "no weight file's name"),
        ({"weight_map": {"z": first}}, WeightError, "promises 1 tensors that are not in it: z"),
        (
            {"weight_map": {"a": f"{M}-00003-of-00003.safetensors"}},
            NotFoundError,
            "00003-of-00003",
        ),
    ):
        put(tmp_path, content)
        with pytest.raises(kind, match=says):
            read(tmp_path)
    put(tmp_path, index)
    weights(tmp_path, index["weight_map"]["b"], a=np.zeros(1, "f4"), b=np.zeros(1, "f4"))
    with pytest.raises(WeightError, match="'a' is in another shard"):
        read(tmp_path)
    (tmp_path / index["weight_map"]["b"]).unlink()
    with pytest.raises(
        NotFoundError, match=r"1 of 2 shards that .*index\.json names are missing: "
    ):
        read(tmp_path)
    (tmp_path / f"{M}.safetensors.index.json").unlink()
    with pytest.raises(NotFoundError, match="1 of 2 shards"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "the file is empty"),
        (b"  \n", "the file is empty"),
        (b'{"a": 1,}', "line 1 column"),
        (b"[1]", "a JSON object was expected, not a list"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!doctype html>", "web page"),
        (b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_json_errors_are_readable(tmp_path, raw, says):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(WeightError, match=says) as caught:
        folders.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_model_index(tmp_path):
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    put(tmp_path, index, "model_index.json")
    assert folders.read_model_index(tmp_path) == index
    assert folders.components_of(index) == {"unet": ("diffusers", "UNet2DConditionModel")}
    put(tmp_path, index | {"vae": ["diffusers"]}, "model_index.json")
    with pytest.raises(WeightError, match="component 'vae'"):
        folders.read_model_index(tmp_path)


def test_folders_that_are_no_pipelines(tmp_path):
    with pytest.raises(NotFoundError, match="it holds nothing"):
        folders.read_model_index(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="one component; give the folder above"):
        folders.read_model_index(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "v1-5.ckpt").write_bytes(b"x")
    with pytest.raises(NotFoundError, match="from_single_file"):
        folders.read_model_index(tmp_path)
    with pytest.raises(NotFoundError, match="is a file, not a folder"):
        folders.read_model_index(tmp_path / "v1-5.ckpt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folders.read_model_index(tmp_path / "gone")
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        folders.read_config(tmp_path)


def test_truncated_weights_of_a_component_name_the_file(tmp_path):
    weights(tmp_path, "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightError, match=r"model\.safetensors: truncated"):
        folders.open_component(tmp_path)
