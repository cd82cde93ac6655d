"""What ways to compute less gain, counted, and what they cost, on the scenes family.

    python benchmarks/acceleration.py count --steps 50 --side 512   # of Stable Diffusion 1.5
    python benchmarks/acceleration.py price --tasks captions boxes edges --out FILE

`count` runs the loop on shapes alone and adds up the multiplications of convolutions, products and
attention in all calls of the UNet, so its figures are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
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
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question, answered
from underdraw.evaluation import (
    grounding,
    held_out_captions,
    load_evaluator,
    score_boxes,
    score_captions,
    structure,
)
from underdraw.evaluation.following import score_edges
from underdraw.networks.unet import UNetConfig
from underdraw.pictures.writing import to_bytes
from underdraw.preprocessors.canny import lines
from underdraw.sampling.loop import sample

SD15 = {"cross_attention_dim": 768}
COUNTED = ("unet", "controlnet")
TASKS = ("captions", "boxes", "edges")
WAYS: dict[str, Any] = {
    "exact": ("exact",),
    "fast": ("fast",),
    "faster": ("faster",),
    "DeepCache(2)": (DeepCache(2),),
    "DeepCache(2, branch=1)": (DeepCache(2, branch=1),),
    "DeepCache(3)": (DeepCache(3),),
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
    """An engine that runs programs as they are, and counts beside it."""

    def __init__(self) -> None:
        self.counting = Counts(COUNTED)

    def run(self, question: Question) -> Any:
        if question.program.name in COUNTED:
            self.counting.run(question)
        return EAGER.run(question)


def drawn(pipe: Any, task: str, count: int, steps: int, batch: int) -> np.ndarray:
    """Pictures of held-out captions, in boxes or along edges of scenes, each of its own seed."""
    asked: Any = {
        "captions": lambda: held_out_captions(count),
        "boxes": lambda: grounding.held_out_layouts(count),
        "edges": lambda: [one.along("edges") for one in structure.held_out_maps(count)],
    }[task]()
    if task == "captions":

        def generate(items: Any, seeds: Any) -> Any:
            call = {"num_inference_steps": steps, "seed": seeds, "output_type": "np"}
            return pipe([one.text for one in items], **call).images

    elif task == "boxes":
        generate = grounding.pipeline_generator(pipe, steps=steps)
    else:
        nets = {"edges": pipe.adapters["structure"]["edges"]}
        generate = structure.pipeline_generator(pipe, nets, steps=steps)
    made = [
        generate(asked[at : at + batch], list(range(at, min(at + batch, count))))
        for at in range(0, count, batch)
    ]
    return to_bytes(np.concatenate(made))


def scored(task: str, pictures: np.ndarray, judge: Any) -> dict[str, float | None]:
    """What the task is judged by, in percent."""
    count = len(pictures)
    if task == "captions":
        scores = score_captions(pictures, held_out_captions(count), evaluator=judge).scores
        return {"mentions": percent(scores.mention.share), "captions": percent(scores.whole.share)}
    if task == "boxes":
        wanted = [layout.wanted for layout in grounding.held_out_layouts(count)]
        boxes = score_boxes(judge.detect(pictures), wanted)
        return {"AP50": percent(boxes.ap50), "in boxes": percent(boxes.attributes.share)}
    wanted = [one.edges > 0.5 for one in structure.held_out_maps(count)]
    return {"edge F1": percent(score_edges([lines(one) for one in pictures], wanted).f1)}


def percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def price(
    tasks: list[str], names: list[str], count: int, steps: int, batch: int, out: Path
) -> None:
    """Scores of each way beside the exact ones, with the share of multiplications and how far
    pictures are from the exact ones. What is in `out` is not made again."""
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    pipe.set_progress_bar_config(disable=True)
    known = json.loads(out.read_text()) if out.exists() else {}
    judge, exact, whole = load_evaluator(), {}, {}
    for task in tasks:
        for name in ["exact", *(one for one in names if one != "exact")]:
            key, beside = f"{task}: {name}", out.with_suffix(f".{task}.npz")
            if key in known and beside.exists():
                if name == "exact":
                    kept = np.load(beside)
                    exact[task], whole[task] = kept["pictures"], kept["products"]
                continue
            pipe.enable_acceleration(*WAYS[name])
            pipe.engine = engine = Shares()
            begun = time.process_time()
            pictures = drawn(pipe, task, count, steps, batch)
            seconds = time.process_time() - begun
            products = engine.counting.work.total
            if name == "exact":
                exact[task], whole[task] = pictures, products
                np.savez(beside, pictures=pictures, products=products)
            error = np.mean((pictures.astype(float) - exact[task]) ** 2, axis=(1, 2, 3))
            decibel = 10 * np.log10(255**2 / np.maximum(error, 1e-3))
            known[key] = {
                **scored(task, pictures, judge),
                "share": round(products / whole[task], 3),
                "PSNR": None if name == "exact" else round(float(decibel.mean()), 1),
                "processor s": round(seconds, 1),
                "load": round(os.getloadavg()[0], 1),
            }
            write_json(out, {"pictures": count, "steps": steps, **known})
            print(key, known[key], flush=True)


def write_json(path: Path, value: Any) -> None:
    """As a whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1))
    beside.replace(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("count", "price"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=512, help="of `count`, in pixels")
    parser.add_argument(
        "--captions", type=int, default=24, help="of `price`: pictures for each way"
    )
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--tasks", nargs="+", default=["captions"], choices=TASKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("acceleration.json"))
    told = parser.parse_args()
    if told.what == "count":
        count(told.steps, told.side)
    else:
        price(told.tasks, told.ways, told.captions, told.steps, told.batch, told.out)


if __name__ == "__main__":
    main()
