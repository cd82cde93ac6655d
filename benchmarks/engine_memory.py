"""Peak memory of a process that loads a pipeline and makes a step, by engine, beside diffusers.

    python benchmarks/engine_memory.py FOLDER [--side 256] [--json FILE]

FOLDER is one that `full_size.py` wrote. Each case is a process of its own. What counts is memory
that belongs to the process alone (anonymous): files that are mapped are there for all, and can be
dropped. Told are the most of it until the first step has ended, and what is held afterwards, beyond
what Python and the libraries hold, both by the bytes of the UNet, the autoencoder and the text
tower in the precision in which the engine computes. "again" is a later process, which finds on disk
what an earlier one compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CASES = (
    ("diffusers", "float32"),
    ("eager", "float32"),
    ("openvino", "float32"),
    ("openvino again", "float32"),
    ("diffusers", "bfloat16"),
    ("eager", "bfloat16"),
    ("openvino", "bfloat16"),
    ("openvino again", "bfloat16"),
    ("openvino, float16 folder", "float32"),
    ("openvino, float16 folder again", "float32"),
)
"""Who computes, and in what. Weights are loaded in that, but for "float16 folder", whose networks
stay in float16."""
BAR = 1.3


def anonymous() -> int:
    """Bytes that belong to this process alone."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


@contextmanager
def watched() -> Iterator[list[int]]:
    """A list whose number is the most that is held, looked at every 2 ms."""
    most, ends = [0], threading.Event()

    def watch() -> None:
        while not ends.wait(0.002):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ends.set()
        thread.join()


def one(who: str, precision: str, folder: str, side: int) -> dict[str, Any]:
    """A case, in this process: `begin`, `most` and `after` in bytes, and how many numbers."""
    import torch

    torch.set_num_threads(1)
    dtype = "float16" if "float16 folder" in who else precision
    if who == "diffusers":
        from diffusers import StableDiffusionPipeline as Pipeline

        how: dict[str, Any] = {"torch_dtype": getattr(torch, dtype)}
    else:
        from underdraw import StableDiffusionPipeline as Pipeline
        from underdraw.engines.openvino import OpenVino

        if "openvino" in who:
            import openvino

            openvino.Core().get_versions("CPU")
        chosen: Any = OpenVino(precision) if "openvino" in who else "eager"  # type: ignore[arg-type]
        how = {"dtype": dtype, "engine": chosen}
    begin = anonymous()
    with watched() as most:
        pipe: Any = Pipeline.from_pretrained(folder, **how)
        pipe.set_progress_bar_config(disable=True)
        given = {"height": side, "width": side, "num_inference_steps": 1, "output_type": "latent"}
        pipe("a red sphere", **given)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    numbers = sum(p.numel() for part in parts for p in part.parameters())
    after = anonymous()
    return {"begin": begin, "most": max(most[0], after), "after": after, "numbers": numbers}


def case(who: str, precision: str, folder: str, side: int, kept: str) -> dict[str, Any]:
    """A case in a process of its own."""
    here = [sys.executable, "-W", "ignore", __file__, folder, "--side", str(side)]
    environment = {**os.environ, "UNDERDRAW_CACHE": kept}
    asked = [*here, "--case", who, precision]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    weights = found["numbers"] * (2 if precision == "bfloat16" else 4)
    shares = {word: (found[word] - found["begin"]) / weights for word in ("most", "after")}
    return {"who": who, "precision": precision, "weights": weights, **shares}


def main(folder: str, side: int = 256, cases: Any = CASES) -> list[dict[str, Any]]:
    """All cases, told as they are done."""
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        for who, precision in cases:
            row = case(who, precision, folder, side, kept)
            rows.append(row)
            missed = "openvino" in who and row["most"] > BAR
            print(
                f"{who}, {precision}: at most {row['most']:.2f}, afterwards {row['after']:.2f} "
                f"of {row['weights'] / 1e9:.2f} GB{'  MISSED' if missed else ''}",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("folder")
    reader.add_argument("--side", type=int, default=256)
    reader.add_argument("--case", nargs=2)
    reader.add_argument("--json", type=Path)
    told = reader.parse_args()
    if told.case:
        print(json.dumps(one(*told.case, told.folder, told.side)))
    else:
        found = main(told.folder, told.side)
        if told.json:
            told.json.write_text(json.dumps(found, indent=1) + "\n")
