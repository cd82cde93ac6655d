"""What `scheduler_config.json` may say, per class: names, order and defaults as published.

A field that is not validated here is validated where it is used (`noise_schedule`, `spaced`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

from underdraw.errors import InputError
from underdraw.solvers.schedule import BETA_SCHEDULES
from underdraw.solvers.table import PREDICTION_TYPES, SPACINGS, Clip

Betas = Sequence[float] | None


@dataclass(frozen=True)
class Config:
    """The noise schedule, for all classes. Raises InputError on a value not in `allowed`."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Betas = None

    allowed: ClassVar[dict[str, tuple[Any, ...]]] = {}
    aliases: ClassVar[dict[str, dict[str, str]]] = {}
    """Values of a related class which mean one of this class: `{field: {theirs: ours}}`."""

    common: ClassVar[dict[str, tuple[Any, ...]]] = {
        "beta_schedule": tuple(BETA_SCHEDULES),
        "prediction_type": PREDICTION_TYPES,
        "timestep_spacing": SPACINGS,
        "final_sigmas_type": ("zero", "sigma_min"),
        "use_flow_sigmas": (False,),
        "use_dynamic_shifting": (False,),
    }

    def __post_init__(self) -> None:
        names = {each.name for each in fields(self)}
        for name, allowed in {**self.common, **self.allowed}.items():
            value = getattr(self, name) if name in names else allowed[0]
            value = self.aliases.get(name, {}).get(value, value)
            if value not in allowed:
                listed = ", ".join(map(str, allowed))
                raise InputError(f"{name}={value!r} is not supported; allowed: {listed}")
            if name in names:
                object.__setattr__(self, name, value)
        switched = [name for name in GRID_SWITCHES if getattr(self, name, False)]
        if len(switched) > 1:
            raise InputError(f"{' and '.join(switched)} are both True; allowed: one of them")
        _ = self.clip  # bounds that are no numbers are told here

    @cached_property
    def clip(self) -> Clip | None:
        """How the clean image is bounded: thresholding wins over clipping."""
        if getattr(self, "thresholding", False):
            names = ("sample_max_value", "dynamic_thresholding_ratio")
            return Clip(*(float(getattr(self, name)) for name in names))
        if getattr(self, "clip_sample", False):
            return Clip(float(getattr(self, "clip_sample_range", 1.0)))
        return None

    def grid(self) -> str | None:
        """The switch of the σ grid that is on, if any."""
        return next((name for name in GRID_SWITCHES if getattr(self, name, False)), None)


GRID_SWITCHES = (
    "use_karras_sigmas",
    "use_lu_lambdas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)


@dataclass(frozen=True)
class DDPMConfig(Config):
    variance_type: str | None = "fixed_small"
    """None, as DPM-Solver's configurations have it, is "fixed_small"."""
    clip_sample: bool = True
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    allowed: ClassVar = {
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    }


@dataclass(frozen=True)
class DDIMConfig(Config):
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class DDIMInverseConfig(Config):
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    clip_sample_range: float = 1.0
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False

    allowed: ClassVar = {"timestep_spacing": ("leading", "trailing")}


@dataclass(frozen=True)
class PNDMConfig(Config):
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    # Sums of clean images at different noise levels mean nothing.
    allowed: ClassVar = {"prediction_type": ("epsilon", "v_prediction")}


@dataclass(frozen=True)
class EulerConfig(Config):
    prediction_type: str = "epsilon"
    interpolation_type: str = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_spacing: str = "linspace"
    timestep_type: str = "discrete"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: str = "zero"

    allowed: ClassVar = {
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
    }
    aliases: ClassVar = {"prediction_type": {"original_sample": "sample"}}


@dataclass(frozen=True)
class EulerAncestralConfig(Config):
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class LMSConfig(Config):
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0


@dataclass(frozen=True)
class HeunConfig(Config):
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_spacing: str = "linspace"
    steps_offset: int = 0


@dataclass(frozen=True)
class KDPM2Config(Config):
    beta_start: float = 0.00085
    beta_end: float = 0.012
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0


@dataclass(frozen=True)
class _MultistepConfig(Config):
    solver_order: int = 2
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0


@dataclass(frozen=True)
class DPMMultistepConfig(_MultistepConfig):
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -float("inf")
    variance_type: str | None = None
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"

    allowed: ClassVar = {
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun"),
        "solver_order": (1, 2, 3),
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    }
    aliases: ClassVar = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm_type == "sde-dpmsolver" and self.solver_order == 3:
            raise InputError(
                "solver_order=3 does not exist for algorithm_type='sde-dpmsolver'; allowed: 1, 2"
            )
        _check_final_sigma(self.algorithm_type, self.final_sigmas_type)


@dataclass(frozen=True)
class DPMSinglestepConfig(_MultistepConfig):
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -float("inf")
    variance_type: str | None = None
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"

    allowed: ClassVar = {
        **DPMMultistepConfig.allowed,
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
    }
    aliases: ClassVar = DPMMultistepConfig.aliases

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_final_sigma(self.algorithm_type, self.final_sigmas_type)


@dataclass(frozen=True)
class DPMInverseConfig(_MultistepConfig):
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    lambda_min_clipped: float = -float("inf")
    variance_type: str | None = None
    timestep_spacing: str = "linspace"
    steps_offset: int = 0

    # Noise cannot be taken out of an image again: the stochastic variants have no inverse.
    allowed: ClassVar = {
        **DPMMultistepConfig.allowed,
        "algorithm_type": ("dpmsolver++", "dpmsolver"),
    }
    aliases: ClassVar = DPMMultistepConfig.aliases


@dataclass(frozen=True)
class UniPCConfig(_MultistepConfig):
    predict_x0: bool = True
    solver_type: str = "bh2"
    lower_order_final: bool = True
    disable_corrector: Sequence[int] = ()
    solver_p: Any = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    final_sigmas_type: str = "zero"
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"
    sigma_min: float | None = None
    sigma_max: float | None = None
    shift_terminal: float | None = None

    allowed: ClassVar = {
        "solver_type": ("bh2", "bh1"),
        "solver_order": (1, 2, 3, 4),
        "solver_p": (None,),
        "shift_terminal": (None,),
    }
    aliases: ClassVar = {"solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}}


@dataclass(frozen=True)
class DEISConfig(_MultistepConfig):
    algorithm_type: str = "deis"
    solver_type: str = "logrho"
    lower_order_final: bool = True
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"

    allowed: ClassVar = {
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
        "solver_order": (1, 2, 3),
    }
    aliases: ClassVar = {
        "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    }


@dataclass(frozen=True)
class LCMConfig(Config):
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    timestep_scaling: float = 10.0
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class TCDConfig(LCMConfig):
    pass


def _check_final_sigma(algorithm_type: str, final_sigmas_type: str) -> None:
    if not algorithm_type.endswith("++") and final_sigmas_type == "zero":
        raise InputError(
            f"final_sigmas_type='zero' does not work with algorithm_type={algorithm_type!r}; "
            "allowed: sigma_min"
        )
