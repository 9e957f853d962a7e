"""Exporting a network: weights for other code (SlowFast, PyTorchVideo, safetensors), and graphs that run without this
package (ONNX, PyTorch's own). Nothing heavy is imported before the options are checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expand.errors import UsageError, did_you_mean
from expand.rundir.contents import check_weights
from expand.rundir.paths import RunPaths

if TYPE_CHECKING:
    from expand.model import X3D


@dataclass(frozen=True)
class Format:
    """A format: how its file's name ends, what it is for, and the function of `writers` that writes it.

    `is_graph`: the file holds the forward pass too. Its writer compares the file with the model first, and returns the
    largest difference between their logits (None if nothing is installed that runs it); the others return the files.
    """

    suffix: str
    about: str
    writer: str
    is_graph: bool = False


FORMATS = {
    "slowfast": Format(".slowfast.pyth", "checkpoint and YAML for SlowFast", "save_slowfast"),
    "pytorchvideo": Format(".pytorchvideo.pyth", "checkpoint for PyTorchVideo's create_x3d", "save_pytorchvideo"),
    "safetensors": Format(".safetensors", "the weights, with the network's description", "save_safetensors"),
    "onnx": Format(".onnx", "for ONNX Runtime and others; any batch size", "save_onnx", True),
    "torch-export": Format(".pt2", "for torch.export.load; any batch size", "save_torch_export", True)}


@dataclass(frozen=True)
class Handover:
    """The files written, and how far a graph's logits were from the model's at most; None if that was not tried."""

    files: list[Path]
    largest_difference: float | None = None


def hand_over(model_or_run: X3D | str | Path, format: str, path: str | Path | None = None, *,
              weights: str | Path | None = None) -> Handover:
    """Write a network as `expand.export` says; return the files and what was measured."""
    if format not in FORMATS:
        raise UsageError(f"there is no format '{format}'",
                         fix=did_you_mean(format, FORMATS) or f"known: {', '.join(FORMATS)}")
    target, found = Path(path or "."), FORMATS[format]
    ending = f".{found.suffix.rpartition('.')[2]}"
    if not target.is_dir() and target.suffix != ending:
        raise UsageError(f"is neither a folder nor the name of a file that ends with {ending}, as {format} does",
                         where=str(target),
                         fix=f"write to {target.with_suffix(found.suffix)}, or make the folder first")
    if isinstance(model_or_run, (str, Path)):
        check_weights(model_or_run, weights)
        from expand.model.load import load_named

        final = RunPaths(Path(model_or_run)).final
        if path is None and weights is None and final.is_dir():
            target = final
        model = load_named(model_or_run, weights)
    elif weights is not None:
        raise UsageError("the model has weights already", fix="leave out weights=, or name the network")
    else:
        model = model_or_run
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.description.name)[:100].strip(".-")  # it may be untrusted
    if target.is_dir():
        target = target / f"{name or 'network'}{found.suffix}"
    from expand.exports import writers

    save = getattr(writers, found.writer)
    return Handover([target], save(model, target)) if found.is_graph else Handover(save(model, target))
