"""Which controls were tried together: the table of `docs/structure.md`, cell by cell."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from controls.test_grounding import BLUE, EVER, RED, opened
from controls.test_grounding_maps import SMALL
from controls.test_structure import close, maps
from pipelines import tiny
from pipelines.test_beginnings import picture

import underdraw
from underdraw import AttentionEdit, CannyMap, Layout, NullText, PerImage, Region, Structure

PAGE = Path(__file__).parents[2] / "docs" / "structure.md"
SIZE = {"height": 24, "width": 40}
PROMPTS = ["a red sphere", "a blue cube"]


def cells():
    """What the page says: row, column."""
    text = PAGE.read_text(encoding="utf-8").partition("## Tried together")[2]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = ([part.strip() for part in line.split("|")[1:-1]] for line in lines)
    return [
        (row[0].replace("`", ""), column)
        for row in rows
        for column, said in zip(head[1:], row[1:], strict=True)
        if said == "yes"
    ]


@cache
def pipeline(row):
    """With the weights that the control of a row needs."""
    if row == "inpainting UNet":
        parts = tiny.components(unet={"in_channels": 9})
        made = underdraw.StableDiffusionInpaintPipeline(**parts)
    elif row == "picture to picture":
        made = underdraw.StableDiffusionImg2ImgPipeline(**tiny.components())
    else:
        made = tiny.pipeline()
    kinds = {"Box": ("text", {}), "CannyMap (GLIGEN)": ("canny", SMALL)}
    if row in kinds:
        kind, fields = kinds[row]
        made.load_grounding(opened(made.unet, kind, **fields))
    made.set_progress_bar_config(disable=True)
    return made


@cache
def nets(column):
    first, second = tiny.controlnet(), tiny.controlnet(seed=6)
    return {
        "ControlNet": (first,),
        "T2I-Adapter": (tiny.adapter(),),
        "two ControlNets": (first, second),
    }[column]


def others(row, pipe, images):
    """Arguments of the row's control for some images, each with a value of its own."""
    mask = np.zeros((2, 24, 40), np.float32)
    mask[0, 4:16, 8:32], mask[1, 8:20, 4:20] = 1, 1
    shown = [picture(24, 40, seed=i) for i in images]
    kept = torch.stack([torch.full((4, 3, 5), 0.2 + i) for i in images])
    if row == "Box":
        each = [Layout([RED], EVER), Layout([BLUE, RED], EVER)]
        return {"controls": [PerImage(*(each[i] for i in images))]}
    if row == "Region":
        return {"controls": [Region(mask[list(images)], latents=kept)]}
    if row == "NullText":
        texts = [pipe.encode_prompt(text)[0] for text in ("green", "the table")]
        return {"controls": [NullText([torch.cat([texts[i] for i in images])] * 2)]}
    if row == "CannyMap (GLIGEN)":
        return {"controls": [CannyMap(shown)]}
    if row == "inpainting UNet":
        return {"image": shown, "mask_image": mask[list(images)]}
    if row == "picture to picture":
        return {"image": shown, "strength": 1.0}
    if row == "guidance per image":
        return {"guidance_scale": [[2.0, 9.0][i] for i in images]}
    assert row == "AttentionEdit"
    return {"controls": [AttentionEdit()]}


def called(pipe, row, column, images, with_row=True, with_maps=True):
    size = {} if row == "picture to picture" else SIZE
    told = others(row, pipe, images) if with_row else {}
    if not with_row and row in ("inpainting UNet", "picture to picture"):
        told = {**others(row, pipe, images), "image": [picture(24, 40, seed=9)] * len(images)}
    controls = list(told.pop("controls", ()))
    if with_maps:
        shown = [maps(2, height=24, width=40)[i] for i in images]
        controls += [Structure(net, shown, [[0.5, 1.2][i] for i in images]) for net in nets(column)]
    call = {"num_inference_steps": 2, "seed": [3 + i for i in images], **size, **told}
    return tiny.run(pipe, [PROMPTS[i] for i in images], controls=controls, **call)


@pytest.mark.parametrize(("row", "column"), cells())
def test_together(row, column):
    pipe = pipeline(row)
    both = called(pipe, row, column, (0, 1))
    assert not close(called(pipe, row, column, (0, 1), with_maps=False), both, 1e-3)
    assert not close(called(pipe, row, column, (0, 1), with_row=False), both, 1e-4)
    if row != "AttentionEdit":  # whose images belong together
        for i in range(2):
            assert close(called(pipe, row, column, (i,))[0], both[i], 1e-4)
    assert len(cells()) == 24
