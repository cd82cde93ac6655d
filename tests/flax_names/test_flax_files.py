"""Flax's checkpoints: read and written as diffusers 0.33.1 has them, by all pipelines."""

import json
import mmap
import struct

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax_names.recorded import (
    all_params,
    components,
    network,
    params,
    pipeline,
    record,
    recorded,
)

import underdraw
from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats import msgpack as ours
from underdraw.formats.stored import stored
from underdraw.weights import flax, folders
from underdraw.weights.files import open_tensors

PARTS = ("unet", "wide", "vae", "text_encoder", "controlnet", "safety_checker")


@pytest.mark.parametrize("part", PARTS)
def test_names_and_axes_are_the_originals(part):
    """Every leaf of what the original wrote of the same numbers."""
    made = network(part)
    tensors = {
        name: stored(record.numbers(f"{part}.{name}", shape))
        for name, shape in made.layout.shapes.items()
    }
    flat = flax.in_flax(made.written.network, made.layout, tensors)
    tree = flax.nested({path: tensor.load() for path, tensor in flat.items()})
    np.testing.assert_array_equal(record.digest(tree), recorded()[f"file_{part}"])


# -- the format ----------------------------------------------------------------------------------
@pytest.fixture
def file(tmp_path):
    path = tmp_path / "diffusion_flax_model.msgpack"
    path.write_bytes(recorded()["msgpack"].tobytes())
    return path


def test_what_flax_wrote_is_read(file):
    found = open_tensors(file)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        "a_0/half": ("float16", (4,)),
        "a_0/scalar": ("float32", ()),
        "b/bias": ("float64", (3,)),
        "b/kernel": ("bfloat16", (2, 3)),
        "empty": ("float32", (0, 3)),
    }
    kernel = found["b/kernel"].load().view(jnp.bfloat16)
    np.testing.assert_array_equal(kernel, np.arange(6).reshape(2, 3))
    assert found["a_0/scalar"].load() == 2.5


def test_what_is_written_flax_would_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "CHUNK", 40)
    values = {
        "a": {"big": np.arange(24, dtype=np.float32).reshape(2, 12)},
        "b": np.arange(3, dtype=np.float16),
        "none": np.zeros((0, 2), np.float32),
    }
    tree = {"a": {"big": stored(values["a"]["big"])}}
    tree |= {name: stored(values[name]) for name in ("b", "none")}
    path = tmp_path / "x.msgpack"
    with open(path, "wb") as out:
        ours.write_msgpack(out, tree)

    def array(code, data):
        shape, dtype, raw = msgpack.unpackb(data)
        assert code == 1
        return np.frombuffer(raw, dtype).reshape(shape)

    found = msgpack.unpackb(path.read_bytes(), ext_hook=array)
    assert list(found) == ["a", "b", "none"]
    parts = found["a"]["big"]
    assert parts["__msgpack_chunked_array__"] is True and parts["shape"] == {"0": 2, "1": 12}
    assert [part.size for part in parts["chunks"].values()] == [10, 10, 4]
    np.testing.assert_array_equal(found["b"], values["b"])
    again = open_tensors(path)
    np.testing.assert_array_equal(again["a/big"].load(), values["a"]["big"])
    assert again["none"].load().shape == (0, 2)


def packed(shape=(2,), dtype="float32", raw=b"\0" * 8, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, raw)))


deep = [{"x": packed()}]
for _ in range(70):
    deep.append({"x": deep[-1]})
WRONG = {
    "a list": msgpack.packb([1]),
    "a number": msgpack.packb({"a": 1}),
    "a text": msgpack.packb({"a": "b"}),
    "no name": msgpack.packb({1: packed()}),
    "few numbers": msgpack.packb({"a": packed((3,))}),
    "many numbers": msgpack.packb({"a": packed((1,))}),
    "a negative side": msgpack.packb({"a": packed((-1, -2))}),
    "an enormous side": msgpack.packb({"a": packed((2**40, 2**40))}),
    "an object": msgpack.packb({"a": packed(dtype="object")}),
    "a dtype that is none": msgpack.packb({"a": packed(dtype=["float32"])}),
    "another extension": msgpack.packb({"a": packed(code=5)}),
    "a complex number": msgpack.packb({"a": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}),
    "an empty extension": msgpack.packb({"a": msgpack.ExtType(1, b"")}),
    "bytes behind": msgpack.packb({"a": packed()}) + b"\0",
    "a cut": msgpack.packb({"a": packed()})[:-3],
    "many names": b"\xdf\xff\xff\xff\xff",
    "deep maps": msgpack.packb(deep[-1]),
    "a long name": msgpack.packb({"a" * 5000: packed()}),
    "the same name": b"\x82" + 2 * (msgpack.packb("a") + msgpack.packb(packed())),
    "a size beyond": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93",
    "odd parts": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"1": 2}}}),
    "lacking parts": msgpack.packb(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": packed()}}}
    ),
    "half a name": b"\x81\xa2\xff\xfe\xc0",
    "the same name, once in parts": b"\x82\xa1a"
    + msgpack.packb(packed())
    + msgpack.packb(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": packed()}}}
    )[1:],
}


@pytest.mark.parametrize("what", WRONG)
def test_damaged_files_are_told(what, tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(WRONG[what])
    with pytest.raises(WeightError, match=r"flax_model\.msgpack"):
        open_tensors(path)


def test_every_cut_and_every_other_byte_is_told_or_read(file):
    """Nothing else than our own error, whatever a byte says."""
    whole = file.read_bytes()
    damaged = [whole[:end] for end in range(1, len(whole), 7)]
    damaged += [
        whole[:at] + struct.pack("B", whole[at] ^ flip) + whole[at + 1 :]
        for at in range(0, len(whole), 3)
        for flip in (1, 0x80)
    ]
    told = 0
    for content in damaged:
        with mmap.mmap(-1, len(content)) as mapped:
            mapped.write(content)
            try:
                for tensor in ours.read_msgpack(file, mapped).values():
                    assert tensor.load().nbytes <= len(content)
            except WeightError:
                told += 1
    assert told > len(damaged) // 4


def test_without_the_package_an_error_says_so(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(InputError, match=r"underdraw\[jax\]"):
        open_tensors(file)


# -- folders -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("flax") / "saved"
    pipeline().save_pretrained(place, params=all_params())
    return place


def test_a_folder_is_as_the_original_wrote_it(folder):
    theirs = json.loads(recorded()["index"].tobytes())
    mine = json.loads((folder / "model_index.json").read_text())
    assert {**mine, "_diffusers_version": 0} == {**theirs, "_diffusers_version": 0}
    assert (folder / "unet" / "diffusion_flax_model.msgpack").is_file()
    assert (folder / "text_encoder" / "flax_model.msgpack").is_file()


def same(one, other):
    assert jax.tree_util.tree_structure(one) == jax.tree_util.tree_structure(other)
    for a, b in zip(*map(jax.tree_util.tree_leaves, (one, other)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_folder_and_back(folder):
    cls = underdraw.FlaxStableDiffusionPipeline
    pipe, found = cls.from_pretrained(folder, safety_checker=None, dtype=jnp.bfloat16)
    same(
        {n: found[n] for n in ("unet", "vae", "text_encoder")},
        {n: params(n) for n in ("unet", "vae", "text_encoder")},
    )
    assert (pipe.unet.dtype, pipe.vae.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert pipe.text_encoder.dtype == jnp.float32
    assert type(pipe.scheduler) is underdraw.FlaxDDIMScheduler
    assert pipe.scheduler.config.steps_offset == 1
    assert found["scheduler"].timesteps.shape == (1000,)


def test_a_solver_that_flax_never_had(folder, tmp_path):
    """Under its familiar name, which every pipeline reads."""
    cls, solver = (
        underdraw.FlaxStableDiffusionPipeline,
        underdraw.UniPCMultistepScheduler(steps_offset=1),
    )
    pipe, found = cls.from_pretrained(folder, safety_checker=None, scheduler=solver)
    pipe.save_pretrained(tmp_path / "saved", found)
    again, _ = cls.from_pretrained(tmp_path / "saved")
    assert type(again.scheduler.scheduler) is type(solver)
    other = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(other.scheduler) is type(solver)


def test_all_pipelines_read_it(folder):
    """The same networks on PyTorch; `DiffusionPipeline` finds their class, too."""
    pipe = underdraw.DiffusionPipeline.from_pretrained(folder, from_flax=True)
    assert type(pipe) is underdraw.StableDiffusionPipeline
    published = pipe.unet.state_dict()
    for name, value in published.items():
        np.testing.assert_array_equal(value, record.numbers(f"unet.{name}", tuple(value.shape)))


def test_pytorchs_weights(folder, tmp_path):
    """`from_pt` reads them where both are there, and without it Flax's come first."""
    pipe = underdraw.StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet.conv_in.bias.data += 1
    pipe.save_pretrained(tmp_path / "both")
    cls = underdraw.FlaxUNet2DConditionModel
    alone, found = cls.from_pretrained(tmp_path / "both", subfolder="unet")
    np.testing.assert_array_equal(found["conv_in"]["bias"], params("unet")["conv_in"]["bias"] + 1)
    alone.save_pretrained(tmp_path / "alone", params("unet"))
    name = "diffusion_flax_model.msgpack"
    (tmp_path / "alone" / name).rename(tmp_path / "both" / "unet" / name)
    for from_pt, more in ((None, 0), (False, 0), (True, 1)):
        _, found = cls.from_pretrained(tmp_path / "both", subfolder="unet", from_pt=from_pt)
        expected = params("unet")["conv_in"]["bias"] + more
        np.testing.assert_array_equal(found["conv_in"]["bias"], expected)


def test_which_file_is_read():
    names = ["diffusion_flax_model.msgpack", "diffusion_pytorch_model.bin"]
    assert folders.choose_weights(names).files == (names[1],)
    assert folders.choose_weights(names, flax_first=True).files == (names[0],)
    assert folders.choose_weights(names[:1]).files == (names[0],)


def test_of_another_pipeline(folder):
    pipe = underdraw.StableDiffusionPipeline.from_pretrained(folder)
    made, found = underdraw.FlaxStableDiffusionPipeline.from_pipe(pipe)
    same(found["vae"], params("vae"))
    assert made.unet.config == network("unet").config


def test_what_does_not_fit(folder, tmp_path):
    unet = network("unet")
    with pytest.raises(WeightError, match=r"params.*missing"):
        unet.save_pretrained(tmp_path / "x", {"conv_in": {}})
    assert not (tmp_path / "x").exists()
    with pytest.raises(WeightError, match="conv_in/kernel"):
        unet.save_pretrained(tmp_path / "x", params("wide"))
    with pytest.raises(NotFoundError):
        type(unet).from_pretrained(folder)
    with pytest.raises(InputError, match="params has no 'vae'"):
        pipeline()(pipeline().prepare_inputs("a"), {}, jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="vae=None"):
        underdraw.FlaxStableDiffusionPipeline(**{**components(), "vae": None})


def test_new_weights_and_dtypes():
    vae = network("vae")
    made, other = (vae.init_weights(key) for key in (jax.random.PRNGKey(3), 4))
    vae.check("params", made)
    name = "quant_conv"
    assert not np.array_equal(made[name]["kernel"], other[name]["kernel"])
    mask = jax.tree_util.tree_map(lambda x: x.ndim > 3, {name: made[name]})
    half = vae.to_fp16({name: made[name]}, mask)
    assert half[name]["kernel"].dtype == jnp.float16
    assert half[name]["bias"].dtype == jnp.float32
    assert vae.to_fp32(half)[name]["kernel"].dtype == jnp.float32
