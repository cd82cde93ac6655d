"""The familiar scheduler classes: shells around the tables of `underdraw.solvers`."""

from underdraw.schedulers.base import Scheduler as Scheduler
from underdraw.schedulers.classes import (
    DDIMInverseScheduler as DDIMInverseScheduler,
    DDIMScheduler as DDIMScheduler,
    DDPMScheduler as DDPMScheduler,
    DEISMultistepScheduler as DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler as DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler as DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler as EulerDiscreteScheduler,
    HeunDiscreteScheduler as HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler as KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler as KDPM2DiscreteScheduler,
    LCMScheduler as LCMScheduler,
    LMSDiscreteScheduler as LMSDiscreteScheduler,
    PNDMScheduler as PNDMScheduler,
    TCDScheduler as TCDScheduler,
    UniPCMultistepScheduler as UniPCMultistepScheduler,
)

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
