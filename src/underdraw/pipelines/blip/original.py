"""BLIP-Diffusion's original folder (LAVIS) as components of a pipeline.

It holds the subject encoder, and UNet, autoencoder and text encoder under diffusers' names, but
neither configs nor vocabularies: those are Stable Diffusion 1.5's, from a folder of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from underdraw import models, schedulers
from underdraw.errors import InputError
from underdraw.models.blip import read_tokenizer
from underdraw.models.wordpiece import WordPiece
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.weights import folders, hub as hubs
from underdraw.weights.subject import read_subject

NETWORKS: Mapping[str, type[Any]] = {
    "unet": models.UNet2DConditionModel,
    "vae": models.AutoencoderKL,
    "text_encoder": models.ContextCLIPTextModel,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
"""Of the solver it was published with."""


def read_original(
    folder: str | Path,
    base: str | Path,
    *,
    vocabulary: Any = None,
    dtype: Any = None,
    device: Any = None,
    backend: str = "torch",
) -> dict[str, Any]:
    """The components of a BLIP-Diffusion pipeline.

    Args:
        folder: of the original, unpacked.
        base: a folder or Hub id of Stable Diffusion 1.5: configs, CLIP's vocabulary, and networks
            that the original's folder lacks.
        vocabulary: BERT's, as `Blip2QFormerModel.from_pretrained` takes it.
        dtype, device, backend: as in `from_pretrained`.

    Raises:
        NotFoundError, WeightError: a folder or file is not there, or damaged.
    """
    where = {"dtype": dtype, "device": device, "backend": backend}
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"folder={str(folder)!r:.200} is no folder; unpack the archive first")
    other = hubs.resolve(base)
    found: dict[str, Any] = {}
    for name, kind in NETWORKS.items():
        home = place if (place / name).is_dir() else other
        files = folders.component_files(home, name)
        tensors = folders.open_weights(home / name, files)
        found[name] = kind.from_tensors(folders.read_config(other, name), tensors, **where)
    encoder = models.Blip2QFormerModel.from_tensors(*read_subject(place), **where)
    encoder.tokenizer = read_tokenizer(vocabulary) or WordPiece.inside(place, place / "blip_model")
    return {
        **found,
        "qformer": encoder,
        "tokenizer": CLIPTokenizer.from_pretrained(other, subfolder="tokenizer"),
        "scheduler": schedulers.PNDMScheduler(**SCHEDULE),
        "image_processor": models.BlipImageProcessor(),
    }
