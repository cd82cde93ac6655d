"""`underdraw compile`: the networks of a model compiled ahead of time, for sizes that are named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from underdraw.cli import options, progress
from underdraw.cli.failures import Interrupted, tell
from underdraw.errors import InputError


def compile(
    model: Annotated[
        str, typer.Argument(help=f"A folder, a single file, a Hub id, or {options.SCENES}.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where the packages go.")],
    sizes: Annotated[
        str | None,
        typer.Option(help="Such as 512x512,768x512 (HEIGHTxWIDTH); the trained one if not given."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Pictures at once.")] = 1,
    unguided: Annotated[
        bool, typer.Option("--unguided", help="For guidance 1, as few-step models want it.")
    ] = False,
    tokenizer: options.Vocabulary = None,
    variant: options.Variant = None,
    dtype: options.Precision = None,
    device: options.Device = None,
) -> None:
    """Compile UNet, decoder and text encoder ahead of time, for `generate --packages FOLDER`.

    Needs a C++ compiler, and minutes for a large model; running packages needs neither. A package
    holds compiled code and no weights: it serves every model of this architecture, at the sizes it
    was made for, with this version of PyTorch, on a processor like this one. What a call has
    besides (boxes, maps, LoRAs, other sizes) runs as with --engine eager.
    """
    from underdraw.cli.loading import load_pipeline
    from underdraw.cli.sizes import wanted_size

    wanted = [
        wanted_size(one.strip(), None, None).exact() for one in (sizes or "").split(",") if one
    ]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a folder for packages was expected")
    pipe = load_pipeline(
        model,
        dtype=dtype.value if dtype else "auto",
        device=device,
        variant=variant,
        tokenizer=tokenizer,
    )
    from underdraw.engines import Packing

    engine = pipe.engine = Packing(folder)
    pipe.set_progress_bar_config(**progress.bar_options())
    how = {"num_inference_steps": 1, "num_images_per_prompt": batch, "output_type": "np"}
    try:
        for size in wanted or [None]:
            at = {} if size is None else {"height": size.height, "width": size.width}
            before = len(engine.written)
            pipe("", guidance_scale=1.0 if unguided else 7.5, seed=0, **how, **at)
            if len(engine.written) == before:
                tell("nothing new: its packages are there already")
    except KeyboardInterrupt:
        raise Interrupted(f"{len(engine.written)} packages are in {folder}") from None
    finally:
        for file in engine.written:
            typer.echo(file)


compile.examples = """Examples:

\b
  underdraw compile ./my-model packages --sizes 512x512,768x512
  underdraw generate "a red sphere" --model ./my-model --packages packages"""  # type: ignore[attr-defined]
