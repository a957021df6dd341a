"""``python -m experiments STUDY [options]``: finds the study and runs it.

A study is a module with ``run(config)``, whose annotated dataclass is its command line.
Exit codes: 0 done; 2 bad input, one sentence on stderr; 3 a loss became non-finite;
4 the disk is full or cannot be written, nothing is lost; 130 interrupted.
``MTL_JAX_TRACEBACK=1`` shows where a bad input was found.
"""

from __future__ import annotations

import importlib
import os
import sys

STUDIES = {
    "compare": "trains methods and single-task networks; table and pictures",
    "train": "one training run",
    "toy": "trajectories on the two-dimensional problem of Nash-MTL's Figure 1",
    "explore": "continuous Pareto exploration: fronts followed with Krylov solves",
    "manifold": "whole Pareto fronts in one training run, and their baselines",
    "sparse": "sparse networks by weighted Chebyshev training and GrOWL",
    "qm9": "eleven properties of molecules: methods on Nash-MTL's QM9 benchmark",
    "celeba": "forty attributes of a face: what MGDA-UB saves",
    "bench": "step time of every method as a ratio to a plain step",
    "methods": "lists the registered methods",
}


def main(argv: list[str]) -> int:
    """Runs one study and returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, *rest = argv
    if name not in STUDIES:
        print(f"error: unknown study {name!r}\n{_usage()}", file=sys.stderr)
        return 2
    from experiments import cli, records  # after the cheap answers: they import tyro

    study = importlib.import_module(f"experiments.{name}")
    try:
        study.run(cli.parse(study.run, rest, prog=f"python -m experiments {name}"))
    except records.NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except records.StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except records.Interrupted as error:
        print(f"interrupted: {error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("MTL_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _usage() -> str:
    width = max(map(len, STUDIES))
    lines = [f"  {name:{width}}  {text}" for name, text in STUDIES.items()]
    head = "usage: python -m experiments STUDY [options]   (STUDY --help lists them)"
    return "\n".join([head, *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
