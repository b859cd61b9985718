"""A picture of what became of the bases: layers × matrices, numbers in every field so that it reads without colour."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...foundation.files import write_atomic
from ..plots.curves import slug, style
from ..tables.escape import clean
from ..tables.names import wrap
from .changes import ChangeView, Counts, count_changes

_MAP = "Blues"
_FIELD = (0.52, 0.3)
"""Inches of one field, width and height."""
_TALL = 12
"""From more rows on, panels stand side by side instead of in two rows."""


def draw_changes(view: ChangeView, folder: Path) -> list[Path]:
    """Draw the counts as PNG and SVG; equal views give equal bytes of SVG.

    Panels: share of bases kept, share of Σs that they held, and where the method trains bases the share of kept ones
    that grew and the number of new vectors.

    Args:
        view: what to draw.
        folder: made if missing.

    Returns:
        The paths written, PNG before SVG.
    """
    paths = []
    with style():
        figure = _figure(view)
        stem = f"bases-{slug(view.name)}"
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=160, metadata=metadata)
            paths.append(folder / f"{stem}{suffix}")
            write_atomic(paths[-1], buffer.getvalue())
    return paths


def _figure(view: ChangeView) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    *counts, total = count_changes(view)
    matrices = list(dict.fromkeys(c.matrix for c in counts if c.layer is not None)) or [""]
    rows: list[list[Counts]] = [
        [c for c in counts if c.layer == layer]
        for layer in dict.fromkeys(c.layer for c in counts if c.layer is not None)
    ]
    rows += [[c] for c in counts if c.layer is None]
    panels = _panels(view)
    lines = 1 if len(rows) > _TALL or len(panels) < 3 else 2
    columns = len(panels) // lines
    width = columns * (_FIELD[0] * len(matrices) + 0.4) + 0.6
    height = lines * (_FIELD[1] * len(rows) + 0.75) + 0.9
    figure = Figure(
        figsize=(max(width, 6.0), max(height, 2.6)), layout=ConstrainedLayoutEngine(w_pad=0.08), facecolor="white"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (title, value, write) in zip(grid.flat, panels, strict=True):
        _panel(axes, rows, matrices, value, write, f"{title} (all: {write(total)})")
        axes.set_ylabel("layer")
        axes.label_outer()
    letters = int(13 * figure.get_figwidth())
    figure.suptitle(wrap(clean(view.title), letters), fontsize=10.5)
    figure.supxlabel(wrap(clean(view.notes[0]), int(1.25 * letters)), fontsize=7.5, color="#555555")
    return figure


def _panels(view: ChangeView) -> list[tuple[str, Any, Any]]:
    """Return title, shade (white is 0, a panel's largest the darkest) and text of each panel."""
    panels: list[tuple[str, Any, Any]] = [
        ("bases kept, %", lambda c: c.kept / c.bases, lambda c: f"{100 * c.kept / c.bases:.0f}"),
        ("% of Σs before that they held", lambda c: c.share, lambda c: f"{100 * c.share:.0f}"),
    ]
    if view.trained:
        panels += [
            ("of the kept, grew, %", _grown, lambda c: f"{100 * _grown(c):.0f}"),
            ("Σs after, % of before", lambda c: c.after, lambda c: f"{100 * c.after:.0f}"),
        ]
    return panels


def _grown(counts: Counts) -> float:
    return counts.grew / counts.kept if counts.kept else 0.0


def _panel(
    axes: Any, rows: Sequence[Sequence[Counts]], matrices: Sequence[str], value: Any, write: Any, title: str
) -> None:
    shades = [[math.nan] * len(matrices) for _ in rows]
    most = max(0.05, *(value(c) for row in rows for c in row))
    for y, row in enumerate(rows):
        for c in row:
            x = matrices.index(c.matrix) if c.layer is not None else 0
            shades[y][x] = value(c)
            dark = shades[y][x] > 0.6 * most
            axes.text(x, y, write(c), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.imshow(shades, cmap=_MAP, vmin=0, vmax=most, aspect="auto")
    axes.set_xticks(range(len(matrices)), [clean(name) for name in matrices])
    axes.set_yticks(range(len(rows)), [str(r[0].layer) if r[0].layer is not None else clean(r[0].matrix) for r in rows])
    axes.set_xticks([x + 0.5 for x in range(len(matrices) - 1)], minor=True)
    axes.set_yticks([y + 0.5 for y in range(len(rows) - 1)], minor=True)
    axes.grid(True, which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)
