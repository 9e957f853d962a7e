"""Handing a network over: weights for other code (SlowFast, PyTorchVideo, safetensors), and graphs that run without
this package (ONNX, PyTorch's own). Nothing heavy is imported before a file is written."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expand.errors import UsageError, did_you_mean
from expand.rundir.paths import RunPaths

if TYPE_CHECKING:
    from expand.model import X3D


@dataclass(frozen=True)
class Format:
    """A format: how its file's name ends, what it is for, and the function `module:name` that writes it.

    `is_graph`: the file holds the forward pass too. Its writer compares the file with the model first, and returns the
    largest difference between their logits (None where nothing is installed that runs it); the others return the files.
    """

    suffix: str
    about: str
    writer: str
    is_graph: bool = False


FORMATS = {
    "slowfast": Format(".slowfast.pyth", "checkpoint and YAML for SlowFast", "expand.model.weights:save_slowfast"),
    "pytorchvideo": Format(".pytorchvideo.pyth", "checkpoint for PyTorchVideo's create_x3d",
                           "expand.model.weights:save_pytorchvideo"),
    "safetensors": Format(".safetensors", "the weights, with the network's description",
                          "expand.model.weights:save_safetensors"),
    "onnx": Format(".onnx", "for ONNX Runtime and others; any batch size",
                   "expand.exports.graph_files:save_onnx", True),
    "torch-export": Format(".pt2", "for torch.export.load; any batch size",
                           "expand.exports.graph_files:save_torch_export", True)}


@dataclass(frozen=True)
class Handover:
    """The files written, and how far a graph's logits were from the model's at most; None where that was not tried."""

    files: list[Path]
    largest_difference: float | None = None


def export(model_or_run: X3D | str | Path, format: str, path: str | Path | None = None, *,
           weights: str | Path | None = None, log: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Writes a network in one of `FORMATS`; returns the files.

    `model_or_run`: an `X3D`; a run, a training or a file with weights; or, with the file `weights`, the name of a
    published network or a network's YAML. `path`: a file, or a folder for `<network's name><suffix>`; by default the
    run's `final/`, else the current folder. `log` is told what was taken for granted about weights.

    Raises `UsageError` for what cannot be meant, a package that is missing, and a file that computes something else.
    """
    return hand_over(model_or_run, format, path, weights=weights, log=log).files


def hand_over(model_or_run: X3D | str | Path, format: str, path: str | Path | None = None, *,
              weights: str | Path | None = None, log: Callable[[str], None] = lambda text: None) -> Handover:
    """`export`, with what it measured."""
    _find(format)  # before anything is loaded
    if not isinstance(model_or_run, (str, Path)):
        if weights is not None:
            raise UsageError("the model has weights already", fix="leave out weights=, or name the network")
        return _write(model_or_run, format, Path(path or "."))
    from expand.model.load import load_named

    final = RunPaths(Path(model_or_run)).final
    default = final if weights is None and final.is_dir() else Path(".")
    return _write(load_named(model_or_run, weights, log), format, Path(path or default))


def _find(format: str) -> Format:
    if format not in FORMATS:
        raise UsageError(f"there is no format '{format}'",
                         fix=did_you_mean(format, FORMATS) or f"known: {', '.join(FORMATS)}")
    return FORMATS[format]


def _write(model: X3D, format: str, path: Path) -> Handover:
    found = _find(format)
    ending = f".{found.suffix.rpartition('.')[2]}"
    if model.network is None:
        raise UsageError("the model has no description, so nobody could tell what a clip must look like",
                         fix="make it with X3D.of(network) or X3D.preset(name), or load it")
    if path.is_dir():
        path = path / f"{_file_name(model.network.name)}{found.suffix}"
    elif path.suffix != ending:
        raise UsageError(f"is neither a folder nor the name of a file that ends with {ending}, as {format} does",
                         where=str(path), fix=f"write to {path.with_suffix(found.suffix)}, or make the folder first")
    save: Callable[[X3D, Path], Any] = pkgutil.resolve_name(found.writer)
    return Handover([path], save(model, path)) if found.is_graph else Handover(save(model, path))


def _file_name(network: str) -> str:
    """A network's name, which a stranger may have chosen, as a name in a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", network)[:100].strip(".-") or "network"
