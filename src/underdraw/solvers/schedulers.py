"""The familiar scheduler classes: a configuration, a table, and what sets each apart."""

from __future__ import annotations

from underdraw.solvers import (
    configs,
    ddim,
    dpm_solver,
    euler,
    pndm,
)
from underdraw.solvers.scheduler import Scheduler


class DDIMScheduler(Scheduler):
    """Song et al. 2020. Options of `step` and `make_table`: `eta`, `use_clipped_model_output`."""

    Config = configs.DDIMConfig
    build = staticmethod(ddim.ddim_table)
    options = ("eta", "use_clipped_model_output")
    stateless = True


class DDIMInverseScheduler(Scheduler):
    """DDIM upwards, from an image to the noise it came from."""

    Config = configs.DDIMInverseConfig
    build = staticmethod(ddim.ddim_inverse_table)
    stateless = True


class PNDMScheduler(Scheduler):
    """Liu et al. 2022: pseudo Runge-Kutta steps first, unless `skip_prk_steps`, then multistep."""

    Config = configs.PNDMConfig
    build = staticmethod(pndm.pndm_table)
    remembers = True
    second = None


class EulerDiscreteScheduler(Scheduler):
    """Karras et al. 2022, algorithm 1 or 2 (options `s_churn`, `s_tmin`, `s_tmax`, `s_noise`)."""

    Config = configs.EulerConfig
    build = staticmethod(euler.euler_table)
    custom = ("timesteps", "sigmas")
    options = ("s_churn", "s_tmin", "s_tmax", "s_noise")
    smallest = 2.0**-24
    space = "sigma"
    whole = False


class EulerAncestralDiscreteScheduler(Scheduler):
    Config = configs.EulerAncestralConfig
    build = staticmethod(euler.euler_ancestral_table)
    smallest = 2.0**-24
    space = "sigma"
    whole = False


class DPMSolverMultistepScheduler(Scheduler):
    """Lu et al. 2022: DPM-Solver and DPM-Solver++, orders 1 to 3, deterministic or stochastic."""

    Config = configs.DPMMultistepConfig
    build = staticmethod(dpm_solver.dpm_multistep_table)
    custom = ("timesteps",)
    remembers = True
    smallest = 2.0**-24
    space = "lambda"
    second = None
    noise_like = "float32"


class DPMSolverMultistepInverseScheduler(Scheduler):
    """DPM-Solver upwards, from an image to the noise it came from."""

    Config = configs.DPMInverseConfig
    build = staticmethod(dpm_solver.dpm_inverse_table)
    remembers = True
    space = "lambda"
    second = None


class DPMSolverSinglestepScheduler(Scheduler):
    """Lu et al. 2022: steps in groups of one to three calls."""

    Config = configs.DPMSinglestepConfig
    build = staticmethod(dpm_solver.dpm_singlestep_table)
    custom = ("timesteps",)
    remembers = True
    space = "lambda"
    second = None


def compatible_with(cls: type) -> list[type]:
    """Classes whose configuration `cls.from_config` reads and back: all but the distilled ones."""
    alone = ("DDIMInverseScheduler", "LCMScheduler", "TCDScheduler")
    if cls.__name__ in alone:
        return [cls]
    inverse = "DPMSolverMultistepInverseScheduler"
    every = [each for each in Scheduler.__subclasses__() if each.__name__ not in (*alone, inverse)]
    return every if cls in every else [*every, cls]
