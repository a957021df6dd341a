"""Figure 7 of the study ``sparse``: how similar the rows of a layer are, by clusters."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import sparse_table
from experiments.sparse_lab import Lab
from mtl_jax import sparsity

Record = dict[str, Any]
LARGEST = 400
"""Rows of a map at most; of larger layers every so-manieth live row."""


def maps(lab: Lab, name: str) -> Record:
    """Similarities of the live rows, cluster by cluster, before and after retraining.

    Returns:
        The record; the maps are the arrays of the part, two for each layer.

    Raises:
        ValueError: if a layer is not there, or not clustered.
    """
    entry, arrays = sparse_table.sparse_network(lab, name, lab.config.seeds[0])
    names = [
        layer for layer in lab.config.similarity_layers if layer in arrays["labels"]
    ]
    if not names:
        raise ValueError(
            f"similarity_layers must name clustered kernels of {name}, e.g. "
            f"{', '.join(arrays['labels'])}; got {lab.config.similarity_layers}"
        )

    def make() -> tuple[Record, Any]:
        record: Record = {"architecture": name, "layers": {}}
        saved: dict[str, Any] = {}
        for layer in names:
            labels = arrays["labels"][layer]
            order = np.argsort(labels, kind="stable")
            order = order[labels[order] >= 0]
            order = order[:: -(-len(order) // LARGEST)] if len(order) else order
            before, after = (
                _similarity(arrays[key], layer, order) for key in ("first", "params")
            )
            saved[layer.replace("/", ".")] = {"before": before, "after": after}
            record["layers"][layer] = {
                **entry["clusters"][layer],
                "shown": len(order),
                **within(before, labels[order]),
            }
        return record, saved

    return lab.part(f"similarity_{name}", make)


def within(similarity: np.ndarray, labels: np.ndarray) -> Record:
    """Mean similarity of two rows of one cluster, and of two clusters."""
    same = labels[:, None] == labels[None, :]
    apart = ~np.eye(len(labels), dtype=bool)
    means = {}
    for key, mask in (("within", same & apart), ("between", ~same)):
        means[key] = round(float(similarity[mask].mean()), 4) if mask.any() else None
    return means


def _similarity(params: Any, layer: str, order: np.ndarray) -> np.ndarray:
    leaf = params
    for key in layer.split("/"):
        leaf = leaf[key]
    rows = sparsity.to_rows(np.asarray(leaf))[order]
    if not len(rows):
        return np.zeros((0, 0), np.float32)
    return sparsity.row_similarity(rows).astype(np.float32)


def read(lab_folder: Any, name: str, layers: Any) -> Any:
    """The maps of a finished part by layer, see :func:`maps`."""
    path = lab_folder / "parts" / f"similarity_{name}.npz"
    with np.load(path) as saved:
        return {
            layer: {
                when: saved[f"{layer.replace('/', '.')}.{when}"]
                for when in ("before", "after")
            }
            for layer in layers
        }
