"""Train the scenes family stage by stage: `python scripts/train_scenes.py STAGE FOLDER [options]`.

On several processes: `torchrun --standalone --nproc-per-node 2 -- scripts/train_scenes.py ...`.
A stage that was interrupted goes on where it was when the same command is run again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from underdraw.errors import UnderdrawError
from underdraw.training.config import shorter
from underdraw.training.loop import Stopped
from underdraw.training.recipes import STAGES, ScenesRecipe, train_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("folder")
    parser.add_argument("--minutes", type=float, help="end the stage after this time")
    parser.add_argument("--start", help="a family to go on from, such as underdraw/scenes")
    parser.add_argument("--anew", nargs="*", default=[], help="of --start, not these networks")
    parser.add_argument("--again", nargs="*", default=[], help="stages that go on with --start's")
    parser.add_argument("--without", nargs="*", default=[], help="stages that never ran")
    parser.add_argument("--steps", type=int, help="how many, instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="the highest, of this stage")
    parser.add_argument("--scenes", type=int, help="render so many instead of the recipe's")
    parser.add_argument("--subjects", type=int, help="likewise, things with their own textures")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--accelerator", action="store_true", help="large batches, drawn by other processes"
    )
    arguments = parser.parse_args()
    chosen = {name: tuple(getattr(arguments, name)) for name in ("anew", "again", "without")}
    recipe = ScenesRecipe(start=arguments.start, **chosen)
    trains = arguments.stage in recipe.runs
    own = {"learning_rate": arguments.learning_rate, "steps": arguments.steps}
    if any(value is not None for value in own.values()) and not trains:
        parser.error(f"--learning-rate, --steps: {arguments.stage} trains nothing")
    if arguments.accelerator and trains and arguments.minutes is None:
        parser.error("--accelerator needs --minutes: its stages end by time")
    if arguments.accelerator:
        recipe = recipe.on_accelerator()
    if arguments.scenes is not None:
        recipe = replace(recipe, scenes=arguments.scenes, views=min(recipe.views, arguments.scenes))
    if arguments.subjects is not None:
        recipe = replace(recipe, subjects=arguments.subjects)
    if trains:
        run = shorter(recipe.run(arguments.stage), **own)
        recipe = replace(recipe, runs={**recipe.runs, arguments.stage: run})
    try:
        train_stage(
            arguments.stage,
            arguments.folder,
            recipe,
            minutes=arguments.minutes,
            device=arguments.device,
        )
    except Stopped as stopped:
        raise SystemExit(f"\n{stopped}") from None
    except UnderdrawError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
