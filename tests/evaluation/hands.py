"""Detections made by hand."""

from underdraw.evaluation import Detection
from underdraw.scenes import parse


def thing(
    phrase: str,
    box=(0.1, 0.1, 0.3, 0.4),
    foot=None,
    score=0.9,
    material="rubber",
    size="small",
) -> Detection:
    """The detection of what `phrase` says, such as "red cube"."""
    (said,) = parse(f"a {phrase}").mentions
    return Detection(
        score,
        tuple(box),
        ((box[0] + box[2]) / 2, box[3]) if foot is None else foot,
        said.shape,
        said.colour,
        said.material or material,
        said.size or size,
        said.texture or "plain",
        said.second_colour,
    )
