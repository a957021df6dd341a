"""End points of the study ``toy`` as rows, text and files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.data.toy import TOY_STARTS, toy_losses, toy_pareto_set

OFF_FRONT = 0.1
"""The exact Pareto set bends this far below the straight line of the figure."""


def rows(
    methods: Sequence[str],
    scales: Sequence[float],
    ends: np.ndarray,
    fallbacks: np.ndarray,
) -> list[dict[str, Any]]:
    """Returns one row per method, loss scale and start.

    Args:
        methods: M call strings.
        scales: S factors of the first loss.
        ends: end points, (M, S, K, 2), from the K starts of the figure.
        fallbacks: steps whose solver returned its safe answer, (M, S, K).
    """
    front = toy_pareto_set(1401)
    losses_of = jax.jit(toy_losses)
    result = []
    for m, s, k in np.ndindex(fallbacks.shape):
        end = ends[m, s, k]
        losses = np.asarray(losses_of(end, scales[s]))
        numbers = {
            "start_x": TOY_STARTS[k, 0],
            "start_y": TOY_STARTS[k, 1],
            "x": end[0],
            "y": end[1],
            "loss_1": losses[0],
            "loss_2": losses[1],
            "front_distance": np.linalg.norm(front - end, axis=1).min(),
        }
        result.append(
            {
                "method": methods[m],
                "scale": scales[s],
                # six decimals, and no negative zeros
                **{name: round(float(x), 6) + 0.0 for name, x in numbers.items()},
                "fallbacks": int(fallbacks[m, s, k]),
            }
        )
    return result


def scale_spread(methods: Sequence[str], ends: np.ndarray) -> dict[str, float]:
    """How far the loss scales' end points lie apart: the largest range over the starts.

    Args:
        methods: M call strings.
        ends: (M, S, K, 2).
    """
    ranges = np.ptp(ends, axis=1).max(axis=(1, 2))
    return {m: float(f"{r:.3g}") for m, r in zip(methods, ranges, strict=True)}


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """One line per method and scale, one column per start."""
    starts = [f"({x:g}, {y:g})" for x, y in TOY_STARTS]
    width = max(len("method"), *(len(row["method"]) for row in rows))
    lines = [
        f"end points (x, y) by start; * more than {OFF_FRONT} off the Pareto front",
        f"{'method':{width}} scale " + " ".join(f"{start:>15} " for start in starts),
    ]
    for first in range(0, len(rows), len(starts)):
        group = rows[first : first + len(starts)]
        cells = [
            f"({row['x']:z.2f}, {row['y']:z.2f})".rjust(15)
            + ("*" if row["front_distance"] > OFF_FRONT else " ")
            for row in group
        ]
        head = f"{group[0]['method']:{width}} {group[0]['scale']:5g}"
        lines.append(" ".join([head, *cells]))
    return "\n".join(lines)


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows as a CSV file with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_npz(**arrays: Any) -> bytes:
    """The named arrays as a compressed NumPy archive."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
