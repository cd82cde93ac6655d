"""Networks under Flax's names: a config, and calls that take parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.backends.node import initial_values
from underdraw.errors import InputError, InputTypeError, WeightError
from underdraw.flax.outputs import FlaxAutoencoderKLOutput, FlaxDiagonalGaussian
from underdraw.flax.params import Params, check, flat, jax, node, read_dtype, read_key
from underdraw.formats.msgpack import write_msgpack
from underdraw.formats.stored import StoredTensor, stored
from underdraw.formats.writing import writing_file
from underdraw.models import (
    AutoencoderKL,
    CLIPTextModel,
    ControlNetModel,
    StableDiffusionSafetyChecker,
    UNet2DConditionModel,
)
from underdraw.models.base import Model
from underdraw.models.keywords import LOADING, SAVING, drop_neutral
from underdraw.models.outputs import (
    CLIPTextOutput,
    ControlNetOutput,
    DecoderOutput,
    UNet2DConditionOutput,
)
from underdraw.models.safety import withheld
from underdraw.networks import clip, safety, unet, vae
from underdraw.networks.config import CLIPVisionConfig
from underdraw.networks.controlnet import program as controlnets
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.schema import within
from underdraw.weights import flax, folders, hub as hubs, save
from underdraw.weights.match import match_network
from underdraw.weights.quantised import widened

FURTHER: dict[str, tuple[Any, ...]] = {
    "use_memory_efficient_attention": (False, None),
    "split_head_dim": (False, True, None),  # an order of axes
    "_do_init": (False, True, None),
    "from_pt": (False, True, None),
}
"""Keywords of Flax's and the values that change no result."""


class FlaxModel:
    """Base of the networks: a config, and what computes with parameters that are given."""

    written: ClassVar[type[Model]]
    """The class of this network elsewhere: its config, layout and files."""
    stem: ClassVar[str] = "diffusion_flax_model"
    """Name of the file of weights."""

    def __init__(self, config: Any = None, dtype: Any = "float32", **fields: Any) -> None:
        self.dtype = read_dtype(dtype)
        self.config = self.written._read_config(config, _known(fields))

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters, as they are published."""
        return self.written.layout(self.config)

    # -- parameters ---------------------------------------------------------------------------
    def init_weights(self, rng: Any = 0) -> dict[str, Any]:
        """New parameters, drawn from a number or a key of `jax.random`."""
        seed = rng
        if not checks.is_number(rng):
            words = read_key("rng", rng)
            seed = int.from_bytes(np.asarray(words, np.uint32).tobytes(), "little")
        drawn = initial_values(self.layout, checks.whole("rng", seed, 0))
        return self.params({name: stored(value) for name, value in drawn})

    def params(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
        """Published tensors as parameters in Flax's layout, in the dtypes they have."""
        changed = flax.in_flax(self.written.network, self.layout, tensors)
        return flax.nested({path: jax().tensor(value) for path, value in changed.items()})

    def check(self, name: str, params: Any, devices: int | None = None) -> None:
        """That parameters are those of this network; `name` is the argument's."""
        check(name, params, self.written.network, self.layout, devices)

    def node(self, params: Any) -> Any:
        """Parameters as programs take them, in the dtype that is computed in."""
        return node(params, self.written.network, self.layout, self.dtype)

    def to_bf16(self, params: Params, mask: Any = None) -> Any:
        """The parameters in bfloat16; those where `mask`, the same mappings, has a true one."""
        return _cast(params, "bfloat16", mask)

    def to_fp16(self, params: Params, mask: Any = None) -> Any:
        """The parameters in float16; `mask` as of `to_bf16`."""
        return _cast(params, "float16", mask)

    def to_fp32(self, params: Params, mask: Any = None) -> Any:
        """The parameters in float32; `mask` as of `to_bf16`."""
        return _cast(params, "float32", mask)

    # -- files --------------------------------------------------------------------------------
    @classmethod
    @checked
    def from_config(cls, config: Mapping[str, Any], dtype: Any = "float32", **fields: Any) -> Any:
        """A network of a parsed `config.json`, without parameters."""
        if not isinstance(config, Mapping):
            raise InputTypeError(f"config={checks.shown(config)} is no parsed config.json")
        return cls(cls.written.read_config({**config, **fields}), dtype=dtype)

    @classmethod
    @checked
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dtype: Any = "float32",
        *,
        subfolder: str | None = None,
        from_pt: bool | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """A network and its parameters, from a folder or a Hub id.

        Args:
            dtype: to compute in; parameters have that of their file.
            from_pt: True reads PyTorch's weights also where Flax's are there; else these come
                first.
            options: the Hub's `revision`, `token`, `cache_dir`, `local_files_only`,
                `force_download`, and keywords that change nothing.

        Raises:
            NotFoundError, WeightError: there is nothing, or it is damaged.
        """
        hub = drop_neutral(f"{cls.__name__}.from_pretrained", options, {**LOADING, **FURTHER})
        inside, first = subfolder or "", from_pt is not True
        path = hubs.resolve(
            name_or_path, subfolder=inside, variant=variant, flax_first=first, **hub
        )
        return cls.read(path, inside, dtype, variant, first)

    @classmethod
    def read(
        cls, folder: Path, subfolder: str, dtype: Any, variant: str | None, flax_first: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A network and its parameters, from a folder that is here."""
        raw, tensors = folders.open_component(folder, subfolder, variant, flax_first=flax_first)
        written = cls.written
        with within(Path(folder, subfolder)):
            made = cls(written.read_config(raw), dtype=dtype)
        tensors = flax.published(written.network, made.layout, tensors)
        fitting = match_network(written.network, made.layout.shapes, tensors, cls.__name__)
        return made, made.params({name: widened(one) for name, one in fitting.items()})

    @checked
    def save_pretrained(
        self, folder: str | Path, params: Any, is_main_process: bool = True, **familiar: Any
    ) -> None:
        """Write `config.json` and the parameters as MessagePack, which diffusers 0.33.1 reads;
        whole or not at all.

        Raises:
            WeightError: they are not those of this network.
        """
        drop_neutral(f"{type(self).__name__}.save_pretrained", familiar, SAVING, ())
        self.check("params", params)
        if not is_main_process:
            return
        with save.writing_folder(folder) as place:
            save.write_json(place / "config.json", self.export_config())
            with writing_file(place / f"{self.stem}.msgpack") as file:
                write_msgpack(file, _stored(params))

    def export_config(self) -> dict[str, Any]:
        """`config.json`."""
        made: Any = object.__new__(self.written)
        made.config = self.config
        return {**self.written.export_config(made), **self.names()}

    def names(self) -> dict[str, Any]:
        """What `config.json` says of the class."""
        return {"_class_name": type(self).__name__}

    # -- calls --------------------------------------------------------------------------------
    def apply(
        self, variables: Params, *args: Any, method: Any = None, rngs: Any = None, **kwargs: Any
    ) -> Any:
        """Run the network, or one of its methods, on `{"params": parameters}`; there is no dropout,
        so `rngs` are of no use."""
        if not isinstance(variables, Mapping) or "params" not in variables:
            raise InputTypeError(
                f"variables={checks.shown(variables)}; needed is a mapping with 'params'"
            )
        wanted = getattr(method, "__name__", method)
        if wanted is not None and not (isinstance(wanted, str) and wanted in self.methods):
            raise InputError(f"method={checks.shown(method)}; allowed: {', '.join(self.methods)}")
        tree = variables["params"]
        self.check("params", tree)
        run: Callable[..., Any] = getattr(self, f"_{wanted or self.methods[0]}")
        return run(self.node(tree), *args, **kwargs)

    methods: ClassVar[tuple[str, ...]] = ("run",)
    """What `apply` runs; the first is its default."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype})"


class FlaxUNet2DConditionModel(FlaxModel):
    """The denoiser of Stable Diffusion 1.x and 2.x; config fields as of `UNet2DConditionModel`."""

    written = UNet2DConditionModel
    config: unet.UNetConfig

    def _run(
        self,
        p: Any,
        sample: Array,
        timesteps: Any,
        encoder_hidden_states: Array,
        added_cond_kwargs: None = None,
        down_block_additional_residuals: Any = None,
        mid_block_additional_residual: Any = None,
        return_dict: bool = True,
        train: bool = False,
    ) -> Any:
        """`sample (batch, channels, height, width)`, `timesteps` a number or one per image."""
        if added_cond_kwargs:
            raise InputError("added_cond_kwargs is not used by this UNet; allowed: None")
        nn, c = jax().operations, self.config
        x, context = (jax().array(a, self.dtype) for a in (sample, encoder_hidden_states))
        temb = unet.embed_time(nn, p, c, _times(timesteps, x.shape[0]), x)
        sites = unet.Sites(
            down_residuals=down_block_additional_residuals,
            mid_residual=mid_block_additional_residual,
        )
        out = unet.unet(nn, p, c, x, temb, context, sites)
        return UNet2DConditionOutput(out) if return_dict else (out,)


class FlaxControlNetModel(FlaxModel):
    """A ControlNet; config fields as of `ControlNetModel`."""

    written = ControlNetModel
    config: ControlNetConfig

    def _run(
        self,
        p: Any,
        sample: Array,
        timesteps: Any,
        encoder_hidden_states: Array,
        controlnet_cond: Array,
        conditioning_scale: Any = 1.0,
        return_dict: bool = True,
        train: bool = False,
    ) -> Any:
        """`controlnet_cond (batch, 3, height, width)` in [0, 1]; others as of the UNet."""
        nn, c = jax().operations, self.config
        x, context, pixels = (
            jax().array(a, self.dtype) for a in (sample, encoder_hidden_states, controlnet_cond)
        )
        temb = unet.embed_time(nn, p, c.encoder, _times(timesteps, x.shape[0]), x)
        hint = controlnets.embed_hint(nn, p, c, pixels)
        made = controlnets.controlnet(nn, p, c, x, temb, context, hint, conditioning_scale)
        out = ControlNetOutput(made.down, made.mid)
        return out if return_dict else out.to_tuple()


class FlaxAutoencoderKL(FlaxModel):
    """The autoencoder; config fields as of `AutoencoderKL`.

    `apply(..., method=vae.encode)` gives the distribution of the latents of images
    `(batch, 3, height, width)`, channels in the last place, `method=vae.decode` images of latents
    with channels in the second.
    """

    written = AutoencoderKL
    config: vae.VAEConfig
    methods = ("run", "encode", "decode")

    encode = "encode"
    """The entries of `apply`."""
    decode = "decode"

    def _encode(
        self, p: Any, sample: Array, deterministic: bool = True, return_dict: bool = True
    ) -> Any:
        x = jax().array(sample, self.dtype)
        moments = vae.encode(jax().operations, p, self.config, x)
        found = FlaxDiagonalGaussian(moments.transpose(0, 2, 3, 1))
        return FlaxAutoencoderKLOutput(found) if return_dict else (found,)

    def _decode(
        self, p: Any, latents: Array, deterministic: bool = True, return_dict: bool = True
    ) -> Any:
        out = vae.decode(jax().operations, p, self.config, jax().array(latents, self.dtype))
        return DecoderOutput(out) if return_dict else (out,)

    def _run(
        self,
        p: Any,
        sample: Array,
        sample_posterior: bool = False,
        deterministic: bool = True,
        return_dict: bool = True,
    ) -> Any:
        if sample_posterior:
            raise InputError("sample_posterior=True; encode, draw from latent_dist, and decode")
        mean = self._encode(p, sample).latent_dist.mode().transpose(0, 3, 1, 2)
        return self._decode(p, mean, return_dict=return_dict)


class FlaxCLIPTextModel(FlaxModel):
    """The text tower, which transformers had; called with tokens and `params`."""

    written = CLIPTextModel
    config: clip.CLIPTextConfig
    stem = "flax_model"

    def names(self) -> dict[str, Any]:
        return {}

    def __call__(self, input_ids: Any, attention_mask: Any = None, params: Any = None) -> Any:
        """The outputs for `input_ids (batch, tokens)`; the mask is not needed, for what follows the
        end token is not seen by what stands before."""
        return self.apply({"params": params}, input_ids)

    def _run(self, p: Any, input_ids: Any) -> Any:
        made = clip.text(jax().operations, p, self.config, jax().array(input_ids))
        return CLIPTextOutput(made.last, made.pooled)


class FlaxStableDiffusionSafetyChecker(FlaxModel):
    """The checker published with Stable Diffusion 1.x; called with pixels and `params`."""

    written = StableDiffusionSafetyChecker
    config: CLIPVisionConfig
    stem = "flax_model"

    def names(self) -> dict[str, Any]:
        return {}

    def __call__(self, clip_input: Any, params: Any = None) -> list[bool]:
        """Per image whether it is to be withheld."""
        return self.apply({"params": params}, clip_input)

    def _run(self, p: Any, clip_input: Any) -> list[bool]:
        pixels = jax().array(clip_input, self.dtype)
        scores = safety.concept_scores(jax().operations, p, self.config, pixels)
        return withheld(*(jax().to_numpy(one) for one in scores))


CLASSES: Mapping[str, type[FlaxModel]] = {
    "unet": FlaxUNet2DConditionModel,
    "vae": FlaxAutoencoderKL,
    "text_encoder": FlaxCLIPTextModel,
    "controlnet": FlaxControlNetModel,
    "safety_checker": FlaxStableDiffusionSafetyChecker,
}
"""By the component of a pipeline."""


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config, without those of Flax's that change no result."""
    return {name: value for name, value in fields.items() if name not in FURTHER}


def _times(timesteps: Any, rows: int) -> Array:
    times = jax().array(np.asarray(timesteps) if checks.is_number(timesteps) else timesteps)
    if times.size not in (1, rows):
        raise InputError(f"timesteps has shape {times.shape}; needed is one number, or {rows}")
    return jax().operations.expand(times.reshape(-1), (rows,))


def _cast(params: Params, dtype: str, mask: Any) -> Any:
    framework = jax()
    for name, tree in (("params", params), ("mask", {} if mask is None else mask)):
        if not isinstance(tree, Mapping):
            raise InputTypeError(f"{name}={checks.shown(tree)} is no mapping")
    wanted, chosen = framework.resolve_dtype(dtype), None if mask is None else flat(mask)

    def cast(path: flax.Path, x: Any) -> Any:
        if not framework.is_array(x):
            raise InputTypeError(f"params: {'/'.join(path)} is {checks.shown(x)}, no array")
        counts = chosen is None or bool(np.asarray(chosen.get(path, False)).any())
        return x.astype(wanted) if counts and framework.is_floating(x) else x

    return flax.nested({path: cast(path, x) for path, x in flat(params).items()})


def _stored(params: Params) -> dict[str, Any]:
    made = {}
    for path, x in flat(params).items():
        dtype, values = jax().to_bits(x)
        made[path] = stored(values, dtype)
    if not made:
        raise WeightError("params holds nothing")
    return flax.nested(made)
