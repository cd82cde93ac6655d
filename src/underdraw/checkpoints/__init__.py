"""Whole checkpoints: opened whatever their form, merged, compared and written anew."""

from underdraw.checkpoints.extracting import Extracted, extract_lora
from underdraw.checkpoints.merging import merge
from underdraw.checkpoints.rewriting import convert

__all__ = ["Extracted", "convert", "extract_lora", "merge"]
