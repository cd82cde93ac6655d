"""A small autoencoder that decodes previews beside a pipeline's own: a kind of adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from underdraw import checks
from underdraw.arguments import checked
from underdraw.errors import InputError
from underdraw.models import AutoencoderTiny
from underdraw.models.base import like
from underdraw.models.keywords import drop_neutral
from underdraw.models.single_file import NEUTRAL
from underdraw.pipelines.components.adapters import Adaptable, AdapterKind, register_adapter
from underdraw.pipelines.components.registry import uncompiled
from underdraw.weights.files import SUFFIXES

KIND = "preview"


def read_preview(
    components: Any,
    source: Any,
    *,
    variant: str | None = None,
    subfolder: str | None = None,
    dtype: Any = None,
    **hub: Any,
) -> tuple[str, AutoencoderTiny]:
    """A tiny autoencoder that fits the pipeline's own; there is one of them at a time."""
    small: Any = source
    if not isinstance(source, AutoencoderTiny):
        checks.path("source", source)
        access = drop_neutral("load_preview", hub, NEUTRAL)
        path, where = os.fspath(source), like(uncompiled(components.unet), dtype=dtype)
        if Path(path).is_file() or path.endswith(SUFFIXES):
            small = AutoencoderTiny.from_single_file(path, **where, **access)
        else:
            options = {"subfolder": subfolder, "variant": variant, **where, **access}
            small = AutoencoderTiny.from_pretrained(path, **options)
    own, its = components.vae.config, small.config
    if (its.latent_channels, its.factor) != (own.latent_channels, own.factor):
        raise InputError(
            f"source decodes latents of {its.latent_channels} channels, {its.factor} pixels each; "
            f"those of this pipeline have {own.latent_channels} and {own.factor}"
        )
    return KIND, small


def write_preview(small: AutoencoderTiny, target: Any) -> None:
    """A folder that `load_preview`, and diffusers, reads back."""
    small.save_pretrained(target)


PREVIEW = register_adapter(AdapterKind(KIND, KIND, read_preview, write_preview, beside=False))


def preview_decoder(components: Any) -> AutoencoderTiny | None:
    """What decodes previews, if anything was attached or lies in the pipeline's own folder."""
    return components.attached.of(components, KIND).get(KIND)


class Previewing(Adaptable):
    """The methods of pipelines about what decodes previews."""

    @checked
    def load_preview(
        self,
        source: AutoencoderTiny | str | Path,
        *,
        variant: str | None = None,
        subfolder: str | None = None,
        dtype: Any = None,
        **hub: Any,
    ) -> None:
        """Attach a tiny autoencoder (TAESD), by which `step.preview()` of a stream then decodes.

        Args:
            source: a folder or Hub id, a file of the original (`taesd_decoder.safetensors`), or
                the network itself.
            variant, subfolder: which files of a folder.
            dtype: of the weights, by default that of the UNet.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            InputError: it was made for other latents.
            NotFoundError, WeightError: there is none, or it is damaged.
        """
        what = {"variant": variant, "subfolder": subfolder, "dtype": dtype, **hub}
        self.parts.attached.load(self.parts, KIND, source, what)

    def unload_preview(self) -> None:
        """Detach it: previews are the colours of latents again."""
        self.unload_adapter(KIND)
