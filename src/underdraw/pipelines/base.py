"""What every pipeline is: named components, their files, their place, their settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from tqdm.auto import tqdm
from typing_extensions import ParamSpec, Self

from underdraw import absent, checks, engines
from underdraw.arguments import checked
from underdraw.engines.engine import Engine
from underdraw.engines.streaming import Streaming, plain
from underdraw.errors import InputError, InputTypeError
from underdraw.models import keywords as familiar
from underdraw.models.returning import Returning
from underdraw.pipelines.call.stream import Stream
from underdraw.pipelines.call.views import Views
from underdraw.pipelines.components.accepting import accepted
from underdraw.pipelines.components.adapters import own_folder
from underdraw.pipelines.components.adjusting import Adjustable
from underdraw.pipelines.components.advice import Advice
from underdraw.pipelines.components.completing import complete
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.folders import How, read_folder, write_folder
from underdraw.pipelines.components.registry import Names, listed_class
from underdraw.pipelines.components.single_file import read_file
from underdraw.pipelines.components.telling import tell
from underdraw.schedulers.named import name_of, named_scheduler
from underdraw.weights import hub as hubs
from underdraw.weights.push import Pushable

Given = ParamSpec("Given")
Made = TypeVar("Made")
Part = TypeVar("Part")

LOG = logging.getLogger(__name__)


class Component(Generic[Part]):
    """The attribute of a component: what is assigned is checked as the constructor checks it, so it
    may also be of another library."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, pipe: None, kind: Any = None) -> Self: ...
    @overload
    def __get__(self, pipe: DiffusionPipeline, kind: Any = None) -> Part: ...
    def __get__(self, pipe: DiffusionPipeline | None, kind: Any = None) -> Any:
        return self if pipe is None else pipe.parts.named[self.name]

    def __set__(self, pipe: DiffusionPipeline, value: Any) -> None:
        pipe.parts.named[self.name] = pipe._accept(self.name, value)


class DiffusionPipeline(Pushable, Adjustable):
    """Base of the pipelines. A subclass names its components in order."""

    components_needed: ClassVar[tuple[str, ...]] = ()
    components_optional: ClassVar[tuple[str, ...]] = ()
    components_for_text: ClassVar[tuple[str, ...]] = ()
    """Of those needed the ones which may be None where prompts are given as embeddings."""
    switches: ClassVar[tuple[str, ...]] = ()
    """Arguments of the constructor that are no components."""
    stored: ClassVar[tuple[str, ...]] = ()
    """Of these the ones which a folder's `model_index.json` holds."""

    parts: Components
    """What the pipeline is made of, as calls and controls use it."""
    views: Views
    """Its runs in progress, as code written for diffusers sees them."""
    progress_bar_options: dict[str, Any]
    """Of `tqdm`, see `set_progress_bar_config`."""

    if TYPE_CHECKING:  # each subclass has a call of its own
        __call__: Returning[..., Any, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in (*cls.components_needed, *cls.components_optional):
            setattr(cls, name, Component(name))

    def __init__(self, *, engine: Any = None, **components: Any) -> None:
        names = self.names()
        names.check(components)
        self.parts, self.views, self.progress_bar_options = Components(), Views(), {}
        for name in names.all:
            setattr(self, name, components.get(name))
        self.engine = engine

    @classmethod
    def names(cls) -> Names:
        """What pipelines of this class are made of."""
        return Names(
            cls.__name__,
            cls.components_needed,
            cls.components_optional,
            cls.components_for_text,
            cls.switches,
            cls.stored,
        )

    def _accept(self, name: str, value: Any) -> Any:
        """A component, after checking that it can be one."""
        if value is not None:
            return accepted(name, value)
        if name in (*self.components_optional, *self.components_for_text):
            return None
        raise InputTypeError(f"{name}=None; {type(self).__name__} needs this component")

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # The settings of a copy change apart from those of the original.
        vars(self).update(state, parts=copy(state["parts"]), views=Views())

    if not TYPE_CHECKING:  # a type checker shall see wrong names

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or hasattr(type(self), name):  # what a property says stands
                return object.__getattribute__(self, name)
            raise AttributeError(absent.method(type(self).__name__, name, dir(type(self))))

    def register_modules(self, **components: Any) -> None:
        """Assign components, as the constructor does.

        Raises:
            InputTypeError: pipelines of this class have no component of this name.
        """
        self.names().check(components)
        for name, value in components.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        if "parts" not in vars(self):  # not set up
            return object.__repr__(self)
        return tell(type(self).__name__, self.parts)

    # -- components -----------------------------------------------------------------------------
    @property
    def components(self) -> dict[str, Any]:
        """All components by name, those which are None included."""
        return {name: getattr(self, name) for name in self.names().all}

    @property
    def dtype(self) -> Any:
        """The dtype of the UNet."""
        return self.parts.dtype

    @property
    def device(self) -> Any:
        """Where calls compute: on the device of the UNet, unless networks are offloaded."""
        return self.parts.device

    @property
    def engine(self) -> Engine:
        """What runs the networks of this pipeline: an engine, or the name of one; None is the
        default, which runs them as they are written."""
        return self.parts.engine

    @engine.setter
    def engine(self, engine: Any) -> None:
        made, now = engines.get(engine), self.parts.engine
        if isinstance(now, Streaming):  # goes on standing before whatever engine there is
            made = Streaming(plain(made), now.device, now.blocks)
        self.parts.engine = made

    @property
    def solver(self) -> str:
        """The scheduler by the name people use: "euler_a", "dpm++_karras".

        Set, it makes the scheduler of a name from the configuration of the present one: names of
        this package, of A1111 ("DPM++ 2M Karras") and of ComfyUI ("dpmpp_2m_sgm_uniform"), in any
        spelling. `solvers.named` lists them.
        """
        return name_of(self.parts.scheduler)

    @solver.setter
    def solver(self, name: str) -> None:
        setattr(self, "scheduler", named_scheduler(name, self.parts.scheduler))  # noqa: B010

    @property
    def source(self) -> str | None:
        """Where the pipeline was loaded from."""
        return self.parts.source

    @source.setter
    def source(self, source: str | None) -> None:
        self.parts.source = source

    @property
    def advice(self) -> Advice:
        """Arguments that suit its weights; the command line follows it, a call does what it is
        told."""
        return self.parts.advice

    @advice.setter
    def advice(self, advice: Advice) -> None:
        self.parts.advice = advice

    @property
    def compat(self) -> str | None:
        """ "diffusers" where its behaviour is brought back, else None."""
        return self.parts.compat

    @compat.setter
    def compat(self, compat: str | None) -> None:
        self.parts.compat = checks.choice("compat", compat, (None, "diffusers"))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert every network, as `torch.nn.Module.to`; returns the pipeline itself.

        Raises:
            InputError: there is no such device here, or it shall move networks that
                `enable_model_cpu_offload` moves.
            InputTypeError: it is neither a device nor a dtype.
        """
        kwargs.pop("silence_dtype_warnings", None)
        if "torch_device" in kwargs:
            kwargs["device"] = kwargs.pop("torch_device")
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if self.parts.offload is not None:
            self.parts.offload.check_stays(args, kwargs)
        for network in self.parts.networks:
            network._framework.move(network, *args, **kwargs)
        return self

    @classmethod
    @checked
    def from_pipe(
        cls,
        pipeline: DiffusionPipeline,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        engine: Any = None,
        **overrides: Any,
    ) -> Self:
        """This kind of pipeline on the components of another, shared and not copied.

        Args:
            dtype: what to convert the networks to, which the other pipeline shares, and so gets,
                too; `torch_dtype` is the same.
            engine: by default that of the other pipeline.
            overrides: components to use instead, or those the other pipeline lacks, and other
                arguments of the constructor; those not given are as in the other pipeline.

        `DiffusionPipeline.from_pipe` gives another one of the same class.

        Raises:
            InputError: a component is neither there nor given.
        """
        ours = isinstance(pipeline, DiffusionPipeline)
        if not (ours or isinstance(getattr(pipeline, "components", None), Mapping)):
            raise InputTypeError(f"pipeline={checks.shown(pipeline)} is no pipeline")
        kind: Any = type(pipeline)
        if cls is DiffusionPipeline:
            if not ours:
                raise InputTypeError(
                    f"{kind.__name__} is of another library; use the from_pipe of a pipeline's own "
                    "class, as StableDiffusionPipeline.from_pipe"
                )
            cls = kind
        names = cls.names()
        names.check(overrides, cls.switches)
        theirs = dict(pipeline.components)
        chosen = {name: overrides.get(name, theirs.get(name)) for name in names.all}
        complete(names, chosen, own_folder(pipeline.source) if ours else None)
        there = {name for name, value in theirs.items() if value is not None}
        made = {name for name, value in chosen.items() if value is not None}
        names.check_complete({*made, *overrides, *names.for_text}, kind.__name__, there)
        config = {} if ours else dict(getattr(pipeline, "config", {}))
        for name in cls.switches:
            if name in overrides:
                chosen[name] = overrides[name]
            elif name in config or (ours and hasattr(pipeline, name)):
                chosen[name] = getattr(pipeline, name) if ours else config[name]
        made = cls(**chosen)
        if ours:
            made.parts.take_over(pipeline.parts)
            made.progress_bar_options = dict(pipeline.progress_bar_options)
        else:
            made.progress_bar_options = dict(getattr(pipeline, "_progress_bar_config", {}))
        if engine is not None:
            made.engine = engine
        if (dtype := dtype or torch_dtype) is not None:
            made.to(dtype=checks.dtype("dtype (torch_dtype)", dtype))
        return made

    # -- files ------------------------------------------------------------------------------------
    @classmethod
    @checked
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        device: Any = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        backend: str = "torch",
        check: bool = False,
        engine: Any = None,
        **options: Any,
    ) -> Self:
        """A pipeline from a folder, a Hub id, or `"underdraw/scenes"`, which ships inside.

        `DiffusionPipeline.from_pretrained` gives one of the class which `model_index.json` names.

        Args:
            dtype: "float32" (default), "float16", "bfloat16", the framework's own, or "auto": what
                is fastest on the device without harm, dtype and memory layout; `dtype` of the
                pipeline says which it was. A dict gives each component its own, "default" stands
                for those not named: `{"vae": "float32", "default": "float16"}`. `torch_dtype` is
                the same.
            variant: prefer weight files of a variant, such as "fp16".
            check: look for NaN and infinity in all weights.
            engine: what runs the networks, see the attribute.
            options: components to use instead of those in the folder (None leaves an optional one
                out), and `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`,
                and diffusers' keywords at values that change nothing (`models.keywords`).

        Raises:
            NotFoundError: there is no such folder, repository, component or variant.
            WeightError: weights are damaged or do not fit their config.
        """
        if cls is DiffusionPipeline:
            access = {name: options[name] for name in familiar.HUB if name in options}
            cls = listed_class(hubs.resolve(name_or_path, weights=False, **access))
        engine = engines.get(engine)
        dtype = dtype or torch_dtype
        how = How(dtype, device, variant, use_safetensors, backend, check)
        read = read_folder(cls.names(), name_or_path, how, options)
        made = cls(**read.components, **read.switches)
        LOG.info("%s from %s: %s on %s", cls.__name__, name_or_path, made.dtype, made.device)
        made.engine, made.source, made.advice = engine, str(name_or_path), read.advice
        return made

    @classmethod
    @checked
    def download(cls, name_or_path: str | Path, **options: Any) -> Path:
        """The folder of a Hub repository with all that `from_pretrained` reads, fetched now.

        Args:
            options: `variant`, `use_safetensors`, and the Hub's `revision`, `token`, `cache_dir`,
                `local_files_only`, `force_download`.

        Raises:
            NotFoundError: there is no such folder or repository.
        """
        own = {name: options.pop(name, None) for name in ("variant", "use_safetensors")}
        access = familiar.drop_neutral(f"{cls.__name__}.download", options)
        return hubs.resolve(name_or_path, **own, **access)

    @classmethod
    @checked
    def from_single_file(cls, source: str | Path, **options: Any) -> Self:
        """A pipeline from an original one-file checkpoint (SD 1.x or 2.x).

        Args:
            source: a `.safetensors` or `.ckpt` file, "owner/name/file.safetensors" on the Hub, or
                the address of its page.
            options: `dtype` (or `torch_dtype`), `device`, `backend` and `check` as in
                `from_pretrained`; `prediction_type` and `extract_ema` as in
                `weights.single_file.read_single_file`; `config`, a pipeline folder or Hub id whose
                configs, scheduler and tokenizer are used; `original_config`, the YAML file that
                came with the checkpoint; `load_safety_checker`, to add the published one from the
                Hub; `requires_safety_checker`, `compat`; components to use instead of those in
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
        arguments, place = read_file(cls.names(), source, **options)
        made = cls(**arguments)
        made.source = place
        LOG.info("%s from %s: %s on %s", cls.__name__, place, made.dtype, made.device)
        return made

    @checked
    def save_pretrained(
        self,
        folder: str | Path,
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
        **options: Any,
    ) -> None:
        """Write a folder that this class and diffusers read back.

        An interrupted save leaves what was there before. `options` are diffusers' keywords at
        values that change nothing (`models.keywords`).
        """
        kind = type(self).__name__
        familiar.drop_neutral(f"{kind}.save_pretrained", options, familiar.SAVING, ())
        write_folder(
            folder,
            kind,
            self.components,
            self.advice,
            {name: value for name in self.stored if (value := getattr(self, name)) is not None},
            variant=variant,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
        )

    # -- how it runs ------------------------------------------------------------------------------
    def stream(
        self: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs
    ) -> Stream[Made]:
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

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the progress bar, as `tqdm` takes them; `disable=True` turns it off."""
        self.progress_bar_options = options

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A `tqdm` bar with this pipeline's options."""
        if (iterable is None) == (total is None):
            raise InputError("progress_bar takes either iterable or total")
        if total is not None:
            checks.whole("total", total, 0)
        return tqdm(iterable, total=total, **self.progress_bar_options)
