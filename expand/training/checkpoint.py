"""The state of a training on disk, in two generations; on the CPU a training resumes from it bit for bit.

If a kill or a disk damages one generation, the other is whole. The seal (`expand.model.archive`) shows a damaged file.
The content of a good one is checked as untrusted input too: what does not fit is refused before anything is changed, so
that the other generation can be used instead.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import secrets
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expand.data.loading import clips_of_batch, updates_per_epoch
from expand.errors import lacks_memory
from expand.model import X3D
from expand.model.archive import IS_SEALED, Damaged, check, save_sealed
from expand.rundir.files import TEMPORARY, atomic_path
from expand.training.job import Job
from expand.training.progress import OTHER, STEP, Progress
from expand.untrusted_input import (
    Check,
    Wrong,
    list_of,
    mapping_of,
    number,
    read_bounded,
    record,
    size_text,
    text,
    whole,
)

if TYPE_CHECKING:
    from expand.training.loop import MovingAverage

logger = logging.getLogger(__name__)

VERSION = 1
LARGEST = 4_000_000_000
"""The most bytes of a checkpoint whose network is not known."""
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
    if isinstance(value, Tensor):
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


def restore_newest(job: Job, model: X3D, optimizer: torch.optim.Optimizer, extent: Extent,
                   average: MovingAverage | None) -> tuple[Progress | None, bool]:
    """Restore the last checkpoint of `job`, or if that is damaged, the one before: see `restore`.

    Returns the progress, None without a usable checkpoint, and whether the last one was good, so that it may become the
    one before. The log says which files are damaged, and which is used.
    """
    paths, most = job.paths, max_bytes(model, extent.epochs)
    complaints: list[str] = []
    for path in (paths.checkpoint, paths.checkpoint_before):
        state, complaint = load(path, job.identity, most)
        if state is not None:
            try:
                progress = restore(state, model, optimizer, extent, average)
            except Damaged as error:
                complaint = f"damaged: {error}"
            else:
                if path == paths.checkpoint_before:
                    what = " and ".join(complaints) or f"{paths.checkpoint} is missing"
                    logger.warning(f"{job.id}: {what}; training goes on from the one before, "
                                   f"epoch {progress.epoch + 1}, update {progress.batch}")
                return progress, path == paths.checkpoint
        if complaint:
            complaints.append(f"{path} is {complaint}")
    if complaints:
        logger.warning(f"{job.id}: {' and '.join(complaints)}; training starts anew")
    return None, not complaints


def max_bytes(model: nn.Module, epochs: int) -> int:
    """Return more bytes than any checkpoint of a training takes: weights, momenta, averages, a row an epoch."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return 4 * weights + 1000 * epochs + 32_000_000


def load(path: Path, identity: str, most: int = LARGEST) -> tuple[dict[str, Any] | None, str | None]:
    """Return the state at `path` as `restore` takes it, or None with the reason why it cannot be used (None, None: no
    file). A file of more than `most` bytes is not read. Raises torch's error if memory runs out: the file may be good.
    """
    try:
        content = io.BytesIO(read_bounded(path, most))  # what is checked is what is read, whatever happens to the file
        is_sealed = check(content)
        state = torch.load(content, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise Damaged(f"it holds a {type(state).__name__}")
        if IS_SEALED in state and not is_sealed:
            raise Damaged(f"its end is missing, of {size_text(len(content.getbuffer()))} here")
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


def restore(state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, extent: Extent,
            average: MovingAverage | None = None) -> Progress:
    """Put `state` into the model, the optimiser, the moving average and the random generators.

    The optimiser keeps its own settings (rates, decays). Raises `Damaged` for a state that does not fit, before
    anything is changed.
    """
    try:
        progress = _read_progress(state.get("progress"), extent)
        _check_like(state.get("model"), model.state_dict(), "model")
        if average is not None:
            _check_like(state.get("average"), average.module.state_dict(), "average")
            whole(0, 10**12)(state.get("averaged"), "averaged")
        moments = _read_optimizer_state(state.get("optimizer"), optimizer)
        generator = _read_generator(state.get("rng"), torch.Generator())
        device = gpu_of(model) if "cuda_rng" in state else None
        on_gpu = None if device is None else _read_generator(state["cuda_rng"], torch.Generator(device))
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


def _read_progress(kept: Any, extent: Extent) -> Progress:
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
        "seconds": mapping_of(text(100), _seconds, MOST_COLUMNS)}
    later: dict[str, Check] = {"clips": whole(0, 10**15), "parts": whole(1, extent.batch_size)}
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


def _read_optimizer_state(found: Any, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor | None]]:
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


def _read_generator(found: Any, trial: torch.Generator) -> Tensor:
    """Return a copy of a random generator's state, after `trial` has taken it."""
    _check_tensor(found, trial.get_state(), "random generator")
    try:
        trial.set_state(found.clone())
    except RuntimeError as error:
        raise Wrong("its random generator cannot be in such a state") from error
    return found.clone()


def gpu_of(model: nn.Module) -> torch.device | None:
    """Return the GPU that the model is on, None for a CPU. Each of several processes has a GPU of its own, and all draw
    the same random numbers."""
    device = next(model.parameters()).device
    return device if device.type == "cuda" else None
