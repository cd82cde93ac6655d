"""Train the scenes family stage by stage: `python scripts/train_scenes.py STAGE FOLDER [options]`.

On several processes: `torchrun --standalone --nproc-per-node 2 scripts/train_scenes.py ...`.
A stage that was interrupted goes on where it was when the same command is run again.
"""

from __future__ import annotations

import argparse

from underdraw.errors import UnderdrawError
from underdraw.training.loop import Stopped
from underdraw.training.recipes import STAGES, ScenesRecipe, train_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("folder")
    parser.add_argument("--minutes", type=float, help="end the stage after this time")
    parser.add_argument("--start", help="a family to go on from, such as underdraw/scenes")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    try:
        train_stage(
            arguments.stage,
            arguments.folder,
            ScenesRecipe(start=arguments.start),
            minutes=arguments.minutes,
            device=arguments.device,
        )
    except Stopped as stopped:
        raise SystemExit(f"\n{stopped}") from None
    except UnderdrawError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
