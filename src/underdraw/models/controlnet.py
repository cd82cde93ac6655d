"""`ControlNetModel` and `MultiControlNetModel`: ControlNets under diffusers' names and calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError
from underdraw.models.attention import FamiliarAttention
from underdraw.models.base import like
from underdraw.models.keywords import drop_neutral
from underdraw.models.outputs import ControlNetOutput
from underdraw.models.returning import returning
from underdraw.models.several import Several
from underdraw.models.single_file import NEUTRAL
from underdraw.models.unet import UNet2DConditionModel, as_unet
from underdraw.networks import encoder
from underdraw.networks.controlnet import program
from underdraw.networks.controlnet.config import HINT_CHANNELS, ControlNetConfig
from underdraw.networks.program import Ask, directly
from underdraw.weights import folders, hub as hubs
from underdraw.weights.controlnet import Base, read_controlnet
from underdraw.weights.locate import find


class ControlNetModel(FamiliarAttention):
    """A ControlNet (Zhang et al. 2023). Config fields: `ControlNetConfig`.

    It sees what the UNet sees, and a map; what it gives is added inside the UNet:

        net = ControlNetModel.from_unet(unet)               # new: changes nothing yet
        pipe(prompt, controls=[Structure(net, edges)])      # in any pipeline
    """

    config_class = ControlNetConfig
    network = "controlnet"
    config: ControlNetConfig

    @classmethod
    def layout(cls, config: ControlNetConfig) -> Layout:
        return program.layout(config)

    @classmethod
    @checked
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: Sequence[int] | None = HINT_CHANNELS,
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A new ControlNet for a UNet, of its backend, dtype and device: it changes nothing yet.

        Args:
            controlnet_conditioning_channel_order: "rgb" or "bgr": how maps come to its layers.
            conditioning_embedding_out_channels: widths of the layers in front, one halving less
                than there are entries; None is the default.
            load_weights_from_unet: begin with the UNet's encoder, as in the paper; else random.
            conditioning_channels: of a map.

        Raises:
            InputError: no ControlNet can be like that.
        """
        as_unet(unet)
        widths = conditioning_embedding_out_channels
        if widths is not None:
            named = checks.sequence("conditioning_embedding_out_channels", widths, "widths")
            widths = [checks.whole("conditioning_embedding_out_channels", one) for one in named]
        config = ControlNetConfig.of_unet(
            unet.config,
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=HINT_CHANNELS if widths is None else tuple(widths),
            conditioning_channels=conditioning_channels,
        )
        fresh = cls(config, backend=unet.nn.name)
        tensors = fresh.stored_tensors()
        if load_weights_from_unet:
            theirs = unet.stored_tensors()
            tensors |= {name: theirs[name] for name in tensors if name in theirs}
        where = {"dtype": unet.dtype, "device": unet.device, "backend": unet.nn.name}
        return cls.from_tensors(config, tensors, **where)

    @classmethod
    @checked
    def from_single_file(
        cls,
        source: str | os.PathLike[str],
        *,
        unet: Any = None,
        global_pool_conditions: bool | None = None,
        config: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        backend: str | None = None,
        check: bool = False,
        **hub: Any,
    ) -> Self:
        """A ControlNet from an original file, of whole weights, of differences to those of a UNet,
        or a Control-LoRA.

        Args:
            source: a `.pth`, `.ckpt` or `.safetensors` file, "owner/name/file.safetensors" on the
                Hub, or the address of its page.
            unet: what it is for: it tells heads, and where nothing else is asked for dtype, device
                and backend. Differences and Control-LoRAs need it; it is not changed.
            global_pool_conditions: whether its residuals are means over the picture (shuffle),
                which no file tells; None: if its name holds "shuffle".
            config: a folder or Hub id whose `config.json` is used.
            dtype, device, backend, check, hub: as in `from_pretrained`.

        Raises:
            NotFoundError: there is no such file.
            WeightError: it holds no ControlNet, or is damaged.
            InputError: it needs a UNet, or was made for another one.
        """
        access = drop_neutral(f"{cls.__name__}.from_single_file", hub, NEUTRAL)
        model, given = None if unet is None else as_unet(unet), None
        if config is not None:
            place = hubs.resolve(config, weights=False, **access)
            inside = subfolder or ("controlnet" if (place / "controlnet").is_dir() else "")
            given = folders.read_config(place, inside)
        base = None if model is None else Base(model.config, model.stored_tensors())
        found = read_controlnet(
            find(source, **access),
            base,
            config=given,
            global_pool_conditions=global_pool_conditions,
            name=os.fspath(source),
        )
        if model is not None:
            found.config.require_fit(model.config)
        where = {
            "dtype": dtype or torch_dtype,
            "device": device,
            "backend": backend,
            "check": check,
        }
        return cls.from_tensors(found.config, found.tensors, **like(model, **where))

    def require_fit(self, unet: Any) -> None:
        """Raise an `InputError` unless this net was made for such UNets (or configs)."""
        self.config.require_fit(getattr(unet, "config", unet))

    def embed(self, maps: Array, ask: Ask = directly) -> Array:
        """Maps `(batch, channels, height, width)` in [0, 1], red first, as the network takes them:
        the same at every step of a run.

        Raises:
            InputError: they have other channels.
        """
        self._take("maps", maps, None, self.config.map_channels, None, None, floating=False)
        maps = self._framework.array(maps, self.dtype, self.device)
        return ask(program.HINT, self, maps)

    @returning
    @checked
    def forward(
        self,
        sample: Array,
        timestep: Any,
        encoder_hidden_states: Array,
        controlnet_cond: Array,
        conditioning_scale: float | Array = 1.0,
        class_labels: Array | None = None,
        timestep_cond: None = None,
        attention_mask: Array | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: Literal[True] = True,
    ) -> ControlNetOutput | tuple[Any, ...]:
        """Residuals for one call of the UNet.

        Args:
            sample: latents `(batch, in_channels, height, width)`.
            timestep: a number, or one per image `(batch,)`, in 0 .. 999.
            encoder_hidden_states: text context `(batch, tokens, cross_attention_dim)`.
            controlnet_cond: maps `(batch | 1, conditioning_channels, height, width)` in [0, 1], of
                the size of the picture.
            conditioning_scale: factor on the residuals; a number, or `(batch, 1, 1, 1)`.
            attention_mask: `(batch, tokens)`, 1 where a token counts.
            guess_mode: deeper residuals count more, for calls without a prompt.
            timestep_cond, added_cond_kwargs, cross_attention_kwargs: diffusers'; no ControlNet of
                Stable Diffusion has a use for them.

        Raises:
            InputError: such a value is given, or sizes do not fit.
        """
        for name, value in (
            ("timestep_cond", timestep_cond),
            ("added_cond_kwargs", added_cond_kwargs),
            ("cross_attention_kwargs", cross_attention_kwargs),
        ):
            empty = isinstance(value, Mapping) and not value and name != "timestep_cond"
            if not (value is None or empty):
                raise InputError(f"{name} is not used by this ControlNet; allowed: None")
        nn, c = self.nn, self.config.encoder
        self._take("sample", sample, None, self.config.in_channels, None, None)
        rows, sides = sample.shape[0], [side * self.config.factor for side in sample.shape[2:]]
        hidden = encoder_hidden_states
        self._take("encoder_hidden_states", hidden, rows, None, c.cross_attention_dim)
        self._take("controlnet_cond", controlnet_cond, None, self.config.map_channels, *sides)
        if controlnet_cond.shape[0] not in (1, rows):
            raise InputError(
                f"controlnet_cond has {controlnet_cond.shape[0]} maps; allowed: 1 or {rows}"
            )
        conditioning_scale = self._scale(conditioning_scale, rows)
        if attention_mask is not None:
            shape = (rows, hidden.shape[1])
            self._take("attention_mask", attention_mask, *shape, floating=False)
        times = self._times(timestep, rows)
        times = nn.expand(times.reshape(-1), (sample.shape[0],))
        mask = None
        if attention_mask is not None:
            mask = nn.cast((1 - nn.cast(attention_mask, sample)) * -10000.0, sample)
            mask = mask[:, None, None]
        temb = encoder.embed_time(nn, self, c, times, sample, class_labels)
        hint = program.embed_hint(nn, self, self.config, controlnet_cond)
        made = program.controlnet(
            nn,
            self,
            self.config,
            sample,
            temb,
            encoder_hidden_states,
            hint,
            conditioning_scale,
            guess_mode,
            mask=mask,
        )
        return ControlNetOutput(made.down, made.mid) if return_dict else tuple(made)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def _scale(self, scale: Any, rows: int) -> Any:
        """The factor on the residuals: a number, or one of an array's for each row."""
        if getattr(scale, "ndim", None) == 0:
            scale = checks.readable("conditioning_scale", scale, lambda number: number.item())
        if not self._framework.is_array(scale):
            return checks.factor("conditioning_scale", scale)
        return self._take("conditioning_scale", scale, rows, 1, 1, 1)


class MultiControlNetModel(Several[ControlNetModel]):
    """Several ControlNets, whose residuals add up. In files they are `controlnet`, `controlnet_1`,
    `controlnet_2`, ... side by side."""

    kind = ControlNetModel

    @property
    def nets(self) -> tuple[ControlNetModel, ...]:
        """diffusers' name for them."""
        return self.networks

    @checked
    def forward(
        self,
        sample: Array,
        timestep: Any,
        encoder_hidden_states: Array,
        controlnet_cond: Sequence[Array],
        conditioning_scale: Sequence[float | Array],
        class_labels: Array | None = None,
        timestep_cond: None = None,
        attention_mask: Array | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> tuple[tuple[Array, ...], Array]:
        """The sums of their residuals, down and middle; a map and a scale for each net, the other
        arguments as of `ControlNetModel`.

        Raises:
            InputError: there are more or fewer maps or scales than nets.
        """
        given = {"controlnet_cond": controlnet_cond, "conditioning_scale": conditioning_scale}
        for name, each in given.items():
            if len(checks.sequence(name, each, "one entry per net")) != len(self.nets):
                raise InputError(f"{name} has {len(each)} entries; there are {len(self.nets)} nets")
        more = (class_labels, timestep_cond, attention_mask, added_cond_kwargs)
        made = [
            net.forward(
                sample,
                timestep,
                encoder_hidden_states,
                cond,
                scale,
                *more,
                cross_attention_kwargs,
                guess_mode,
                return_dict=True,
            )
            for net, cond, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True)
        ]
        down = zip(*(one.down_block_res_samples for one in made), strict=True)
        mid = [one.mid_block_res_sample for one in made]
        return tuple(sum(each[1:], each[0]) for each in down), sum(mid[1:], mid[0])

    __call__ = forward
