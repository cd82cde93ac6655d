"""Engines say why they leave a program as it is written."""

from __future__ import annotations

import logging

from underdraw.networks.program import Program


class AsWritten:
    """Tells in a log why a program runs as it is written and not by an engine, each reason once.

    Args:
        engine: how the lines begin.
    """

    def __init__(self, engine: str, log: logging.Logger) -> None:
        self.engine, self.log = engine, log
        self._told: set[str] = set()

    def tell(self, program: Program, reason: str) -> None:
        """A line of the log, unless it was told."""
        text = f"{self.engine}: {program.name} runs as it is written: {reason}"
        if text not in self._told:
            self._told.add(text)
            self.log.warning(text)
