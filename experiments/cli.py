"""Command lines from dataclasses (tyro), on top of a named configuration (TOML)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

CONFIGS = Path(__file__).parent / "configs"


def parse(run: Callable[[Any], Any], argv: list[str], *, prog: str) -> Any:
    """Parses ``argv`` into the dataclass that ``run`` takes.

    If the dataclass has a field ``config``, ``--config NAME`` picks the file
    ``configs/NAME.toml``, and all other options override what stands there.

    Raises:
        ValueError: for an unknown configuration. Bad options end the program, code 2.
    """
    config_class = typing.get_type_hints(run)["config"]
    default = None
    names = {field.name: field for field in dataclasses.fields(config_class)}
    if "config" in names:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", default=names["config"].default)
        default = load_named(config_class, first.parse_known_args(argv)[0].config)
    flat = tyro.conf.OmitArgPrefixes[config_class]
    # tyro prints --help on stdout and errors on stderr, and exits with 0 and 2.
    if default is None:
        return tyro.cli(flat, args=argv, prog=prog)
    return tyro.cli(flat, args=argv, prog=prog, default=default)


def load_named(config_class: type, name: str) -> Any:
    """Returns the dataclass with the values of ``configs/NAME.toml``.

    The file may hold keys of every study; those of others are passed over.

    Raises:
        ValueError: if there is no such file.
    """
    known = sorted(path.stem for path in CONFIGS.glob("*.toml"))
    if name not in known:
        raise ValueError(f"unknown configuration {name!r} (known: {', '.join(known)})")
    values = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    return fill(config_class, {**values, "config": name})


def fill(config_class: type, values: dict[str, Any]) -> Any:
    """Builds a dataclass of dataclasses from one flat dictionary."""
    hints = typing.get_type_hints(config_class)
    chosen = {}
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            chosen[field.name] = fill(typing.cast(type, hints[field.name]), values)
        elif field.name in values:
            value = values[field.name]
            chosen[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**chosen)


def is_terminal() -> bool:
    """Whether someone is watching: progress bars are for people, not for logs."""
    return sys.stderr.isatty()
