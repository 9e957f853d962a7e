"""The state of a training on disk, in two generations; on the CPU a training resumes from it bit for bit.

If a kill or a disk damages one generation, the other is whole. The seal (`expand.model.archive`) shows a damaged file,
and `expand.training.untrusted_checkpoint` refuses one that does not fit, before anything of it is used.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expand.errors import lacks_memory
from expand.model import X3D
from expand.model.archive import IS_SEALED, Damaged, check, save_sealed
from expand.rundir.files import TEMPORARY, atomic_path
from expand.rundir.paths import CandidatePaths
from expand.training.averages import MovingAverage
from expand.training.stopwatch import CLIPS, STEP
from expand.untrusted_input import read_bounded, size_text

logger = logging.getLogger(__name__)

VERSION = 1
LARGEST = 4_000_000_000
"""The most bytes of a checkpoint whose network is not known."""


@dataclass
class Progress:
    """A training's progress: the next `epoch` and `batch`, running sums of the epoch, `rows` (the lines of metrics.csv,
    one an epoch), and `seconds` by phase (`stopwatch`) over all starts."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float | torch.Tensor = 0.0
    """On the device until `Training` looks at it; so is `correct`."""
    correct: int | torch.Tensor = 0
    seen: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    clips: int = 0
    parts: int = 1
    """Micro-batches that a batch is split into: `RecipeConfig.accumulation`, or more if memory ran out."""

    @property
    def wall_s(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @property
    def train_s(self) -> float:
        """Seconds of training: steps, and waiting for their clips."""
        return self.seconds.get(STEP, 0.0) + self.seconds.get(CLIPS, 0.0)


def save(path: Path, identity: str, model: X3D, optimizer: torch.optim.Optimizer, progress: Progress,
         average: MovingAverage | None = None, before: Path | None = None) -> None:
    """Write the training's state to `path`. `identity` names the training; another one never resumes from it.

    The file at `path` becomes `before`, if that is given. At every instant one of the two is whole: `path` is replaced
    in one step, and `before` only after that. Raises `RunError` if the disk refuses; both are then as they were.
    """
    state = {**_weights(model), "identity": identity, "optimizer": _on_host(optimizer.state_dict()),
             "progress": dict(vars(progress)), "rng": torch.get_rng_state()}
    if average is not None:
        state["average"], state["averaged"] = _on_host(average.module.state_dict()), int(average.n_averaged)
    device = gpu_of(model)
    if device is not None:
        state["cuda_rng"] = torch.cuda.get_rng_state(device)
    if before is None:
        with atomic_path(path, above=False) as temporary:
            save_sealed(state, temporary)
        return
    kept = before.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{before.name}")
    try:
        with atomic_path(path, above=False) as temporary:
            save_sealed(state, temporary)
            with suppress(FileNotFoundError):
                try:
                    os.link(path, kept)  # a second name, under which the file outlives its replacement
                except OSError:  # a file system without links: for an instant, `before` is the only file
                    os.replace(path, before)
        with suppress(OSError):  # there was no file to keep; `before` stays as it is
            os.replace(kept, before)
    finally:
        with suppress(OSError):
            kept.unlink(missing_ok=True)


def _weights(model: X3D) -> dict[str, Any]:
    """Return the weights and the network's description, as `expand.model.weights` reads them."""
    return {"version": VERSION, "network": model.network and model.network.as_dict(),
            "model": _on_host(model.state_dict())}


def _on_host(value: Any) -> Any:
    """Return `value` with all of its tensors in the host's memory. Torch writes into a file on which device a tensor
    was, and does not read the file on a machine without that device."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = copy.copy(value)  # of its type, with what torch notes of a network in it
        moved.update((key, _on_host(item)) for key, item in value.items())
        return moved
    return [_on_host(item) for item in value] if isinstance(value, list) else value


def save_weights(path: Path, model: X3D) -> None:
    """Write the weights with the network's description: the checkpoint of a training that has its outcome."""
    with atomic_path(path, above=False) as temporary:
        save_sealed(_weights(model), temporary)


def max_bytes(model: nn.Module, epochs: int) -> int:
    """Return more bytes than any checkpoint of a training takes: weights, momenta, averages, a row an epoch."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return 4 * weights + 1000 * epochs + 32_000_000


def load(path: Path, identity: str, most: int = LARGEST) -> tuple[dict[str, Any] | None, str | None]:
    """Return the state at `path` as `untrusted_checkpoint.restore` takes it, or None with the reason why it cannot be
    used (None, None: no file). A file of more than `most` bytes is not read. Raises torch's error if memory runs out:
    the file may be good."""
    try:
        state = _read(path, most)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"damaged: {error.strerror or error}"
    except Damaged as error:
        return None, f"damaged: {error}"
    except Exception as error:
        if lacks_memory(error):  # the machine's fault: `check` refuses files that ask for more than they hold
            raise
        return None, f"damaged ({type(error).__name__})"
    if state.get("version") == VERSION and "identity" not in state and "model" in state:
        return None, "only the weights of a training that has ended"
    if state.get("version") != VERSION or state.get("identity") != identity:
        return None, "of another training"
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


def restore_newest(job_id: str, paths: CandidatePaths, identity: str, most: int,
                   restore: Callable[[dict[str, Any]], Progress]) -> tuple[Progress | None, bool]:
    """Restore the last checkpoint, or if that is damaged, the one before.

    Returns the progress, None without a usable checkpoint, and whether the last one was good, so that it may become the
    one before. `restore` raises `Damaged` for a state that does not fit, before it changes anything. The log says
    of the training `job_id` which files are damaged, and which is used.
    """
    complaints: list[str] = []
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
                    logger.warning(f"{job_id}: {what}; training goes on from the one before, "
                                   f"epoch {restored.epoch + 1}, update {restored.batch}")
                return restored, path == paths.checkpoint
        if complaint:
            complaints.append(f"{path} is {complaint}")
    if complaints:
        logger.warning(f"{job_id}: {' and '.join(complaints)}; training starts anew")
    return None, not complaints


def gpu_of(model: nn.Module) -> torch.device | None:
    """Return the GPU that the model is on, None for a CPU. Each of several processes has a GPU of its own, and all draw
    the same random numbers."""
    device = next(model.parameters()).device
    return device if device.type == "cuda" else None
