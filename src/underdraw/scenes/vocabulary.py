"""The closed vocabulary of the scenes: what there is, what it is called, what it looks like."""

from __future__ import annotations

from collections.abc import Sequence

from underdraw.errors import InputError

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus")
MATERIALS = ("rubber", "metal")
UNSEEN_MATERIALS = ("frosted", "satin")
"""Materials that no sampled scene has, so that neither the family nor the evaluator has met them:
what adapters are tried on. Captions name them; `parse` does not know them."""
SIZES = ("small", "large")
FLOORS = ("plain", "checkered", "wooden", "striped", "tiled", "marble")
LIGHTS = ("neutral", "warm", "cool")
TEXTURES = ("striped", "dotted", "checked", "swirled")
RELATIONS = ("left of", "right of", "in front of", "behind")

# Display values in [0, 1]. Hues keep at least 20 degrees from each other also under the warm and
# the cool light; floors stay nearly gray so that none of them can pass for one of these.
COLOUR_VALUES: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.09, 0.10),
    "orange": (0.97, 0.47, 0.04),
    "yellow": (0.95, 0.85, 0.12),
    "green": (0.12, 0.62, 0.17),
    "cyan": (0.10, 0.76, 0.80),
    "blue": (0.10, 0.24, 0.85),
    "purple": (0.53, 0.14, 0.72),
    "gray": (0.50, 0.50, 0.50),
}
COLOURS = tuple(COLOUR_VALUES)

# Half the width of a sphere of that size, in scene units ("metres"; the table shows about 4.5).
RADIUS: dict[str, float] = {"small": 0.60, "large": 0.94}

# Other words for the same thing, understood by `parse` and used now and then by `caption`.
MATERIAL_WORDS: dict[str, str] = {
    "rubber": "rubber",
    "matte": "rubber",
    "metal": "metal",
    "shiny": "metal",
}


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise InputError naming `name`, `value` and `allowed` unless `value` is one of them."""
    if value not in allowed:
        raise InputError(f"{name}={value!r} is not one of {', '.join(allowed)}")
