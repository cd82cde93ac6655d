"""Pipelines under their familiar names: arguments in, images out; the work is done below."""
