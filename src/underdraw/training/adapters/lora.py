"""Training a LoRA on pictures with captions (Hu et al. 2021), and writing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from underdraw import checks
from underdraw.training.adapters.learners import LoraConfig, LoraLearner
from underdraw.training.adapters.pictures import TrainingPictures
from underdraw.training.adapters.running import fitting, learn, learning
from underdraw.training.adapters.task import PicturesConfig, PictureTask, check_pipeline
from underdraw.training.config import TrainingConfig
from underdraw.weights.lora.reading import LoraWeights
from underdraw.weights.lora.writing import FILE, SPELLINGS, write_lora

RUN = TrainingConfig(800, 4, learning_rate=1e-4, warmup=20, ema=0.0)
"""If nothing else is said."""
KOHYA_FILE = "lora.safetensors"


def train_lora(
    pipe: Any,
    pictures: TrainingPictures,
    folder: str | Path,
    config: LoraConfig | None = None,
    looking: PicturesConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    spelling: str = "diffusers",
    resume: bool = True,
    progress: bool | None = None,
) -> tuple[LoraWeights, Path]:
    """Train a LoRA beside a pipeline; the LoRA, and its file in `folder`.

        lora, path = train_lora(pipe, read_folder("pictures"), "runs/clay", LoraConfig(rank=16))
        pipe.load_lora_weights(path, "clay")

    Args:
        pipe: any pipeline of ours on PyTorch, gated UNets and those for inpainting included; it
            stays as it is, and LoRAs that are attached to it do not act meanwhile.
        config: what the LoRA changes.
        looking: how pictures are looked at, and what previews draw into `folder / "samples"`.
        training: steps, batch and rate; by default 800 steps of 4.
        spelling: of the file: "diffusers", or "kohya" (sd-scripts, A1111, ComfyUI).

    Raises:
        InputError, InputTypeError: an argument cannot work, or `folder` is of another task.
        loop.Stopped: interrupted; the same call goes on with the same bits.
    """
    checks.choice("spelling", spelling, SPELLINGS)
    check_pipeline(pipe)
    run = fitting(pipe, training or RUN)
    learner = LoraLearner(pipe.parts, config or LoraConfig(), run.seed)
    with learning(learner, folder, resume):
        task = PictureTask(pipe, pictures, learner, looking, None, run.seed, progress)
        with learn(task, run, folder, resume, progress).applied():
            made = learner.result()
        path = lora_path(folder, spelling)
        write_lora(made, path, spelling)
        return made, path


def lora_path(folder: str | Path, spelling: str) -> Path:
    """Where a LoRA is written."""
    return Path(folder) / (FILE if spelling == "diffusers" else KOHYA_FILE)
