"""Where an unconditional context leads a guided call, and what would lead it nearer to a goal: what
null-text inversion asks again and again (Mokady et al. 2023, algorithm 1), as one program."""

from __future__ import annotations

from dataclasses import dataclass

from underdraw import backends
from underdraw.backends.contract import Array, Node, Operations
from underdraw.networks import unet
from underdraw.networks.config import UNetConfig
from underdraw.networks.program import Program
from underdraw.networks.sites import Sites
from underdraw.sampling.guidance import Guidance, guide
from underdraw.sampling.whole import unet_context


@dataclass(frozen=True, eq=False)
class Aim:
    """A call and where it shall end; arrays `(images, channels, height, width)`, float32."""

    begin: Array
    """The latents of the call."""
    goal: Array
    conditional: Array
    """What the network says under the prompt."""
    guidance: Guidance
    of_begin: float
    of_output: float
    """The call ends at `of_begin * begin + of_output * (what the network says, guided)`."""


def nearer(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    context: Array,
    x: Array,
    time: unet.Time,
    sites: Sites,
    aim: Aim,
) -> tuple[Array, Array, Array]:
    """The gradient of the mean squared distances to the goal, summed, for images do not depend on
    each other; each of them `(images, 1, 1, 1)`; where the call ends.

    Args:
        context: the unconditional one, `(images, tokens, width)` float32.
        x, time, sites: the rest of what the network takes for it, as `unet.Inputs` has them.
    """
    chosen = {path: delta for path, delta in sites.leaves.items() if unet_context(path)}

    def lead(context: Array) -> tuple[Array, tuple[Array, Array]]:
        read = nn.cast(context, x)
        known = read
        if not sites.context:
            known = unet.context_constants(nn, p, config, read, chosen)
        said = nn.float32(unet.UNET(nn, p, config, x, time, known, sites).sample)
        guided = guide(nn, aim.guidance, nn.concat((said, aim.conditional), 0))
        ends = aim.of_begin * aim.begin + aim.of_output * guided
        far = nn.mean((ends - aim.goal) ** 2, (1, 2, 3))
        return nn.mean(far, (0, 1, 2, 3)).reshape(1)[0] * far.shape[0], (far, ends)

    gradient, (far, ends) = backends.get(nn.name).gradient(lead, context)
    return gradient, far, ends


NEARER = Program("unet.nearer", nearer)
