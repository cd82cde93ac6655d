"""What the commands that train something small beside a checkpoint have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from underdraw.cli import options, outputs, progress
from underdraw.cli.trained import check_model
from underdraw.errors import InputError, NotFoundError


@dataclass(frozen=True)
class Training:
    """Options of each of them."""

    out: options.OutFolder
    data: Annotated[
        Path, typer.Option(help="A folder of pictures; captions in metadata.jsonl, or NAME.txt.")
    ]
    model: options.Model = None
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None
    minutes: Annotated[
        float | None, typer.Option(min=0, help="End after this time at the latest.")
    ] = None
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures of a step.")] = None
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Parts in which a step is computed.")
    ] = None
    learning_rate: Annotated[float | None, typer.Option(help="The highest.")] = None
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = (
        None
    )
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, muon, or adamw8bit, which needs bitsandbytes.")
    ] = None
    seed: options.Seed = None
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of a square picture in pixels; as the model was trained."),
    ] = None
    buckets: Annotated[
        bool, typer.Option(help="Keep proportions of pictures, or cut squares from their middles.")
    ] = True
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the pictures.")] = False
    drop_caption: Annotated[
        float, typer.Option(min=0, max=0.99, help="This share of them has no caption.")
    ] = 0.05
    min_snr: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Weight noise levels by min-SNR with this gamma, such as 5."),
    ] = None
    offset_noise: Annotated[
        float, typer.Option(min=0, max=1, help="Noise of whole channels, such as 0.05.")
    ] = 0.0
    preview: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that is drawn into OUT/samples now and then; may be repeated."),
    ] = None
    preview_minutes: Annotated[
        float | None, typer.Option(min=0, help="Between these grids; at the end there is one, too.")
    ] = None
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Train in less memory and up to a third more time."),
    ] = False
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is in --out.")
    ] = True
    device: options.Device = None

    def plan(self, usual: Any) -> Any:
        """How to train, where `usual` says what the options do not."""
        from underdraw.training.config import shorter

        names = (
            "steps minutes batch accumulate learning_rate precision optimizer seed preview_minutes"
        )
        changes = {name: getattr(self, name) for name in names.split()}
        if self.optimizer == "muon":  # whose steps have another length than AdamW's
            if self.learning_rate is None:
                raise InputError("--optimizer muon needs --learning-rate, such as 1e-3")
            changes["muon_rate"] = self.learning_rate
        return shorter(usual, **changes)

    def pipeline(self) -> Any:
        """The checkpoint, after all that can be checked before it is loaded."""
        from underdraw.cli.loading import load_pipeline, resolve_device

        outputs.check_folder(self.out)
        if not self.data.is_dir():
            raise NotFoundError(f"--data {self.data}: no such folder")
        check_model(self.model, self.size)
        device = resolve_device(self.device, "torch")
        return load_pipeline(self.model or options.SCENES, dtype="float32", device=device)

    def looking(self, pipe: Any) -> Any:
        """How pictures are looked at."""
        from underdraw.training.adapters.task import PicturesConfig

        snr = {} if self.min_snr is None else {"weighting": "min_snr", "gamma": self.min_snr}
        advised = pipe.advice.guidance_scale
        return PicturesConfig(
            size=self.size,
            buckets=self.buckets,
            flip=self.flip,
            drop_caption=self.drop_caption,
            offset_noise=self.offset_noise,
            prompts=tuple(self.preview or ()),
            guidance=7.5 if advised is None else advised,
            gradient_checkpointing=self.checkpointing,
            **snr,
        )

    @property
    def running(self) -> dict[str, Any]:
        """Arguments of all functions that train."""
        return {"resume": self.resume, "progress": progress.wanted()}


Rank = Annotated[int, typer.Option(min=1, max=1024, help="Of the differences.")]
Alpha = Annotated[
    float | None, typer.Option(help="Over the rank it is their factor; the rank if not given.")
]
ConvRank = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Of those of 3 x 3 convolutions, if wanted.")
]
Dora = Annotated[
    bool, typer.Option("--dora", help="Train lengths of weights apart from directions.")
]
Text = Annotated[bool, typer.Option("--text", help="Also train the text encoder.")]


class Spelling(str, Enum):
    """Of names in the file."""

    diffusers = "diffusers"
    kohya = "kohya"


Format = Annotated[
    Spelling,
    typer.Option("--format", help="Names in the file: diffusers, or kohya (A1111, ComfyUI)."),
]


def with_training(function: Callable[..., None]) -> Callable[..., None]:
    """A command that has all options of `Training`, which come as its argument `training`."""
    shared = get_type_hints(Training, include_extras=True)
    hints = get_type_hints(function, include_extras=True)
    own = {
        name: one for name, one in inspect.signature(function).parameters.items() if name in hints
    }
    del own["training"]
    listed = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=shared[field.name],
        )
        for field in fields(Training)
    ]
    further = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, one in own.items()
    ]

    def run(**told: Any) -> None:
        common = {name: told.pop(name) for name in list(told) if name in shared}
        function(training=Training(**common), **told)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature([*listed[:2], *further, *listed[2:]])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in [*listed, *further]}
    return run
