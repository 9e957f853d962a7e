"""The state of a training, whole or not at all on disk: it can be continued bit for bit on the CPU."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from expand.model import X3D
from expand.rundir.files import atomic_path
from expand.training.stopwatch import CLIPS, OTHER, STEP

VERSION = 1


@dataclass
class Progress:
    """How far a training is: `epoch` and `batch` to come, running sums of the epoch, one row an epoch, `seconds` spent
    by phase (`stopwatch`), over all starts.

    `rows` are dictionaries of numbers, the lines of metrics.csv.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    clips: int = 0
    parts: int = 1
    """Parts that a batch is split into by now: `RecipeConfig.accumulation`, or more where memory ran out."""

    @property
    def wall_s(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @property
    def train_s(self) -> float:
        """Seconds of training: steps, and waiting for their clips."""
        return self.seconds.get(STEP, 0.0) + self.seconds.get(CLIPS, 0.0)


def save(path: Path, identity: str, model: X3D, optimizer: torch.optim.Optimizer, progress: Progress,
         average: AveragedModel | None = None) -> None:
    """Writes the training's state. `identity` names what is trained, so that another training never goes on from it."""
    state = {**_described(model), "identity": identity,
             "optimizer": optimizer.state_dict(), "progress": dict(vars(progress)), "rng": torch.get_rng_state()}
    if average is not None:
        state["average"], state["averaged"] = average.module.state_dict(), int(average.n_averaged)
    device = _gpu_of(model)
    if device is not None:
        state["cuda_rng"] = torch.cuda.get_rng_state(device)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _described(model: X3D) -> dict[str, Any]:
    """The weights and what the network is, as `expand.model.weights` reads them."""
    return {"version": VERSION, "network": model.network and model.network.as_dict(), "model": model.state_dict()}


def save_weights(path: Path, model: X3D) -> None:
    """Writes the weights with the network's description: what stays of a training that has its outcome."""
    with atomic_path(path) as temporary:
        torch.save(_described(model), temporary)


def load(path: Path, identity: str) -> tuple[dict[str, Any] | None, str | None]:
    """The state at `path` for `restore`, or None with the reason where it cannot be used (None, None: no file)."""
    if not path.exists():
        return None, None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        return None, f"damaged ({type(error).__name__})"
    if not isinstance(state, dict) or state.get("version") != VERSION or state.get("identity") != identity:
        return None, "of another training"
    return state, None


def restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer,
            average: AveragedModel | None = None) -> Progress:
    """Puts `state` into model, optimiser, moving average and the random generators."""
    model.load_state_dict(state["model"])
    if average is not None:
        average.module.load_state_dict(state["average"])
        average.n_averaged.fill_(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    device = _gpu_of(model)
    if "cuda_rng" in state and device is not None:
        torch.cuda.set_rng_state(state["cuda_rng"], device)
    return _progress(state["progress"])


def _progress(kept: dict[str, Any]) -> Progress:
    """`kept` of any version: the first ones had two figures in place of the phases."""
    kept = dict(kept)
    if "seconds" not in kept:
        train_s = kept.pop("train_s")
        kept["seconds"] = {STEP: train_s, OTHER: max(0.0, kept.pop("wall_s") - train_s)}
    return Progress(**kept)


def _gpu_of(model: nn.Module) -> torch.device | None:
    """The GPU that the model is on: each of several processes has its own, and all draw the same from theirs."""
    device = next(model.parameters()).device
    return device if device.type == "cuda" else None
