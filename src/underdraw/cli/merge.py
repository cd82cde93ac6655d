"""`underdraw merge` and `underdraw extract-lora`: checkpoints and LoRAs out of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from underdraw.cli import loras, options, progress
from underdraw.cli.convert import FILE_SUFFIX, Stored, check
from underdraw.cli.failures import Interrupted, note
from underdraw.errors import InputError

Overwrite = Annotated[bool, typer.Option("--force", "-f", help="Write over what is at the target.")]


class Spelling(str, Enum):
    """Of names in LoRA files."""

    diffusers = "diffusers"
    kohya = "kohya"


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(help="Folders, single files, Hub ids; the first lends the rest."),
    ],
    target: Annotated[
        Path, typer.Option("--out", "-o", help=f"A folder, or a file ending in {FILE_SUFFIX}.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(help="0.3: the second's share of two; 0.5,0.3,0.2: each model's."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Add what all but the first learned beyond this model."),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(help="Other weights for a part: unet.up_blocks.1=0.3. May be given again."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:SCALE]", help="Merge a LoRA into it. May be given again."),
    ] = None,
    dtype: Annotated[
        Stored | None, typer.Option(help="Of the weights written; the first's, if not given.")
    ] = None,
    tokenizer: options.Vocabulary = None,
    variant: options.Variant = None,
    force: Overwrite = False,
) -> None:
    """Make one checkpoint of several, or of one and LoRAs.

    Without --base the weighted sum of all; with it the first, plus what the others learned beyond
    their base. Works tensor by tensor, so it needs little memory.
    """
    from underdraw import checkpoints

    shares = numbers("--weights", weights)
    blocks = dict(parted(text) for text in block or ()) or None
    files = loras.read_loras(lora, None)
    check(target, force)
    with whole(target):
        checkpoints.merge(
            sources,
            target,
            weights=shares,
            base=base,
            blocks=blocks,
            loras=dict(zip(files.files, files.scales, strict=True)),
            dtype=dtype and dtype.value,
            tokenizer=tokenizer,
            variant=variant,
            overwrite=True,
            progress=progress.wanted(),
            tell=note,
        )
    typer.echo(target)


merge.examples = f"""Examples:

\b
  underdraw merge ./one ./two --weights 0.3 --out ./both
  underdraw merge one{FILE_SUFFIX} two{FILE_SUFFIX} --base v1-5{FILE_SUFFIX} --out both{FILE_SUFFIX}
  underdraw merge ./one ./two --block unet.up_blocks=0.2 --block vae=0 --out ./both
  underdraw merge ./one --lora snow.safetensors:0.8 --out ./snowy"""  # type: ignore[attr-defined]


def extract_lora(
    tuned: Annotated[str, typer.Argument(help="The fine-tune: a folder, a file, or a Hub id.")],
    base: Annotated[str, typer.Argument(help="What it was trained from.")],
    target: Annotated[Path, typer.Argument(help=f"A file ending in {FILE_SUFFIX}.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="The most of each layer; 32 without --error.")
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(help="How much of each layer's change may be missing, such as 0.2."),
    ] = None,
    convolutions: Annotated[
        bool, typer.Option(help="Whether larger convolutions get a part, too.")
    ] = True,
    spelling: Annotated[
        Spelling, typer.Option(help="Of names: kohya is what most web interfaces read.")
    ] = Spelling.diffusers,
    dtype: Annotated[Stored, typer.Option(help="Of the numbers written.")] = Stored.float16,
    variant: options.Variant = None,
    force: Overwrite = False,
) -> None:
    """Write what a fine-tune learned as a LoRA file.

    Of each layer's change the part of a low rank is kept that is nearest to it.
    """
    from underdraw import checkpoints

    check(target, force)
    with whole(target):
        done = checkpoints.extract_lora(
            tuned,
            base,
            target,
            rank=rank,
            error=error,
            convolutions=convolutions,
            spelling=spelling.value,
            dtype=dtype.value,
            variant=variant,
            overwrite=True,
            progress=progress.wanted(),
            tell=note,
        )
    ranks = f"ranks {min(done.ranks)} to {max(done.ranks)}"
    note(f"{done.layers} layers, {ranks}; {done.error:.1%} of the change is missing")
    typer.echo(target)


extract_lora.examples = f"""Examples:

\b
  underdraw extract-lora ./tuned ./base clay{FILE_SUFFIX} --rank 16
  underdraw extract-lora tuned{FILE_SUFFIX} v1-5{FILE_SUFFIX} clay{FILE_SUFFIX} --error 0.2 --spelling kohya"""  # type: ignore[attr-defined]  # noqa: E501


@contextmanager
def whole(target: Path) -> Iterator[None]:
    """Says of an interruption that nothing was changed by it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{target} is as it was before") from None


def parted(text: str) -> tuple[str, float | Sequence[float]]:
    """`unet.mid_block=0.3` as path and weights."""
    path, equals, value = text.rpartition("=")
    found = numbers(f"--block {path}", value) if equals and path else None
    if found is None:
        raise InputError(f"--block {text!r:.200}; allowed: a path and weights: unet.mid_block=0.3")
    return path, found


def numbers(option: str, text: str | None) -> float | Sequence[float] | None:
    """One number, or several with commas between."""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r:.100}; allowed: 0.3 or 0.5,0.3,0.2") from error
    return found[0] if len(found) == 1 else found
