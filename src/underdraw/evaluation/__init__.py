"""Scores of pictures, given by an evaluator that never saw the training of what it judges.

    report = evaluate_text_to_image(pipe, folder="runs/scores")   # 128 held-out captions
    print(report.table())

Every score stands beside its upper bound: the same score on real renders. Importing this package
imports no framework; the evaluator itself runs on PyTorch and is loaded when it is first needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autoencoder import (
        AutoencoderReport as AutoencoderReport,
        evaluate_autoencoder as evaluate_autoencoder,
    )
    from .boxes import (
        BoxReport as BoxReport,
        BoxScores as BoxScores,
        Wanted as Wanted,
        assign as assign,
        average_precision as average_precision,
        box_iou as box_iou,
        score_boxes as score_boxes,
        wanted_in as wanted_in,
    )
    from .captioner import (
        SceneCaptioner as SceneCaptioner,
    )
    from .depth import (
        DepthEstimator as DepthEstimator,
        load_depth_estimator as load_depth_estimator,
    )
    from .detector import (
        Detection as Detection,
        Evaluator as Evaluator,
        load_evaluator as load_evaluator,
    )
    from .editing import (
        background_change as background_change,
        mask_iou as mask_iou,
        psnr as psnr,
        unchanged_objects as unchanged_objects,
    )
    from .edits import (
        EditingReport as EditingReport,
        EditScores as EditScores,
        evaluate_editing as evaluate_editing,
        held_out_pairs as held_out_pairs,
        score_edits as score_edits,
    )
    from .judging import (
        CaptionReport as CaptionReport,
        CaptionScores as CaptionScores,
        Judgement as Judgement,
        judge as judge,
        score_captions as score_captions,
    )
    from .materials import (
        MaterialEvaluator as MaterialEvaluator,
    )
    from .rates import (
        Rate as Rate,
    )
    from .staging import (
        held_out_captions as held_out_captions,
        real_renders as real_renders,
        stage as stage,
    )
    from .structure import (
        StructureReport as StructureReport,
        evaluate_structure as evaluate_structure,
        held_out_maps as held_out_maps,
    )
    from .text_to_image import (
        TextToImageReport as TextToImageReport,
        evaluate_text_to_image as evaluate_text_to_image,
    )

MODULES = {
    "autoencoder": (
        "AutoencoderReport",
        "evaluate_autoencoder",
    ),
    "boxes": (
        "BoxReport",
        "BoxScores",
        "Wanted",
        "assign",
        "average_precision",
        "box_iou",
        "score_boxes",
        "wanted_in",
    ),
    "captioner": ("SceneCaptioner",),
    "depth": (
        "DepthEstimator",
        "load_depth_estimator",
    ),
    "detector": (
        "Detection",
        "Evaluator",
        "load_evaluator",
    ),
    "editing": (
        "background_change",
        "mask_iou",
        "psnr",
        "unchanged_objects",
    ),
    "edits": (
        "EditingReport",
        "EditScores",
        "evaluate_editing",
        "held_out_pairs",
        "score_edits",
    ),
    "judging": (
        "CaptionReport",
        "CaptionScores",
        "Judgement",
        "judge",
        "score_captions",
    ),
    "materials": ("MaterialEvaluator",),
    "rates": ("Rate",),
    "staging": (
        "held_out_captions",
        "real_renders",
        "stage",
    ),
    "structure": (
        "StructureReport",
        "evaluate_structure",
        "held_out_maps",
    ),
    "text_to_image": (
        "TextToImageReport",
        "evaluate_text_to_image",
    ),
}
HOMES = {name: module for module, names in MODULES.items() for name in names}

__all__ = sorted(HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value
