"""`underdraw convert`: single file to folder and back, and other dtypes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from underdraw.cli import options, outputs, progress
from underdraw.cli.failures import Interrupted, note

FILE_SUFFIX = ".safetensors"


class Stored(str, Enum):
    """Of weights in files."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def convert(
    source: Annotated[str, typer.Argument(help="A folder, a single file, or a Hub id.")],
    target: Annotated[Path, typer.Argument(help=f"A folder, or a file ending in {FILE_SUFFIX}.")],
    dtype: Annotated[
        Stored | None, typer.Option(help="Of the weights written; as they are, if not given.")
    ] = None,
    prediction_type: options.PredictionType = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the averaged weights of a single file.")
    ] = False,
    tokenizer: options.Vocabulary = None,
    variant: options.Variant = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Write over what is at the target.")
    ] = False,
) -> None:
    """Rewrite a checkpoint: single file to folder, folder to single file, another dtype.

    Works tensor by tensor, so it needs little memory. The target appears whole or not at all.
    """
    from underdraw.checkpoints import rewriting

    check(target, force)
    try:
        rewriting.convert(
            source,
            target,
            dtype=dtype and dtype.value,
            prediction_type=prediction_type and prediction_type.value,
            extract_ema=ema,
            tokenizer=tokenizer,
            variant=variant,
            overwrite=True,
            progress=progress.wanted(),
            tell=note,
        )
    except KeyboardInterrupt:
        raise Interrupted(f"{target} is as it was before") from None
    typer.echo(target)


convert.examples = f"""Examples:

\b
  underdraw convert model.ckpt ./my-model --dtype float16 --tokenizer ./clip-vit-large-patch14
  underdraw convert ./my-model my-model{FILE_SUFFIX}
  underdraw convert ./my-model ./my-model-bf16 --dtype bfloat16"""  # type: ignore[attr-defined]


def check(target: Path, force: bool) -> None:
    """Raises InputError where something stands that must not be lost, or nothing can be written."""
    from underdraw.checkpoints.rewriting import check_target

    check_target(target, force, "--force")
    outputs.check_folder(target.parent, [target.name])
