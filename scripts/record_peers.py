"""Writes `tests/data/peers.npz`: what diffusers' pipelines give in calls of `tests/pipelines/peer`.

    python scripts/record_peers.py

Runs these tests with diffusers live (a few minutes) and keeps some values of each of its images,
and its version. Useful where a call of these tests is new or changed, and with another version of
diffusers or transformers, in the environment of the tests (`constraints/tests.txt`): calls that are
not recorded are live.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def main() -> int:
    os.environ["UNDERDRAW_PEERS"] = "record"
    os.chdir(ROOT)
    failed = pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "tests/pipelines/peer"])
    if failed:
        return int(failed)
    from pipelines.peer import recorded  # on the path of the tests

    recorded.write()
    print(f"{len(recorded.made)} calls, {recorded.FILE.stat().st_size / 2**10:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
