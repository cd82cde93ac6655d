"""Options that several commands share, each defined once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from underdraw.cli import solvers

SCENES = "underdraw/scenes"
ENGINES = ("eager", "compiled", "jit", "openvino", "graph", "auto")
"""The same as `engines.NAMES`, which would import numpy."""
MOST_SIDE = 16384
"""Pixels of a side."""


class DType(str, Enum):
    """Of weights and arithmetic."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Backend(str, Enum):
    """The frameworks that networks run on."""

    torch = "torch"
    jax = "jax"
    mindspore = "mindspore"


class Prediction(str, Enum):
    """What a UNet was trained to predict."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"
    sample = "sample"


class Pace(str, Enum):
    """Presets of `pipe.enable_acceleration`."""

    exact = "exact"
    fast = "fast"
    faster = "faster"


class Suffix(str, Enum):
    """Of pictures in a folder."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


Model = Annotated[
    str | None,
    typer.Option(
        help=f"A folder, a single file, a Hub id, or {SCENES} (the default), which ships inside."
    ),
]
Packages = Annotated[
    str | None,
    typer.Option(
        help="A folder that `underdraw compile` wrote, in place of --engine. Packages are "
        "programs: take none from people whose programs you would not run."
    ),
]
Precision = Annotated[
    DType | None,
    typer.Option(help="Of weights and arithmetic; auto (the default) is what is fast here."),
]
Device = Annotated[
    str | None,
    typer.Option(help="For example cpu, cuda or cuda:1; the fastest there is if not given."),
]
Framework = Annotated[
    Backend | None,
    typer.Option("--backend", help="The framework that runs the networks; torch if not given."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="How networks run. eager (the default): at once, as they are written. compiled: "
        "blocks by torch.compile; the first picture takes a minute longer, the others less. jit: "
        "whole networks by the framework's own compiler, which takes longer to begin. "
        "openvino: whole networks, on the CPU; compiled in seconds, and kept for the next time. "
        "graph: whole networks as CUDA graphs, recorded at the first step. "
        "auto: openvino where it is installed and faster, jit on JAX, else eager.",
        autocompletion=lambda incomplete: [e for e in ENGINES if e.startswith(incomplete)],
    ),
]
Speed = Annotated[
    Pace | None,
    typer.Option(
        help="exact (the default): compute everything. fast, faster: leave out what hardly changes "
        "from step to step; docs/acceleration.md has the price.",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(help="Weight files of a variant, such as fp16."),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", help="For a single file: folder or Hub id with the vocabulary it needs."
    ),
]
PredictionType = Annotated[
    Prediction | None,
    typer.Option(help="If the checkpoint does not say it rightly (512 px SD 2: epsilon)."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Solver steps.")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="HxW", help="In pixels, such as 128x192; of a picture one number keeps proportions."
    ),
]
Height = Annotated[int | None, typer.Option(min=1, max=MOST_SIDE, help="In pixels.")]
Width = Annotated[int | None, typer.Option(min=1, max=MOST_SIDE, help="In pixels.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Write over a file that is at --out.")]
Format = Annotated[
    Suffix | None, typer.Option("--format", help="Of pictures in a folder; png if not given.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="How strongly to follow the prompt, above 1; if not given what the model advises, or "
        "7.5."
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        help="ddim, euler_a, dpm++, ...; `--solver help` lists them.",
        autocompletion=solvers.complete,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same pictures."),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:SCALE]",
        help="A LoRA, or one of its relatives, and how much of it; may be repeated.",
    ),
]
Embeddings = Annotated[
    list[Path] | None,
    typer.Option(
        "--embedding",
        metavar="FILE",
        help="Learned words (textual inversion), which prompts may then use; may be repeated.",
    ),
]
Structures = Annotated[
    list[str] | None,
    typer.Option(
        "--structure",
        metavar="NET MAP SCALE",
        help="Follow a map: a ControlNet or T2I-Adapter (a folder, a file or a Hub id), the "
        "picture that it reads, and how strongly, 1 as in training; may be repeated.",
    ),
]
Edges = Annotated[
    Path | None,
    typer.Option(
        metavar="PHOTO",
        help="Follow the edges of a picture, by the model's own net for edges.",
    ),
]
Depth = Annotated[
    Path | None,
    typer.Option(
        metavar="MAP",
        help="Follow a depth map, near is white, by the model's own net for depth.",
    ),
]
Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="WAY",
        help="Get along with less memory; may be repeated. bands: large pictures in bands of rows; "
        "tiles: in tiles; slices: batches decoded one by one; heads: attention by halves; int8 or "
        "float8: weights in 8 bits; full: not so, with --again; networks, "
        "blocks or layers: these come to the accelerator one by one. `underdraw doctor` says what "
        "fits.",
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
