"""The state of a training on disk, in two generations: it can be continued bit for bit on the CPU.

What a kill or a disk does to one of the two leaves the other. A file that is damaged is noticed by its seal
(`expand.model.archive`), one that does not fit by `expand.training.untrusted_checkpoint`, before anything of it is
used.
"""

from __future__ import annotations

import copy
import io
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from expand.bounded_files import read_bounded, size_text
from expand.device_faults import lacks_memory
from expand.model import X3D
from expand.model.archive import IS_SEALED, Damaged, check, save_sealed
from expand.rundir.files import TEMPORARY, atomic_path
from expand.rundir.paths import CandidatePaths
from expand.training.stopwatch import CLIPS, STEP

VERSION = 1
LARGEST = 4_000_000_000
"""Bytes of a checkpoint of which nothing is known."""
OTHERS = "of another training"


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
         average: AveragedModel | None = None, before: Path | None = None) -> None:
    """Writes the training's state. `identity` names what is trained, so that another training never goes on from it.

    What was at `path` becomes `before`, where that is given. At every instant one of the two is whole: `path` is
    replaced in one step, and `before` not until then. Raises `RunError` where the disk refuses; both are as they were.
    """
    state = {**_described(model), "identity": identity, "optimizer": _on_host(optimizer.state_dict()),
             "progress": dict(vars(progress)), "rng": torch.get_rng_state()}
    if average is not None:
        state["average"], state["averaged"] = _on_host(average.module.state_dict()), int(average.n_averaged)
    device = gpu_of(model)
    if device is not None:
        state["cuda_rng"] = torch.cuda.get_rng_state(device)
    kept = None if before is None else before.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{before.name}")
    try:
        with atomic_path(path, above=False) as temporary:
            save_sealed(state, temporary)
            if kept is not None:
                _keep(path, kept, before)
        if kept is not None:
            with suppress(OSError):  # there was none to keep; or it stays the one before that
                os.replace(kept, before)
    finally:
        if kept is not None:
            with suppress(OSError):
                kept.unlink(missing_ok=True)


def _keep(path: Path, kept: Path, before: Path) -> None:
    """A second name for the file at `path`; where a file system has no such, the file becomes `before` at once, and
    for an instant it is the only one."""
    with suppress(FileNotFoundError):
        try:
            os.link(path, kept)
        except OSError:
            os.replace(path, before)


def _described(model: X3D) -> dict[str, Any]:
    """The weights and what the network is, as `expand.model.weights` reads them."""
    return {"version": VERSION, "network": model.network and model.network.as_dict(),
            "model": _on_host(model.state_dict())}


def _on_host(value: Any) -> Any:
    """`value` with all of its tensors in the host's memory. A file of torch's says where its tensors were, and is not
    read on a machine without that device."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = copy.copy(value)  # of its type, with what torch notes of a network in it
        moved.update((key, _on_host(item)) for key, item in value.items())
        return moved
    return [_on_host(item) for item in value] if isinstance(value, list) else value


def save_weights(path: Path, model: X3D) -> None:
    """Writes the weights with the network's description: what stays of a training that has its outcome."""
    with atomic_path(path, above=False) as temporary:
        save_sealed(_described(model), temporary)


def most_bytes(model: nn.Module, epochs: int) -> int:
    """More than any checkpoint of a training takes: weights, momenta, averages, a row an epoch."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return 4 * weights + 1000 * epochs + 32_000_000


def load(path: Path, identity: str, most: int = LARGEST) -> tuple[dict[str, Any] | None, str | None]:
    """The state at `path`, as `restoring` takes it, or None with the reason where it cannot be used (None, None: no
    file). A file of more than `most` bytes is not read. Lets errors for lack of memory pass: the file may be good."""
    try:
        state = _read(path, most)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"damaged: {error.strerror or error}"
    except Damaged as error:
        return None, f"damaged: {error}"
    except Exception as error:
        if lacks_memory(error):  # what could ask for more than the file has, `check` refuses
            raise
        return None, f"damaged ({type(error).__name__})"
    if state.get("version") == VERSION and "identity" not in state and "model" in state:
        return None, "only the weights of a training that has ended"
    if state.get("version") != VERSION or state.get("identity") != identity:
        return None, OTHERS
    return state, None


def _read(path: Path, most: int) -> dict[str, Any]:
    content = io.BytesIO(read_bounded(path, most))  # what is checked is what is read, whatever happens to the file
    is_sealed = check(content)
    state = torch.load(content, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise Damaged(f"it holds a {type(state).__name__}")
    if IS_SEALED in state and not is_sealed:
        raise Damaged(f"its end is missing, of {size_text(len(content.getbuffer()))} here")
    return state


def go_on(paths: CandidatePaths, identity: str, most: int, restore: Callable[[dict[str, Any]], Progress],
          log: Callable[[str], None]) -> tuple[Progress | None, bool]:
    """What `restore` makes of the last checkpoint, or where that is damaged, of the one before; None where there is
    none to go on from. Also whether the last one was good, so that it may become the one before.

    `restore` raises `Damaged` for a state that does not fit, before it has changed anything. `log` is told what was
    damaged, and what is used.
    """
    complaints = []
    for path in (paths.checkpoint, paths.checkpoint_before):
        state, complaint = load(path, identity, most)
        if state is not None:
            try:
                restored = restore(state)
            except Damaged as error:
                complaint = f"damaged: {error}"
            else:
                if path == paths.checkpoint_before:
                    what = " and ".join(complaints) or f"{paths.checkpoint} is missing"
                    log(f"{what}; training goes on from the one before, "
                        f"epoch {restored.epoch + 1}, update {restored.batch}")
                return restored, path == paths.checkpoint
        if complaint:
            complaints.append(f"{path} is {complaint}")
    if complaints:
        log(f"{' and '.join(complaints)}; training starts anew")
    return None, not complaints


def gpu_of(model: nn.Module) -> torch.device | None:
    """The GPU that the model is on: each of several processes has its own, and all draw the same from theirs."""
    device = next(model.parameters()).device
    return device if device.type == "cuda" else None
