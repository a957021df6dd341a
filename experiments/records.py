"""What a run leaves on disk: a folder of JSON files. Knows nothing of training.

``config.json`` says what ran, on what and with which versions; ``metrics.jsonl`` holds
one line per block of steps or evaluation, and only what a rerun reproduces;
``timing.jsonl`` holds the rest; ``summary.json`` exists once the run is finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSIONED = ("jax", "jaxlib", "optax", "flax", "numpy", "orbax-checkpoint")


class NonFiniteError(Exception):
    """A loss (or a trajectory) left the finite numbers."""


class Interrupted(Exception):
    """The user asked to stop; the run folder is usable."""


class StorageError(Exception):
    """A record cannot be written: full disk, no permission; older ones are intact."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"cannot write {path} ({reason}): what was written before is intact; make "
            "it writable or make room and go on with --resume, or choose another --out"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in errors of the operating system."""
    try:
        yield
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error


def start_run(folder: Path, study: str, config: Any, **notes: Any) -> Path:
    """Creates a run folder and writes its ``config.json``.

    Args:
        folder: created with its parents if missing.
        study: name of the study.
        config: a dataclass.
        notes: further entries, e.g. ``data=``.

    Returns:
        The folder.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    entry = {"study": study, "config": as_json(config), **notes, **environment()}
    write_json(folder / "config.json", entry)
    return folder


def open_run(
    folder: Path, study: str, config: Any, *, resume: bool, **notes: Any
) -> None:
    """Starts a run in ``folder``, or checks that the run there is the same one.

    Raises:
        FileExistsError: if there is a run and ``resume`` is false.
        ValueError: if the run there had other settings or data.
    """
    path = folder / "config.json"
    if not path.exists():
        start_run(folder, study, config, **notes)
        return
    if not resume:
        raise FileExistsError(
            f"{folder} already holds a run: pass --resume to go on, or another --out"
        )
    found = read_json(path)
    wanted = {"study": study, "config": as_json(config), **notes}
    old, new = _flat({key: found.get(key) for key in wanted}), _flat(wanted)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        changes = "; ".join(f"{n}: {old.get(n)} there, {new.get(n)} now" for n in names)
        raise ValueError(
            f"{folder} holds a run with other settings ({changes}): pass the old ones, "
            "or another --out"
        )


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one; without paths, which may change between machines."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _flat(value) if isinstance(value, dict) else {name: value}
    leaves.pop("data_dir", None)
    return leaves


def as_json(config: Any) -> Any:
    """A dataclass as it reads back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, device, git commit and command line of this process."""
    import jax  # figures read records without these

    import mtl_jax

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    devices = jax.devices()
    return {
        "versions": {
            "python": platform.python_version(),
            "mtl_jax": mtl_jax.__version__,
            **{package: version(package) for package in VERSIONED},
        },
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "cpu_count": os.cpu_count(),
        "git_commit": git_commit(),
        "command": sys.argv[1:],
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """Commit of the source tree, with ``-dirty`` after local changes, or ``None``."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def slug(text: str) -> str:
    """A file name for a call string: ``cagrad(c=0.4)`` gives ``cagrad-c=0.4``."""
    return re.sub(r"[^\w=.]+", "-", text.replace("'", "").replace('"', "")).strip("-")


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file so that readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()  # gives a full disk its room back
            raise
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON as :func:`write_bytes` does."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not readable JSON: delete its folder") from None


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Appends JSON lines, all or none; a kill can only cut off the end of the last.

    What follows a line that was cut off would be read as part of it, so it goes first.
    """
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    # Without a buffer: closing one would write once more what could not be written.
    with writing(path), path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
        left = memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; a last line that was cut off is passed over.

    Raises:
        ValueError: naming file and line, if another one is damaged.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise ValueError(
                f"line {number} of {path} is not readable JSON: delete its folder"
            ) from None
    return lines


def truncate_lines(path: Path, last_step: int) -> None:
    """Drops the lines after ``last_step``, and a last line that was cut off."""
    kept = [line for line in read_lines(path) if line["step"] <= last_step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_bytes(path, text.encode())


def rounded(values: Any) -> Any:
    """Nested lists of floats with six significant digits, which float32 justifies."""
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.6g}")
