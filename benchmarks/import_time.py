"""Seconds until the pipeline class is there, and until the bare package is, in fresh processes.

    python benchmarks/import_time.py [--json FILE]

PyTorch's own import is given beside them: nobody can be faster.
"""

from __future__ import annotations

import subprocess
import sys
import time

CODE = {
    "ours": "from underdraw import StableDiffusionPipeline; import underdraw.backends.torch",
    "peer": "from diffusers import StableDiffusionPipeline",
    "torch": "import torch",
    "package": "import underdraw",
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    return time.perf_counter() - start


def main(runs: int = 5) -> list:
    from timing import judge

    taken: dict[str, list[float]] = {name: [] for name in CODE}
    for turn in range(runs + 1):
        for name in CODE:
            figure = seconds(CODE[name])
            if turn:  # the first turn fills the page cache
                taken[name].append(figure)
    return [
        judge("import of the pipeline class (s)", taken["ours"], taken["peer"]),
        judge("import of PyTorch alone, beside (s)", taken["torch"], taken["peer"], bar=None),
        judge("import of the bare package, beside (s)", taken["package"], taken["peer"], bar=None),
    ]


if __name__ == "__main__":
    from timing import arguments, report

    report(main(), arguments()[1])
