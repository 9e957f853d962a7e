"""The network that a name, a file or a run stands for, and the file with its weights. No file of weights is opened."""

from __future__ import annotations

import os
from pathlib import Path

from expand.errors import RunError, UsageError, hint
from expand.rundir.paths import WEIGHTS, RunPaths, inside
from expand.space.factors import PRESETS, PUBLISHED_CLASSES
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


def weights_at(source: Path) -> Path:
    """Return the file with the weights of a run, of a training or of its `final/`; a file of weights stands for itself.

    Raises `UsageError` where there is none, `RunError` for a run without a trained winner.
    """
    name, paths = str(source), RunPaths(source)
    if source.suffix.lower() == ".onnx":
        raise UsageError("is ONNX, which holds no weights to go on with", where=name,
                         fix="onnxruntime.InferenceSession opens it; give the run, or another file of the same network")
    if os.path.isdir(source):
        for weights in (paths.weights, inside(source, source / WEIGHTS)):
            if weights.is_file():
                return weights
        if paths.journal.exists():
            raise RunError("the run has no trained winner yet", where=name, fix=f"go on with: x3d-expand resume {name}")
        raise RunError("there are no trained weights in it", where=name,
                       fix="give a run or a training that has ended, or a file of weights")
    if os.path.exists(source):
        return source
    if name.lower() in PRESETS:
        raise UsageError("is a network without weights", where=name,
                         fix=hint(command="give a run's directory or a file of weights",
                                  python=f"X3D.preset('{name.lower()}') makes it with first weights"))
    raise UsageError("there is no such file or directory", where=name, fix="give a run's directory or a weights file")


def check_weights(source: str | Path, weights: str | Path | None) -> None:
    """Raise what `load_named` would raise, as far as that can be known before torch is imported."""
    is_preset = str(source).lower() in PRESETS
    if weights is not None:
        weights_at(Path(weights))
        if not is_preset:
            network_of(str(source), PUBLISHED_CLASSES)  # the number of classes is that of the weights, unknown so far
    elif (is_preset and not os.path.exists(source)) or Path(source).suffix in (".yaml", ".yml"):
        raise UsageError("is a network without weights", where=str(source),
                         fix="name the file that has them: --weights CHECKPOINT")
    else:
        weights_at(Path(source))
