"""Keywords of diffusers' loading and saving calls that mean nothing here, at their neutral values.

Code written for diffusers passes them by habit. At a value under which diffusers would give what we
give they are accepted; anything else is refused by name before work starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from underdraw.errors import InputTypeError

LOADING: dict[str, tuple[Any, ...]] = {
    "low_cpu_mem_usage": (None, False, True),  # weights stay in their file until used, always
    "disable_mmap": (None, False),
    "device_map": (None,),
    "max_memory": (None,),
    "offload_folder": (None,),
    "offload_state_dict": (None, False),
    "output_loading_info": (None, False),
    "ignore_mismatched_sizes": (None, False),
    "quantization_config": (None,),
    "parallel_config": (None,),
    "dduf_file": (None,),
    "dduf_entries": (None,),
    "attn_implementation": (None, "sdpa"),
    "from_flax": (None, False, True),  # its weights are read where there are no others
    "from_tf": (None, False),
    "use_onnx": (None, False),
    "use_flashpack": (None, False),
    "custom_pipeline": (None,),
    "custom_revision": (None,),
    "trust_remote_code": (None, False),
    "resume_download": (None, False, True),  # what was fetched is always kept
    "proxies": (None,),
    "mirror": (None,),
    "local_dir": (None,),
    "local_dir_use_symlinks": (None, False, True, "auto"),
    "use_auth_token": (None,),
    "user_agent": (None,),
}
"""Keywords of `from_pretrained` and the values that change nothing."""

SAVING: dict[str, tuple[Any, ...]] = {
    "push_to_hub": (None, False),
    "save_function": (None,),
    "state_dict": (None,),
    "repo_id": (None,),
    "token": (None,),
    "use_flashpack": (None, False),
    "save_peft_format": (None, False, True),
}
"""Keywords of `save_pretrained` and the values that change nothing."""

HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Keywords of `weights.hub.resolve` that users give."""


def drop_neutral(
    call: str,
    options: Mapping[str, Any],
    neutral: Mapping[str, tuple[Any, ...]] = LOADING,
    known: tuple[str, ...] = HUB,
) -> dict[str, Any]:
    """The `options` of `call` that are `known`; neutral ones are left out.

    Raises:
        InputTypeError: a keyword is neither, or has a value that would have to change something.
    """
    kept = {}
    for name, value in options.items():
        if name in known:
            kept[name] = value
        elif name not in neutral:
            raise InputTypeError(
                f"{call} has no argument {name!r}; besides its own there are "
                f"{', '.join((*known, *neutral))}"
            )
        elif not any(type(value) is type(a) and value == a for a in neutral[name]):
            allowed = ", ".join(map(repr, neutral[name]))
            raise InputTypeError(f"{call}: {name}={value!r} is not supported; allowed: {allowed}")
    return kept
