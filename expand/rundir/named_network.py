"""The network that a name, a file or a run stands for."""

from __future__ import annotations

import os
from pathlib import Path

from expand.errors import RunError
from expand.rundir.paths import RunPaths
from expand.space.network import Network, find_network, load_network


def network_of(source: str | Path | Network, classes: int | None = None) -> Network:
    """The network that `source` is or names: a published one, a YAML file, or the winner of a run or training.
    `classes` are taken where a YAML file does not say how many.

    Raises `UsageError` where it names none of them, `RunError` for a run without a winner.
    """
    if isinstance(source, Network):
        return source
    if os.path.isdir(source):
        return load_network(_description(RunPaths(Path(source))))
    return find_network(str(source), classes)


def _description(paths: RunPaths) -> Path:
    run = paths.root
    if not (paths.journal.exists() or paths.training.exists()):
        raise RunError("is not a run directory", where=str(run),
                       fix="give a run, a network's YAML file, or one of xs, s, m, l, xl, x2d")
    if not paths.network.exists():
        raise RunError("the run has no winner yet", where=str(run), fix=f"go on with: x3d-expand resume {run}")
    return paths.network
