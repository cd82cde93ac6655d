"""What the command line tells while it works: through the logger `underdraw`, to standard error.

Results for other programs (paths, reports) go to standard output and are no log.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE, OWN = "underdraw", "underdraw.cli"
QUIET, VERBOSE = "--quiet", "--verbose"


class ToStandardError(logging.Handler):
    """A line for a record: those of the command line as they are, others with their place."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name != OWN:
            text = f"{record.name}: {text}"
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextmanager
def shown(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Show the package's log inside: of the command line everything but details, of the library
    nothing; everything of both if `verbose`; errors only if `quiet`."""
    package, own = logging.getLogger(PACKAGE), logging.getLogger(OWN)
    before = [(logger, logger.level, logger.propagate) for logger in (package, own)]
    handler = ToStandardError()
    package.addHandler(handler)
    package.propagate = False
    package.setLevel(logging.DEBUG if verbose else logging.ERROR)
    own.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.propagate = propagate


def quiet() -> bool:
    """Whether nothing but errors is to be told."""
    return not logging.getLogger(OWN).isEnabledFor(logging.INFO)
