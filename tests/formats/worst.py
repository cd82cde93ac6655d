"""Reads each file of a folder in a process of its own, where memory is limited and measured.

Prints a line of JSON per file: its name, the error, by how many megabytes the peak grew.
"""

import json
import resource
import sys
from pathlib import Path

from formats.hostile import COPIES, STEPS

from underdraw.errors import UnderdrawError
from underdraw.formats import pickle_machine
from underdraw.pictures.writing import read_metadata
from underdraw.weights.files import open_tensors
from underdraw.weights.folders import read_json

READERS = {
    ".json": (read_json,),
    ".png": (read_metadata,),
    ".safetensors": (open_tensors,),
    ".bin": (open_tensors,),
}
GB = 1 << 30


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 * GB, 4 * GB))
    for path in sorted(folder.iterdir()):
        for read in READERS[path.suffix]:
            whole = "whole" in path.stem  # with the bounds that users have
            pickle_machine.MAX_STEPS = 1_000_000 if whole else STEPS
            pickle_machine.MAX_COPIES = 4_000_000 if whole else COPIES
            before, found = peak(), "nothing"
            try:
                read(path)
            except UnderdrawError as error:
                found = str(error)
            except Exception as error:
                found = f"raw {error!r}"
            print(json.dumps([path.name, found, peak() - before]), flush=True)
        path.unlink()


main(Path(sys.argv[1]))
