"""`underdraw cache`: what engines have compiled and kept on disk."""

from __future__ import annotations

from typing import Annotated

import typer


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
) -> None:
    """Show what engines keep between processes, or remove it: graphs of openvino, kernels of
    PyTorch, and beside them programs of JAX.

    Where: the folder that UNDERDRAW_CACHE names, or ~/.cache/underdraw/graphs. At most as many
    gigabytes as UNDERDRAW_CACHE_SIZE says (12), and of JAX's as many; the longest unused go first.
    """
    from time import localtime, strftime

    from underdraw.engines import kept
    from underdraw.engines.programs import Programs

    folder = kept.default()
    if folder is None:
        typer.echo(f"{kept.FOLDER} is empty: nothing is kept")
        return
    beside = Programs.within(folder)
    if clear:
        typer.echo(f"{folder.folder}: {size(folder.clear())} removed")
        typer.echo(f"{beside.folder}: {size(beside.clear())} removed")
        return
    entries = folder.entries()
    total, most = size(sum(entry.size for entry in entries)), size(folder.most)
    typer.echo(f"{folder.folder}: {len(entries)} graphs, {total} of {most}")
    for entry in entries:
        shapes = " ".join("x".join(map(str, shape)) for shape in entry.shapes)
        used = strftime("%Y-%m-%d %H:%M", localtime(entry.used))
        typer.echo(f"  {used}  {size(entry.size):>8}  {entry.network} {entry.program} {shapes}")
    sizes = beside.sizes()
    typer.echo(f"{beside.folder}: {len(sizes)} programs, {size(sum(sizes))} of {size(beside.most)}")


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


cache.examples = """Example:

\b
  underdraw cache --clear"""
