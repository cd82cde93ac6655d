"""The names that Flax's users of diffusers 0.33.1 know, over the same networks as everywhere.

Importing this imports no framework; JAX is imported when a network is read or made.
"""

from underdraw.flax.models import (
    FlaxAutoencoderKL as FlaxAutoencoderKL,
    FlaxCLIPTextModel as FlaxCLIPTextModel,
    FlaxControlNetModel as FlaxControlNetModel,
    FlaxStableDiffusionSafetyChecker as FlaxStableDiffusionSafetyChecker,
    FlaxUNet2DConditionModel as FlaxUNet2DConditionModel,
)
from underdraw.flax.params import (
    replicate as replicate,
    shard as shard,
    spread as spread,
    unreplicate as unreplicate,
)
