"""What the networks of the scenes family are, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from underdraw.errors import InputError
from underdraw.networks.config import CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from underdraw.training.autoencoder import (
    AutoencoderConfig,
)
from underdraw.training.clip import ContrastiveConfig
from underdraw.training.grounding import GroundingTrainingConfig
from underdraw.training.loop import TrainingConfig
from underdraw.training.maps import KINDS
from underdraw.training.structure import StructureConfig
from underdraw.training.subject_encoder import EncoderConfig
from underdraw.training.subjects import SubjectTrainingConfig
from underdraw.training.text_to_image import TextToImageConfig
from underdraw.training.truth import FOLDER as HEADS

PROMPTS = (
    "a red sphere left of a blue cube",
    "a green cone",
    "a large yellow metal torus",
    "a purple cylinder behind an orange cube",
    "a small gray sphere and a large cyan cylinder",
    "a blue torus in front of a red cone",
    "an orange sphere on a checkered floor",
    "a green cube right of a purple sphere, and a yellow cone",
)

VAE = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 48, 128, 160),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=128,
)
TEXT = CLIPTextConfig(
    hidden_size=192,
    intermediate_size=768,
    projection_dim=192,
    num_hidden_layers=4,
    num_attention_heads=4,
)
UNET = UNetConfig(
    sample_size=16,
    block_out_channels=(64, 160, 256),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(2, 5, 8),
    cross_attention_dim=192,
)
VISION = CLIPVisionConfig(
    hidden_size=192,
    intermediate_size=768,
    projection_dim=192,
    num_hidden_layers=5,
    num_attention_heads=4,
    image_size=96,
    patch_size=16,
)


NETWORKS = (
    *("text_encoder", "vae", "unet", HEADS, "image_encoder", "grounding"),
    *(*(f"structure/{kind}" for kind in KINDS), "qformer"),
)
"""What stages train, by folders of a family."""


@dataclass(frozen=True)
class ScenesRecipe:
    """Everything that decides what the scenes family becomes, apart from the machine.

    `start`: a pipeline folder, Hub id or "underdraw/scenes" whose networks stages begin with, but
    for those named in `anew`, by their folders there, which begin from nothing. Of a whole family,
    stages in `again` run although `start` has their networks, with which they go on, and those in
    `without` do not run. Nets for maps are trained on the first `mapped` scenes (None: on all).

    Raises InputError where `anew` names no network.
    """

    start: str | None = None
    anew: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    scenes: int = 57344
    views: int = 8192
    subjects: int = 5184
    mapped: int | None = None
    seed: int = 20261121
    vae: VAEConfig = VAE
    text: CLIPTextConfig = TEXT
    unet: UNetConfig = UNET
    vision: CLIPVisionConfig = VISION
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: TextToImageConfig = field(
        default_factory=lambda: TextToImageConfig(truth=0.03, captions=2, prompts=PROMPTS)
    )
    grounding: GroundingTrainingConfig = field(
        # With a tenth of this attention, boxes were found by height alone: the error of a picture
        # drowns what tells a layer where it looks.
        default_factory=lambda: GroundingTrainingConfig(
            early=2.0, attention=2.0, truth=0.1, views=0.5, counted=0.15
        )
    )
    structure: StructureConfig = field(default_factory=StructureConfig)
    gain: float = 1.5
    """By which the residuals of exported nets are larger than those trained: after so short a
    training pictures follow a map the better for it, up to about this."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    subject: SubjectTrainingConfig = field(default_factory=lambda: SubjectTrainingConfig(truth=0.1))
    clip: ContrastiveConfig = field(default_factory=lambda: ContrastiveConfig(crops=0.3, views=0.5))
    runs: dict[str, TrainingConfig] = field(
        default_factory=lambda: {
            "text": TrainingConfig(600, 64, learning_rate=1e-3, warmup=60, decay=0.5),
            "autoencoder": TrainingConfig(
                6000,
                16,
                optimizer="muon",
                learning_rate=2e-3,
                schedule="linear",
                decay=0.6,
                ema=0.998,
            ),
            "decoder": TrainingConfig(2000, 8, learning_rate=4e-4, ema=0.998, schedule="linear"),
            "patterns": TrainingConfig(
                2000,
                16,
                optimizer="muon",
                muon_rate=0.004,
                learning_rate=8e-4,
                warmup=50,
                schedule="linear",
                decay=0.8,
                ema=0.998,
            ),
            "denoiser": TrainingConfig(
                20000,
                32,
                optimizer="muon",
                learning_rate=2e-3,
                warmup=200,
                decay=0.4,
                ema=0.999,
            ),
            "clip": TrainingConfig(1500, 64, learning_rate=8e-4, ema=0.99),
            "grounding": TrainingConfig(
                3000, 16, learning_rate=1.5e-3, warmup=60, decay=0.6, ema=0.995
            ),
            "structure": TrainingConfig(1000, 8, learning_rate=7e-4, decay=0.3, ema=0.99),
            "edges": TrainingConfig(3000, 8, learning_rate=1e-3, warmup=40, decay=0.6, ema=0.99),
            "depth": TrainingConfig(3000, 8, learning_rate=1e-3, warmup=40, decay=0.6, ema=0.99),
            "alignment": TrainingConfig(
                1500, 32, learning_rate=1e-3, warmup=20, decay=0.5, ema=0.98
            ),
            "subject": TrainingConfig(3000, 16, learning_rate=1e-3, warmup=30, decay=0.6, ema=0.99),
        }
    )

    def __post_init__(self) -> None:
        if unknown := {*self.anew} - {*NETWORKS}:
            raise InputError(f"anew={sorted(unknown)}; allowed: {', '.join(NETWORKS)}")

    def run(self, name: str) -> TrainingConfig:
        """How the stage `name` is trained."""
        return self.runs[name]

    def starts_with(self, network: str) -> bool:
        """Whether a network, by its folder, is that of `start`."""
        return self.start is not None and network not in self.anew

    @property
    def measures(self) -> bool:
        """Whether latents are those of an autoencoder trained here, whose scale is to be measured;
        otherwise it is that of `start`."""
        return not self.starts_with("vae") or "autoencoder" in self.again

    def on_accelerator(self) -> ScenesRecipe:
        """The same for one large accelerator beside some 16 cores: batches that fill it, drawn
        ahead by other processes, and what costs too much elsewhere. End its stages by time. On
        one H200 they made the shipped family in 455 seconds (`assets/scenes/README.md`).

        Muon moves matrices everywhere but where the loss compares the examples of a batch ("clip",
        "alignment"). Layers that begin at zero do not speak against it: behind them gradients are
        zero at first, of which Muon makes a step of zero, and their own first step is one of
        `muon_rate` in every direction, where AdamW's, of `learning_rate` in every entry, is some
        ten times as long in the one direction it has."""
        ahead = {"steps": 500_000, "workers": 14, "graph": True}
        muon = {**ahead, "optimizer": "muon", "muon_rate": 0.01}
        larger: dict[str, dict[str, Any]] = {
            "text": {**muon, "batch": 256},
            "autoencoder": {
                **muon,
                "batch": 64,
                "ema": 0.999,
                "muon_rate": 0.006,
                "learning_rate": 1.2e-3,
                "decay": 0.8,
            },
            "decoder": {**muon, "batch": 64, "ema": 0.999},
            "patterns": {**muon, "batch": 64, "ema": 0.999, "muon_rate": 0.004},
            "denoiser": {**muon, "batch": 512, "muon_rate": 0.014, "decay": 0.5},
            "clip": {**ahead, "batch": 512, "ema": 0.999},
            "grounding": {**muon, "batch": 256, "warmup": 200, "ema": 0.998},
            "structure": {**muon, "batch": 256, "ema": 0.998},
            "edges": {**muon, "batch": 256, "ema": 0.998},
            "depth": {**muon, "batch": 256, "ema": 0.998},
            "alignment": {**ahead, "batch": 256, "ema": 0.999},
            "subject": {**muon, "batch": 256, "warmup": 200, "ema": 0.998},
        }
        return replace(
            self,
            scenes=2 * self.scenes,
            views=24_000,
            subjects=16_000,
            mapped=24_000,
            autoencoder=replace(self.autoencoder, crop=None, local=1.0),
            denoiser=replace(self.denoiser, captions=0),
            runs={name: replace(self.runs[name], **own) for name, own in larger.items()},
        )
