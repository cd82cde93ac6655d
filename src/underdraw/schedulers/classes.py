"""The familiar scheduler classes: a configuration, a table, and what sets each apart."""

from __future__ import annotations

from functools import partial
from typing import Any

from underdraw import checks
from underdraw.arguments import checked
from underdraw.schedulers.arrays import read_time
from underdraw.schedulers.base import Scheduler
from underdraw.schedulers.published import takes
from underdraw.solvers import (
    configs,
    consistency,
    ddim,
    ddim_inverse,
    ddpm,
    deis,
    dpm_solver,
    euler,
    heun,
    lms,
    pndm,
    unipc,
)
from underdraw.solvers.table import Row

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]


class _LambdaScheduler(Scheduler):
    """A solver in λ = log(alpha_t / sigma_t); the three as tensors over training timesteps."""

    space = "lambda"
    second = None

    @property
    def alpha_t(self) -> Any:
        return self.alphas_cumprod**0.5

    @property
    def sigma_t(self) -> Any:
        return (1 - self.alphas_cumprod) ** 0.5

    @property
    def lambda_t(self) -> Any:
        return (self.alpha_t / self.sigma_t).log()


class DDIMScheduler(Scheduler):
    """Song et al. 2020. Options of `step` and `make_table`: `eta`, `use_clipped_model_output`."""

    Config = configs.DDIMConfig
    __init__ = takes(Config)
    build = staticmethod(ddim.ddim_table)
    options = ("eta", "use_clipped_model_output")
    positional = ("eta", "use_clipped_model_output", "generator", "variance_noise", "return_dict")
    stateless = True


class DDIMInverseScheduler(Scheduler):
    """DDIM upwards, from an image to the noise it came from."""

    Config = configs.DDIMInverseConfig
    __init__ = takes(Config)
    build = staticmethod(ddim_inverse.ddim_inverse_table)
    rising = True
    stateless = True


class PNDMScheduler(Scheduler):
    """Liu et al. 2022: pseudo Runge-Kutta steps first, unless `skip_prk_steps`, then multistep."""

    Config = configs.PNDMConfig
    __init__ = takes(Config)
    build = staticmethod(pndm.pndm_table)
    remembers = True
    second = None

    @checked
    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """Of two calls at one timestep the first, as the next call tells (`_row_of`)."""
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        time, listed = read_time(timestep), checks.numbers("schedule_timesteps", known)
        places = [place for place, t in enumerate(listed) if t == time]
        return places[0] if places else super().index_for_timestep(timestep, schedule_timesteps)

    def _row_of(self, timestep: Any, options: dict[str, Any]) -> Row:
        if self.table is not None and self._begin_index is None and self._step_index is not None:
            times, call = self.table.timesteps, self._step_index
            second = call == self._first + 1 < len(times) - 1 and times[call] != timestep
            if second and times[call] == times[call - 1] and times[call + 1] == timestep:
                self._first, self._step_index = call, call + 1
        return super()._row_of(timestep, options)


class EulerDiscreteScheduler(Scheduler):
    """Karras et al. 2022, algorithm 1 or 2 (options `s_churn`, `s_tmin`, `s_tmax`, `s_noise`)."""

    Config = configs.EulerConfig
    __init__ = takes(Config)
    build = staticmethod(euler.euler_table)
    custom = ("timesteps", "sigmas")
    options = ("s_churn", "s_tmin", "s_tmax", "s_noise")
    positional = (*options, "generator", "return_dict")
    smallest = 2.0**-24
    space = "sigma"
    whole = False


class EulerAncestralDiscreteScheduler(Scheduler):
    Config = configs.EulerAncestralConfig
    __init__ = takes(Config)
    build = staticmethod(euler.euler_ancestral_table)
    positional = ("generator", "return_dict")
    smallest = 2.0**-24
    space = "sigma"
    whole = False


class DPMSolverMultistepScheduler(_LambdaScheduler):
    """Lu et al. 2022: DPM-Solver and DPM-Solver++, orders 1 to 3, deterministic or stochastic."""

    Config = configs.DPMMultistepConfig
    __init__ = takes(Config)
    build = staticmethod(dpm_solver.dpm_multistep_table)
    custom = ("timesteps",)
    positional = ("generator", "variance_noise", "return_dict")
    remembers = True
    smallest = 2.0**-24
    noise_like = "float32"


class DPMSolverMultistepInverseScheduler(_LambdaScheduler):
    """DPM-Solver upwards, from an image to the noise it came from."""

    Config = configs.DPMInverseConfig
    __init__ = takes(Config)
    build = staticmethod(dpm_solver.dpm_inverse_table)
    positional = ("generator", "variance_noise", "return_dict")
    rising = True
    remembers = True


class DPMSolverSinglestepScheduler(_LambdaScheduler):
    """Lu et al. 2022: steps in groups of one to three calls."""

    Config = configs.DPMSinglestepConfig
    __init__ = takes(Config)
    build = staticmethod(dpm_solver.dpm_singlestep_table)
    custom = ("timesteps",)
    positional = ("generator", "return_dict")
    remembers = True


class HeunDiscreteScheduler(Scheduler):
    """Karras et al. 2022, algorithm 1: two calls per step."""

    Config = configs.HeunConfig
    __init__ = takes(Config)
    build = staticmethod(heun.heun_table)
    custom = ("timesteps",)
    remembers = True
    order = 2
    space = "sigma"
    whole = False


class KDPM2DiscreteScheduler(Scheduler):
    """DPM-Solver-2 in σ (k-diffusion): two calls per step."""

    Config = configs.KDPM2Config
    __init__ = takes(Config)
    build = staticmethod(heun.dpm2_table)
    remembers = True
    order = 2
    space = "sigma"
    whole = False
    grid_fractions = "float64"


class KDPM2AncestralDiscreteScheduler(Scheduler):
    """DPM-Solver-2 with ancestral noise (k-diffusion)."""

    Config = configs.KDPM2Config
    __init__ = takes(Config)
    build = staticmethod(partial(heun.dpm2_table, ancestral=True))
    positional = ("generator", "return_dict")
    remembers = True
    order = 2
    space = "sigma"
    whole = False
    grid_fractions = "float64"


class LMSDiscreteScheduler(Scheduler):
    """Linear multistep in σ (k-diffusion). Option: `order`, 4 unless given."""

    Config = configs.LMSConfig
    __init__ = takes(Config)
    build = staticmethod(lms.lms_table)
    options = ("order",)
    positional = (*options, "return_dict")
    remembers = True
    space = "sigma"
    whole = False


class UniPCMultistepScheduler(_LambdaScheduler):
    """Zhao et al. 2023: a corrector and a predictor per call."""

    Config = configs.UniPCConfig
    __init__ = takes(Config)
    build = staticmethod(unipc.unipc_table)
    remembers = True
    smallest = 2.0**-24


class DEISMultistepScheduler(_LambdaScheduler):
    """Zhang & Chen 2022, orders 1 to 3."""

    Config = configs.DEISConfig
    __init__ = takes(Config)
    build = staticmethod(deis.deis_table)
    remembers = True


class DDPMScheduler(Scheduler):
    """Ho et al. 2020. Before `set_timesteps` it steps through all training timesteps."""

    Config = configs.DDPMConfig
    __init__ = takes(Config)
    build = staticmethod(ddpm.ddpm_table)
    custom = ("timesteps",)
    positional = ("generator", "return_dict")
    stateless = True

    def _find_row(self, timestep: int, options: dict[str, Any]) -> Row:
        table = self.table or ddpm.ddpm_table(
            self.schedule, self.settings, None, timesteps=self._training_timesteps()
        )
        return table.row(self.index_for_timestep(timestep))


class LCMScheduler(Scheduler):
    """Luo et al. 2023. Options: `original_inference_steps`, `strength`."""

    Config = configs.LCMConfig
    __init__ = takes(Config)
    build = staticmethod(consistency.lcm_table)
    custom = ("timesteps",)
    options = ("original_inference_steps", "strength")
    positional = ("generator", "return_dict")
    second = "denoised"


class TCDScheduler(Scheduler):
    """Zheng et al. 2024. Options: `eta` (γ, 0.3 unless given) and those of LCM."""

    Config = configs.TCDConfig
    __init__ = takes(Config)
    build = staticmethod(consistency.tcd_table)
    custom = ("timesteps",)
    options = ("eta", "original_inference_steps", "strength")
    positional = ("eta", "generator", "return_dict")
    second = "pred_noised_sample"
