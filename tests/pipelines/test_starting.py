"""Every pipeline starts from the family that ships, or says in one line what is missing."""

import numpy as np
import pytest
from PIL import Image

import underdraw
from underdraw.controls.features import image_features
from underdraw.errors import InputError
from underdraw.names import HOMES
from underdraw.pipelines.components.adapters import Attached
from underdraw.pipelines.components.grounding import Sight

ELSEWHERE = {"qformer"}
"""Networks that do not ship with the family."""
PIPELINES = [
    name
    for name in sorted(HOMES)
    if name.endswith("Pipeline")
    and not name.startswith("Flax")
    and not ELSEWHERE & set(getattr(underdraw, name).names().needed)
]
TEXT_IMAGE = "StableDiffusionGLIGENTextImagePipeline"
PICTURE = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint8).reshape(96, 96, 3))


@pytest.fixture(scope="module")
def family():
    """A pipeline of each class, by `from_pretrained`."""
    unet = underdraw.UNet2DConditionModel.from_pretrained("underdraw/scenes", subfolder="unet")
    readers = {
        "controlnet": underdraw.ControlNetModel.from_unet(unet),
        "adapter": underdraw.T2IAdapter(channels=unet.config.block_out_channels),
    }
    made = {}
    for name in PIPELINES:
        cls = getattr(underdraw, name)
        given = {key: net for key, net in readers.items() if key in cls.names().needed}
        made[name] = cls.from_pretrained("underdraw/scenes", **given)
    return made


def lacking(pipe):
    return [name for name in pipe.names().needed if getattr(pipe, name) is None]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_family_has_what_every_pipeline_needs(family, name):
    pipe = family[name]
    assert isinstance(pipe, getattr(underdraw, name))
    assert lacking(pipe) == []
    assert set(pipe.groundings) == {"text-image"}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("source", PIPELINES)
def test_pipelines_start_from_each_other(family, source, name):
    given, cls = family[source], getattr(underdraw, name)
    missing = [part for part in cls.names().needed if part not in given.components]
    # The processor and the projection are made of what is there; a network is not.
    missing = [part for part in missing if part not in ("processor", "image_project")]
    if missing:
        with pytest.raises(
            InputError, match=f"^{type(given).__name__} has no .*{missing[0]}"
        ) as told:
            cls.from_pipe(given)
        assert str(told.value).startswith(type(given).__name__)
        assert "\n" not in str(told.value)
        return
    made = cls.from_pipe(given)
    assert isinstance(made, cls)
    assert lacking(made) == []
    assert made.unet is given.unet
    assert made.scheduler is given.scheduler
    assert set(made.groundings) == {"text-image"}


def test_pictures_in_boxes_are_seen_alike_and_saved(family, tmp_path):
    """What was made for the pipeline with images gives the features which controls have, is written
    and read again, and nothing else is written."""
    pipe = family[TEXT_IMAGE]
    pipe.set_progress_bar_config(disable=True)
    seen = image_features(family["StableDiffusionPipeline"].parts, [PICTURE]).numpy()
    np.testing.assert_array_equal(image_features(pipe.parts, [PICTURE]).numpy(), seen)
    assert pipe.get_clip_feature(PICTURE, 1.0, "cpu", is_image=True).shape == seen.shape
    call = {"gligen_boxes": [(0.1, 0.3, 0.5, 0.8)], "num_inference_steps": 2, "seed": 7}
    call |= {"gligen_images": [PICTURE], "output_type": "latent", "height": 64, "width": 64}
    latents = pipe("a red sphere", **call).images
    plain = pipe("a red sphere", **{**call, "gligen_boxes": [], "gligen_images": []}).images
    assert (latents - plain).abs().max() > 0.05

    pipe.save_pretrained(tmp_path)
    again = underdraw.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is type(pipe)
    again.load_grounding(pipe.groundings["text-image"])
    np.testing.assert_array_equal(image_features(again.parts, [PICTURE]).numpy(), seen)


@pytest.mark.parametrize("names", [(), *((name,) for name in Sight._fields), Sight._fields])
@pytest.mark.parametrize("begin", [("load_grounding",), ("load_adapter", "grounding")])
def test_what_is_given_goes_over_what_the_folder_has(begin, names, family):
    """Whether somebody asked for the folder's weights before, or not."""
    network = family[TEXT_IMAGE].groundings["text-image"]
    given, seen = {name: object() for name in names}, []
    for asked in (True, False):
        pipe = underdraw.StableDiffusionPipeline.from_pipe(family["StableDiffusionPipeline"])
        pipe.parts.attached = Attached()
        if asked:
            assert pipe.groundings["text-image"] is not network
        name, *kind = begin
        getattr(pipe, name)(*kind, network, **given)
        assert pipe.groundings["text-image"] is network
        assert {name: getattr(pipe.sight, name) for name in names} == given
        seen.append(pipe.sight)
    assert seen[0] == seen[1]


def test_a_projection_is_made_only_where_features_are_those_of_phrases(tmp_path):
    """CLIP's features are not: without grounding weights trained beside the tower none is made."""
    pipe = underdraw.StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    pipe.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no image_project, which .* needs; it lists"):
        getattr(underdraw, TEXT_IMAGE).from_pretrained(tmp_path)
    alone = underdraw.StableDiffusionPipeline(**pipe.components)
    with pytest.raises(InputError, match=r"^StableDiffusionPipeline has no image_project, which"):
        getattr(underdraw, TEXT_IMAGE).from_pipe(alone)
