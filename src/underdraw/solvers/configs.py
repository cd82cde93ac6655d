"""What `scheduler_config.json` may say, per class: names, order and defaults as published, and in
the annotations what is allowed (`schema.py`).

What depends on the steps of a run as well is checked where tables are made (`spaced`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from underdraw.errors import InputError
from underdraw.schema import Length, OneOf, Range, Schema
from underdraw.solvers.schedule import BETA_SCHEDULES
from underdraw.solvers.table import PREDICTION_TYPES, SPACINGS, Clip

MOST_TIMESTEPS = 100_000
"""Of training; published models have 1000."""

Timesteps = Annotated[int, Range(1, MOST_TIMESTEPS)]
Offset = Annotated[int, Range(0, MOST_TIMESTEPS)]
Beta = Annotated[float, Range(0, below=1)]
Betas = Annotated[tuple[Beta, ...], Length(1, MOST_TIMESTEPS)] | None
BetaSchedule = Annotated[str, OneOf(*BETA_SCHEDULES)]
Prediction = Annotated[str, OneOf(*PREDICTION_TYPES)]
Spacing = Annotated[str, OneOf(*SPACINGS)]
FinalSigma = Annotated[str, OneOf("zero", "sigma_min")]
Bound = Annotated[float, Range(above=0, high=1e6)]
Sigma = Annotated[float, Range(0, 1e6)]
Fraction = Annotated[float, Range(0, 1)]
Shift = Annotated[str, OneOf("exponential", "linear")]
Order = Annotated[int, OneOf(1, 2, 3)]
Lambda = Annotated[float, Range(-math.inf, 1000)]
Variance = Annotated[str, OneOf("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")]
Off = Annotated[bool, OneOf(False)]

# Values of a related class stand for one of this class.
THEIR_TYPE = dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")
DPMType = Annotated[str, OneOf("midpoint", "heun", meaning=THEIR_TYPE)]
DEIS = {"deis": "dpmsolver++"}


@dataclass(frozen=True)
class Config(Schema):
    """The noise schedule, for all classes."""

    num_train_timesteps: Timesteps = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: Betas = None

    def check(self) -> None:
        switched = [name for name in GRID_SWITCHES if getattr(self, name, False)]
        if len(switched) > 1:
            raise InputError(f"{' and '.join(switched)} are both True; allowed: one of them")
        betas = self.trained_betas
        if betas is not None and len(betas) != self.num_train_timesteps:
            raise InputError(
                f"trained_betas has {len(betas)} entries; allowed: one per training timestep, "
                f"num_train_timesteps={self.num_train_timesteps}"
            )
        low, high = getattr(self, "sigma_min", None), getattr(self, "sigma_max", None)
        if low is not None and high is not None and low >= high:
            raise InputError(f"sigma_min={low} is not below sigma_max={high}")

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
    variance_type: Variance | None = "fixed_small"
    """None, as DPM-Solver's configurations have it, is "fixed_small"."""
    clip_sample: bool = True
    prediction_type: Prediction = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: Fraction = 0.995
    clip_sample_range: Bound = 1.0
    sample_max_value: Bound = 1.0
    timestep_spacing: Spacing = "leading"
    steps_offset: Offset = 0
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class DDIMConfig(Config):
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: Offset = 0
    prediction_type: Prediction = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: Fraction = 0.995
    clip_sample_range: Bound = 1.0
    sample_max_value: Bound = 1.0
    timestep_spacing: Spacing = "leading"
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class DDIMInverseConfig(Config):
    clip_sample: bool = True
    set_alpha_to_one: bool = True
    steps_offset: Offset = 0
    prediction_type: Prediction = "epsilon"
    clip_sample_range: Bound = 1.0
    timestep_spacing: Annotated[str, OneOf("leading", "trailing")] = "leading"
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class PNDMConfig(Config):
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    # Sums of clean images at different noise levels mean nothing, so there is no "sample".
    prediction_type: Annotated[str, OneOf("epsilon", "v_prediction")] = "epsilon"
    timestep_spacing: Spacing = "leading"
    steps_offset: Offset = 0


@dataclass(frozen=True)
class EulerConfig(Config):
    prediction_type: Annotated[
        str, OneOf(*PREDICTION_TYPES, meaning={"original_sample": "sample"})
    ] = "epsilon"
    interpolation_type: Annotated[str, OneOf("linear", "log_linear")] = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None
    timestep_spacing: Spacing = "linspace"
    timestep_type: Annotated[str, OneOf("discrete", "continuous")] = "discrete"
    steps_offset: Offset = 0
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: FinalSigma = "zero"


@dataclass(frozen=True)
class EulerAncestralConfig(Config):
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class LMSConfig(Config):
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0


@dataclass(frozen=True)
class HeunConfig(Config):
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    prediction_type: Prediction = "epsilon"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    clip_sample: bool = False
    clip_sample_range: Bound = 1.0
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0


@dataclass(frozen=True)
class KDPM2Config(Config):
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0


@dataclass(frozen=True)
class _MultistepConfig(Config):
    solver_order: Order = 2
    prediction_type: Prediction = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: Fraction = 0.995
    sample_max_value: Bound = 1.0


@dataclass(frozen=True)
class DPMMultistepConfig(_MultistepConfig):
    algorithm_type: Annotated[
        str,
        OneOf("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", meaning=DEIS),
    ] = "dpmsolver++"
    solver_type: DPMType = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: Off = False
    flow_shift: Bound = 1.0
    final_sigmas_type: FinalSigma = "zero"
    lambda_min_clipped: Lambda = -math.inf
    variance_type: Variance | None = None
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: Off = False
    time_shift_type: Shift = "exponential"

    def check(self) -> None:
        super().check()
        if self.algorithm_type == "sde-dpmsolver" and self.solver_order == 3:
            raise InputError(
                "solver_order=3 does not exist for algorithm_type='sde-dpmsolver'; allowed: 1, 2"
            )
        _check_final_sigma(self.algorithm_type, self.final_sigmas_type)


@dataclass(frozen=True)
class DPMSinglestepConfig(_MultistepConfig):
    algorithm_type: Annotated[
        str, OneOf("dpmsolver++", "dpmsolver", "sde-dpmsolver++", meaning=DEIS)
    ] = "dpmsolver++"
    solver_type: DPMType = "midpoint"
    lower_order_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: Off = False
    flow_shift: Bound = 1.0
    final_sigmas_type: FinalSigma = "zero"
    lambda_min_clipped: Lambda = -math.inf
    variance_type: Variance | None = None
    use_dynamic_shifting: Off = False
    time_shift_type: Shift = "exponential"

    def check(self) -> None:
        super().check()
        _check_final_sigma(self.algorithm_type, self.final_sigmas_type)


@dataclass(frozen=True)
class DPMInverseConfig(_MultistepConfig):
    # Noise cannot be taken out of an image again: the stochastic variants have no inverse.
    algorithm_type: Annotated[str, OneOf("dpmsolver++", "dpmsolver", meaning=DEIS)] = "dpmsolver++"
    solver_type: DPMType = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: Off = False
    flow_shift: Bound = 1.0
    lambda_min_clipped: Lambda = -math.inf
    variance_type: Variance | None = None
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0


@dataclass(frozen=True)
class UniPCConfig(_MultistepConfig):
    solver_order: Annotated[int, OneOf(1, 2, 3, 4)] = 2
    predict_x0: bool = True
    solver_type: Annotated[
        str,
        OneOf("bh2", "bh1", meaning=dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")),
    ] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[Annotated[int, Range(-1, MOST_TIMESTEPS)], ...] = ()
    solver_p: None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: Off = False
    flow_shift: Bound = 1.0
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0
    final_sigmas_type: FinalSigma = "zero"
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: Off = False
    time_shift_type: Shift = "exponential"
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None
    shift_terminal: None = None


@dataclass(frozen=True)
class DEISConfig(_MultistepConfig):
    algorithm_type: Annotated[
        str, OneOf("deis", meaning=dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"))
    ] = "deis"
    solver_type: Annotated[
        str,
        OneOf("logrho", meaning=dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho")),
    ] = "logrho"
    lower_order_final: bool = True
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: Off = False
    flow_shift: Bound = 1.0
    timestep_spacing: Spacing = "linspace"
    steps_offset: Offset = 0
    use_dynamic_shifting: Off = False
    time_shift_type: Shift = "exponential"


@dataclass(frozen=True)
class LCMConfig(Config):
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    original_inference_steps: Timesteps = 50
    clip_sample: bool = False
    clip_sample_range: Bound = 1.0
    set_alpha_to_one: bool = True
    steps_offset: Offset = 0
    prediction_type: Prediction = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: Fraction = 0.995
    sample_max_value: Bound = 1.0
    timestep_spacing: Spacing = "leading"
    timestep_scaling: Annotated[float, Range(0, 1e6)] = 10.0
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
