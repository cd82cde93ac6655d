"""Small table-top scenes, ray traced, with exact truth for every control. Needs numpy only.

`sample_at(seed, index)` gives a scene, its picture with truth and a caption; `render_many` a
stream of them; `pair` makes before/after pictures, `sample_subject` things with textures of their
own. `underdraw.scenes.draw` draws truth on pictures. Everything follows from the seed.
"""

from .captions import Caption, Mention, Relation, caption, describe, phrases
from .layout import has_reserved_pair, is_reserved, sample_scene, scene_at, scene_rng
from .pairs import PAIR_KINDS, Pair, pair
from .parsing import parse, words
from .relations import box_relation, scene_relations
from .render import Rendering, render
from .stream import Sample, render_many, sample_at
from .subjects import (
    alone,
    named_plainly,
    sample_subject,
    subject_phrase,
    subject_scene,
    subject_view,
)
from .world import Camera, Floor, Light, Scene, SceneObject, Texture

__all__ = [
    "PAIR_KINDS",
    "Camera",
    "Caption",
    "Floor",
    "Light",
    "Mention",
    "Pair",
    "Relation",
    "Rendering",
    "Sample",
    "Scene",
    "SceneObject",
    "Texture",
    "alone",
    "box_relation",
    "caption",
    "describe",
    "has_reserved_pair",
    "is_reserved",
    "named_plainly",
    "pair",
    "parse",
    "phrases",
    "render",
    "render_many",
    "sample_at",
    "sample_scene",
    "sample_subject",
    "scene_at",
    "scene_relations",
    "scene_rng",
    "subject_phrase",
    "subject_scene",
    "subject_view",
    "words",
]
