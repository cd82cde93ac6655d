"""How much must be read to follow one text-to-image call, and how long a network may be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import underdraw

ROOT = Path(__file__).parents[1]
SOURCE = Path(underdraw.__file__).parent
NETWORKS = sorted((SOURCE / "networks").glob("*.py"))


def test_a_call_is_read_in_twelve_files_and_two_thousand_lines():
    """In a process of its own: here, parts of a call have been computed already."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reading_path.py", "-v"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The whole way was seen, not a part of it.
    for file, function in (
        ("text/tokenizer.py", "__call__"),
        ("text/prompts.py", "encode_prompts"),
        ("networks/clip.py", "text"),
        ("networks/unet.py", "unet"),
        ("sampling/loop.py", "sample"),
        ("pipelines/stable_diffusion.py", "__call__"),
    ):
        line = next(line for line in done.stdout.splitlines() if f"  {file}: " in line)
        assert function in line.partition(": ")[2].split(", ")


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.name)
def test_networks_are_files_a_reader_finishes(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
