"""`UNet2DConditionModel`: the UNet program under diffusers' name and call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError, InputTypeError
from underdraw.models.attention import FamiliarAttention
from underdraw.models.grounding import Grounding
from underdraw.models.outputs import UNet2DConditionOutput
from underdraw.models.returning import returning
from underdraw.models.single_file import FromSingleFile
from underdraw.networks import unet
from underdraw.networks.gligen import grounding, sites as grounding_sites
from underdraw.networks.gligen.config import INPAINTING_CHANNELS, GroundingConfig
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.shown import shown


class UNet2DConditionModel(FromSingleFile, FamiliarAttention):
    """The denoiser of Stable Diffusion 1.x and 2.x. Config fields: `networks.unet.UNetConfig`.

    A GLIGEN checkpoint (`attention_type="gated"` or `"gated-text-image"`) keeps its grounding
    layers in the same tree under their published names, so that `state_dict` and `save_pretrained`
    give back what was read. A call runs none of them: they act only through `sites`, which
    `unet.grounding` makes, or where diffusers' `cross_attention_kwargs` hold boxes.
    """

    config_class = unet.UNetConfig
    network = "unet"
    config: unet.UNetConfig
    gradient_checkpointing = False
    """Whether blocks are computed again for the gradient; training only, on PyTorch only."""

    @classmethod
    def layout(cls, config: unet.UNetConfig) -> Layout:
        plain = unet.layout(config)
        if config.attention_type == "default":
            return plain
        return plain | Grounding.layout(GroundingConfig.for_unet(config))

    def enable_gradient_checkpointing(self) -> None:
        """Train in less memory: what blocks compute inside is computed again for the gradient. Up
        to a third more work, the same gradients.

        Raises:
            InputError: this backend has nothing like it.
        """
        if not hasattr(self._framework, "recomputed"):
            raise InputError(f"gradient checkpointing is not there on {self.nn.name}")
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Keep what blocks compute, as is the default."""
        self.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """diffusers' name for `gradient_checkpointing`."""
        return self.gradient_checkpointing

    @property
    def grounding(self) -> Grounding | None:
        """The grounding part of a gated UNet, which shares its parameters; None for others."""
        if self.config.attention_type == "default":
            return None
        return Grounding.sharing(GroundingConfig.for_unet(self.config), self)

    def lift_grounding(self) -> Grounding:
        """The grounding part to carry to other UNets; parameters are shared.

        That of an inpainting UNet (nine input channels) brings its first convolution, for UNets
        with four.

        Raises:
            InputError: this UNet has no grounding layers.
        """
        own = self.config.in_channels - INPAINTING_CHANNELS
        fields: dict[str, Any] = {}
        if own > 0:
            fields = {"in_channels": own, "extra_channels": INPAINTING_CHANNELS}
        return Grounding.sharing(GroundingConfig.for_unet(self.config, **fields), self)

    @checked
    def with_grounding(self, grounding: Grounding) -> UNet2DConditionModel:
        """A gated UNet of this one's parameters and those of `grounding`, all of them shared.

        Saved, it is a folder as GLIGEN's are published. This UNet stays as it is.

        Raises:
            InputError: the grounding part was made for other widths, or is of a kind that no UNet
                folder can hold (keypoints, maps).
        """
        if not isinstance(grounding, Grounding):
            raise InputTypeError(f"grounding={shown(grounding)} is no Grounding")
        c = grounding.config
        kind = c.attention_type
        if kind is None or c.extra_channels not in (0, self.config.in_channels - c.in_channels):
            raise InputError(
                f"grounding weights of kind {c.kind!r} with {c.extra_channels} input channels of "
                "their own have no place in a UNet folder; save them as a folder of their own"
            )
        grounding.require_fit(self)
        config = replace(self.config, attention_type=kind)
        return UNet2DConditionModel.sharing(config, grounding, self)

    def without_grounding(self) -> UNet2DConditionModel:
        """The plain UNet of a gated one, which shares its parameters."""
        config = replace(self.config, attention_type="default")
        return UNet2DConditionModel.sharing(config, self)

    @returning
    @checked
    def forward(
        self,
        sample: Array,
        timestep: Any,
        encoder_hidden_states: Array,
        class_labels: Array | None = None,
        timestep_cond: Array | None = None,
        attention_mask: None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        down_block_additional_residuals: tuple[Array, ...] | None = None,
        mid_block_additional_residual: Array | None = None,
        down_intrablock_additional_residuals: None = None,
        encoder_attention_mask: Array | None = None,
        return_dict: Literal[True] = True,
        sites: Sites = NO_SITES,
    ) -> UNet2DConditionOutput | tuple[Any, ...]:
        """One call of the network.

        Args:
            sample: latents `(batch, in_channels, height, width)`.
            timestep: a number, or one per image `(batch,)`, in 0 .. 999.
            encoder_hidden_states: text context `(batch, tokens, cross_attention_dim)`.
            encoder_attention_mask: `(batch, tokens)`, true where a token counts.
            cross_attention_kwargs: of a gated UNet `{"gligen": boxes}`, which position networks of
                diffusers take: `boxes (batch, n, 4)`, `masks (batch, n)` and, with `attention_type`
                "gated", `positive_embeddings (batch, n, width)`, else `phrases_embeddings`,
                `image_embeddings` and their `phrases_masks`, `image_masks`. A loop does better to
                prepare `sites`: what boxes say is the same at each call.
            sites: what controls do inside this call.

        Raises:
            InputError: an argument that this UNet has no use for.
        """
        if isinstance(added_cond_kwargs, Mapping) and not added_cond_kwargs:
            added_cond_kwargs = None
        for name, value in (
            ("attention_mask", attention_mask),
            ("added_cond_kwargs", added_cond_kwargs),
            ("down_intrablock_additional_residuals", down_intrablock_additional_residuals),
        ):
            if value is not None:
                raise InputError(f"{name} is not used by this UNet; pass `sites` instead")
        nn, c = self.nn, self.config
        if not isinstance(sites, Sites):
            raise InputTypeError(f"sites={shown(sites)} is no Sites")
        if not isinstance(cross_attention_kwargs, Mapping | None):
            raise InputTypeError(
                f"cross_attention_kwargs={shown(cross_attention_kwargs)} is no mapping"
            )
        self._take("sample", sample, None, None, None, None)
        rows, hidden = sample.shape[0], encoder_hidden_states
        self._take("encoder_hidden_states", hidden, rows, None, c.cross_attention_dim)
        if encoder_attention_mask is not None:
            self._take("encoder_attention_mask", encoder_attention_mask, rows, None, floating=False)
        times = self._times(timestep, rows)
        times = nn.expand(times.reshape(-1), (sample.shape[0],))
        mask = None
        if encoder_attention_mask is not None:
            mask = nn.cast((1 - nn.cast(encoder_attention_mask, sample)) * -10000.0, sample)
            mask = mask[:, None, None]
        if down_block_additional_residuals is not None or mid_block_additional_residual is not None:
            self._check_residuals(down_block_additional_residuals, mid_block_additional_residual)
            sites = replace(
                sites,
                down_residuals=down_block_additional_residuals,
                mid_residual=mid_block_additional_residual,
            )
        if cross_attention_kwargs:
            sites = sites + self._with_boxes(cross_attention_kwargs)
        temb = unet.embed_time(nn, self, self.config, times, sample, class_labels, timestep_cond)
        context = encoder_hidden_states
        how = self._framework.recomputed if self.gradient_checkpointing else unet.at_once
        out = unet.unet(nn, self, self.config, sample, temb, context, sites, mask, how)
        return UNet2DConditionOutput(out) if return_dict else (out,)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def _check_residuals(self, down: Any, mid: Any) -> None:
        if down is not None:
            listed = checks.sequence("down_block_additional_residuals", down, "arrays")
            if not listed:
                raise InputError("down_block_additional_residuals is empty; give None, or all")
            for one in listed:
                self._take("down_block_additional_residuals", one, None, None, None, None)
        if mid is not None:
            self._take("mid_block_additional_residual", mid, None, None, None, None)

    def _with_boxes(self, given: Mapping[str, Any]) -> Sites:
        """What acts for the boxes in diffusers' `cross_attention_kwargs`; tokens are as many as are
        given, for diffusers pads by itself."""
        gated = self.config.attention_type == "gated"
        names = ["boxes", "masks", "positive_embeddings"]
        if not gated:
            names[2:] = ["phrases_embeddings", "phrases_masks", "image_embeddings", "image_masks"]
        told = given.get("gligen")
        if self.config.attention_type == "default" or set(given) != {"gligen"}:
            raise InputError(
                f"cross_attention_kwargs is not used by this UNet as {given!r:.100}; allowed: "
                "'gligen', on a UNet with grounding layers. Pass `sites` instead"
            )
        if not isinstance(told, Mapping) or set(told) != set(names):
            raise InputError(
                f"cross_attention_kwargs['gligen']={told!r:.100}; needed are {', '.join(names)}"
            )
        arrays = [self._framework.array(told[name], device=self.device) for name in names]
        nn, c = self.nn, GroundingConfig.for_unet(self.config, limit=arrays[0].shape[1])
        tokens = grounding.box_tokens(nn, self, c, *arrays)
        return grounding_sites.sites(self, c, grounding.constants(nn, self, c, tokens))


def as_unet(value: Any) -> UNet2DConditionModel:
    """A UNet, as the argument `unet` of other networks has to be.

    Raises:
        InputTypeError: it is something else.
    """
    if not isinstance(value, UNet2DConditionModel):
        raise InputTypeError(f"unet={shown(value)} is no UNet2DConditionModel")
    return value
