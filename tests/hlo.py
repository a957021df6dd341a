"""Reads what a compiled program sends between devices: its collectives, with bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

OPS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|true_computation|"
    r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TILES = r"\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One collective instruction; an asynchronous pair counts as one."""

    op: str
    """One of ``OPS``."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the results on one device."""
    bytes: int
    """Bytes of the results on one device, of one execution."""
    executions: int | None
    """How often one run executes it; ``None`` in a loop of unknown length."""
    groups: tuple[tuple[int, ...], ...]
    """Which devices talk to each other; source-target pairs for a permutation."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of elements of the results."""
        return tuple(math.prod(shape) for shape in self.shapes)


def collectives(text: str) -> list[Collective]:
    """Returns all collectives that a run of ``compiled.as_text()`` executes.

    Raises:
        ValueError: for text that it cannot read, so that no collective is overlooked.
    """
    computations, entry = _computations(text)
    found = list(_walk(entry, computations, 1))
    names = "|".join(OPS)
    written = re.findall(rf"[\]\}})] (?:{names})(?:-start)?\(", text)
    if len(written) > len({id(line) for line, _ in found}):
        raise ValueError(
            f"found {len(found)} collectives, but the text holds {len(written)}"
        )
    return [collective for _, collective in found]


def _computations(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """Instructions by name, by computation; and the name of the entry."""
    computations: dict[str, dict[str, str]] = {}
    current, entry = None, None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current[instruction[1]] = instruction[2]
    if entry is None:
        raise ValueError("the text holds no ENTRY computation")
    return computations, entry


def _walk(
    name: str, computations: dict[str, dict[str, str]], executions: int | None
) -> Iterator[tuple[str, Collective]]:
    """Yields ``(instruction, collective)`` of a computation and of all that it calls."""
    instructions = computations[name]
    for text in instructions.values():
        shape, op, rest = _split(text)
        base = op.removesuffix("-start").removesuffix("-done")
        if base in OPS:
            if op.endswith("-start"):
                continue
            attributes = rest
            if op.endswith("-done"):  # the start has the groups, the done the result
                start = re.search(r"%?([\w.\-]+)\)", rest)
                assert start is not None
                attributes = instructions[start[1]]
            yield text, _collective(base, shape, attributes, executions)
        if op in ("async-update", "async-done"):
            continue  # its computation counts at the start
        trips = _TRIPS.search(rest)
        for kind, called in _CALLED.findall(rest):
            inner = executions
            if op == "while":
                known = trips is not None and executions is not None
                inner = executions * int(trips[1]) if known else None
            if base in OPS or (kind == "to_apply" and op != "call"):
                continue  # an element-wise reduction
            for target in re.findall(r"[\w.\-]+", called):
                yield from _walk(target, computations, inner)


def _split(text: str) -> tuple[str, str, str]:
    """Splits ``"f32[2]{0} add(%a, %b), ..."`` into shape, op and the rest."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == " " and depth == 0:
            shape, rest = text[:i], text[i + 1 :]
            op, arguments = rest.split("(", 1)
            return shape, op.strip(), "(" + arguments
    raise ValueError(f"cannot read the instruction {text!r}")


def _collective(
    op: str, shape: str, attributes: str, executions: int | None
) -> Collective:
    arrays = [
        (kind, tuple(int(n) for n in dims.split(",") if n))
        for kind, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape))
    ]
    shapes = tuple(dims for _, dims in arrays)
    size = sum(_bytes(kind) * math.prod(dims) for kind, dims in arrays)
    return Collective(op, shapes, size, executions, _groups(attributes))


def _bytes(kind: str) -> int:
    if kind in _BYTES:
        return _BYTES[kind]
    bits = re.fullmatch(r"[su](\d+)", kind)
    if bits is None:
        raise ValueError(f"unknown element type {kind!r}")
    return max(1, int(bits[1]) // 8)


def _groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """Device groups, in any of HLO's notations: lists, iota tiles, mesh axes."""
    explicit = re.search(
        r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}", attributes
    )
    if explicit is not None:
        rows = re.findall(r"\{([\d,]*)\}", explicit[1])
        return tuple(tuple(int(n) for n in row.split(",") if n) for row in rows)
    tiles = re.search(rf"replica_groups=({_TILES})", attributes)
    if tiles is not None:
        return _as_tuples(_iota(tiles[1]))
    mesh = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\[[^)]*\)?)\))? \{(.*?)\}",
        attributes,
    )
    if mesh is None:
        raise ValueError(f"cannot read the device groups of {attributes!r}")
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    total = math.prod(sizes.values())
    ids = np.arange(total) if mesh[2] is None else _iota(mesh[2])
    chosen = re.findall(r"'(\w+)'", mesh[3])
    order = [name for name in sizes if name not in chosen] + chosen
    axes = [list(sizes).index(name) for name in order]
    width = math.prod(sizes[name] for name in chosen)
    table = ids.reshape(tuple(sizes.values())).transpose(axes)
    return _as_tuples(table.reshape(-1, width))


def _iota(tiles: str) -> np.ndarray:
    """Reads ``[2,4]<=[4,2]T(1,0)``: counts in shape (4, 2), transposed, as (2, 4).

    The first shape is left out where only the order matters (``[4,2]T(1,0)``).
    """
    target, _, source = tiles.rpartition("<=")
    shape, *order = (
        [int(n) for n in part.split(",")] for part in re.findall(r"[\d,]*\d", source)
    )
    ids = np.arange(math.prod(shape)).reshape(shape).transpose(*order).ravel()
    return ids.reshape([int(n) for n in re.findall(r"\d+", target)] or -1)


def _as_tuples(table: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())
