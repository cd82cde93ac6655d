"""What ways to compute less gain, counted, and what they cost, on the scenes family.

    python benchmarks/acceleration.py count --steps 50 --side 512   # of Stable Diffusion 1.5
    python benchmarks/acceleration.py price --tasks captions edits --count 64 --out FOLDER

`count` runs the loop on shapes alone and adds up the multiplications of convolutions, products and
attention in all calls of the UNet, so its figures are the same on every machine. `price` draws and
judges (`pricing.py`); it keeps pictures in a folder, and goes on there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pricing
import torch

from underdraw import (
    AdaptiveGuidance,
    AttentionCache,
    DeepCache,
    EncoderPropagation,
    GuidanceInterval,
    SparseGuidance,
    StableDiffusionPipeline,
    TokenDownsampling,
    backends,
    schedulers,
)
from underdraw.benchmark.counted import Counts
from underdraw.controls.acceleration.presets import mixed
from underdraw.controls.run import Conditioning, Run
from underdraw.engines import EAGER, OpenVino
from underdraw.engines.engine import Engine, Question, answered
from underdraw.evaluation import load_evaluator
from underdraw.networks.unet import UNetConfig
from underdraw.sampling.loop import sample

SD15 = {"cross_attention_dim": 768}
COUNTED = ("unet", "controlnet")
ENGINES = {"eager": lambda: EAGER, "openvino": lambda: OpenVino(precision="bfloat16")}
WAYS: dict[str, Any] = {
    "exact": ("exact",),
    "fast": ("fast",),
    "faster": ("faster",),
    "DeepCache(2)": (DeepCache(2),),
    "DeepCache(2, branch=1)": (DeepCache(2, branch=1),),
    "DeepCache(2, order=1)": (DeepCache(2, order=1),),
    "DeepCache(2, first=3)": (DeepCache(2, first=3),),
    "DeepCache(2, first=3, order=1)": (DeepCache(2, first=3, order=1),),
    "DeepCache(3)": (DeepCache(3),),
    "DeepCache(3, order=1)": (DeepCache(3, order=1),),
    "DeepCache(3, first=2)": (DeepCache(3, first=2),),
    "DeepCache(5)": (DeepCache(5),),
    "DeepCache(3, branch=1)": (DeepCache(3, branch=1),),
    "DeepCache(3, branch=3)": (DeepCache(3, branch=3),),
    "EncoderPropagation(2)": (EncoderPropagation(2),),
    "EncoderPropagation(3)": (EncoderPropagation(3),),
    "AttentionCache(0.4)": (AttentionCache(0.4),),
    "AttentionCache(0.45)": (AttentionCache(0.45),),
    "GuidanceInterval(0.28)": (GuidanceInterval(0.28),),
    "GuidanceInterval(0.28, 5.42)": (GuidanceInterval(0.28, 5.42),),
    "AdaptiveGuidance(0.99)": (AdaptiveGuidance(0.99),),
    "SparseGuidance(2)": (SparseGuidance(2),),
    "SparseGuidance(3)": (SparseGuidance(3),),
    "TokenDownsampling(2)": (TokenDownsampling(2),),
}


class Unweighted:
    """A UNet without numbers."""

    def __init__(self, config: UNetConfig) -> None:
        self.config, self._framework = config, backends.get("torch")
        self.nn, self.dtype, self.device = self._framework.operations, torch.float32, "cpu"


def counted(ways: Any, steps: int, side: int, guidance: float = 7.5) -> int:
    """Operations of the UNet in a run of one picture."""
    model = Unweighted(UNetConfig(**SD15))
    solver = schedulers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).make_table(steps)
    text = torch.zeros(1, 77, 768)
    engine = Counts(COUNTED)
    run = Run(model.nn, model, solver, Conditioning(text, text), guidance, engine=engine)
    chosen = mixed(ways)
    controls = [] if chosen is None else chosen.controls()
    latents = torch.zeros(1, 4, side // 8, side // 8)
    for _ in answered(sample(run, latents, controls), engine):
        pass
    return engine.work.total


def count(steps: int, side: int) -> None:
    """A line for each way: the share of all multiplications that it leaves."""
    whole = counted(("exact",), steps, side)
    for name, ways in WAYS.items():
        print(f"{name:42} {counted(ways, steps, side) / whole:5.2f}", flush=True)


class Shares:
    """An engine that counts what another one is asked."""

    def __init__(self, engine: Engine = EAGER) -> None:
        self.engine, self.counting = engine, Counts(COUNTED)

    @property
    def products(self) -> int:
        """Operations so far."""
        return self.counting.work.total

    def run(self, question: Question) -> Any:
        if question.program.name in COUNTED:
            self.counting.run(question)
        return self.engine.run(question)


def price(
    tasks: Sequence[str],
    names: Sequence[str],
    count: int,
    steps: int,
    batch: int,
    out: Path,
    engine: Engine = EAGER,
) -> list[dict[str, Any]]:
    """A row for each task and way: marks beside those of exact pictures, the share of
    multiplications, and how near pictures are to the exact ones. They are printed as they are
    known, and written to `prices.json` in the folder."""
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    pipe.set_progress_bar_config(disable=True)
    out.mkdir(parents=True, exist_ok=True)
    evaluator, rows = load_evaluator(), []
    for name in tasks:
        task = pricing.TASKS[name](pipe, count, steps)
        exact: Any = None
        for way in ["exact", *(one for one in names if one != "exact")]:
            kept = out / pricing.file_name(name, way, count)
            found = pricing.drawn(task, WAYS[way], Shares(engine), batch, kept)
            marks = task.marks(found.pictures, evaluator)
            exact = exact or (found, marks)
            near = pricing.decibels(found.pictures, exact[0].pictures)
            rows.append(
                {
                    "task": name,
                    "way": way,
                    "pictures": count,
                    "share": round(found.products / exact[0].products, 3),
                    "PSNR": None if way == "exact" else round(near, 1),
                    "processor s": round(found.seconds, 3),
                    **{one: mark.beside(exact[1][one]) for one, mark in marks.items()},
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    (out / "prices.json").write_text(json.dumps(rows, indent=1))
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("count", "price"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=512, help="of `count`, in pixels")
    parser.add_argument("--count", type=int, default=64, help="of `price`: pictures of each way")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--engine", default="eager", choices=list(ENGINES), help="of `price`")
    parser.add_argument("--tasks", nargs="+", default=["captions"], choices=list(pricing.TASKS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("acceleration"))
    told = parser.parse_args()
    if told.what == "count":
        count(told.steps, told.side)
    else:
        price(
            told.tasks,
            told.ways,
            told.count,
            told.steps,
            told.batch,
            told.out,
            ENGINES[told.engine](),
        )


if __name__ == "__main__":
    main()
