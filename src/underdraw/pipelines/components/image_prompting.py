"""The methods of pipelines about IP-Adapters, under diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.controls.image_prompt import KIND, MOST_PICTURES, as_scale
from underdraw.controls.image_prompt_run import WHAT
from underdraw.controls.seeing import blank, check_tower, pixels_of, placed, seen
from underdraw.errors import InputError, InputTypeError
from underdraw.models import IPAdapter
from underdraw.pictures.reading import as_picture
from underdraw.pipelines.components.ip_adapter import ENCODER, bring, free, open_ip_adapter
from underdraw.weights.lora.scales import Scales

MOST_IMAGES = 100_000
Source = str | Path | Mapping[str, Any] | IPAdapter


class Promptable:
    """Pictures stand beside prompts where an IP-Adapter is attached."""

    parts: Any
    """`Components`"""

    @checked
    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        subfolder: str | Sequence[Any] | None = None,
        weight_name: str | Sequence[Any] | None = None,
        image_encoder_folder: str | None = ENCODER,
        *,
        adapter_name: str | Sequence[Any] | None = None,
        image_encoder: Any = None,
        shortcut: bool | None = None,
        **hub: Any,
    ) -> None:
        """Attach an IP-Adapter, or several, in place of those that are; the networks stay as they
        are. Calls take pictures as `ip_adapter_image`, or by the control `ImagePrompt`.
        `load_adapter("ip-adapter", ...)` adds one to those that are attached.

        Args:
            pretrained_model_name_or_path_or_dict: a folder or Hub id, a file (`.safetensors`, or a
                pickle of which no code is run) as published or as the original's training writes
                it, its state dict, or an `IPAdapter`; or a list of these.
            subfolder, weight_name: the file in a folder or repository; lists for several.
            image_encoder_folder: where the image tower is, which is read if the pipeline has none
                that serves: in the subfolder, or with a "/" in the repository. None: nowhere.
            image_encoder: the image tower itself.
            adapter_name: under which controls find it, by default the file's own; one for each.
            shortcut: whether a FaceID-plus file is of version 2; None: if its name says so.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, and
                diffusers' keywords at values that change nothing.

        Raises:
            NotFoundError: there is no such file.
            WeightError: it holds something else, half of an IP-Adapter, or damaged numbers.
            InputError, InputTypeError: an argument cannot work, or it was made for another UNet.
        """
        named = {
            "pretrained_model_name_or_path_or_dict": pretrained_model_name_or_path_or_dict,
            "subfolder": subfolder,
            "weight_name": weight_name,
            "adapter_name": adapter_name,
        }
        lists = {
            name: list(value) if isinstance(value, list | tuple) else [value]
            for name, value in named.items()
        }
        count = max(map(len, lists.values()))
        for name, listed in lists.items():
            if len(listed) not in (1, count) or (name == "adapter_name" and None in listed[1:]):
                raise InputError(f"{name} has {len(listed)} entries; there are {count} adapters")
            lists[name] = listed * count if len(listed) == 1 else listed
        found = []
        for source, folder, file, own in zip(*lists.values(), strict=True):
            for argument, given in (("subfolder", folder), ("adapter_name", own)):
                if given is not None and not isinstance(given, str):
                    raise InputTypeError(f"{argument}={checks.shown(given)} is not a text")
            options = {"weight_name": file, "subfolder": folder or "", "shortcut": shortcut}
            options |= {"name": own, "image_encoder_folder": image_encoder_folder}
            options |= {"image_encoder": image_encoder, **hub}
            found.append(open_ip_adapter(self.parts, source, **options))
        self.unload_ip_adapter()
        for one in found:
            name = free(self.parts, one.name)
            self.parts.attached.attach(self.parts, KIND, name, one.adapter)
            bring(self.parts, one)

    @checked
    def set_ip_adapter_scale(self, scale: Any) -> None:
        """Say how much pictures act that calls are given as `ip_adapter_image(_embeds)`; an
        `ImagePrompt` has a scale of its own.

        Args:
            scale: a number, or diffusers' mapping of blocks to numbers, such as `{"down":
                {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}`, in which blocks that
                are not there have 0; or a list with an entry for each adapter, which with masks may
                be a list of one for each picture.

        Raises:
            InputError, InputTypeError: it is something else, or no IP-Adapter is attached.
        """
        there = list(self.parts.attached.of(self.parts, KIND))
        if not there:
            raise InputError("scale: no IP-Adapter is attached; call load_ip_adapter before")
        listed = list(scale) if isinstance(scale, list | tuple) else [scale] * len(there)
        if len(listed) != len(there):
            raise InputError(f"scale has {len(listed)} entries; there are {len(there)} IP-Adapters")

        def scales(value: Any) -> tuple[Scales, ...]:
            each = value if isinstance(value, list | tuple) and value else [value]
            return tuple(as_scale("scale", one) for one in each)

        made = {name: scales(one) for name, one in zip(there, listed, strict=True)}
        self.parts.image_scales = made

    def unload_ip_adapter(self) -> None:
        """Detach all IP-Adapters, and the image tower that came with them: calls give the bits from
        before. A component `image_encoder` stays."""
        self.parts.attached.detach(self.parts, KIND, None)
        self.parts.image_scales = {}

    @checked
    def encode_image(
        self,
        image: Any,
        device: Any = None,
        num_images_per_prompt: int = 1,
        output_hidden_states: bool | None = None,
    ) -> tuple[Array, Array]:
        """What the image tower gives for pictures, and what stands for none: embeddings
        `(pictures * images, width)` and zeros, or hidden states `(pictures * images, tokens,
        width)` of the pictures and of a blank one.

        Args:
            image: a picture or a list of them, or normalised pixels `(pictures, 3, side, side)` of
                the framework.
            device: diffusers'; the tower knows its own.

        Raises:
            InputError, InputTypeError: it is no picture, or the pipeline has no image tower.
        """
        checks.device("device", device)
        repeats = checks.whole("num_images_per_prompt", num_images_per_prompt, 1, MOST_IMAGES)
        if not self.parts.towers:
            raise InputError("image: image_encoder=None, which sees pictures")
        tower = self.parts.towers[0]
        return self._seen(image, tower, pooled=not output_hidden_states, repeats=repeats)

    def _seen(self, image: Any, tower: Any, pooled: bool, repeats: int) -> tuple[Array, Array]:
        parts, nn = self.parts, self.parts.nn
        with parts.framework.no_grad():
            made = seen(parts, tower, self._pixels("image", image, tower), pooled)
            if pooled:
                nothing = made * 0
            else:
                nothing = nn.expand(seen(parts, tower, blank(parts, tower), False), made.shape)
            return _repeated(nn, made, repeats), _repeated(nn, nothing, repeats)

    @checked
    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: Any = None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
    ) -> list[Array]:
        """For each IP-Adapter what `ip_adapter_image_embeds` takes: `(images, pictures, width)` or
        `(images, pictures, tokens, width)`, under guidance with the unconditional half in front.

        Args:
            ip_adapter_image: a picture, or a list with pictures, or lists of them, for each.
            ip_adapter_image_embeds: the same of one image, to be repeated.

        Raises:
            InputError, InputTypeError: there are more or fewer entries than IP-Adapters.
        """
        checks.device("device", device)
        images = checks.whole("num_images_per_prompt", num_images_per_prompt, 1, MOST_IMAGES)
        there, nn = list(self.parts.attached.of(self.parts, KIND).values()), self.parts.nn
        guided, made = do_classifier_free_guidance, []
        if ip_adapter_image_embeds is None:
            listed = one_each("ip_adapter_image", ip_adapter_image, len(there))
            for image, adapter in zip(listed, there, strict=True):
                c = adapter.config
                tower = check_tower(self.parts, c.pooled, c.feature_width, WHAT)
                found = self._seen(image, tower, pooled=c.pooled, repeats=1)
                halves = [one[None] for one in found[::-1]] if guided else [found[0][None]]
                made.append(halves)
        else:
            name = "ip_adapter_image_embeds"
            for array in one_each(name, ip_adapter_image_embeds, len(there)):
                if not self.parts.framework.is_array(array) or len(array.shape) not in (3, 4):
                    raise InputError(
                        f"{name} holds {checks.shown(array)}; needed are arrays (images, pictures, "
                        "width) or (images, pictures, tokens, width)"
                    )
                half = array.shape[0] // 2
                if guided and (not half or array.shape[0] % 2):
                    raise InputError(
                        f"{name} holds {array.shape[0]} rows; needed are both halves, the "
                        "unconditional one first"
                    )
                made.append([array[:half], array[half:]] if guided else [array])
        return [nn.concat([nn.concat((x,) * images, 0) for x in halves], 0) for halves in made]

    def _pixels(self, name: str, image: Any, tower: Any) -> Array:
        framework, side = self.parts.framework, tower.config.image_size
        if framework.is_array(image) and len(image.shape) == 4:
            checks.array(name, image, (None, 3, side, side), framework)
            return placed(self.parts, tower, image)
        listed = image if isinstance(image, list | tuple) else [image]
        if not 1 <= len(listed) <= MOST_PICTURES:
            raise InputError(f"{name} holds {len(listed)} pictures; allowed: 1 .. {MOST_PICTURES}")
        return pixels_of(self.parts, tower, [as_picture(name, one) for one in listed])


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """An entry for each IP-Adapter; what is no list is the only one.

    Raises:
        InputError: there are more or fewer, or there is no IP-Adapter.
    """
    listed = list(value) if isinstance(value, list | tuple) else [value]
    if not count:
        raise InputError(f"{name}: no IP-Adapter is attached; call load_ip_adapter before")
    if len(listed) != count:
        more = "; several pictures for one are a list in the list" if count == 1 else ""
        raise InputError(
            f"{name} has {len(listed)} entries; there are {count} IP-Adapters, allowed: one for "
            f"each{more}"
        )
    return listed


def _repeated(nn: Any, x: Array, times: int) -> Array:
    """Each row so many times, one behind the other."""
    spread = nn.expand(x[:, None], (x.shape[0], times, *x.shape[1:]))
    return spread.reshape(x.shape[0] * times, *x.shape[1:])
