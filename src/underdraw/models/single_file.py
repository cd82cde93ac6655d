"""`from_single_file` of single networks: one component of an original checkpoint."""

from __future__ import annotations

import os
from typing import Any

from typing_extensions import Self

from underdraw.arguments import checked
from underdraw.errors import InputError
from underdraw.models.base import Model
from underdraw.models.keywords import LOADING, drop_neutral
from underdraw.weights import folders, hub as hubs
from underdraw.weights.locate import find
from underdraw.weights.original_config import read_original_config
from underdraw.weights.single_file import read_single_file

NEUTRAL = {**LOADING, "use_safetensors": (None, False, True)}


class FromSingleFile(Model):
    """A network that original one-file checkpoints hold."""

    @classmethod
    @checked
    def from_single_file(
        cls,
        source: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        original_config: Any = None,
        extract_ema: bool = False,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        backend: str = "torch",
        check: bool = False,
        **hub: Any,
    ) -> Self:
        """This network from an original one-file checkpoint (SD 1.x or 2.x), or from one that
        holds it alone.

        Args:
            source: a `.safetensors` or `.ckpt` file, "owner/name/file.safetensors" on the Hub, or
                the address of its page.
            config: a folder or Hub id whose `config.json` is used, of a pipeline (then by default
                in the subfolder of this network's name) or of the network.
            original_config: the YAML file beside the checkpoint.
            extract_ema: averaged weights of the UNet, where the file has both.
            dtype, device, backend, check, hub: as in `from_pretrained`.

        Raises:
            NotFoundError: there is no such file.
            WeightError: it is damaged, or no such checkpoint.
            InputError: it holds no such network.
        """
        access = drop_neutral(f"{cls.__name__}.from_single_file", hub, NEUTRAL)
        configs = {} if original_config is None else read_original_config(original_config)
        if config is not None:
            place = hubs.resolve(config, weights=False, **access)
            inside = subfolder or (cls.network if (place / cls.network).is_dir() else "")
            configs[cls.network] = folders.read_config(place, inside)
        path = find(source, **access)
        read = read_single_file(path, extract_ema=extract_ema, configs=configs)
        if cls.network not in read.components:
            raise InputError(
                f"{path} holds no {cls.network}; it holds {', '.join(read.components)}"
            )
        where = {"device": device, "backend": backend, "check": check}
        return cls.from_tensors(*read.components[cls.network], dtype=dtype or torch_dtype, **where)
