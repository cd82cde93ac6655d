"""Peak memory of a process that loads a pipeline and makes a step, by engine, beside diffusers.

    python benchmarks/engine_memory.py FOLDER [--side 256] [--json FILE]

FOLDER is one that `full_size.py` wrote. Each case is a process of its own. What counts is memory
that belongs to the process alone (anonymous): files that are mapped are there for all, and can be
dropped. Told are the most of it until the first step has ended, and what is held afterwards, beyond
what Python and the libraries hold, both by the bytes of the UNet, the autoencoder and the text
tower in the precision in which the engine computes. "again" is a later process, which finds on disk
what an earlier one compiled; networks in float16 stay in their file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory import watched


@dataclass(frozen=True)
class Case:
    """Who computes in what precision, on networks in what dtype; where a case stands twice, the
    second one finds what the first one kept."""

    who: str
    precision: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.who}, {self.precision}, networks in {self.dtype}"


GRAPHS = (
    Case("openvino", "float32", "float32"),
    Case("openvino", "float32", "float16"),
    Case("openvino", "bfloat16", "float16"),
    Case("openvino", "bfloat16", "bfloat16"),
)
CASES = (
    *(
        Case(who, dtype, dtype)
        for dtype in ("float32", "bfloat16")
        for who in ("diffusers", "eager")
    ),
    *(case for case in GRAPHS for _ in range(2)),
)
BAR = 1.3


def anonymous() -> int:
    """Bytes that belong to this process alone."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


def one(case: Case, folder: str, side: int) -> dict[str, Any]:
    """A case, in this process: `most` and `after` in bytes beyond the libraries', and how many
    numbers the networks have."""
    import torch

    torch.set_num_threads(1)
    if case.who == "diffusers":
        from diffusers import StableDiffusionPipeline as Pipeline

        how: dict[str, Any] = {"torch_dtype": getattr(torch, case.dtype)}
    else:
        from underdraw import StableDiffusionPipeline as Pipeline
        from underdraw.engines.openvino import OpenVino

        engine: Any = "eager"
        if case.who == "openvino":
            import openvino

            openvino.Core().get_versions("CPU")
            engine = OpenVino(case.precision)  # type: ignore[arg-type]
        how = {"dtype": case.dtype, "engine": engine}
    begin = anonymous()
    with watched(anonymous) as most:
        pipe: Any = Pipeline.from_pretrained(folder, **how)
        pipe.set_progress_bar_config(disable=True)
        given = {"height": side, "width": side, "num_inference_steps": 1, "output_type": "latent"}
        pipe("a red sphere", **given)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    numbers = sum(p.numel() for part in parts for p in part.parameters())
    after = anonymous() - begin
    return {"most": max(most[0], after), "after": after, "numbers": numbers}


def measured(case: Case, folder: str, side: int, kept: str) -> dict[str, Any]:
    """A case in a process of its own, by the bytes of weights in the precision it computes in."""
    here = [sys.executable, "-W", "ignore", __file__, folder, "--side", str(side)]
    environment = {**os.environ, "UNDERDRAW_CACHE": kept}
    asked = [*here, "--case", case.who, case.precision, case.dtype]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    weights = found["numbers"] * (2 if case.precision == "bfloat16" else 4)
    shares = {word: found[word] / weights for word in ("most", "after")}
    return {**asdict(case), "weights": weights, **shares}


def main(folder: str, side: int = 256, cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """All cases, told as they are done."""
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        for number, case in enumerate(cases):
            row = measured(case, folder, side, kept)
            rows.append(row)
            missed = case.who == "openvino" and row["most"] > BAR
            print(
                f"{case}{', again' if case in cases[:number] else ''}: at most {row['most']:.2f}, "
                f"afterwards {row['after']:.2f} of {row['weights'] / 1e9:.2f} GB"
                f"{'  MISSED' if missed else ''}",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("folder")
    reader.add_argument("--side", type=int, default=256)
    reader.add_argument("--case", nargs=3)
    reader.add_argument("--json", type=Path)
    told = reader.parse_args()
    if told.case:
        print(json.dumps(one(Case(*told.case), told.folder, told.side)))
    else:
        found = main(told.folder, told.side)
        if told.json:
            told.json.write_text(json.dumps(found, indent=1) + "\n")
