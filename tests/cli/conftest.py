"""A tiny random pipeline folder, and the command line as a function."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing
from typer.testing import CliRunner

SOURCES = Path(__file__).parents[2] / "src"
# Typer reads all signatures anew for each call of a runner, which takes a tenth of a second.
COMMAND = functools.cache(typer.testing._get_command)
PROMPT = "a red sphere left of a blue cube"


def make_tiny(folder, tokenizer=None, **unet):
    import torch

    import underdraw as u
    from underdraw.text.vocabulary import train_vocabulary

    torch.manual_seed(0)
    tokenizer = tokenizer or u.CLIPTokenizer(
        *train_vocabulary([PROMPT, "a green cone on the table"], 560)
    )
    text = u.CLIPTextModel(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vae = u.AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        sample_size=64,
    )
    unet = u.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "layers_per_block": 1,
            **unet,
        }
    )
    scheduler = u.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    pipe = u.StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler)
    pipe.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A pipeline folder; tests do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def advised(tiny, tmp_path_factory):
    """The same pipeline, whose makers advise a guidance of 3.25."""
    from underdraw import StableDiffusionPipeline
    from underdraw.pipelines.components.advice import Advice

    folder = tmp_path_factory.mktemp("models") / "advised"
    pipe = StableDiffusionPipeline.from_pretrained(tiny)
    pipe.advice = Advice(guidance_scale=3.25)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run("info", path)` in an empty folder: a result with exit_code, stdout and stderr."""
    from underdraw.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(typer.testing, "_get_command", COMMAND)

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == code, result.output
        if code in (1, 2) and "error" in result.stderr:
            assert "Traceback" not in result.output
            assert [line.startswith("error: ") for line in result.stderr.splitlines()].count(
                True
            ) == 1
        return result

    return call


@pytest.fixture
def environment():
    """Of processes that import underdraw from here."""
    return os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def spawn(tmp_path, environment):
    """Python in a process of its own."""

    def call(*arguments, **options):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            **options,
        )

    return call
