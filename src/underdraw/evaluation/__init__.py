"""Scores of pictures, given by an evaluator that never saw the training of what it judges.

    report = evaluate_text_to_image(pipe, folder="runs/scores")   # 128 held-out captions
    print(report.table())

Every score stands beside its upper bound: the same score on real renders. Importing this package
imports no framework; the evaluator itself runs on PyTorch and is loaded when it is first needed.
"""

from .autoencoder import AutoencoderReport, evaluate_autoencoder
from .boxes import (
    BoxReport,
    BoxScores,
    Wanted,
    assign,
    average_precision,
    box_iou,
    score_boxes,
    wanted_in,
)
from .captioner import SceneCaptioner
from .detector import Detection, Evaluator, load_evaluator
from .editing import background_change, mask_iou, psnr, unchanged_objects
from .edits import EditingReport, EditScores, evaluate_editing, held_out_pairs, score_edits
from .judging import CaptionReport, CaptionScores, Judgement, judge, score_captions
from .rates import Rate
from .staging import held_out_captions, real_renders, stage
from .text_to_image import TextToImageReport, evaluate_text_to_image

__all__ = [
    "AutoencoderReport",
    "BoxReport",
    "BoxScores",
    "CaptionReport",
    "CaptionScores",
    "Detection",
    "EditScores",
    "EditingReport",
    "Evaluator",
    "Judgement",
    "Rate",
    "SceneCaptioner",
    "TextToImageReport",
    "Wanted",
    "assign",
    "average_precision",
    "background_change",
    "box_iou",
    "evaluate_autoencoder",
    "evaluate_editing",
    "evaluate_text_to_image",
    "held_out_captions",
    "held_out_pairs",
    "judge",
    "load_evaluator",
    "mask_iou",
    "psnr",
    "real_renders",
    "score_boxes",
    "score_captions",
    "score_edits",
    "stage",
    "unchanged_objects",
    "wanted_in",
]
