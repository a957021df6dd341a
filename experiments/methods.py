"""Study ``methods``: the registry as a table."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

import mtl_jax
from mtl_jax import registry

HEADS = ("method", "what it does", "paper", "needs", "properties", "cost")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """Lists the registered methods."""

    format: Literal["terminal", "markdown"] = "terminal"
    """A table for people, or Markdown for documents."""


def run(config: MethodsConfig) -> None:
    """Prints one row per method, and what the words in it mean."""
    if config.format == "markdown":
        for row in [list(HEADS), [":--"] * len(HEADS), *registry_rows(links=True)]:
            print(f"| {' | '.join(row)} |")
        return
    rows = registry_rows()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(*HEADS)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for title, words in (
        ("needs", registry.NEEDS),
        ("properties", registry.PROPERTIES),
    ):
        print(f"{title}:")
        for word, meaning in words.items():
            print(f"  {word.replace('_', ' ')}: {meaning}")


def registry_rows(links: bool = False) -> list[list[str]]:
    """Name, summary, paper, needs, properties and cost of each method.

    Args:
        links: whether names and papers are Markdown links to the source and to arXiv.
    """
    return [
        [
            f"[`{spec.name}`]({_source(spec)})" if links else spec.name,
            spec.summary,
            _paper(spec, links),
            ", ".join(sorted(spec.needs)) or "-",
            ", ".join(sorted(spec.properties)).replace("_", " ") or "-",
            spec.cost,
        ]
        for spec in mtl_jax.METHODS.values()
    ]


def _paper(spec: registry.MethodSpec, links: bool) -> str:
    if spec.arxiv is None:
        return spec.reference
    if links:
        return f"[{spec.reference}](https://arxiv.org/abs/{spec.arxiv})"
    return f"{spec.reference}, arXiv:{spec.arxiv}"


def _source(spec: registry.MethodSpec) -> str:
    """Path of the file that defines the method, from the root of the repository."""
    path = Path(inspect.getfile(inspect.unwrap(spec.weighting or spec.factory)))
    return path.relative_to(Path(mtl_jax.__file__).parent.parent).as_posix()
