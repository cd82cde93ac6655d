"""Networks are read from top to bottom, each in one sitting."""

from pathlib import Path

import pytest

import underdraw

NETWORKS = sorted((Path(underdraw.__file__).parent / "networks").rglob("*.py"))


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.name)
def test_networks_are_files_a_reader_finishes(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
