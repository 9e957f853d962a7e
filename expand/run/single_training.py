"""One network trained on its own, in one process or in several (torchrun).

The directory has what a search's has, but for the journal: `final/` with the network, `config.yaml`, `env.json`,
`log.txt`; and `training.yaml`, which says all that it was begun with, and makes the directory a training.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from expand import logs
from expand.config import Config, dump_config
from expand.data import ClipList, PreparedData
from expand.data.sources.run_list import write_run_list
from expand.errors import GPU_WAY_OUT, CandidateFailed, DeviceFault, Interrupted, RunError, quantity
from expand.expansion.events import FINAL
from expand.expansion.text import percent
from expand.exports.card import write_card
from expand.kernels import library
from expand.machine import stop_signals
from expand.model import X3D
from expand.model.load import load_checkpoint
from expand.model.weights import read_checkpoint
from expand.run.display import Display, LogFile, show_log_on
from expand.run.environment import describe_environment
from expand.run.resolve import (
    check_free,
    check_unchanged,
    current_config,
    list_again,
    prepare_again,
    prepare_clips,
    resolve_config,
)
from expand.rundir.contents import check_outcome, read_training
from expand.rundir.files import make_dir, read_json, write_atomic, write_json
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
from expand.space.complexity import complexity_of
from expand.space.network import Network, dump_network, load_network
from expand.training.candidate import train_final
from expand.training.checkpoint import save_weights
from expand.training.distributed import Group, process_group
from expand.training.evaluate import wilson_interval
from expand.training.job import Hooks, Job, Kind, candidate_seed, check_batches
from expand.training.progress import TensorBoard
from expand.training.runtime import Runtime, complaints, resolve_run

logger = logging.getLogger(__name__)


def create_and_train(paths: RunPaths, network: Network, config: Config, listed: ClipList, init: Path | None,
                     weights: Path | None, display: Display | None) -> dict[str, Any]:
    """Make the training's directory and train to the end; return what `api.train` promises. `init` is as it was given,
    `weights` the file that it stands for."""
    library.load()  # kernels or a device that are not there are said before the clips are decoded
    config = replace(config, run=resolve_run(config.run))
    runtime = Runtime.of(config.run)
    with process_group() as group, show_log_on(display, is_muted=not group.is_first) as display:
        for complaint in complaints() if config.run.device != "cpu" else ():
            logger.warning(complaint)
        found: list[PreparedData] = []

        def create() -> str:
            found.append(_create(paths, network, config, listed, init, weights))
            return str(paths.root)

        # its name may hold a number that was free when this process looked: all take the first one's
        return _work(RunPaths(Path(group.from_first(create))), runtime, group, display, found)


def train_on(paths: RunPaths, config: Config, display: Display | None) -> dict[str, Any]:
    """Train on from the last checkpoint; leave a finished training as it is."""
    runtime = Runtime.of(config.run)
    with process_group() as group, show_log_on(display, is_muted=not group.is_first) as display:
        return _work(paths, runtime, group, display, [])


def _create(paths: RunPaths, network: Network, config: Config, listed: ClipList, init: Path | None,
            weights: Path | None) -> PreparedData:
    """Make the directory, `training.yaml` last, so that there is a training or none; return the clips."""
    if weights:
        read_checkpoint(weights)  # what is wrong with it is said before the clips are decoded
    data = prepare_clips(config.data, listed, network.factors.resolution, begins=True)
    name = paths.root.resolve().name
    config = resolve_config(config, data, name)
    check_batches(config.final, len(data.train), network.geometry)
    network = replace(network, name=name, classes=len(data.classes), class_names=data.classes, mean=config.data.mean,
                      std=config.data.std)
    model = None
    if weights:  # weights that the file lacks are drawn with the seed
        torch.manual_seed(candidate_seed(config.run.seed, FINAL))
        model = X3D.of(network)
        load_checkpoint(model, weights)
    make_dir(paths.root)
    with RunLock(paths):
        check_free(paths)
        if model is not None:
            save_weights(paths.first_weights, model)
        write_run_list(paths.clips, config.data, data.listed)
        spec = {"network": network.as_dict(), "init": None if init is None else str(init),
                "config": dump_config(config), "fingerprint": data.fingerprint, "splits": data.counts}
        write_atomic(paths.training, yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    return data


def _work(paths: RunPaths, runtime: Runtime, group: Group, display: Display,
          found: list[PreparedData]) -> dict[str, Any]:
    """Train from where the files are; every process of `group` does the same. `found`: the clips, where this process
    has prepared them."""
    with ExitStack() as stack:
        group.from_first(lambda: stack.enter_context(RunLock(paths)) and None)
        spec = read_training(paths)
        group.from_first(lambda: _write_missing(paths, spec))
        config, network = current_config(paths, spec), load_network(paths.network)
        check_unchanged(spec["config"], config, str(paths.config))
        if paths.final_candidate.outcome.exists():
            return group.from_first(lambda: _finish(paths))
        if group.is_first:
            stack.enter_context(logs.received_by(LogFile(paths).write))

        def prepare() -> PreparedData:
            classes = spec["network"].get("class_names")
            return prepare_again(list_again(paths.clips, config.data, classes), paths.clips, config.data,
                                 spec | {"classes": classes}, network.factors.resolution)

        # the first process decodes what is missing, the others find it done
        group.from_first(lambda: None if found else found.append(prepare()))
        data = found[0] if found else prepare()
        first, stream = None, FINAL
        if paths.first_weights.exists():
            # another random stream than the one that these weights may have been trained with: they know its batches
            first, stream = paths.first_weights, f"{FINAL} {sha256(paths.first_weights.read_bytes()).hexdigest()}"
        job = Job(FINAL, network, complexity_of(network.factors, network.classes).gflops, config.final, config.data,
                  candidate_seed(config.run.seed, stream), paths.final_candidate, config.run.checkpoint_every_s, first,
                  weights=paths.weights, kind=Kind.FINAL)

        epochs = quantity(cast(int, job.recipe.epochs), "epoch")
        beginning = "goes on" if job.paths.checkpoint.exists() else "begins"
        processes = f", in {group.size} processes" if group.size > 1 else ""
        logger.info(f"training {beginning}: {job.gflops:.4g} GFLOPs, {len(data.classes)} classes, {len(data.train)} "
                    f"clips, {epochs} of batches of {job.recipe.batch_size}{processes}")
        for remark in runtime.remarks(group.size):
            logger.info(remark)
        _train(paths, job, data, runtime, group, display)
        return group.from_first(lambda: _finish(paths))


def _write_missing(paths: RunPaths, spec: dict[str, Any]) -> None:
    """Write what follows from `training.yaml` and is not there yet."""
    config = current_config(paths, spec)
    if not paths.network.exists():
        write_atomic(paths.network, dump_network(Network.from_dict(spec["network"], where=str(paths.training))))
    if not paths.env.exists():
        on_gpu = config.run.device == "cuda" and torch.cuda.is_available()
        write_json(paths.env, describe_environment(config, torch.cuda.get_device_name() if on_gpu else None))
    if not paths.config.exists():
        write_atomic(paths.config, dump_config(config))


def _train(paths: RunPaths, job: Job, data: PreparedData, runtime: Runtime, group: Group, display: Display) -> None:
    """Train by `job`, or from its checkpoint, until it ends or is stopped. Each error says how to go on."""

    def epoch(row: dict[str, float]) -> None:
        if group.is_first:
            board.row(row)
        if row.get("val_accuracy", -1) >= 0:
            logger.info(f"epoch {row['epoch']}: {percent(row['val_accuracy'])} % on val")

    # torchrun passes Ctrl-C on as SIGTERM, to processes that had it from the terminal already
    with stop_signals(patient=group.size > 1) as stop, TensorBoard(paths.tensorboard) as board:
        hooks = Hooks(tick=lambda tick: display.tick(FINAL, tick), epoch=epoch, stop=stop.is_set)
        try:
            train_final(job, data, runtime, hooks, group)
        except Interrupted:
            raise Interrupted("stopped; all work so far is kept", where=str(paths.root),
                              fix=f"go on with: x3d-expand resume {paths.root}") from None
        except DeviceFault as error:
            raise DeviceFault(f"{error.what}; all work up to the last checkpoint is kept", where=str(paths.root),
                              fix=f"go on with: x3d-expand resume {paths.root}; where it fails again, {GPU_WAY_OUT}"
                              ) from error
        except CandidateFailed as error:
            raise RunError(f"the training failed: {error.what}", where=str(paths.root),
                           fix="change the recipe (--set final.lr=..., final.batch_size=...) in a new one") from error


def _finish(paths: RunPaths) -> dict[str, Any]:
    """Write the card of a finished training where it is missing; return what `api.train` promises."""
    if not paths.card.exists():
        write_card(paths)
    network, outcome = load_network(paths.network), read_json(paths.final_candidate.outcome, check_outcome)
    result, cost = outcome["result"], complexity_of(network.factors, network.classes)
    videos = sum(map(sum, outcome["confusion"][result["split"]]))
    return {"run": str(paths.root), "network": network.name, "gflops": cost.gflops, "params": cost.params,
            "classes": network.classes, "factors": network.factors.as_dict(), "videos": videos,
            "accuracy_interval": list(wilson_interval(result["accuracy"], videos)), **result,
            "weights": str(paths.weights)}
