"""Study ``celeba``: forty attributes of a face, and what MGDA-UB saves with them."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import celeba_training, records, tables
from experiments.explore import Table
from experiments.explore_store import Store, open_folder
from mtl_jax import data, models, registry
from mtl_jax.data import AttributeSplit

PLAIN = "ls"
KEYS = ("validation", "test")
PUBLISHED = {"mgda": 429.9, "mgda(strategy=features)": 16.1}
"""Hours of training at 40 tasks (arXiv:1810.04650, supplement): 3.7 %."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CelebaConfig:
    """Forty two-class tasks over a ResNet-18: errors and step times."""

    config: str = "celeba_sample"
    """Named settings in experiments/configs that the other options override."""
    out: Path | None = None
    """Folder of the records; default: runs/CONFIG."""
    resume: bool = False
    """Keep the finished parts of the run in that folder."""
    parts: tuple[Literal["cost", "runs"], ...] = ("cost", "runs")
    """cost: time of a step of every method, in turn. runs: train and evaluate."""
    methods: tuple[str, ...] = (
        "ls",
        "uw",
        "gradnorm(strategy=features)",
        "mgda(strategy=features)",
    )
    """Call strings that are trained."""
    cost_methods: tuple[str, ...] = (
        "ls",
        "uw",
        "gradnorm(strategy=features)",
        "mgda(strategy=features)",
        "gradnorm",
        "mgda",
    )
    """Call strings whose steps are timed. Without strategy=features they take a backward
    pass per task."""
    seeds: tuple[int, ...] = (0,)
    """Of initial weights, batches and all other randomness."""

    data_dir: Path | None = None
    """Folder with CelebA; without it made-up pictures."""
    source: Literal["auto", "synthetic", "files", "tfds"] = "auto"
    """files: as published, in --data-dir; tfds: tensorflow-datasets."""
    max_images: int | None = None
    """Read only the first pictures."""
    add_synthetic: int = 0
    """Made-up pictures to add to those of the files."""
    image_size: int = 64
    """Side of the pictures."""
    tasks: int = 40
    """How many attributes, the first ones."""

    epochs: int = 100
    """Passes over the training pictures."""
    batch_size: int = 256
    """Pictures per step."""
    learning_rate: float = 5e-4
    """Of Adam."""
    rounds: int = 3
    """Timed rounds (cost)."""


def run(config: CelebaConfig) -> Path:
    """Runs the chosen parts, prints their tables and returns the run's folder.

    Raises:
        ValueError: for numbers out of range, unknown methods, damaged data, or a run to
            resume with other settings.
        FileNotFoundError: if the data are not in ``data_dir``.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    begin = time.perf_counter()
    check(config)
    loaded = _load(config)
    out = Path("runs") / config.config if config.out is None else config.out
    stored = dataclasses.replace(config, out=out, resume=False)
    folder = open_folder(out, "celeba", stored, resume=config.resume)
    print(f"data: {loaded.source}", flush=True)
    model = network(config.tasks)
    store = Store(folder, config.resume)
    facts = records.environment()
    summary: dict[str, Any] = {
        **{
            key: facts[key] for key in ("device", "cpu_count", "versions", "git_commit")
        },
        "config": records.as_json(config),
        "data": loaded.source,
    }
    if "cost" in config.parts:
        summary["cost"] = store.part(
            "cost", lambda: celeba_training.measure(config, loaded, model)
        )
    if "runs" in config.parts:
        summary["runs"] = [
            store.part(
                f"{records.slug(call)}_{seed}",
                functools.partial(
                    celeba_training.run, config, loaded, model, call, seed
                ),
            )
            for call in config.methods
            for seed in config.seeds
        ]
    records.write_json(folder / "summary.json", summary)
    for title, heads, body in result_tables(summary):
        tables.show(heads, body, title)
    print(f"{time.perf_counter() - begin:.0f} s; records in {folder}")
    return folder


def check(config: CelebaConfig) -> None:
    """Names bad options before anything is read or written.

    Raises:
        ValueError: for numbers out of range or unknown methods.
    """
    for name in ("epochs", "batch_size", "rounds", "image_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be >= 1, got {getattr(config, name)}")
    if not 1 <= config.tasks <= 40:
        raise ValueError(f"tasks must lie in 1..40, got {config.tasks}")
    if not 0 < config.learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive, got {config.learning_rate}")
    if not config.seeds or min(config.seeds) < 0 or not config.parts:
        raise ValueError(f"seeds must be integers >= 0, got {config.seeds}")
    for call in (*config.methods, *config.cost_methods):
        registry.parse(call, also=registry.SOURCE_OPTIONS)


def network(num_tasks: int) -> models.FunctionalModel:
    """MGDA's network: ResNet-18 with a 3x3 stem, 2,048 features, dense heads."""
    return models.as_functional(models.ResNet18(num_tasks, stem="cifar"))


def result_tables(summary: dict[str, Any]) -> list[Table]:
    """Step times and errors."""
    found = []
    if "cost" in summary:
        rows = summary["cost"]["rows"]
        full = next((row["ms"] for row in rows if row["name"] == "mgda"), None)
        body = [
            [
                row["name"],
                f"{row['ms']:.1f}",
                f"{row['ratio']:.2f}",
                "-" if full is None else f"{100 * row['ms'] / full:.1f}",
                f"{100 * PUBLISHED[row['name']] / PUBLISHED['mgda']:.1f}"
                if row["name"] in PUBLISHED
                else "-",
            ]
            for row in rows
        ]
        heads = ["method", "ms/step", f"x {PLAIN}", "% of mgda", "published %"]
        found.append(Table("time of a step", heads, body))
    if "runs" in summary:
        body = [
            [run["method"], str(run["seed"]), *(f"{100 * run[k]:.2f}" for k in KEYS)]
            for run in summary["runs"]
        ]
        heads = ["method", "seed", *(f"{key} error %" for key in KEYS)]
        title = "mean error over the attributes, after the best validation epoch"
        found.append(Table(title, heads, body))
    return found


def _load(config: CelebaConfig) -> data.AttributeData:
    loaded = data.load_celeba(
        config.data_dir,
        source=config.source,
        size=config.image_size,
        max_images=config.max_images,
        add_synthetic=config.add_synthetic,
    )
    count = len(loaded.train.labels)
    if config.batch_size > count:
        raise ValueError(
            f"batch_size must be at most the {count} training pictures, got "
            f"{config.batch_size}"
        )
    splits = [
        jax.device_put(AttributeSplit(s.images, s.labels[:, : config.tasks]))
        for s in loaded[:3]
    ]
    train, validation, test = splits
    names = loaded.task_names[: config.tasks]
    return data.AttributeData(train, validation, test, loaded.source, names)
