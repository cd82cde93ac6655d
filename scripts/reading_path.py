"""What somebody must read to understand one text-to-image call, from the prompt to the latents.

Run it: python scripts/reading_path.py

In a fresh process a tiny pipeline is made, and one call is watched by a profiling hook. Listed are
our files in which a function ran, whole files, without blank lines (they are formatted at 100
columns). Code that runs while a module is imported does not count: nobody follows it to follow the
call.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from underdraw import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from underdraw.text.vocabulary import train_vocabulary

SOURCE = Path(inspect.getfile(sys.modules["underdraw"])).parent
MOST_FILES, MOST_LINES = 12, 2000


def tiny_pipeline() -> StableDiffusionPipeline:
    """Two levels of everything, random weights."""
    tokenizer = CLIPTokenizer(*train_vocabulary(["a red sphere left of a blue cube"], 540))
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            eos_token_id=tokenizer.eos_token_id,
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    )


def watch(call: Any) -> dict[Path, set[str]]:
    """Run `call()`; the functions of ours that ran, by file."""
    ran: set[CodeType] = set()

    def hook(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code not in ran and not _imports(frame):
            ran.add(code)

    sys.setprofile(hook)
    try:
        call()
    finally:
        sys.setprofile(None)
    found: dict[Path, set[str]] = {}
    for code in ran:
        path = Path(code.co_filename)
        if path.is_relative_to(SOURCE):
            found.setdefault(path, set()).add(code.co_name)
    return found


def _imports(frame: FrameType | None) -> bool:
    """Whether the frame belongs to the import of a module."""
    while frame is not None:
        if (
            frame.f_code.co_name == "<module>"
            and frame.f_back
            and "importlib" in str(frame.f_back.f_code.co_filename)
        ):
            return True
        frame = frame.f_back
    return False


def lines(path: Path) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def reading_path() -> dict[Path, set[str]]:
    """The functions of one call with a negative prompt, by file."""
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return watch(
        lambda: pipe(
            "a red sphere",
            negative_prompt="a cube",
            num_inference_steps=3,
            seed=7,
            output_type="latent",
        )
    )


def main() -> int:
    found = reading_path()
    total = 0
    for path in sorted(found, key=lambda path: -lines(path)):
        total += lines(path)
        names = sorted(found[path])
        if "-v" in sys.argv[1:]:
            print(f"{lines(path):5}  {path.relative_to(SOURCE)}: {', '.join(names)}")
        else:
            print(f"{lines(path):5}  {path.relative_to(SOURCE)} ({len(names)} functions)")
    print(f"{total:5}  lines in {len(found)} files (at most {MOST_LINES} in {MOST_FILES})")
    return int(total > MOST_LINES or len(found) > MOST_FILES)


if __name__ == "__main__":
    sys.exit(main())
