"""The methods of pipelines about LoRAs, under diffusers' names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.deltas import together
from underdraw.controls.lora import KIND
from underdraw.errors import InputError
from underdraw.models.merging import merged_into
from underdraw.pipelines.components.adapters import Adaptable
from underdraw.pipelines.components.lora_mix import NETWORKS, Mix, read
from underdraw.pipelines.components.registry import uncompiled
from underdraw.pipelines.components.textual_inversion import Wordy
from underdraw.weights.lora.reading import LoraWeights
from underdraw.weights.lora.scales import Scales, as_scales, weighed
from underdraw.weights.lora.writing import write_layers

LOG = logging.getLogger(__name__)


class Tunable(Adaptable, Wordy):
    """LoRAs are loaded under names, act in some amount, can be merged and taken out."""

    @checked
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Any] | LoraWeights,
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        **hub: Any,
    ) -> None:
        """Attach a LoRA, or one of its relatives (LoCon, LoHa, LoKr, IA3, GLoRA, OFT, BOFT, DoRA,
        full differences), and make it the active one; nothing is written into the networks.

        Args:
            pretrained_model_name_or_path_or_dict: a file of diffusers, PEFT, kohya, LyCORIS or
                A1111 (`.safetensors`, or a pickle of which no code is run), a folder or Hub id with
                such a file, or its state dict.
            adapter_name: under which it is known; "default_0", ... if not given. Another of this
                name goes.
            weight_name, subfolder: the file in a folder or repository.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, and
                diffusers' keywords at values that change nothing.

        Raises:
            NotFoundError: there is no such file.
            WeightError: it holds something else, parts that have no place here, or differences that
                do not fit: it was made for another base.
        """
        told = {"weight_name": weight_name, "subfolder": subfolder or "", **hub}
        name, weights = read(
            self.parts, pretrained_model_name_or_path_or_dict, name=adapter_name, **told
        )
        self._require_not_merged(name)
        for word, held in weights.embeddings.items():
            if word.lower() not in map(str.lower, self.parts.learned):
                self.load_textual_inversion(dict(held), word)
                LOG.info("%s brings the word %r along", name, word)
        self.parts.attached.attach(self.parts, KIND, name, weights)
        self.parts.mix = replace(self.parts.mix, active={name: Scales()})

    @checked
    def unload_lora_weights(self, reset_to_overwritten_params: bool = False) -> None:
        """Detach all LoRAs, merged ones included: calls give the bits from before."""
        self.unfuse_lora()
        self.parts.mix = Mix()
        self.parts.attached.detach(self.parts, KIND, None)

    @checked
    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Mapping[str, Any] | Sequence[Any] | None = None,
    ) -> None:
        """Say which LoRAs act in calls, and how much; all others do not. `controls.Lora` gives each
        image of a batch an amount of its own.

        Args:
            adapter_names: those that act, in any number; none for an empty list.
            adapter_weights: a number or diffusers' mapping of blocks to numbers, such as
                `{"text_encoder": 0.5, "unet": {"down": 0.9, "up": {"block_1": [0.4, 0.8]}}}`, for
                all of them or, as a list, for each; 1 if not given.

        Raises:
            InputError, InputTypeError: a name is not attached, or a weight is no number.
        """
        names = self._attached(adapter_names)
        if len(set(names)) < len(names):
            raise InputError(f"adapter_names={names} has a name twice")
        given = adapter_weights
        each = list(given) if isinstance(given, list | tuple) else [given] * len(names)
        if len(each) != len(names):
            raise InputError(
                f"adapter_weights has {len(each)} entries; there are {len(names)} names"
            )
        active = {
            name: as_scales("adapter_weights", 1.0 if one is None else one)
            for name, one in zip(names, each, strict=True)
        }
        self.parts.mix = replace(self.parts.mix, active=active, enabled=True)

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRAs that act in calls."""
        there = self.parts.attached.of(self.parts, KIND)
        return [name for name in self.parts.mix.active if name in there]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the attached LoRAs by the network that they change."""
        there = self.parts.attached.of(self.parts, KIND)
        listed = {
            component: [name for name, one in there.items() if getattr(one, component)]
            for component in NETWORKS
        }
        return {component: names for component, names in listed.items() if names}

    def enable_lora(self) -> None:
        """Let the active LoRAs act again."""
        self.parts.mix = replace(self.parts.mix, enabled=True)

    def disable_lora(self) -> None:
        """Let none act until `enable_lora`; those that are merged stay merged."""
        self.parts.mix = replace(self.parts.mix, enabled=False)

    @checked
    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Detach LoRAs by name.

        Raises:
            InputError: one of them is not attached, or merged.
        """
        names = self._attached(adapter_names)
        for name in names:
            self._require_not_merged(name)
        for name in names:
            self.parts.attached.detach(self.parts, KIND, name)
        mix = self.parts.mix
        active = {name: scales for name, scales in mix.active.items() if name not in names}
        self.parts.mix = replace(mix, active=active)

    @checked
    def set_lora_device(self, adapter_names: Sequence[str], device: Any) -> None:
        """Nothing: LoRAs are brought to where a call computes, and stay small beside it."""
        self._attached(adapter_names)

    # -- merging ----------------------------------------------------------------------------------
    @checked
    def fuse_lora(
        self,
        components: Sequence[str] = NETWORKS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Merge LoRAs into the pipeline's networks, so that they cost nothing more. The networks
        before are kept, and `unfuse_lora` brings them back to the bit; other pipelines that share
        them do not change. What is merged already is merged anew with what is added.

        Args:
            components: "unet", "text_encoder", or both.
            lora_scale: a factor for all of them.
            safe_fusing: whether NaN or infinity in a merged weight is an error.
            adapter_names: which ones; the active ones if not given.

        Raises:
            InputError, InputTypeError: an argument cannot work, or a name is not attached.
            ControlError: with `safe_fusing`, a merged weight is not finite.
        """
        factor = checks.factor("lora_scale", lora_scale)
        for component in checks.sequence("components", components, "names of networks"):
            checks.choice("components", component, NETWORKS)
        there = self.parts.attached.of(self.parts, KIND)
        mix: Mix = self.parts.mix
        if adapter_names is None:
            chosen = mix.acting(there)
        else:
            chosen = {
                name: mix.active.get(name, Scales()) for name in self._attached(adapter_names)
            }
            for name in chosen:
                self._require_not_merged(name)
        if not chosen:
            return
        fused = dict(mix.fused)
        for component in components:
            network = self.parts.named.get(component)
            if network is None:
                continue
            deltas = together(
                *(
                    weighed(getattr(there[name], component), component, scales, factor)
                    for name, scales in chosen.items()
                )
            )
            if not deltas:
                continue
            made = merged_into(uncompiled(network), deltas, safe_fusing)
            before = fused[component][0] if component in fused else network
            fused[component] = (before, made)
        for component, (_, made) in fused.items():
            self.parts.named[component] = made
        self.parts.mix = replace(mix, fused=fused, merged=mix.merged | set(chosen))

    @checked
    def unfuse_lora(self, components: Sequence[str] = NETWORKS) -> None:
        """Bring the networks back as they were before `fuse_lora`, to the bit."""
        for component in checks.sequence("components", components, "names of networks"):
            checks.choice("components", component, NETWORKS)
        mix: Mix = self.parts.mix
        fused = dict(mix.fused)
        for component in components:
            if component not in fused:
                continue
            before, made = fused.pop(component)
            if self.parts.named.get(component) is made:  # or it was exchanged since
                self.parts.named[component] = before
        self.parts.mix = replace(mix, fused=fused, merged=mix.merged if fused else frozenset())

    @property
    def num_fused_loras(self) -> int:
        """How many LoRAs are merged into the networks."""
        return len(self.parts.mix.merged)

    @property
    def fused_loras(self) -> set[str]:
        """Names of those that are merged."""
        return set(self.parts.mix.merged)

    # -- files ------------------------------------------------------------------------------------
    @classmethod
    @checked
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        unet_lora_layers: Mapping[str, Any] | None = None,
        text_encoder_lora_layers: Mapping[str, Any] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Any = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write state dicts of LoRA layers as one file that diffusers and `load_lora_weights` read;
        `pipe.save_adapter("lora", target, name)` writes one that is attached.

        Args:
            unet_lora_layers, text_encoder_lora_layers: tensors by name, as PEFT gives them.
            weight_name: of the file, by default diffusers'.
            unet_lora_adapter_metadata, text_encoder_lora_adapter_metadata: PEFT's settings, which
                hold alphas.

        Raises:
            InputError: there are no layers, or an argument asks for something that is not written.
        """
        if save_function is not None or not safe_serialization:
            raise InputError(
                "save_function and safe_serialization=False are not taken; underdraw writes "
                "safetensors"
            )
        if not is_main_process:
            return
        write_layers(
            save_directory,
            {"unet": unet_lora_layers, "text_encoder": text_encoder_lora_layers},
            {
                "unet": unet_lora_adapter_metadata,
                "text_encoder": text_encoder_lora_adapter_metadata,
            },
            weight_name,
        )

    def _attached(self, names: Any) -> list[str]:
        """One name or several, all of them attached."""
        there = self.parts.attached.of(self.parts, KIND)
        listed = [names] if isinstance(names, str) else names
        for name in (found := checks.sequence("adapter_names", listed, "names of LoRAs")):
            if not checks.is_one_of(name, tuple(there)):
                known = ", ".join(f"{one!r:.60}" for one in list(there)[:9]) or "none"
                raise InputError(
                    f"adapter_names has {checks.shown(name)}, which is not attached; attached: "
                    f"{known}"
                )
        return found

    def _require_not_merged(self, name: str) -> None:
        if name in self.parts.mix.merged:
            raise InputError(
                f"adapter_name={name!r} is merged into the networks; call unfuse_lora() before"
            )
