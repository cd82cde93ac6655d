"""How the command line fails: one readable line, an exit code, and no traceback for mistakes."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from underdraw.cli import logs, progress
from underdraw.errors import InputError, InputTypeError, NotFoundError, UnderdrawError

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
MISTAKES = (
    InputError,
    InputTypeError,
    NotFoundError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
DEBUG = "--debug"
ANYWHERE = (DEBUG, logs.QUIET, logs.VERBOSE)
"""Switches of every command, understood at every place of the line."""
LOG = logging.getLogger(logs.OWN)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says what was kept."""


def tell(*lines: str) -> None:
    """Something for the person at the terminal. Results for other programs go to stdout."""
    for line in lines:
        LOG.info("%s", line)


def note(text: str) -> None:
    """Something that the person may want to change."""
    LOG.warning("note: %s", text)


class Group(TyperGroup):
    """The command group, with errors turned into a line and an exit code."""

    debug = False

    def main(self, args: Any = None, *rest: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        end = args.index("--") if "--" in args else len(args)
        self.debug, quiet, verbose = (switch in args[:end] for switch in ANYWHERE)
        args = [arg for i, arg in enumerate(args) if arg not in ANYWHERE or i > end] or ["--help"]
        with logs.shown(quiet, verbose), progress.followed():
            try:
                if quiet and verbose:
                    raise InputError(f"{logs.QUIET} and {logs.VERBOSE} are both given")
                code = super().main(args, *rest, standalone_mode=False, **extra)
            except InputError as error:
                code = self.fail(error, MISTAKE)
            except Exception as error:
                # typer carries its own copy of click or uses the installed one: told by what they
                # have.
                if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
                    raise
                context = getattr(error, "ctx", None)
                hint = f" (see {context.command_path} --help)" if context is not None else ""
                LOG.error("error: %s%s", _line(error.format_message()), hint)  # type: ignore[attr-defined]
                code = MISTAKE
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if len(args) > 1 and " ".join(args[:2]) in self.commands:  # such as "train lora"
            args = [" ".join(args[:2]), *args[2:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            if not self.debug:
                quieten()
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as stopped:
                LOG.error("stopped: %s", _line(stopped) or "nothing was written")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:
                raise
            except (UnderdrawError, OSError, MemoryError) as error:
                code = self.fail(error, MISTAKE if isinstance(error, MISTAKES) else FAILED)
            except RuntimeError as error:
                if (
                    type(error).__name__ != "OutOfMemoryError"
                ):  # PyTorch's, which is not loaded here
                    raise
                code = self.fail(error, FAILED, "out of memory: ")
            raise typer.Exit(code)

    def fail(self, error: Exception, code: int, label: str = "") -> int:
        """Tell an error that is being handled."""
        if self.debug:
            traceback.print_exc()
        LOG.error("error: %s%s", label, _line(error))
        return code


def quieten() -> None:
    """Warnings of ours become notes of one line; those of other packages are for developers."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module=r"underdraw\.")

    told: set[str] = set()

    def show(message: Any, *_: Any, **__: Any) -> None:
        line = _line(message)
        if line not in told:  # each picture of several may warn of the same
            told.add(line)
            note(line)

    warnings.showwarning = show


def _line(message: Any) -> str:
    if isinstance(message, MemoryError) and not str(message):
        return "out of memory"
    if isinstance(message, OSError) and not isinstance(message, UnderdrawError):
        where = f"{message.filename}: " if message.filename else ""
        return f"{where}{message.strerror or message}"
    return " ".join(str(message).split())


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")
