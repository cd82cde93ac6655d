"""What Flax's pipelines share: components without parameters, their files, how steps are run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from underdraw import checks
from underdraw.arguments import checked
from underdraw.engines.compiled import Compiled
from underdraw.errors import InputError, InputTypeError
from underdraw.flax import programs
from underdraw.flax.models import CLASSES, FURTHER, FlaxModel
from underdraw.flax.params import jax, read_array, read_dtype
from underdraw.flax.schedulers import FlaxScheduler
from underdraw.models.keywords import LOADING, drop_neutral
from underdraw.pictures.writing import to_pil
from underdraw.pipelines.base import DiffusionPipeline
from underdraw.pipelines.components.folders import How, read_folder
from underdraw.pipelines.components.registry import MODELS, READERS, Names, check_listed
from underdraw.schedulers.base import Scheduler
from underdraw.weights import folders, hub as hubs, save

LIBRARIES = {"safety_checker": "stable_diffusion"} | dict.fromkeys(
    ("unet", "vae", "controlnet", "scheduler"), "diffusers"
)


class FlaxDiffusionPipeline:
    """Base of the pipelines. Networks hold no parameters: these are given to each call."""

    written: ClassVar[type[DiffusionPipeline]]
    """The pipeline of the same components elsewhere."""

    def __init__(self, *, dtype: Any = None, compat: str | None = None, **components: Any) -> None:
        names = self.names()
        known = {*names.needed, "safety_checker", "feature_extractor"}
        if unknown := sorted(set(components) - known):
            raise InputTypeError(
                f"{type(self).__name__} has no components {unknown}; there are {sorted(known)}"
            )
        self.dtype = read_dtype("float32" if dtype is None else dtype)
        self.compat = checks.choice("compat", compat, (None, "diffusers"))
        self.components: dict[str, Any] = {}
        for name in (*names.needed, "safety_checker", "feature_extractor"):
            self.components[name] = _accepted(type(self).__name__, name, components.get(name))
        self.engine = Compiled()
        """Compiles each step of a call once for each shape."""
        self._over: dict[int, Compiled] = {}

    def __getattr__(self, name: str) -> Any:
        components = vars(self).get("components", {})
        if name in components:
            return components[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self).get("components", {}):
            self.components[name] = _accepted(type(self).__name__, name, value)
        else:
            object.__setattr__(self, name, value)

    @classmethod
    def names(cls) -> Names:
        """What pipelines of this class are made of.

        Raises:
            InputTypeError: the class is the base, which is no pipeline.
        """
        if not hasattr(cls, "written"):
            raise InputTypeError(
                f"{cls.__name__} is no pipeline; use one's own class, as "
                "FlaxStableDiffusionPipeline.from_pretrained"
            )
        return cls.written.names()

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of a side of the picture for one of the latents."""
        return self.vae.config.factor

    # -- files --------------------------------------------------------------------------------
    @classmethod
    @checked
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: Any = None,
        from_pt: bool | None = None,
        variant: str | None = None,
        compat: str | None = None,
        **options: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """A pipeline and its parameters, from a folder or a Hub id.

        Args:
            dtype: to compute in, `jnp.bfloat16` for example; parameters have that of their files.
            from_pt: True reads PyTorch's weights also where Flax's are there; else these come
                first.
            variant: of the weight files, such as "fp16".
            compat: "diffusers" brings back what its Flax pipelines did where that was wrong.
            options: components to use instead of those in the folder (None leaves out the safety
                checker); the Hub's `revision`, `token`, `cache_dir`, `local_files_only`,
                `force_download`; and keywords that change nothing.

        Raises:
            NotFoundError, WeightError, InputError: there is nothing, or it is damaged, or another
                pipeline's.
        """
        names = cls.names()
        given = {name: options.pop(name) for name in names.all if name in options}
        call = f"{cls.__name__}.from_pretrained"
        access = drop_neutral(call, options, {**LOADING, **FURTHER})
        first = from_pt is not True
        path = hubs.resolve(
            name_or_path, variant=variant, skip=tuple(given), flax_first=first, **access
        )
        index = folders.read_model_index(path)
        listed = folders.components_of(index)
        here = [name for name in CLASSES if name in listed and name in names.all]
        here = [name for name in here if name not in given]
        variants = folders.pick_variants(path, here, variant)
        params: dict[str, Any] = {}
        found: dict[str, Any] = dict(given)
        for name in here:
            check_listed(name, index[name], str(name_or_path))
            own = None if name in ("text_encoder", "safety_checker") else dtype
            network, params[name] = CLASSES[name].read(
                path, name, own or "float32", variants[name], first
            )
            found[name] = network
        absent = {name: None for name in names.all if name in MODELS and name not in found}
        scheduler = found.get("scheduler")
        if isinstance(scheduler, FlaxScheduler):
            found["scheduler"] = scheduler.scheduler
        read = read_folder(names, path, How(), {**absent, **found})
        chosen = {
            name: value
            for name, value in read.components.items()
            if name in (*names.needed, "safety_checker", "feature_extractor")
        }
        if isinstance(scheduler, FlaxScheduler):
            chosen["scheduler"] = scheduler
        made = cls(dtype=dtype, compat=compat, **chosen)
        params["scheduler"] = made.scheduler.create_state()
        return made, params

    @classmethod
    @checked
    def from_single_file(
        cls, source: str | Path, *, dtype: Any = None, compat: str | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """A pipeline and its parameters, from an original one-file checkpoint; `options` as of the
        other pipelines' `from_single_file`."""
        cls.names()
        return cls.from_pipe(
            cls.written.from_single_file(source, **options), dtype=dtype, compat=compat
        )

    @classmethod
    @checked
    def from_pipe(
        cls, pipeline: DiffusionPipeline, *, dtype: Any = None, compat: str | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """A pipeline and its parameters, of the networks of another on any backend, as they are
        now: LoRAs that were merged into them (`fuse_lora`) are there."""
        if not isinstance(pipeline, DiffusionPipeline):
            raise InputTypeError(f"pipeline={checks.shown(pipeline)} is no pipeline")
        parts: dict[str, Any] = {}
        params: dict[str, Any] = {}
        names = cls.names()
        for name in (*names.needed, "safety_checker", "feature_extractor"):
            value = pipeline.components.get(name)
            if name in CLASSES and value is not None:
                own = None if name in ("text_encoder", "safety_checker") else dtype
                parts[name] = CLASSES[name](value.config, dtype=own or "float32")
                params[name] = parts[name].params(value.stored_tensors())
            else:
                parts[name] = value
        made = cls(dtype=dtype, compat=compat, **parts)
        params["scheduler"] = made.scheduler.create_state()
        return made, params

    @checked
    def save_pretrained(self, folder: str | Path, params: Mapping[str, Any], **_: Any) -> None:
        """Write a folder that this class, the pipelines of all backends and diffusers 0.33.1 read;
        whole or not at all."""
        self._check_params(params, None)
        index: dict[str, Any] = {
            "_class_name": type(self).__name__,
            "_diffusers_version": "0.33.1",
        }
        with save.writing_folder(folder) as place:
            for name, component in self.components.items():
                if component is None:
                    index[name] = [None, None]
                    continue
                kind = type(component).__name__
                if isinstance(component, FlaxScheduler):
                    kind = component.config["_class_name"]
                index[name] = [LIBRARIES.get(name, "transformers"), kind]
                if isinstance(component, FlaxModel):
                    component.save_pretrained(place / name, params[name])
                else:
                    component.save_pretrained(place / name)
            save.write_json(place / "model_index.json", index)

    # -- what users do with pictures and prompts -------------------------------------------------
    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
        """Pictures `(height, width, 3)` or `(n, height, width, 3)` in [0, 1] as PIL's."""
        images = np.asarray(read_array("images", images))
        if images.dtype.kind not in "buif":
            raise InputTypeError(f"images has dtype {images.dtype}; real numbers are needed")
        images = images.astype(np.float32)
        if images.ndim not in (3, 4) or images.shape[-1] not in (1, 3):
            raise InputError(f"images has shape {images.shape}; needed is (n, height, width, 3)")
        return to_pil(images if images.ndim == 4 else images[None])

    def set_progress_bar_config(self, **options: Any) -> None:
        """Nothing: a compiled loop shows no bar."""

    def tokens(self, prompt: str | list[str]) -> np.ndarray:
        """Prompts as tokens `(prompts, tokens)`: what exceeds the window is cut."""
        texts = checks.texts("prompt", prompt)
        how: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
        return np.asarray(
            self.tokenizer(texts, max_length=self.tokenizer.model_max_length, **how)["input_ids"]
        )

    # -- steps of calls -------------------------------------------------------------------------
    def _check_params(self, params: Any, devices: int | None) -> None:
        if not isinstance(params, Mapping):
            raise InputTypeError(f"params={checks.shown(params)} is no mapping of parameters")
        for name, network in self.components.items():
            if isinstance(network, FlaxModel):
                if name not in params:
                    raise InputError(f"params has no {name!r}; it has {', '.join(params)}")
                network.check(f"params[{name!r}]", params[name], devices)

    def ask(self, program: Any, name: str, params: Any, devices: int | None, *inputs: Any) -> Any:
        """What a program of a component gives, compiled; of several devices, each its own."""
        network = self.components[name]
        how = programs.How(network.dtype)
        asked = programs.question(program, params[name], network.config, *inputs, how)
        if devices is None:
            return self.engine.run(asked)
        if devices not in self._over:
            self._over[devices] = Compiled(jax().over_devices(devices), donates=True)
        return self._over[devices].run(asked)


def _accepted(kind: str, name: str, value: Any) -> Any:
    """A component, after checking that it can be one."""
    if value is None:
        if name in ("safety_checker", "feature_extractor"):
            return None
        raise InputTypeError(f"{name}=None; {kind} needs this component")
    if name == "scheduler":
        if isinstance(value, FlaxScheduler):
            return value
        if isinstance(value, Scheduler):
            return FlaxScheduler.of(value)
        raise InputTypeError(f"scheduler={checks.shown(value)} is no scheduler")
    wanted = CLASSES.get(name) or READERS[name]
    callable_as = name not in CLASSES and callable(value)
    if not (isinstance(value, wanted) or callable_as):
        raise InputTypeError(f"{name}={checks.shown(value)} is no {wanted.__name__}")
    return value
