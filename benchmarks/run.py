"""All benchmarks one after another, each in a process of its own; then RESULTS.md.

    python benchmarks/run.py [--work FOLDER] [--only NAME,...] [--fresh] [--quick]

What a script measured is kept in the work folder (build/benchmarks) as NAME.json. A script whose
figures are there is not run again, so an interrupted run goes on where it stopped; `--fresh`
measures anew. The 2 GB folder that `cold_start` loads is written there, too. `--quick` leaves out
512 px and takes fewer turns; its table goes to the work folder, not to RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
SCRIPTS = {
    "import_time": "Import",
    "tiny_step": "A whole pipeline with a tiny UNet: what Python costs",
    "engine_steps": "Engines: runs in one batch, and compiled steps",
    "framework_steps": "PyTorch, JAX and MindSpore beside PyTorch's eager",
    "openvino_step": "The engine `openvino`",
    "training_rate": "Training: images a second",
    "cold_start": "Cold start from a full-size fp16 folder",
    "vae_decode": "Autoencoder of Stable Diffusion 1.5",
    "unet_step": "UNet of Stable Diffusion 1.5",
    "grounded_step": "Grounded steps of Stable Diffusion 1.4 (GLIGEN)",
    "controlnet_step": "Steps along maps of Stable Diffusion 1.5 (ControlNet)",
    "lora_step": "Steps with a LoRA on Stable Diffusion 1.5",
    "picture": "A whole picture of Stable Diffusion 1.5, accelerated, beside diffusers in float32",
}
"""Headings, in the order in which they run: short ones first."""
QUICK = {
    name: ["--quick"]
    for name in SCRIPTS
    if (name.endswith("_step") and name != "tiny_step")
    or name in ("vae_decode", "training_rate", "picture")
}
QUICK["cold_start"] = ["1"]
QUICK["framework_steps"] = ["--quick"]

PREFACE = """# Results

Written by `python benchmarks/run.py`. Ratios are ours by diffusers' ({peer}): below 1 we take less.
Both sides take turns in one run, on equal dtypes (bfloat16 only where the processor computes in it)
and the same weights; seconds are the median of
{least} turns or more, memory is the largest of them. A bar is what the ratio may be at most.

Measured {dates} on {processor} ({flags}), {threads} threads,
load of other processes {load} (turns give both sides the same share of it), PyTorch {torch}, Python
{python}.
"""
NAMED = ("processor", "flags", "threads", "load", "torch", "python")
"""What the preface takes from the figures as they are."""


def measure(name: str, work: Path, quick: bool) -> dict[str, Any]:
    """Run a script, or take what it measured before."""
    kept = work / f"{name}.json"
    if not kept.exists():
        partial = kept.with_suffix(".partial")
        given = [str(full_size(work))] if name == "cold_start" else []
        given += ["--folder", str(full_size(work))] if name == "openvino_step" else []
        given += QUICK.get(name, []) if quick else []
        run(name, *given, "--json", str(partial))
        os.replace(partial, kept)
    return json.loads(kept.read_text(encoding="utf-8"))


def full_size(work: Path) -> Path:
    """The folder to load, written once; half a folder is never taken for one."""
    folder, partial = work / "sd15-random-fp16", work / "sd15-random-fp16.partial"
    if not folder.exists():
        run("full_size", str(partial))
        os.replace(partial, folder)
    return folder


def run(name: str, *arguments: str) -> None:
    """A script in a process of its own, seen while it runs."""
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, "-W", "ignore", HERE / f"{name}.py", *arguments], check=True)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Figures as Markdown."""
    lines = ["| | ours | peer | ratio | bar |", "|---|---|---|---|---|"]
    for each in results:
        bar = each["bar"]
        verdict = "" if bar is None else f"{bar:.2f}" + (" missed" if each["ratio"] > bar else "")
        figures = f"{each['ours']:.4g} | {each['peer']:.4g} | {each['ratio']:.2f}"
        lines.append(f"| {each['name']} | {figures} | {verdict} |")
    return "\n".join(lines)


def document(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """All figures there are."""
    found = list(measured.values())

    def span(name: str) -> str:
        values = sorted({each[name] for each in found})
        return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"

    first = found[0]
    head = PREFACE.format(
        peer=f"diffusers {first['diffusers']}, transformers {first['transformers']}",
        # Memory is one figure, the largest of all turns; so is a whole picture.
        least=min(
            (r["runs"] for each in found for r in each["results"] if r["runs"] > 1), default=1
        ),
        dates=span("date"),
        **{name: span(name) for name in NAMED},
    )
    parts = [f"## {SCRIPTS[name]}\n\n{table(each['results'])}\n" for name, each in measured.items()]
    return "\n".join([head, *parts])


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what is missing and write the document; where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "benchmarks")
    parser.add_argument("--only", default=",".join(SCRIPTS), help="names, with commas")
    parser.add_argument("--fresh", action="store_true", help="measure again")
    parser.add_argument("--quick", action="store_true", help="less; not for RESULTS.md")
    given = parser.parse_args(arguments)
    wanted = given.only.split(",")
    if unknown := sorted(set(wanted) - set(SCRIPTS)):
        parser.error(f"--only {', '.join(unknown)}: not known; allowed: {', '.join(SCRIPTS)}")
    work = given.work / "quick" if given.quick else given.work
    work.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if given.fresh:
            (work / f"{name}.json").unlink(missing_ok=True)
        measure(name, work, given.quick)
    there = [name for name in SCRIPTS if (work / f"{name}.json").exists()]
    text = document({name: measure(name, work, given.quick) for name in there})
    target = work / RESULTS.name if given.quick else RESULTS
    partial = target.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)
    print(f"written: {target}")
    return target


if __name__ == "__main__":
    main()
