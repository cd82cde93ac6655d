"""Cold start from a full-size folder: fresh process, warm page cache, offline.

    python benchmarks/full_size.py FOLDER && python benchmarks/cold_start.py FOLDER [--json FILE]

Each run is a process of its own, ours and diffusers' in turns. Figures, per target dtype:

- import: of the pipeline class, with all that it needs;
- load: `from_pretrained`;
- first step: from the call to the moment the UNet begins, so tokenizer and text encoder included;
- total: the three (bar: at most half of diffusers');
- private: anonymous memory of the process after loading less what it was after the import
  (RssAnon of /proc/self/status), as a share of the weights in the target dtype (bar: at most 1.15;
  diffusers' beside it). Memory-mapped weights are not private: they are page cache, which all
  processes share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = """
import json, os, sys, time
side, folder, dtype = sys.argv[1:4]

def private():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

start = time.perf_counter()
if side == "ours":
    from underdraw import StableDiffusionPipeline
else:
    from diffusers import StableDiffusionPipeline
import torch
imported = time.perf_counter()
before = private()
pipe = StableDiffusionPipeline.from_pretrained(
    folder, torch_dtype=getattr(torch, dtype), local_files_only=True,
    **({} if side == "ours" else {"safety_checker": None}),
)
loaded = time.perf_counter()
after = private()
weights = sum(
    p.numel() * p.element_size()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()
) / 2**20

class Began(Exception):
    pass

def begin(*_):
    raise Began

pipe.unet.conv_in.register_forward_pre_hook(begin)
pipe.set_progress_bar_config(disable=True)
try:
    pipe("a red sphere left of a blue cube", num_inference_steps=20)
except Began:
    pass
begun = time.perf_counter()
print(json.dumps({
    "import": imported - start, "load": loaded - imported, "first step": begun - loaded,
    "total": begun - start, "private": (after - before) / weights,
    "before": before, "weights": weights,
}))
"""


def once(side: str, folder: Path, dtype: str) -> dict[str, Any]:
    """One process. Nothing is looked up on a network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, side, str(folder), dtype],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(folder: Path, runs: int = 5, dtypes: tuple[str, ...] = ("float16", "float32")) -> list:
    from timing import judge

    results = []
    for dtype in dtypes:
        once("ours", folder, dtype), once("peer", folder, dtype)
        taken: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for turn in range(runs):
            for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
                taken[side].append(once(side, folder, dtype))
        for part in ("import", "load", "first step", "total"):
            bar = 0.5 if part == "total" else None
            columns = ([run[part] for run in taken[side]] for side in ("ours", "peer"))
            results.append(judge(f"cold start, {dtype}, {part} (s)", *columns, bar=bar))
        shares = {side: max(run["private"] for run in runs_) for side, runs_ in taken.items()}
        verdict = "MISSED" if shares["ours"] > 1.15 else ""
        print(
            f"private memory after loading to {dtype}: ours {shares['ours']:.2f}, peer "
            f"{shares['peer']:.2f} of the weights ({taken['ours'][0]['weights']:.0f} MiB)  "
            f"bar 1.15  {verdict}",
            flush=True,
        )
        results.append(
            judge(
                f"private memory, {dtype} (by the weights; ours at most 1.15)",
                [shares["ours"]],
                [shares["peer"]],
                bar=None,
            )
        )
    return results


if __name__ == "__main__":
    from timing import report

    given = sys.argv[1:]
    target = None
    if "--json" in given:
        at = given.index("--json")
        target = given[at + 1]
        del given[at : at + 2]
    runs_wanted = int(given[1]) if len(given) > 1 else 5
    if not given or not Path(given[0]).is_dir():
        sys.exit(__doc__)
    report(main(Path(given[0]), runs_wanted), target)
