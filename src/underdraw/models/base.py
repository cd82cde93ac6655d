"""What users hold: a program, a frozen config and a parameter tree under diffusers' class name.

A class such as `UNet2DConditionModel` is written once, without a framework. Creating one picks the
backend and returns an instance of a subclass that is also that backend's own kind of thing: on
PyTorch an `nn.Module` which is itself the root of the tree, so that `state_dict` names are the
published names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from underdraw import backends, checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.backends.node import at, grow
from underdraw.backends.once import once
from underdraw.errors import InputError, InputTypeError, WeightError
from underdraw.formats.stored import stored
from underdraw.models.keywords import SAVING, drop_neutral
from underdraw.models.outputs import Certain, DiagonalGaussian, Output
from underdraw.networks.config import Config, read
from underdraw.schema import shown, within
from underdraw.weights import folders, hub as hubs, save
from underdraw.weights.flax import published
from underdraw.weights.match import match_network
from underdraw.weights.push import Pushable
from underdraw.weights.quantised import widened

QUANTISED = ("int8", "float8")
"""Kinds of weights in 8 bits."""
KEPT = ("conv_in", "conv_out", "decoder.conv_out", "encoder.conv_in")
"""Layers that stay as they are: small, and next to what is seen."""


class Model(Pushable):
    """Base of the model classes.

    `Class(**config)` or `Class(config)` creates random weights on `backend` ("torch", "jax",
    "mindspore"); `Class.from_pretrained(folder)` reads a published folder.
    """

    config_class: ClassVar[type[Config]]
    weights_name: ClassVar[str] = "diffusion_pytorch_model"
    network: ClassVar[str]
    """The name under which `weights.known_keys` lists what may be left over."""
    _framework: ClassVar[Any]

    config: Any
    diffusers_version: str | None = None
    """The version of diffusers that wrote the config which this was made of, where it says so."""

    if TYPE_CHECKING:  # what a backend's root adds: parameters(), state_dict(), eval(), layers, ...

        def __getattr__(self, name: str) -> Any: ...

    def __new__(cls, *args: Any, backend: str = "torch", **kwargs: Any) -> Self:
        made: Any = object.__new__(_bind(cls, backend))
        return made

    def __init__(
        self, config: Config | None = None, *, backend: str = "torch", **fields: Any
    ) -> None:
        config = self._read_config(config, fields)
        super().__init__()
        self.config = config
        self._framework.build_root(self, self.layout(config), None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class that was made for the backend has no importable name, the one under it has.
        parts = super().__reduce_ex__(max(2, int(protocol)))
        assert isinstance(parts, tuple)
        cls = vars(type(self)).get("_written", type(self))
        return _revive, (cls, self._framework.operations.name), *parts[2:]

    @classmethod
    def _read_config(cls, config: Any, fields: Mapping[str, Any]) -> Config:
        if isinstance(config, cls.config_class):
            return config
        if config is not None:
            raise InputTypeError(
                f"config={shown(config)} is not a {cls.config_class.__name__}; give one, or its "
                "fields"
            )
        names = set(cls.config_class.__dataclass_fields__)
        if unknown := sorted(set(fields) - names):
            raise InputTypeError(
                f"{cls.__name__} has no config fields {unknown}; there are {sorted(names)}"
            )
        return read(cls.config_class, fields)

    @classmethod
    def layout(cls, config: Any) -> Layout:
        """Names and shapes of the parameters of a network with this config."""
        raise NotImplementedError(f"{cls.__name__} must say what its parameters are")

    @classmethod
    @checked
    def from_config(cls, config: Mapping[str, Any], backend: str = "torch") -> Self:
        """Random weights from a parsed `config.json`; keys that are no fields are left out."""
        made = cls(cls.read_config(config), backend=backend)
        made.diffusers_version = _version(config)
        return made

    @classmethod
    def read_config(cls, raw: Mapping[str, Any]) -> Config:
        """The config of this network from a parsed `config.json`, checked; keys that are no fields
        are left out."""
        if isinstance(raw, cls.config_class):
            return raw
        if not isinstance(raw, Mapping):
            raise InputError(
                f"config={shown(raw)} is not the content of a config.json of {cls.__name__}"
            )
        return read(cls.config_class, cls.adapt_config(dict(raw)))

    @classmethod
    def adapt_config(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """The config of this network inside a published `config.json`."""
        return raw

    def export_config(self) -> dict[str, Any]:
        """The `config.json` which diffusers reads back."""
        return {"_class_name": type(self).__name__, **self.config.to_dict()}

    # -- files ------------------------------------------------------------------------------------
    @classmethod
    @checked
    def load_config(
        cls, name_or_path: str | Path, *, subfolder: str | None = None, **hub: Any
    ) -> dict[str, Any]:
        """The parsed `config.json`, for `from_config`; arguments as in `from_pretrained`."""
        hub = drop_neutral(f"{cls.__name__}.load_config", hub)
        path = hubs.resolve(name_or_path, subfolder=subfolder or "", weights=False, **hub)
        return folders.read_config(path, subfolder or "")

    @checked
    def save_config(self, folder: str | Path, **familiar: Any) -> None:
        """Write `config.json` alone; what else the folder holds stays."""
        drop_neutral(f"{type(self).__name__}.save_config", familiar, SAVING, ())
        with save.writing_folder(folder) as place:
            save.write_json(place / "config.json", self.export_config())

    @classmethod
    @checked
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        backend: str = "torch",
        check: bool = False,
        use_safetensors: bool | None = None,
        **hub: Any,
    ) -> Self:
        """A model from a folder, a Hub id or `"underdraw/scenes"`.

        Args:
            subfolder: where in it, for example `"unet"`.
            variant: `"fp16"` picks files such as `diffusion_pytorch_model.fp16.safetensors`.
            dtype: of the parameters, `"float16"`, the framework's own, or `"auto"` for the fastest
                on the device; `torch_dtype` is the same.
                None is float32, whatever the file holds.
            check: also look for NaN and infinity in the weights, which reads all of them.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, and
                diffusers' keywords at values that change nothing (`models.keywords`).

        Raises:
            NotFoundError: there is no such folder, repository, file or variant.
            WeightError: the weights are damaged, or do not fit the config.
            InputTypeError: a keyword is not known, or not supported at this value.
        """
        hub = drop_neutral(f"{cls.__name__}.from_pretrained", hub)
        path = hubs.resolve(name_or_path, subfolder=subfolder or "", variant=variant, **hub)
        raw, tensors = folders.open_component(path, subfolder or "", variant, use_safetensors)
        with within(Path(path, subfolder or "")):
            config = cls.read_config(raw)
        made = cls.from_tensors(
            config, tensors, dtype=dtype or torch_dtype, device=device, backend=backend, check=check
        )
        made.diffusers_version = _version(raw)
        return made

    @classmethod
    def from_tensors(
        cls,
        raw_config: Mapping[str, Any],
        tensors: Mapping[str, Any],
        *,
        dtype: Any = None,
        device: Any = None,
        backend: str = "torch",
        check: bool = False,
    ) -> Self:
        """A model from a config or a parsed `config.json`, and the `StoredTensor`s by name."""
        config = cls.read_config(raw_config)
        layout = cls.layout(config)
        tensors = published(cls.network, layout, tensors)
        fitting = match_network(cls.network, layout.shapes, tensors, cls.__name__)
        model: Any = object.__new__(_bind(cls, backend))
        super(Model, model).__init__()
        model.config, model.diffusers_version = config, _version(raw_config)
        fitting = {name: widened(tensor) for name, tensor in fitting.items()}
        model._framework.load_root(model, layout, fitting, dtype or "float32", device)
        if check and (bad := model.non_finite()):
            named = f"{len(bad)} weights hold NaN or infinity: {', '.join(bad[:5])}"
            raise WeightError(f"{cls.__name__}: {named}")
        return model

    @classmethod
    def adopt(cls, module: Any) -> Self:
        """This model on the parameters of a PyTorch module of another library, shared on the CPU.

        Raises:
            InputTypeError: the object has no `config` and `state_dict`.
            WeightError: its parameters are not those of this network.
        """
        config = getattr(module, "config", None)
        if config is None or not callable(getattr(module, "state_dict", None)):
            raise InputTypeError(f"{type(module).__name__} cannot serve as {cls.__name__}")
        framework = backends.get("torch")
        tensors = {}
        for name, value in module.state_dict().items():
            dtype, array = framework.to_bits(value)
            tensors[name] = stored(array, dtype)
        raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        first = next(module.parameters())
        return cls.from_tensors(raw, tensors, dtype=first.dtype, device=first.device)

    @classmethod
    def sharing(cls, config: Config, *owners: Any) -> Self:
        """A model of this config on layers of others, which are shared: no number is copied.

        Each layer is that of the first of `owners` that has one at its path; the last of them is a
        model, those before may be trees of some layers.
        """
        framework = owners[-1]._framework
        parts = {path: _first(owners, path) for path in cls.layout(config).leaves}
        model: Any = object.__new__(_bind(cls, framework.operations.name))
        super(Model, model).__init__()
        model.config = config
        framework.graft(model, parts)
        return model

    def _take(self, name: str, value: Any, *shape: int | None, floating: bool = True) -> Any:
        """An argument that is an array of the backend, of a shape (None: any size).

        Raises:
            InputError, InputTypeError: it is something else; its numbers are not looked at.
        """
        value = checks.shaped(name, value, shape, self._framework)
        if floating and "float" not in str(value.dtype).lower():
            raise InputTypeError(f"{name} has dtype {value.dtype}; floating-point is needed")
        if getattr(value, "is_meta", False) and not getattr(self.device, "type", "") == "meta":
            raise InputTypeError(f"{name} is on {value.device}; the network is on {self.device}")
        return value

    def _times(self, timestep: Any, rows: int) -> Array:
        """Timesteps as an array of one, or of one per image."""
        if self._framework.is_array(timestep):
            self._take("timestep", timestep, *[None] * min(timestep.ndim, 1), floating=False)
        else:
            one = checks.is_number(timestep)
            timestep = list(checks.numbers("timestep", [timestep] if one else timestep))
        times = self._framework.array(timestep, device=self.device)
        if times.ndim > 1 or times.reshape(-1).shape[0] not in (1, rows):
            raise InputError(
                f"timestep has shape {tuple(times.shape)}; needed is one number, or {rows}"
            )
        return times

    def non_finite(self) -> list[str]:
        """Names of the parameters that hold NaN or infinity."""
        return [
            name
            for name, value in self._framework.named_tensors(self)
            if not self._framework.is_finite(value)
        ]

    def stored_tensors(self) -> dict[str, Any]:
        """Parameters by published name as `weights.files.StoredTensor`s, on the host."""
        tensors = {}
        for name, value in self._framework.named_tensors(self):
            dtype, array = self._framework.to_bits(value)
            tensors[name] = stored(array, dtype)
        return tensors

    @checked
    def save_pretrained(
        self,
        folder: str | Path,
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
        is_main_process: bool = True,
        **familiar: Any,
    ) -> None:
        """Write `config.json` and safetensors, which diffusers reads, as a whole or not at all.

        Args:
            is_main_process: False writes nothing: of several processes one saves.
            familiar: diffusers' keywords at values that change nothing (`models.keywords`).
        """
        drop_neutral(f"{type(self).__name__}.save_pretrained", familiar, SAVING, ())
        if not is_main_process:
            return
        if not safe_serialization:
            raise InputError("safe_serialization=False; underdraw writes safetensors only")
        save.save_weights(
            folder,
            self.stored_tensors(),
            stem=self.weights_name,
            variant=variant,
            max_shard_size=max_shard_size,
            config=self.export_config(),
        )

    # -- what the tree is made of
    @property
    def dtype(self) -> Any:
        """The dtype of the parameters."""
        return self._framework.dtype_of(self)

    @property
    def device(self) -> Any:
        """Where the parameters are."""
        return self._framework.device_of(self)

    @property
    def nn(self) -> Any:
        """The operations of this backend with default settings."""
        return self._framework.operations

    def to_json_string(self) -> str:
        """`config.json` as text."""
        return json.dumps(self.export_config(), indent=2, sort_keys=True) + "\n"

    @checked
    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters as they are kept: of weights in 8 bits, too."""
        if hasattr(self._framework, "stored_bytes"):
            return self._framework.stored_bytes(self)
        return sum(one.nbytes for _, one in self._framework.named_tensors(self))

    @checked
    def quantized(self, kind: str = "int8") -> Self:
        """This network with the weights of its linear layers and convolutions in 8 bits, each with
        a scale for each output; all else is shared. It computes in the dtype it has now.

        LoRAs and other differences act on it as before, `save_pretrained` writes floating point,
        and where something is merged into a layer (`fuse_lora`) that layer is floating point again.

        Args:
            kind: "int8", or "float8" (e4m3).

        Raises:
            InputError: the kind is not known, this backend has none, or a weight is not finite.
        """
        checks.choice("kind", kind, QUANTISED)
        framework = self._framework
        if not hasattr(framework, "quantised"):
            raise InputError(f"kind={kind!r}: weights in 8 bits are not there on {self.nn.name}")
        layout, made = type(self).layout(self.config), {}
        for path, leaf in layout.leaves.items():
            if leaf.kind != "parameter":
                made[path] = framework.quantised(at(self, path), None if path in KEPT else kind)
        model = type(self).sharing(self.config, grow(made), self)
        model.diffusers_version = self.diffusers_version
        return model

    def __repr__(self) -> str:
        if "config" not in vars(self):  # not set up: copying and unpickling pass here
            return f"<{type(self).__name__}>"
        where = f"{str(self.dtype).removeprefix('torch.')}, {self.device}, {self.nn.name}"
        return f"{type(self).__name__}({self.num_parameters():,} parameters, {where})"

    def num_parameters(self) -> int:
        """How many numbers the parameters hold."""
        return sum(prod(shape) for shape in self.layout(self.config).shapes.values())


def like(model: Model | None, **where: Any) -> dict[str, Any]:
    """`dtype`, `device`, `backend` and others of `from_tensors`; those that are None as of a
    model."""
    if model is not None:
        own = {"dtype": model.dtype, "device": model.device, "backend": model.nn.name}
        where |= {name: value for name, value in own.items() if where.get(name) is None}
    where["backend"] = where.get("backend") or "torch"
    return where


@once
def _bind(cls: type[Model], backend: str) -> type[Model]:
    """The subclass of `cls` that lives on a backend."""
    if hasattr(cls, "_framework"):
        return cls
    framework = _framework_of(backend)
    names = {
        "_framework": framework,
        "_written": cls,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return type(cls.__name__, (cls, framework.Root), names)


@once
def _framework_of(backend: str) -> Any:
    """The module of a backend, which from now on looks into what models return."""
    framework = backends.get(backend)
    for kind in (*Output.__subclasses__(), Certain, DiagonalGaussian):
        framework.register_output(kind)
    return framework


def _version(config: Mapping[str, Any]) -> str | None:
    version = config.get("_diffusers_version")
    return version if isinstance(version, str) else None


def _first(owners: Sequence[Any], path: str) -> Any:
    for owner in owners[:-1]:
        with suppress(AttributeError):
            return at(owner, path)
    return at(owners[-1], path)


def _revive(cls: type[Model], backend: str) -> Any:
    """An instance without state, which unpickling and copying fill."""
    return object.__new__(_bind(cls, backend))
