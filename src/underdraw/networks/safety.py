"""The safety checker published with Stable Diffusion: CLIP images against fixed concepts."""

from __future__ import annotations

from functools import cache

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.config import CLIPVisionConfig
from underdraw.networks.program import Program
from underdraw.networks.vision import vision, visual_projection

CONCEPTS, SPECIAL = 17, 3


def concept_scores(
    nn: Operations, p: Node, config: CLIPVisionConfig, image: Array
) -> tuple[Array, Array]:
    """How far each image lies above the threshold of each concept.

    Args:
        image: `(batch, 3, image_size, image_size)`, normalised as CLIP's processor does.

    Returns:
        `(special (batch, 3), concepts (batch, 17))`: cosine similarity minus the concept's
        threshold. An image is flagged when a concept score is above 0, or above -0.01 where a
        special one is.
    """
    pooled = vision(nn, _Inner(p), config, image).pooled
    embedding = visual_projection(nn, p, config, pooled)
    width = config.projection_dim
    special = nn.parameter(p, "special_care_embeds", (SPECIAL, width))
    concepts = nn.parameter(p, "concept_embeds", (CONCEPTS, width))
    special_threshold = nn.parameter(p, "special_care_embeds_weights", (SPECIAL,))
    concept_threshold = nn.parameter(p, "concept_embeds_weights", (CONCEPTS,))

    def similarity(table: Array) -> Array:
        unit = embedding / nn.norm(embedding)
        return nn.matmul(unit, nn.permute(table / nn.norm(table), (1, 0)))

    return similarity(special) - special_threshold, similarity(concepts) - concept_threshold


class _Inner:
    """The checker nests a whole CLIP vision model one level deeper: `vision_model.vision_model`."""

    def __init__(self, p: Node) -> None:
        self.vision_model = p.vision_model.vision_model


@cache
def layout(config: CLIPVisionConfig) -> Layout:
    """Names and shapes of the parameters."""

    def program(nn: Shapes, p: Path) -> None:
        side = config.image_size
        concept_scores(nn, p, config, Shape(1, config.num_channels, side, side))

    return trace(program)


CONCEPT_SCORES = Program("safety.scores", concept_scores)
