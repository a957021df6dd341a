"""Picture of the study ``toy``, drawn from its records alone."""

from __future__ import annotations

import io
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments import records
from mtl_jax.data.toy import toy_losses, toy_pareto_set

# Both read well without red-green vision; the light end of plasma would not on grey.
TIME = ListedColormap(mpl.colormaps["plasma"](np.linspace(0.0, 0.88, 256)))
LANDSCAPE = ListedColormap(mpl.colormaps["Greys"](np.linspace(0.0, 0.45, 256)))
FRONT = "#009E73"
EXTENT = 10.5


def draw(folder: Path) -> Path:
    """Draws ``toy.png`` from the ``trajectories.npz`` of a run.

    For every loss scale a row of panels over the parameters (contours of the summed
    loss) and one over the objectives; one column per method.

    Args:
        folder: of a finished run.

    Returns:
        the picture's path.
    """
    with np.load(folder / "trajectories.npz") as saved:
        methods, scales = saved["methods"].tolist(), saved["scales"].tolist()
        steps, points = saved["steps"], saved["points"]
    rows, columns = 2 * len(scales), len(methods)
    figure = Figure(figsize=(max(4, 0.9 + 1.75 * columns), 1.2 + 2.05 * rows), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.05, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, scale in enumerate(scales):
        for j, method in enumerate(methods):
            parameter_panel(axes[2 * i, j], points[j, i], scale)
            objective_panel(axes[2 * i + 1, j], points[j, i], scale)
            axes[2 * i, j].set_title(method if i == 0 else "", fontsize=11)
            if j > 0:
                axes[2 * i, j].set_yticklabels([])
                axes[2 * i + 1, j].set_yticklabels([])
        axes[2 * i, 0].set_ylabel(f"loss 1 × {scale:g}: parameters\ny")
        axes[2 * i + 1, 0].set_ylabel(f"loss 1 × {scale:g}: objectives\nloss 2")
    legend(figure, axes, int(steps[-1]))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return records.write_bytes(folder / "toy.png", buffer.getvalue())


def parameter_panel(axis: Axes, paths: np.ndarray, scale: float) -> None:
    """Paths ``(K, N, 2)`` over contours of the summed loss."""
    grid = np.linspace(-EXTENT, EXTENT, 201, dtype=np.float32)
    mesh = np.stack(np.meshgrid(grid, grid), axis=-1)
    total = losses_at(mesh, scale).sum(axis=-1)
    axis.contourf(grid, grid, total, levels=12, cmap=LANDSCAPE)
    draw_paths(axis, paths, toy_pareto_set())
    axis.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xlabel="x")
    axis.set_xticks([-10, -5, 0, 5, 10])
    axis.set_yticks([-10, -5, 0, 5, 10])
    axis.set_box_aspect(1)


def objective_panel(axis: Axes, paths: np.ndarray, scale: float) -> None:
    """The losses of the same paths beside the front."""
    front = toy_pareto_set().astype(np.float32)
    draw_paths(axis, losses_at(paths, scale), losses_at(front, scale))
    axis.set(xlabel="loss 1", xlim=(-21 * scale, 11 * scale), ylim=(-21, 11))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_box_aspect(1)


def draw_paths(axis: Axes, paths: np.ndarray, front: np.ndarray) -> None:
    """Draws paths (K, N, 2) coloured along time over the front (F, 2)."""
    axis.plot(*front.T, color=FRONT, linewidth=5, alpha=0.55, solid_capstyle="round")
    for path in paths:
        segments = np.stack([path[:-1], path[1:]], axis=1)
        time = np.linspace(0, 1, len(segments))
        axis.add_collection(
            LineCollection(
                segments.tolist(),
                array=time,
                cmap=TIME,
                linewidths=1.6,
                capstyle="round",
            )
        )
    axis.scatter(*paths[:, 0].T, s=16, color="black", zorder=3)
    style = {"marker": "*", "s": 90, "color": "white", "edgecolors": "black"}
    axis.scatter(*paths[:, -1].T, zorder=4, linewidths=0.8, **style)
    axis.tick_params(labelsize=8)


def legend(figure: Figure, axes: np.ndarray, steps: int) -> None:
    """A colour bar of the steps, and what the marks mean."""
    colours = ScalarMappable(Normalize(0, steps), TIME)
    bar = figure.colorbar(
        colours, ax=axes, location="bottom", shrink=0.35, aspect=45, pad=0.01
    )
    bar.set_label("step")
    handles = [
        Line2D([], [], marker="o", color="black", linestyle="", label="start"),
        Line2D(
            [],
            [],
            marker="*",
            markersize=11,
            color="white",
            markeredgecolor="black",
            linestyle="",
            label="end",
        ),
        Line2D([], [], color=FRONT, linewidth=5, alpha=0.55, label="Pareto front"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def losses_at(points: np.ndarray, scale: float) -> np.ndarray:
    """Losses (..., 2) at parameters (..., 2)."""
    flat = points.reshape(-1, 2)
    values = jax.vmap(lambda point: toy_losses(point, scale))(flat)
    return np.asarray(values).reshape(points.shape)
