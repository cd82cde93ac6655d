"""What every pipeline is: named components, their files, their place, their settings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from underdraw import checks, schedulers
from underdraw.errors import InputError, InputTypeError, UnderdrawError
from underdraw.models import keywords as familiar
from underdraw.models.base import Model
from underdraw.models.vae import Tiling
from underdraw.pipelines.call import calls
from underdraw.pipelines.call.stream import Stream
from underdraw.pipelines.components.advice import Advice, read_advice
from underdraw.pipelines.components.registry import (
    LIBRARIES,
    MODELS,
    NEUTRAL,
    READERS,
    SCHEDULERS,
    listed_class,
    scheduler_class,
    uncompiled,
)
from underdraw.pipelines.components.settings import Settings
from underdraw.pipelines.components.single_file import load
from underdraw.schedulers.foreign import METHODS as SCHEDULER_METHODS
from underdraw.weights import folders, hub as hubs, save


class DiffusionPipeline(calls.Calls):
    """Base of the pipelines. A subclass names its components in order."""

    components_needed: ClassVar[tuple[str, ...]] = ()
    components_optional: ClassVar[tuple[str, ...]] = ()
    components_for_text: ClassVar[tuple[str, ...]] = ()
    """Of those needed the ones which may be None where prompts are given as embeddings."""
    switches: ClassVar[tuple[str, ...]] = ()
    """Arguments of the constructor that are no components."""

    source: str | None = None
    """Where the pipeline was loaded from."""
    advice: Advice = Advice()
    """Arguments that suit its weights; the command line follows it, a call does what it is told."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in (*cls.components_needed, *cls.components_optional):
            setattr(cls, name, component(name))

    def __init__(self, **components: Any) -> None:
        self._known(components)
        for name in (*self.components_needed, *self.components_optional):
            setattr(self, name, components.get(name))
        self.settings = Settings()
        self._progress_bar_config: dict[str, Any] = {}
        self._run = threading.local()

    @classmethod
    def _known(cls, given: Iterable[str], switches: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The names of the components, after checking that no others (but switches) are given."""
        names = (*cls.components_needed, *cls.components_optional)
        if unknown := sorted(set(given) - {*names, *switches}):
            there = (*names, *cls.switches)
            raise InputTypeError(f"{cls.__name__} has no components {unknown}; there are {there}")
        return names

    def _accept(self, name: str, value: Any) -> Any:
        """A component, after checking that it can be one."""
        if value is None:
            if name in (*self.components_optional, *self.components_for_text):
                return None
            raise InputTypeError(f"{name}=None; {type(self).__name__} needs this component")
        if name in MODELS and not isinstance(uncompiled(value), MODELS[name]):
            try:
                return MODELS[name].adopt(value)
            except UnderdrawError as error:
                raise type(error)(f"{name}: {error}") from error
        if name in SCHEDULERS and not isinstance(value, schedulers.Scheduler):
            missing = [method for method in SCHEDULER_METHODS if not hasattr(value, method)]
            if missing:
                raise InputTypeError(
                    f"{name}={type(value).__name__} has no {', '.join(missing)}; allowed: an "
                    "underdraw scheduler, or one with the same methods"
                )
        if name in READERS and not callable(value):
            raise InputTypeError(f"{name}={type(value).__name__} cannot be called")
        return value

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: all but the state of runs, which belongs to threads."""
        return {name: value for name, value in vars(self).items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _run=threading.local())

    # -- components -----------------------------------------------------------------------------
    @property
    def components(self) -> dict[str, Any]:
        """All components by name, those which are None included."""
        names = (*self.components_needed, *self.components_optional)
        return {name: getattr(self, name) for name in names}

    def _networks(self) -> Iterable[Model]:
        there = map(uncompiled, self.components.values())
        return [value for value in there if isinstance(value, Model)]

    @property
    def _framework(self) -> Any:
        return self.unet._framework

    @property
    def dtype(self) -> Any:
        """The dtype of the UNet."""
        return self.unet.dtype

    def to(self, *args: Any, **kwargs: Any) -> DiffusionPipeline:
        """Move or convert every network, as `torch.nn.Module.to`; returns the pipeline itself.

        Raises:
            InputError: it shall move networks that `enable_model_cpu_offload` moves.
        """
        kwargs.pop("silence_dtype_warnings", None)
        if "torch_device" in kwargs:
            kwargs["device"] = kwargs.pop("torch_device")
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if self._offload is not None:
            self._offload.check_stays(args, kwargs)
        for network in self._networks():
            network._framework.move(network, *args, **kwargs)
        return self

    @classmethod
    def from_pipe(
        cls: type[Pipeline],
        pipeline: DiffusionPipeline,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        **overrides: Any,
    ) -> Pipeline:
        """This kind of pipeline on the components of another, shared and not copied.

        Args:
            dtype: what to convert the networks to, which the other pipeline shares, and so gets,
                too; `torch_dtype` is the same.
            overrides: components to use instead, or those the other pipeline lacks, and other
                arguments of the constructor; those not given are as in the other pipeline.
        """
        theirs = dict(pipeline.components)
        names = cls._known(overrides, cls.switches)
        chosen = {name: overrides.get(name, theirs.get(name)) for name in names}
        ours = isinstance(pipeline, DiffusionPipeline)
        held = vars(pipeline) if ours else dict(getattr(pipeline, "config", {}))
        held = {**held, **overrides}
        made = cls(**chosen, **{name: held[name] for name in cls.switches if name in held})
        made._progress_bar_config = dict(getattr(pipeline, "_progress_bar_config", {}))
        made.source = getattr(pipeline, "source", None)
        made.advice = getattr(pipeline, "advice", Advice())
        if isinstance(getattr(pipeline, "settings", None), Settings):
            made.settings = pipeline.settings
        made._offload = vars(pipeline).get("_offload") if ours else None
        if (dtype := dtype or torch_dtype) is not None:
            made.to(dtype=dtype)
        return made

    # -- files ------------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(
        cls: type[Pipeline],
        name_or_path: str | Path,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        device: Any = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        backend: str = "torch",
        check: bool = False,
        **options: Any,
    ) -> Pipeline:
        """A pipeline from a folder, a Hub id, or `"underdraw/scenes"`, which ships inside.

        `DiffusionPipeline.from_pretrained` gives one of the class which `model_index.json` names.

        Args:
            dtype: "float32" (default), "float16", "bfloat16", the framework's own, or "auto": what
                is fastest on the device without harm, dtype and memory layout; `dtype` of the
                pipeline says which it was. `torch_dtype` is the same.
            variant: prefer weight files of a variant, such as "fp16".
            check: look for NaN and infinity in all weights.
            options: components to use instead of those in the folder (None leaves an optional one
                out), and `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`,
                and the peer's keywords at values that change nothing (`models.familiar`).

        Raises:
            NotFoundError: there is no such folder, repository, component or variant.
            WeightError: weights are damaged or do not fit their config.
        """
        if cls is DiffusionPipeline:
            access = {name: options[name] for name in familiar.HUB if name in options}
            cls = listed_class(hubs.resolve(name_or_path, weights=False, **access))
        names = (*cls.components_needed, *cls.components_optional)
        given = {name: options.pop(name) for name in names if name in options}
        switches = {name: options.pop(name) for name in cls.switches if name in options}
        if unknown := sorted(set(options) - {*familiar.HUB, *NEUTRAL}):
            raise InputTypeError(
                f"{cls.__name__}.from_pretrained has no arguments {unknown}; it takes components "
                f"({', '.join(names)}), {', '.join(cls.switches)}, {', '.join(familiar.HUB)}"
            )
        options = familiar.drop_neutral(f"{cls.__name__}.from_pretrained", options, NEUTRAL)
        path = hubs.resolve(
            name_or_path,
            variant=variant,
            use_safetensors=use_safetensors,
            skip=tuple(given),
            **options,
        )
        index = folders.read_model_index(path)
        listed = folders.components_of(index)
        advice = read_advice(index, str(name_or_path))
        dtype = dtype or torch_dtype
        # A folder may say that it has no text encoder: its users bring embeddings.
        found: dict[str, Any] = {
            name: None for name in cls.components_for_text if index.get(name) == [None, None]
        }
        found |= given
        networks = [
            name for name in names if name in MODELS and name in listed and name not in given
        ]
        variants = folders.pick_variants(path, networks, variant)
        for name in names:
            if name in given or name not in listed:
                continue
            if name in MODELS:
                found[name] = MODELS[name].from_pretrained(
                    path,
                    subfolder=name,
                    variant=variants[name],
                    dtype=dtype,
                    device=device,
                    backend=backend,
                    check=check,
                    use_safetensors=use_safetensors,
                )
            elif name in SCHEDULERS:
                found[name] = scheduler_class(listed[name][1]).from_pretrained(path, subfolder=name)
            else:
                found[name] = READERS[name].from_pretrained(path, subfolder=name)
        for name in cls.components_needed:
            if name not in found:
                raise InputError(
                    f"{name_or_path} has no {name}, which {cls.__name__} needs; it lists "
                    f"{', '.join(sorted(listed)) or 'nothing'}"
                )
        made = cls(**found, **switches)
        if dtype == "auto":
            logging.getLogger(__name__).info("dtype='auto' is %s on %s", made.dtype, made.device)
        made.source, made.advice = str(name_or_path), advice
        return made

    @classmethod
    def from_single_file(cls: type[Pipeline], source: str | Path, **options: Any) -> Pipeline:
        """A pipeline from an original one-file checkpoint (SD 1.x or 2.x).

        Args:
            source: a `.safetensors` or `.ckpt` file, "owner/name/file.safetensors" on the Hub, or
                the address of its page.
            options: `dtype` (or `torch_dtype`), `device`, `backend` and `check` as in
                `from_pretrained`; `prediction_type` and `extract_ema` as in
                `weights.single_file.read_single_file`; `config`, a pipeline folder or Hub id whose
                configs, scheduler and tokenizer are used; components to use instead of those in
                the file (`tokenizer` may also be a folder or Hub id); and the Hub's `revision`,
                `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            NotFoundError: there is no such file, or the vocabulary it needs is not at hand.
            WeightError: it is damaged, or no such checkpoint.
            InputError: a component is neither in the file nor given.
        """
        if cls is DiffusionPipeline:
            raise InputTypeError(
                "a single file does not name its pipeline; use one's own from_single_file, as "
                "StableDiffusionPipeline.from_single_file"
            )
        return load(cls, source, **options)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
        **options: Any,
    ) -> None:
        """Write a folder that this class and the peer read back.

        An interrupted save leaves what was there before. `options` are the peer's keywords at
        values that change nothing (`models.familiar`).
        """
        call = f"{type(self).__name__}.save_pretrained"
        familiar.drop_neutral(call, options, familiar.SAVING, ())

        index: dict[str, Any] = {
            "_class_name": type(self).__name__,
            "_diffusers_version": "0.35.0",
            **self.advice.to_index(),
        }
        with save.writing_folder(folder) as place:
            for name, component in self.components.items():
                component = uncompiled(component)
                if component is None:
                    index[name] = [None, None]
                    continue
                index[name] = [LIBRARIES.get(name, "transformers"), type(component).__name__]
                if isinstance(component, Model):
                    component.save_pretrained(
                        place / name,
                        variant=variant,
                        max_shard_size=max_shard_size,
                        safe_serialization=safe_serialization,
                    )
                else:
                    component.save_pretrained(place / name)
            save.write_json(place / "model_index.json", index)

    def stream(self, *args: Any, **kwargs: Any) -> Stream:
        """The same as a call, step by step: arguments and output are those of `pipe(...)`.

        Gives a generator of `Progress` (step, latents, previews). After the last step its `output`
        is what the call gives; closing it before ends the run between two steps::

            with closing(pipe.stream("a red sphere", seed=7)) as run:
                for step in run:
                    step.preview()[0].save("now.png")
            run.output.images[0].save("done.png")

        Errors are those of the call, raised where the first step is asked for.
        """
        return Stream(self, args, kwargs)

    # -- how it runs ------------------------------------------------------------------------------
    def enable_attention_slicing(self, slice_size: int | str | None = "auto") -> None:
        """Attend a few heads at a time: "auto" half of them, "max" one, or a number of heads."""
        if isinstance(slice_size, str) and slice_size not in ("auto", "max"):
            raise InputError(f"slice_size={slice_size!r}; allowed: 'auto', 'max', a number, None")
        if slice_size is not None and not isinstance(slice_size, str):
            checks.whole("slice_size", slice_size)
        self.settings = replace(self.settings, attention_slice=slice_size)

    def disable_attention_slicing(self) -> None:
        """Attend all heads at once."""
        self.settings = replace(self.settings, attention_slice=None)

    def enable_vae_slicing(self) -> None:
        """Decode one image of a batch at a time."""
        self.settings = replace(self.settings, vae_slicing=True)

    def disable_vae_slicing(self) -> None:
        """Decode whole batches."""
        self.settings = replace(self.settings, vae_slicing=False)

    def enable_vae_tiling(self) -> None:
        """Decode in overlapping tiles: memory no longer grows with the image."""
        self.settings = replace(self.settings, vae_tiling=True)

    def disable_vae_tiling(self) -> None:
        """Decode whole images."""
        self.settings = replace(self.settings, vae_tiling=False)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the progress bar, as `tqdm` takes them; `disable=True` turns it off."""
        self._progress_bar_config = options

    @property
    def interrupt(self) -> bool:
        """Whether the run was asked to stop after the current step, by `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def _tiling(self) -> Tiling | None:
        return self.vae.default_tiling() if self.settings.vae_tiling else self.vae.tiling

    vae: Any


def component(name: str) -> property:
    """The attribute of a component: what is assigned is checked as the constructor checks it."""

    def assign(pipe: DiffusionPipeline, value: Any) -> None:
        vars(pipe)[f"_{name}"] = pipe._accept(name, value)

    return property(attrgetter(f"_{name}"), assign)


Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)
