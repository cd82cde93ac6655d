"""How many steps of tuning a subject takes: `python scripts/tune_subjects.py FOLDER [options]`.

Held-out subjects that the autoencoder keeps are learned from four pictures each. At some steps each
is drawn in four new scenes, and it is counted in how many it is seen. `--no-embedding` does the
same without the subject encoder, as DreamBooth. A run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import StableDiffusionPipeline, Subject
from underdraw.evaluation import load_evaluator
from underdraw.evaluation.autoencoder import through
from underdraw.evaluation.subjects import HeldOutSubject, SubjectScores, held_out_subjects
from underdraw.pictures.writing import to_bytes
from underdraw.scenes.draw import contact_sheet
from underdraw.training.loop import Stopped, TrainingConfig, train
from underdraw.training.subject_tuning import SubjectPictures, SubjectTuningTask, TuningConfig

SCENES = ("a {}", "a {} on a wooden floor", "a {} with a blue sphere", "a {} on a checkered floor")
PICTURES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="underdraw/scenes")
    parser.add_argument("--subject-weights", help="by default those of the model")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="leave out so many subjects")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20, 40, 60])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--no-embedding", dest="embedding", action="store_false")
    told = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(told.model, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    if told.subject_weights and told.embedding:
        pipe.load_subject(told.subject_weights)
    for subject in kept(pipe, told.first + told.subjects)[told.first :]:
        learn(pipe, subject, told)


def kept(pipe: Any, count: int) -> list[HeldOutSubject]:
    """The first held-out subjects that are seen in three of their pictures after the autoencoder:
    of others nobody could tell whether they were learned."""
    judge, found = load_evaluator(), []
    for one in held_out_subjects(64, PICTURES):
        pictures = np.stack(one.pictures).astype(np.float32) / 255
        seen = judge.detect(to_bytes(np.clip(through(pipe.vae)(pictures), 0, 1)))
        if SubjectScores.of(seen, [one] * PICTURES).match.right >= 3:
            found.append(one)
            if len(found) == count:
                break
    return found


def learn(pipe: Any, one: HeldOutSubject, told: argparse.Namespace) -> None:
    name = one.described.split(" on a ")[0].split(" in ")[0].replace(" ", "-")[:60]
    folder = told.folder / name
    shown = SubjectPictures(one.pictures, one.category)
    advice: Any = pipe.scheduler.config
    names = ("beta_schedule", "beta_start", "beta_end", "prediction_type")
    config = TuningConfig(
        objective_of({n: advice[n] for n in names}), told.embedding, told.rank, drop_caption=0.1
    )
    task = SubjectTuningTask(pipe, shown, config)
    last = max(told.steps)
    run = TrainingConfig(
        last, told.batch, learning_rate=told.learning_rate, warmup=5, schedule="constant", ema=0.0
    )
    for step in sorted(told.steps):
        with suppress(Stopped):
            train(task, run, folder, stop_after=step, progress=False)
        score(pipe, one, task, step, folder)


def objective_of(fields: dict[str, Any]) -> Any:
    from underdraw.training.objectives import ObjectiveConfig

    return ObjectiveConfig(**fields)


def score(pipe: Any, one: HeldOutSubject, task: Any, step: int, folder: Path) -> None:
    pipe.load_subject(task.result(), name="tuned")
    prompts = [scene.format(one.category) for scene in SCENES]
    made = pipe(
        prompts,
        num_inference_steps=20,
        guidance_scale=pipe.advice.guidance_scale,
        seed=0,
        output_type="np",
        controls=[Subject(encoder="tuned", category=one.category)],
    ).images
    pipe.unload_subject("tuned")
    scores = SubjectScores.of(load_evaluator().detect(to_bytes(made)), [one] * len(prompts))
    folder.mkdir(parents=True, exist_ok=True)
    contact_sheet([*one.pictures, *made], PICTURES).save(folder / f"{step:04d}.png")
    line = {"subject": one.described, "step": step, "embedding": task.config.embedding}
    line |= {"match": scores.match.right, "kind": scores.kind.right, "of": len(prompts)}
    print(json.dumps(line), flush=True)
    with (folder.parent / "scores.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
