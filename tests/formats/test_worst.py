"""Small files that would cost minutes or gigabytes are refused at the cost of megabytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats import hostile

from underdraw.errors import InputError, WeightError
from underdraw.formats.stored import stored
from underdraw.networks import unet
from underdraw.networks.config import UNetConfig, read
from underdraw.weights.files import open_tensors
from underdraw.weights.match import match
from underdraw.weights.save import save_tensors
from underdraw.weights.single_file import CONFIGS, read_single_file

TESTS = Path(__file__).parents[1]
PEAK = 200  # MB; the worst, a dictionary copied 40 times, takes 170
HANGS = 600  # seconds; ends what would take hours


def written(folder: Path) -> list[str]:
    files = {f"json {name}.json": text for name, text in hostile.JSON.items()}
    files |= {f"record {name}.png": text for name, text in hostile.RECORDS.items()}
    files |= {f"weights {name}.safetensors": text for name, text in hostile.SAFETENSORS.items()}
    for name, program in hostile.PROGRAMS.items():
        files[f"pickle {name}.bin"] = hostile.archive(program)
        if name in OLDER:
            files[f"older {name}.bin"] = hostile.torch_save(program)
    for name in ("dictionaries", "OrderedDict of a dictionary"):
        files[f"whole {name}.bin"] = hostile.archive(hostile.PROGRAMS[name])
    files |= {f"archive {name}.bin": text for name, text in hostile.ARCHIVES.items()}
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content() if callable(content) else content)
    return list(files)


OLDER = ("steps", "deep", "a text of 40 MB", "bytes that are not there", "a longer name")
FINE = {"json escapes.json"}


def test_no_small_file_costs_minutes_or_gigabytes(tmp_path):
    names = written(tmp_path / "files")
    paths = os.pathsep.join([str(TESTS), *sys.path])
    run = subprocess.run(
        [sys.executable, str(TESTS / "formats" / "worst.py"), str(tmp_path / "files")],
        capture_output=True,
        text=True,
        timeout=HANGS,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = [json.loads(line) for line in run.stdout.splitlines()]
    assert {name for name, _, _ in told} == set(names)
    wrong = [
        (name, error[:200])
        for name, error, _ in told
        if (error == "nothing") != (name in FINE) or error.startswith("raw") or "\n" in error
    ]
    assert wrong == []
    assert [name for name, error, _ in told if len(error) > 1000] == []
    assert sum(grown for _, _, grown in told) < PEAK, sorted(told, key=lambda t: -t[2])[:5]


# ---- tensors that are larger than their file ----------------------------------------------------
SIDE = 1 << 16


def views(count: int, sides: int, stride: int, numbers: int) -> bytes:
    """Tensors of `sides` axes, all of one storage."""
    side = b"J" + (SIDE).to_bytes(4, "little")
    one = b"J" + stride.to_bytes(4, "little")
    storage = hostile.STORAGE.replace(b"K\x01tQ", b"J" + numbers.to_bytes(4, "little") + b"tQ")
    size, strides = b"(" + side * sides + b"t", b"(" + one * sides + b"t"
    program = b"}(" + b"".join(
        hostile.text(f"w{i}") + hostile.tensor(size, strides, storage) for i in range(count)
    )
    return hostile.archive(b"\x80\x02" + program + b"u.", r0=bytes(4 * numbers))


@pytest.mark.parametrize(
    ("count", "sides", "stride", "numbers"),
    [(1, 3, 0, 1), (2, 2, 0, 1), (1500, 1, 1, SIDE), (1500, 1, 0, 1)],
)
def test_views_larger_than_their_file_are_not_copied(tmp_path, count, sides, stride, numbers):
    path = tmp_path / "x.bin"
    path.write_bytes(views(count, sides, stride, numbers))
    tensors = open_tensors(path)
    assert len(tensors) == count
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for use in (
        lambda: match(shapes, tensors),
        lambda: save_tensors(tmp_path / "y.safetensors", tensors),
        lambda: save_tensors(
            tmp_path / "y.safetensors",
            {name: tensor.reshape(tensor.shape[::-1]) for name, tensor in tensors.items()},
        ),
    ):
        with pytest.raises(WeightError, match=r"x\.bin: its tensors are views of"):
            use()
    assert not (tmp_path / "y.safetensors").exists()


def test_shared_and_expanded_weights_are_what_they_were(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(views(40, 1, 1, SIDE))  # tied weights
    tensors = open_tensors(path)
    assert len(match({name: t.shape for name, t in tensors.items()}, tensors)) == 40
    save_tensors(tmp_path / "y.safetensors", tensors)
    assert len(open_tensors(tmp_path / "y.safetensors")) == 40


# ---- configs whose numbers multiply -------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        {"layers_per_block": 1 << 40},
        {"layers_per_block": 200, "transformer_layers_per_block": 200},
        {"block_out_channels": [1 << 40] * 4},
        {"cross_attention_dim": 1 << 40},
    ],
)
def test_a_config_makes_no_network_that_nobody_has(config):
    with pytest.raises(InputError, match=r"the config makes|allowed"):
        unet.layout(read(UNetConfig, config))


@pytest.mark.parametrize(
    "config", [{"layers_per_block": 1 << 40}, {"down_block_types": ["DownBlock2D"] * 100_000}]
)
def test_a_config_inside_a_file_makes_no_endless_table(tmp_path, config):
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": np.zeros((2, 4, 3, 3), np.float32),
        "model.diffusion_model.x": np.zeros(1, np.float32),
    }
    path = tmp_path / "x.safetensors"
    metadata = {CONFIGS: json.dumps({"unet": config})}
    save_tensors(path, {name: stored(array) for name, array in tensors.items()}, metadata)
    with pytest.raises(WeightError, match=r"x\.safetensors"):
        read_single_file(path)
