"""Readers of what a run or training keeps about itself: its network, the file with its weights (which is not opened),
its beginning, the result of its final training.

A run may be untrusted: what is used is checked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from expand.errors import RunError, UsageError, hint
from expand.rundir.paths import WEIGHTS, RunPaths, inside
from expand.space.factors import PRESETS, PUBLISHED_CLASSES
from expand.space.network import Network, find_network, load_network
from expand.untrusted_input import LARGEST_YAML, Check, Wrong, list_of, number, one_of, or_null, record, text, whole


def network_of(source: str | Path | Network, classes: int | None = None) -> Network:
    """Return the network that `source` is or names: a published one, a YAML file, or the winner of a run or training.
    `classes` are taken where a YAML file does not say how many.

    Raises `UsageError` where it names none of them, `RunError` for a run without a winner.
    """
    if isinstance(source, Network):
        return source
    if not os.path.isdir(source):
        return find_network(str(source), classes)
    paths = RunPaths(Path(source))
    run = paths.root
    if not (paths.journal.exists() or paths.training.exists()):
        raise RunError("is not a run directory", where=str(run),
                       fix="give a run, a network's YAML file, or one of xs, s, m, l, xl, x2d")
    if not paths.network.exists():
        raise RunError("the run has no winner yet", where=str(run), fix=f"go on with: x3d-expand resume {run}")
    return load_network(paths.network)


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
                                  python=f"X3D.preset('{name.lower()}') makes it with initial weights"))
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


_beginning: dict[str, Check] = {
    "network": lambda value, name: value,  # `Network.from_dict` looks at it
    "config": text(LARGEST_YAML), "fingerprint": text(1000),
    "splits": record({}, dict.fromkeys(("train", "val", "test"), whole(0, 10**9))), "init": or_null(text())}


def read_training(paths: RunPaths) -> dict[str, Any]:
    """Return what a training that belongs to no search was begun with, from training.yaml: its `network`, `config`,
    `fingerprint`, `splits` and `init`. Raises `RunError` where the file is not as it was written."""
    from expand.config import yaml_document  # PyYAML, which most commands do without

    try:
        spec = yaml_document.parse_values(yaml_document.read_regular_file(paths.training))
        return record(_beginning)(spec, "")
    except (yaml_document.NotYaml, Wrong) as error:
        raise RunError(f"cannot be used ({error}), so what was to be trained is not known", where=str(paths.training),
                       fix="take it back from a copy, or start a new training") from error


_share, _matrix = number(0, 1), list_of(list_of(whole(0, 10**9), 10**6), 10**6, least=1)
_final_outcome = record({
    "result": record({"split": one_of(("val", "test")), "accuracy": _share, "stderr": or_null(_share), "top5": _share,
                      "val_accuracy": _share, "val_stderr": or_null(_share)},
                     {"loss": or_null(number(-1e30, 1e30)), "wall_s": or_null(number(0, 1e12))}),
    "confusion": record({"val": _matrix}, {"test": _matrix})})


def check_outcome(value: Any, name: str) -> None:
    """Check the fields that are used of a final training's outcome.json. Raises `Wrong`."""
    _final_outcome(value, name)
    split = value["result"]["split"]
    if not sum(map(sum, value["confusion"].get(split, []))):
        raise Wrong(f"'confusion.{split}' has no videos")
