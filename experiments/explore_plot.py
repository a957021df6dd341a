"""What the pictures of the study ``explore`` share."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments import records
from experiments.plots import COLOURS, GREY, STYLE

BLUE, ORANGE, GREEN, PINK = COLOURS[:4]
BLACK = "#000000"
__all__ = ["BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PINK", "new_figure", "save"]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that lays itself out, in inches."""
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes the picture as PNG, whole or not at all."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            buffer,
            format="png",
            dpi=120,
            bbox_inches="tight",
            pil_kwargs={"optimize": True},
        )
    return records.write_bytes(path, buffer.getvalue())
