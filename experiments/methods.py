"""Study ``methods``: the registry as a table."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rich.console import Console
from rich.table import Table

import mtl_jax
from mtl_jax import registry

HEADS = ("method", "what it does", "paper", "needs", "properties")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """Lists the registered methods."""

    format: Literal["terminal", "markdown"] = "terminal"
    """A table for people, or Markdown for documents."""


def run(config: MethodsConfig) -> None:
    """Prints one row per method, and what the words in it mean."""
    rows = registry_rows()
    if config.format == "markdown":
        for row in [list(HEADS), [":--"] * len(HEADS), *rows]:
            print(f"| {' | '.join(row)} |")
        return
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


def registry_rows() -> list[list[str]]:
    """Name, summary, paper, needs and properties of each method."""
    return [
        [
            spec.name,
            spec.summary,
            f"{spec.reference}, arXiv:{spec.arxiv}" if spec.arxiv else spec.reference,
            ", ".join(sorted(spec.needs)) or "-",
            ", ".join(sorted(spec.properties)).replace("_", " ") or "-",
        ]
        for spec in mtl_jax.METHODS.values()
    ]
