"""The command line as a whole."""

from __future__ import annotations

from typing import Annotated

import typer

from underdraw.cli import boxes, logs, structure, subjects
from underdraw.cli.bench import bench
from underdraw.cli.cache import cache
from underdraw.cli.compile import compile
from underdraw.cli.convert import convert
from underdraw.cli.doctor import doctor
from underdraw.cli.edit import edit
from underdraw.cli.evaluate import evaluate
from underdraw.cli.failures import Group
from underdraw.cli.generate import generate
from underdraw.cli.info import info
from underdraw.cli.merge import extract_lora, merge
from underdraw.cli.numbers import Command, OfSeveral
from underdraw.cli.scenes import scenes
from underdraw.cli.train import train
from underdraw.cli.train_adapters import train_dreambooth, train_lora, train_textual_inversion

EXAMPLES = """Examples:

\b
  underdraw generate "a red sphere left of a blue cube"
  underdraw generate "a red sphere" --count 4 --seed 7 --out spheres.png
  underdraw edit photo.png --from "a red cube" --to "a blue cube" -o out.png --show-mask
  underdraw info ./my-model --check
  underdraw convert model.ckpt ./my-model --dtype float16
  underdraw scenes --truth boxes,depth --out sheet.png

Exit codes: 0 done, 1 failed or problems found, 2 a mistake in the call, 130 interrupted."""

app = typer.Typer(
    cls=Group,
    name="underdraw",
    help="Draw boxes, subjects, edges and masks underneath; a diffusion model paints over them.",
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class EditCommand(OfSeveral):
    """A structure is a net, a map and a number."""

    takes = {structure.OPTION: structure.PARTS}  # noqa: RUF012


class GenerateCommand(OfSeveral):
    """A box is a phrase and four numbers; a subject a picture, what it shows, and perhaps words
    behind --as."""

    takes = {  # noqa: RUF012
        **EditCommand.takes,
        boxes.BOX: 1 + boxes.NUMBERS,
        subjects.SUBJECT: subjects.PARTS,
    }
    further = {subjects.SUBJECT: subjects.AS}  # noqa: RUF012


OWN = {generate: GenerateCommand, edit: EditCommand}
COMMANDS = (
    *(generate, edit, info, convert, merge, extract_lora),
    *(scenes, train, evaluate, compile, bench, cache, doctor),
)
for command in COMMANDS:
    cls = OWN.get(command, Command)
    app.command(cls=cls, epilog=getattr(command, "examples", None))(command)


def show_version(wanted: bool) -> None:
    if wanted:
        from underdraw import __version__

        typer.echo(f"underdraw {__version__}")
        raise typer.Exit


for name, command in (
    ("train lora", train_lora),
    ("train textual-inversion", train_textual_inversion),
    ("train dreambooth", train_dreambooth),
):
    app.command(name, cls=Command, epilog=getattr(command, "examples", None))(command)


@app.callback()
def everywhere(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show where an error comes from (anywhere on the line)."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option(logs.QUIET, help="Tell errors only (anywhere on the line).")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(logs.VERBOSE, help="Tell what the library logs, too (anywhere on the line)."),
    ] = False,
) -> None:
    """Options of every command."""
