"""Restoring a training from a checkpoint's content, which is checked as untrusted input.

Content that does not fit is refused before anything is changed, so that another checkpoint can be used instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expand.data.loading import clips_of_batch, updates_per_epoch
from expand.model.archive import Damaged
from expand.training.averages import MovingAverage
from expand.training.checkpoint import Progress, gpu_of
from expand.training.stopwatch import OTHER, STEP
from expand.untrusted_input import Check, Wrong, list_of, mapping_of, number, record, text, whole

MOST_COLUMNS = 100
OPTIMIZER_STATES: Mapping[type[torch.optim.Optimizer], Set[str]] = {
    torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}
"""The entries that an optimiser keeps for each parameter."""
_seconds = number(0, 1e12)


@dataclass(frozen=True)
class Extent:
    """The extent of a training, which bounds its progress: its `epochs`, the `clips` of an epoch and of a batch."""

    epochs: int
    clips: int
    batch_size: int


def restore(state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, extent: Extent,
            average: MovingAverage | None = None) -> Progress:
    """Put `state` into the model, the optimiser, the moving average and the random generators.

    The optimiser keeps its own settings (rates, decays). Raises `Damaged` for a state that does not fit, before
    anything is changed.
    """
    try:
        progress = _progress(state.get("progress"), extent)
        _check_like(state.get("model"), model.state_dict(), "model")
        if average is not None:
            _check_like(state.get("average"), average.module.state_dict(), "average")
            whole(0, 10**12)(state.get("averaged"), "averaged")
        moments = _optimizer_state(state.get("optimizer"), optimizer)
        generator = _generator(state.get("rng"), torch.Generator())
        device = gpu_of(model) if "cuda_rng" in state else None
        on_gpu = None if device is None else _generator(state["cuda_rng"], torch.Generator(device))
    except Wrong as error:
        raise Damaged(str(error)) from error
    model.load_state_dict(state["model"])
    if average is not None:
        average.module.load_state_dict(state["average"])
        average.n_averaged.fill_(state["averaged"])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(generator)
    if device is not None and on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)
    return progress


def _progress(kept: Any, extent: Extent) -> Progress:
    """Return the progress `kept` by any version: the first ones had two figures in place of the phases."""
    fields = dict(kept) if isinstance(kept, Mapping) else kept
    if isinstance(fields, dict) and "seconds" not in fields:
        record({"train_s": _seconds, "wall_s": _seconds})(fields, "progress")
        train_s, wall_s = fields.pop("train_s"), fields.pop("wall_s")
        fields["seconds"] = {STEP: train_s, OTHER: max(0.0, wall_s - train_s)}
    updates = updates_per_epoch(extent.clips, extent.batch_size)

    def column(value: Any, name: str) -> None:  # NaN: nothing was measured
        if not (isinstance(value, float) and math.isnan(value)):
            number(-1e30, 1e30)(value, name)

    rows = list_of(mapping_of(text(100), column, MOST_COLUMNS), extent.epochs)
    checks: dict[str, Check] = {
        "epoch": whole(0, extent.epochs), "batch": whole(0, updates), "loss_sum": number(-1e30, 1e30),
        "correct": whole(0, extent.clips), "seen": whole(0, extent.clips), "rows": rows,
        "seconds": mapping_of(text(100), _seconds, MOST_COLUMNS), "clips": whole(0, 10**15),
        "parts": whole(1, extent.batch_size)}
    later = {"clips": checks.pop("clips"), "parts": checks.pop("parts")}
    record(checks, later)(fields, "progress")
    if unknown := [str(name)[:100] for name in fields if name not in (*checks, *later)]:
        raise Wrong(f"'progress.{unknown[0]}' is not known")
    progress = Progress(**fields)
    seen = sum(clips_of_batch(batch, extent.clips, extent.batch_size) for batch in range(progress.batch))
    columns = {tuple(row) for row in progress.rows}
    if progress.seen != seen or len(progress.rows) != progress.epoch or len(columns) > 1 or (
            columns and "epoch" not in columns.pop()) or (progress.epoch == extent.epochs and progress.batch):
        raise Wrong("its counts of clips, epochs and rows do not agree")
    return progress


def _check_like(found: Any, wanted: Mapping[str, Tensor], name: str) -> None:
    """Raise `Wrong` unless `found` has tensors of the names, types and shapes of `wanted`."""
    if not isinstance(found, Mapping) or found.keys() != wanted.keys():
        raise Wrong(f"its {name} has not the network's weights")
    for key, tensor in wanted.items():
        _check_tensor(found[key], tensor, f"{name}.{key}")


def _check_tensor(found: Any, wanted: Tensor, name: str) -> None:
    if not (isinstance(found, Tensor) and found.layout is torch.strided and found.device.type == "cpu"
            and found.dtype == wanted.dtype and found.shape == wanted.shape):
        raise Wrong(f"its {name} is of another kind or shape")


def _optimizer_state(found: Any, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor | None]]:
    """Return the optimiser's state by the parameter's number, in memory of its own: tensors of a file may overlap."""
    if not isinstance(found, Mapping) or not isinstance(states := found.get("state"), Mapping):
        raise Wrong("its optimiser has no state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, held in states.items():
        whole(0, len(parameters) - 1)(place, "optimizer.state")
        if not isinstance(held, Mapping) or held.keys() != OPTIMIZER_STATES[type(optimizer)]:
            raise Wrong("its optimiser is of another kind")
        for key, value in held.items():
            like = torch.zeros(()) if key == "step" else parameters[place]
            if value is not None or key != "momentum_buffer":
                _check_tensor(value, like, f"{key} {place}")
    if 0 < len(states) < len(parameters):
        raise Wrong("its optimiser lacks some of its state")
    return {place: {key: None if value is None else value.clone() for key, value in held.items()}
            for place, held in states.items()}


def _generator(found: Any, trial: torch.Generator) -> Tensor:
    """Return a copy of a random generator's state, after `trial` has taken it."""
    _check_tensor(found, trial.get_state(), "random generator")
    try:
        trial.set_state(found.clone())
    except RuntimeError as error:
        raise Wrong("its random generator cannot be in such a state") from error
    return found.clone()
