"""Running out of memory is told with settings that need less; so does `underdraw doctor`."""

import pytest
import torch
from pipelines import tiny
from typer.testing import CliRunner

import underdraw
from underdraw import backends
from underdraw.backends import machine
from underdraw.cli import app
from underdraw.errors import OutOfMemoryError
from underdraw.pipelines.call import memory

SHORTAGES = [
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    type("XlaRuntimeError", (RuntimeError,), {})("RESOURCE_EXHAUSTED: Out of memory"),
]


def failing(pipe, error, monkeypatch, where="unet"):
    def fail(*_, **__):
        raise error

    if where == "unet":
        monkeypatch.setattr(pipe.unet.conv_in, "forward", fail)
    else:
        monkeypatch.setattr(pipe.vae, "decode_with", fail, raising=False)
    return pipe


@pytest.mark.parametrize("where", ["unet", "vae"])
@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_calls_and_streams_say_what_needs_less(error, where, monkeypatch):
    pipe = failing(tiny.pipeline(), error, monkeypatch, where)
    call = {"num_inference_steps": 1, "num_images_per_prompt": 3, "height": 40, "width": 72}
    with pytest.raises(OutOfMemoryError, match="3 x 72 x 40 pixels take about") as told:
        pipe("a red sphere", **call)
    assert isinstance(told.value, MemoryError) and told.value.__cause__ is error
    words = ("quantize('int8')", "one image in a call", "dtype='bfloat16'", "on cpu", "free now")
    assert all(word in str(told.value) for word in words)
    assert "cpu_offload" not in str(told.value)  # there is no accelerator to come from
    assert "\n" not in str(told.value)
    with pytest.raises(OutOfMemoryError):
        list(pipe.stream("a red sphere", **call))


def test_other_errors_stay_what_they_are(monkeypatch):
    pipe = failing(tiny.pipeline(), RuntimeError("size mismatch"), monkeypatch)
    with pytest.raises(RuntimeError, match="size mismatch"):
        pipe("a red sphere", num_inference_steps=1)
    with pytest.raises(underdraw.InputError):
        pipe("a red sphere", num_inference_steps=0)


def test_what_is_on_is_not_advised_again():
    pipe = tiny.pipeline()
    size = {"images": 2, "height": 512, "width": 512}
    before = memory.needs(pipe.parts, **size)
    listed = {one.how for one in memory.settings(pipe.parts, **size)}
    assert "pipe.enable_vae_tiling(seamless=True)" in listed and "pipe.quantize('int8')" in listed
    pipe.enable_vae_tiling(seamless=True)
    pipe.enable_vae_slicing()
    pipe.quantize()
    after = memory.needs(pipe.parts, **size)
    assert after.decoding < 0.4 * before.decoding / 2 * 1.01
    assert after.networks < before.networks
    told = {one.how for one in memory.settings(pipe.parts, **size)}
    assert not told & {"pipe.enable_vae_tiling(seamless=True)", "pipe.enable_vae_slicing()"}
    assert all(one.needs < after.whole for one in memory.settings(pipe.parts, **size))


def test_on_an_accelerator_offloading_is_advised(monkeypatch):
    pipe = tiny.pipeline()
    monkeypatch.setattr(type(pipe.parts), "device", torch.device("cuda:0"))
    listed = {one.how for one in memory.settings(pipe.parts, 1, 64, 64)}
    wanted = {"pipe.enable_model_cpu_offload()", "pipe.enable_sequential_cpu_offload()"}
    assert wanted <= listed


def test_the_doctor(monkeypatch):
    done = CliRunner().invoke(app.app, ["doctor"])
    assert done.exit_code == 0, done.output
    for word in ("processor:", "memory:", "PyTorch", "jax", "Stable Diffusion 1.5", "settings:"):
        assert word in done.output
    on_jax = "engine='auto' with backend='jax' takes jit: JAX compiles" in done.output
    assert on_jax == ("jax" in backends.installed())
    monkeypatch.setattr(machine, "free_memory", lambda device: 3_000_000_000)
    little = CliRunner().invoke(app.app, ["doctor"]).output
    assert "too much" in little and "int8" in little
    monkeypatch.setattr(machine, "free_memory", lambda device: 10**9)
    assert "a smaller model" in CliRunner().invoke(app.app, ["doctor"]).output
    large = CliRunner().invoke(app.app, ["doctor", "--size", "4096"]).output
    assert "4096 x 4096" in large


def test_memory_of_a_container(monkeypatch, tmp_path):
    files = {
        "proc/meminfo": "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  600 kB\n",
        "sys/fs/cgroup/memory.max": "512000\n",
        "sys/fs/cgroup/memory.current": "412000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    assert machine.host_memory() == (512000, 100000)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert machine.host_memory() == (1024000, 614400)
    monkeypatch.setattr(machine, "SYSTEM", tmp_path / "nothing")
    assert machine.host_memory() is None and machine.processor().cores >= 1
