"""Table I of the study ``sparse``: both architectures, ours and the baselines."""

from __future__ import annotations

from typing import Any

import jax

from experiments import records, sparse_baselines, sparse_saved
from experiments.sparse_lab import (
    Lab,
    cluster_counts,
    measures,
    num_parameters,
)

Record = dict[str, Any]
OWN_NETWORKS = ("kdmtl", "mtan", "stl")
"""Methods that do not take the two architectures."""


def rows(lab: Lab) -> list[Record]:
    """Trains every row of the table for every seed, or finds it finished."""
    config = lab.config
    plan = [
        (architecture, method)
        for architecture in config.architectures
        for method in config.methods
        if method not in OWN_NETWORKS
    ]
    plan += [(method, method) for method in config.methods if method in OWN_NETWORKS]
    return [
        row(lab, architecture, method, seed)
        for seed in config.seeds
        for architecture, method in plan
    ]


def row(lab: Lab, architecture: str, method: str, seed: int) -> Record:
    """One row: the record of the part ``ARCHITECTURE_METHOD_SEED``.

    The arrays of the part are ``params`` and ``model_state``; of ``sparse`` also
    ``first``, the parameters before clustering, and ``labels``.
    """
    name = part_name(architecture, method, seed)

    def make() -> tuple[Record, Any]:
        print(f"  {name} ...", flush=True)
        entry, arrays = _make(lab, architecture, method, seed)
        entry = {"architecture": architecture, "method": method, "seed": seed, **entry}
        text = ", ".join(f"{100 * score:.2f}" for score in entry["test"])
        shares = entry["measures"]["rows"]
        print(
            f"  {name}: test {text} %, SR {shares['SR']:.1f} %, CR {shares['CR']:.2f}, "
            f"{entry['seconds']:.0f} s",
            flush=True,
        )
        return entry, arrays

    return lab.part(name, make)


def part_name(architecture: str, method: str, seed: int) -> str:
    """Name of a row's part."""
    first = architecture if architecture == method else f"{architecture}_{method}"
    return records.slug(f"{first}_{seed}")


def sparse_network(lab: Lab, architecture: str, seed: int) -> tuple[Record, Any]:
    """Record and arrays of the sparse network of the table, trained if need be."""
    entry = row(lab, architecture, "sparse", seed)
    params, model_state = jax.eval_shape(
        lambda: lab.network(architecture).model.init(
            jax.random.key(0), lab.problem.prepare(lab.problem.train.inputs[:1], None)
        )
    )
    like = {
        "params": params,
        "model_state": model_state,
        "first": params,
        "labels": {
            path: jax.ShapeDtypeStruct((each["rows"],), "int32")
            for path, each in entry["clusters"].items()
        },
    }
    name = part_name(architecture, "sparse", seed)
    return entry, lab.store.arrays(name, like)


def _make(lab: Lab, architecture: str, method: str, seed: int) -> tuple[Record, Any]:
    config = lab.config
    if method in (*OWN_NETWORKS, "mgda"):
        return sparse_baselines.train(lab, architecture, method, seed)
    if method == "dense":
        vector = config.dense_importance
        (trained,) = lab.dense(architecture, [vector], seed)
        extra: Record = {}
        arrays = {}
    else:
        vector = config.sparse_importance
        ((first, trained, labels, seconds),) = lab.two_phases(
            architecture, [vector], seed
        )
        extra = {
            "first": {
                **lab.scores(architecture, first),
                "measures": measures(first.params),
            },
            "clusters": cluster_counts(labels),
            "cluster_seconds": round(seconds, 2),
        }
        arrays = {"first": first.params, "labels": labels}
    entry = {
        "importance": list(vector),
        **lab.scores(architecture, trained),
        "parameters": num_parameters(trained.params),
        "measures": measures(trained.params),
        **extra,
    }
    if method == "sparse":
        entry["total_seconds"] = round(
            entry["seconds"] + extra["first"]["seconds"] + extra["cluster_seconds"], 2
        )
        entry["compressed"] = sparse_saved.compressed(
            lab.network(architecture),
            lab.problem,
            trained.params,
            trained.model_state,
            lab.folder / "networks",
            part_name(architecture, method, seed),
        )
    arrays |= {"params": trained.params, "model_state": trained.model_state}
    return entry, arrays
