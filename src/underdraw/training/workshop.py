"""Where the stages of training the scenes family keep what they make, and find what others made."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from underdraw.errors import NotFoundError, WeightError
from underdraw.formats.arrays import read_array
from underdraw.formats.json_text import read_object
from underdraw.models import (
    AutoencoderKL,
    Blip2QFormerModel,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPVisionModelWithProjection,
    ControlNetModel,
    Grounding,
    UNet2DConditionModel,
)
from underdraw.models.overlay import Overlay
from underdraw.networks.config import CLIPTextConfig, VAEConfig
from underdraw.scenes import words
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.training import checkpoints
from underdraw.training.clip import MEAN, STD
from underdraw.training.data import TRUTH, ArrivingScenes, RenderedScenes
from underdraw.training.grounding import new_part
from underdraw.training.layouts import GroundedScenes
from underdraw.training.scenes_recipe import ScenesRecipe
from underdraw.training.structure import new_net
from underdraw.training.subject_encoder import new_encoder
from underdraw.training.subject_scenes import SubjectScenes
from underdraw.training.subjects import differences_for
from underdraw.training.truth import FOLDER as HEADS, TruthHeads, read_heads
from underdraw.training.views import Views

LATENTS, FACTS, SPOKEN = "latents.npy", "latents.json", "captions"
SUBJECT_LATENTS = "subject_latents.npy"
T = TypeVar("T")


@dataclass(frozen=True)
class Workshop:
    """The working folder of a recipe: renders, latents, and a folder per stage. With `arriving`
    another process still renders the scenes, of which there will be so many."""

    recipe: ScenesRecipe
    folder: Path
    arriving: int | None = None

    @property
    def examples(self) -> GroundedScenes:
        """The rendered scenes."""
        return _read(GroundedScenes, self.folder / "renders")

    @property
    def pictures(self) -> RenderedScenes | ArrivingScenes:
        """The rendered scenes, of which there may be some already, or all."""
        if self.arriving is None:
            return self.examples
        return ArrivingScenes(self.folder / "renders", self.arriving)

    @property
    def views(self) -> Views:
        """Pictures of single things."""
        return _read(Views, self.folder / "views")

    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer, which the stage "text" makes."""
        if self.recipe.start is not None:
            return CLIPTokenizer.from_pretrained(self.recipe.start, subfolder="tokenizer")
        return CLIPTokenizer.from_pretrained(self._needs("text", "text/tokenizer"))

    def text_config(self, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
        """The text tower's config, with what depends on the vocabulary."""
        return replace(
            self.recipe.text,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    def text_encoder(self) -> Any:
        """The text tower as far as it is trained."""
        tower = self._started(CLIPTextModel, "text_encoder")
        if tower is None:
            tower = CLIPTextModel(self.text_config(self.tokenizer()))
            self._fill(tower, "text", "text_encoder")
        return self._fill(tower, "denoiser", "text_encoder", optional=True)

    def vae(self, trained: bool = True) -> Any:
        """The autoencoder, with starting weights or as far as it is trained; the stages "decoder"
        and "patterns" may have gone on with it."""
        torch.manual_seed(self.recipe.seed)
        vae = self._started(AutoencoderKL, "vae")
        started = vae is not None
        if vae is None:
            config = self.recipe.vae
            vae = AutoencoderKL(self._scaled(config))
        elif "autoencoder" in self.recipe.again:
            vae.config = self._scaled(vae.config)
        if not trained:
            return vae
        self._fill(vae, "autoencoder", "vae", optional=started)
        self._fill(vae, "decoder", "vae", optional=True)
        return self._fill(vae, "patterns", "vae", optional=True)

    def _scaled(self, config: VAEConfig) -> VAEConfig:
        """The config of an autoencoder with the scale of its latents, where that was measured."""
        if not (self.folder / FACTS).exists():
            return config
        return replace(config, scaling_factor=self.scaling_factor())

    def scaling_factor(self) -> float:
        """What the stage "latents" measured.

        Raises:
            NotFoundError: it has not done that yet.
            WeightError: its file cannot be read; the stage writes it anew.
        """
        told = read_object(self._needs("latents", FACTS))
        factor = told.get("scaling_factor")
        if not isinstance(factor, float) or not 0 < factor < math.inf:
            raise WeightError(
                f"{self.folder / FACTS} holds no scaling_factor; run the stage 'latents' again"
            )
        return factor

    def unet(self, trained: bool = True) -> Any:
        """The denoiser, trained or with starting weights."""
        torch.manual_seed(self.recipe.seed)
        unet = self._started(UNet2DConditionModel, "unet")
        if unet is None:
            unet = UNet2DConditionModel(self.recipe.unet)
        elif not (self.folder / "denoiser" / checkpoints.NAME).exists():
            return unet
        return self._fill(unet, "denoiser", "unet") if trained else unet

    def family(self, trained: bool = True) -> dict[str, Any]:
        """The components of a pipeline."""
        if self.recipe.measures:
            self.scaling_factor()  # without it, an autoencoder would have another one's
        found = {
            "vae": self.vae(),
            "text_encoder": self.text_encoder(),
            "tokenizer": self.tokenizer(),
            "unet": self.unet(trained),
        }
        if trained and (tower := self.image_encoder()) is not None:
            found["image_encoder"] = tower
            found["feature_extractor"] = image_processor(tower)
        return found

    def image_encoder(self, trained: bool = True) -> Any:
        """The image tower, with starting weights or as far as it is trained; None where there is
        neither."""
        torch.manual_seed(self.recipe.seed)
        tower = self._started(CLIPVisionModelWithProjection, "image_encoder", optional=True)
        there = (self.folder / "clip" / checkpoints.NAME).exists()
        if tower is None and trained and not there:
            return None
        tower = tower or CLIPVisionModelWithProjection(self.recipe.vision)
        return self._fill(tower, "clip", "image_encoder", optional=True) if trained else tower

    def grounding(self, trained: bool = True) -> Any:
        """The layers for boxes, trained or with starting weights."""
        torch.manual_seed(self.recipe.seed)
        part = self._started(Grounding, "grounding", optional=True)
        part = part or new_part(self.unet(), "text-image")
        return self._fill(part, "grounding", "grounding") if trained else part

    def structure(self, kind: str = "structure", trained: bool = True) -> Any:
        """The ControlNet for all kinds of maps, or for one, trained or as its stage begins."""
        torch.manual_seed(self.recipe.seed)
        net = self._started(ControlNetModel, f"structure/{kind}", optional=True)
        started = net is not None
        net = net or new_net(self.unet(), middle=False)
        if kind != "structure" and not started:
            optional = trained or "structure" in self.recipe.without
            self._fill(net, "structure", "controlnet", optional=optional)
        return self._fill(net, kind, "controlnet") if trained else net

    def reads(self, stage: str) -> bool:
        """Whether the net with which the stage of a kind of maps begins reads maps already."""
        started = self._started(ControlNetModel, f"structure/{stage}", optional=True)
        return started is not None or (self.folder / "structure" / checkpoints.NAME).exists()

    def maps(self, kind: str) -> np.ndarray:
        """Maps of the examples, which the stage "maps" made."""
        return read_array(self._needs("maps", f"maps/{kind}.npy"))

    @property
    def subjects(self) -> SubjectScenes:
        """Things with textures of their own, which the stage "subjects" renders."""
        return _read(SubjectScenes, self.folder / "subjects")

    def subject_encoder(self, family: dict[str, Any], stage: str = "subject") -> Any:
        """The subject encoder as far as it is trained when `stage` ends: "" for not at all,
        "alignment", or "subject", where that has begun."""
        made = self._started(Blip2QFormerModel, "qformer", optional=True)
        started = made is not None
        if started:  # what prepares its pictures lies beside it
            place: Any = self.recipe.start
            made.image_processor = BlipImageProcessor.from_pretrained(place, "image_processor")
        made = made or new_encoder(family, words(), self.recipe.encoder, self.recipe.seed)
        if stage:
            self._fill(made, "alignment", "qformer", optional=started)
        if stage == "subject" and (self.folder / stage / checkpoints.NAME).exists():
            self._fill(made, stage, "qformer")
            laid = differences_for(family["unet"], self.recipe.subject, made.overlay.unet)
            if laid is not None:
                made.overlay = Overlay(unet=self._fill(laid, stage, "differences").arrays())
        return made

    def heads(self) -> TruthHeads | None:
        """What told the denoiser where things are, here or in the family that the recipe starts
        with; None where nothing did."""
        path, start = self.folder / "denoiser" / checkpoints.NAME, self.recipe.start
        if path.exists():
            raw = _weights(path)["modules"].get("heads")
        elif start is None or {"unet", HEADS} & {*self.recipe.anew}:
            raw = None
        else:
            raw = read_heads(start)
        if raw is None:
            return None
        heads = TruthHeads.for_unet(self.recipe.unet, TRUTH)
        try:
            heads.load_state_dict(raw)
        except RuntimeError as error:
            told = " ".join(str(error).split())[:200]
            raise WeightError(f"heads of {start or path} do not fit the UNet ({told})") from error
        return heads

    def _started(self, kind: Any, name: str, optional: bool = False) -> Any:
        """The network the recipe starts with, in float32; None without a start, and for what is
        `optional` where that has none."""
        if not self.recipe.starts_with(name):
            return None
        try:
            return kind.from_pretrained(self.recipe.start, subfolder=name, dtype="float32")
        except NotFoundError:
            if optional:
                return None
            raise

    def _needs(self, stage: str, name: str) -> Path:
        """A file in the folder, which `stage` makes."""
        path = self.folder / name
        if not path.exists():
            raise NotFoundError(f"{path} is not there; run the stage {stage!r} first")
        return path

    def _fill(self, module: Any, stage: str, name: str, optional: bool = False) -> Any:
        """Give `module` the averaged weights that `stage` made for `name`."""
        path = self.folder / stage / checkpoints.NAME
        if optional and not path.exists():
            return module
        state = _weights(self._needs(stage, f"{stage}/{checkpoints.NAME}"))
        if name in state["modules"]:
            own = state["modules"][name]
            prefix = f"{name}."
            mean = {
                k[len(prefix) :]: v for k, v in state["average"].items() if k.startswith(prefix)
            }
            module.load_state_dict({**own, **mean})
        return module


_KEPT: dict[tuple[type, Path], tuple[list[tuple[str, int, int]], Any]] = {}
"""What was read last of each kind, with the state of its folder then."""


def _read(kind: type[T], folder: Path) -> T:
    """The examples in a folder, read once as long as nothing in it changes: of many there are
    millions of values in JSON."""
    folder = folder.absolute()
    names = sorted([*folder.glob("[!.]*.*"), *folder.glob("[0-9][0-9][0-9]/[!.]*.*")])
    state = [(str(path), (told := path.stat()).st_mtime_ns, told.st_size) for path in names]
    kept, found = _KEPT.get((kind, folder), ([], None))
    if found is None or kept != state:
        for other in [key for key in _KEPT if key[0] is kind]:
            del _KEPT[other]
        with _uncollected():
            found = kind(folder)  # type: ignore[call-arg]
        _KEPT[kind, folder] = state, found
    return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """While millions of values are made that all stay, looking for garbage among them takes as long
    as reading them; nor is it looked for among them later, which in a forked process would copy
    every page they lie on."""
    was = gc.isenabled()
    gc.collect()  # what is garbage now would stay otherwise
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was:
            gc.enable()


_WEIGHTS: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}
"""The weights of training states that were read, with the state of their files then."""


def _weights(path: Path) -> dict[str, Any]:
    """The weights in a training state, and their means, on the host, not to be written into; read
    once as long as the file does not change: a stage needs those of many stages before, several
    times."""
    path, told = path.absolute(), path.stat()
    state = told.st_mtime_ns, told.st_size
    kept, found = _WEIGHTS.get(path, (None, {}))
    if kept != state:
        for other in [one for one in _WEIGHTS if one.parent.parent != path.parent.parent]:
            del _WEIGHTS[other]
        read = checkpoints.load(path)
        found = {name: read[name] for name in ("modules", "average")}
        _WEIGHTS[path] = state, found
    return found


def image_processor(tower: Any) -> Any:
    """What turns pictures into an image tower's input."""
    size = tower.config.image_size
    return CLIPImageProcessor(size, (size, size), MEAN, STD)
