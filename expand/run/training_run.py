"""One network trained on its own: begun, carried on after an interruption, in one process or in several (torchrun).

The directory has what a search's has, but for the journal: `final/` with the network, `config.yaml`, `env.json`,
`log.txt`; and `training.yaml`, which says all that it was begun with, and makes the directory a training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml

from expand.config import Config, dump_config, parse_config
from expand.config.schema import DataConfig
from expand.data import ClipList, PreparedData, list_clips, prepare
from expand.data.sources import counted, keep_clips
from expand.device_faults import WAY_OUT
from expand.errors import CandidateFailed, DeviceFault, Interrupted, RunError
from expand.expansion.events import FINAL
from expand.exports.card import write_card
from expand.kernels import library
from expand.machine import available_cores
from expand.model import X3D
from expand.model.load import weights_at
from expand.model.weights import load_checkpoint, read_checkpoint
from expand.report.text import percent
from expand.run.driver import Display
from expand.run.environment import environment
from expand.run.resolve import ANY_NUMBER, check_unchanged, settle
from expand.run.run_clips import list_again, prepare_again
from expand.run.search_run import Logged, Quiet, check_free, choose_dir, stop_signals, stored_config
from expand.rundir.files import make_dir, read_json, write_atomic, write_json
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
from expand.rundir.training import check_outcome, read_training
from expand.space.complexity import complexity_of
from expand.space.factors import Factors
from expand.space.network import Network, dump_network, load_network
from expand.training.candidate import train_final
from expand.training.checkpoint import save_weights
from expand.training.distributed import Group, process_group
from expand.training.evaluate import wilson_interval
from expand.training.gpus import complaints
from expand.training.job import Hooks, Job, candidate_seed
from expand.training.recipe import check_batches
from expand.training.recipe import settle as settle_recipe
from expand.training.runtime import Runtime, settle_run
from expand.training.tensorboard_log import Board


def begin(network: Network, config: Config, init: Path | None, run_dir: Path | None,
          display: Display | None) -> dict[str, Any]:
    """Trains `network` to the end of `config.final`, from the weights of the file `init` where one is given; returns
    what `api.train` promises."""
    library.load()  # kernels or a device that are not there are said before the clips are decoded
    runtime = Runtime.of(settle_run(config.run))
    with process_group() as group:
        display = display if display and group.is_first else Quiet()
        for complaint in complaints() if config.run.device != "cpu" else ():
            display.say(complaint)
        found: list[PreparedData] = []
        root = group.from_first(lambda: str(_create(network, config, init, run_dir, display, found)))
        return _work(RunPaths(Path(root)), runtime, group, display, found)


def go_on(run_dir: Path, display: Display | None) -> dict[str, Any]:
    """Trains on from the last checkpoint; a finished training is left as it is."""
    paths = RunPaths(run_dir)
    runtime = Runtime.of(_config(paths, read_training(paths)).run)
    with process_group() as group:
        return _work(paths, runtime, group, display if display and group.is_first else Quiet(), [])


def _create(network: Network, config: Config, init: Path | None, run_dir: Path | None, display: Display,
            found: list[PreparedData]) -> Path:
    """Makes the directory, `training.yaml` last, so that there is a training or none. `found` takes the clips."""
    paths = RunPaths(run_dir or choose_dir(config, network.name))
    check_free(paths)
    if init:
        read_checkpoint(weights_at(init))  # what is wrong with it is said before the clips are decoded
    check_batches(settle_recipe(config.final, ANY_NUMBER), ANY_NUMBER, network.geometry)
    config = replace(config, data=_normalised_as(network, config.data))
    data = _prepared(config, list_clips(config.data), network.factors, display.say, begins=True)
    found.append(data)
    config = settle(config, data, paths.root.resolve().name)
    check_batches(config.final, len(data.train), network.geometry)
    network = replace(network, name=paths.root.resolve().name, classes=len(data.classes), class_names=data.classes,
                      mean=config.data.mean, std=config.data.std)
    first = _first_weights(network, config, init, display) if init else None
    make_dir(paths.root)
    with RunLock(paths):
        check_free(paths)
        if first is not None:
            save_weights(paths.first_weights, first)
        keep_clips(paths.clips, config.data, data.listed)
        spec = {"network": network.as_dict(), "init": None if init is None else str(init),
                "config": dump_config(config), "fingerprint": data.fingerprint, "splits": data.counts}
        write_atomic(paths.training, yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    return paths.root


def _normalised_as(network: Network, data: DataConfig) -> DataConfig:
    """`data` with the network's own mean and std where the configuration leaves the defaults."""
    default = DataConfig()
    return replace(data, **{name: getattr(network, name) for name in ("mean", "std")
                            if getattr(data, name) == getattr(default, name)})


def _first_weights(network: Network, config: Config, init: Path, display: Display) -> X3D:
    """The weights of `init` in the network; what the file has no weights for is drawn with the seed."""
    torch.manual_seed(candidate_seed(config.run.seed, FINAL))
    model = X3D.of(network)
    load_checkpoint(model, weights_at(init), display.say)
    return model


def _prepared(config: Config, listed: ClipList, factors: Factors, report: Callable[[str], None], *,
              begins: bool = False, run_list: Path | None = None) -> PreparedData:
    return prepare(config.data, short_side=int(factors.resolution * config.data.jitter_max) + 1,
                   workers=available_cores(), report=report, listed=listed, begins=begins, run_list=run_list)


def _work(paths: RunPaths, runtime: Runtime, group: Group, display: Display,
          found: list[PreparedData]) -> dict[str, Any]:
    """Trains from where the files are; every process of `group` does the same."""
    with ExitStack() as stack:
        group.from_first(lambda: stack.enter_context(RunLock(paths)) and None)
        spec = read_training(paths)
        group.from_first(lambda: _lay_out(paths, spec))
        config, network = _config(paths, spec), load_network(paths.network)
        check_unchanged(spec["config"], config, str(paths.config))
        if paths.final_candidate.outcome.exists():
            return group.from_first(lambda: _finished(paths))
        display = Logged(display, paths) if group.is_first else display

        def prepared() -> PreparedData:
            classes = spec["network"].get("class_names")
            listed = list_again(paths.clips, config.data, classes)
            return prepare_again(
                listed, paths.clips, config.data, spec | {"classes": classes},
                lambda clips, say: _prepared(config, clips, network.factors, say, run_list=paths.clips), display.say)

        # the first process decodes what is missing, the others find it done
        group.from_first(lambda: None if found else found.append(prepared()))
        data = found[0] if found else prepared()
        job = _job(paths, network, config)
        _introduce(display, job, data, group)
        for remark in runtime.remarks(group.size):
            display.say(remark)
        _train(paths, job, data, runtime, group, display)
        return group.from_first(lambda: _finished(paths))


def _config(paths: RunPaths, spec: dict[str, Any]) -> Config:
    """The configuration as it stands there now, or as it was begun with where it is not there."""
    return stored_config(paths) if paths.config.exists() else parse_config(spec["config"], str(paths.training))


def _lay_out(paths: RunPaths, spec: dict[str, Any]) -> None:
    """Writes what follows from `training.yaml` and is not there yet."""
    config = _config(paths, spec)
    if not paths.network.exists():
        write_atomic(paths.network, dump_network(Network.from_dict(spec["network"], where=str(paths.training))))
    if not paths.env.exists():
        on_gpu = config.run.device == "cuda" and torch.cuda.is_available()
        write_json(paths.env, environment(config, torch.cuda.get_device_name() if on_gpu else None))
    if not paths.config.exists():
        write_atomic(paths.config, dump_config(config))


def _job(paths: RunPaths, network: Network, config: Config) -> Job:
    first, stream = None, FINAL
    if paths.first_weights.exists():
        # another random stream than the one that these weights may have been trained with: they know its batches
        first, stream = paths.first_weights, f"{FINAL} {sha256(paths.first_weights.read_bytes()).hexdigest()}"
    return Job(FINAL, network, complexity_of(network.factors, network.classes).gflops, config.final, config.data,
               candidate_seed(config.run.seed, stream), paths.final_candidate, config.run.checkpoint_every_s, first)


def _introduce(display: Display, job: Job, data: PreparedData, group: Group) -> None:
    recipe = job.recipe
    beginning = "goes on" if job.paths.checkpoint.exists() else "begins"
    processes = f", in {group.size} processes" if group.size > 1 else ""
    display.say(f"training {beginning}: {job.gflops:.4g} GFLOPs, {len(data.classes)} classes, {len(data.train)} clips, "
                f"{counted(recipe.epochs, 'epoch')} of batches of {recipe.batch_size}{processes}")


def _train(paths: RunPaths, job: Job, data: PreparedData, runtime: Runtime, group: Group, display: Display) -> None:
    def epoch(row: dict[str, float]) -> None:
        if group.is_first:
            board.row(row)
        if row.get("val_accuracy", -1) >= 0:
            display.say(f"epoch {row['epoch']}: {percent(row['val_accuracy'])} % on val")

    # torchrun passes Ctrl-C on as SIGTERM, to processes that had it from the terminal already
    with stop_signals(patient=group.size > 1) as stop, Board(paths.tensorboard, display.say) as board:
        hooks = Hooks(tick=lambda tick: display.tick(FINAL, tick), epoch=epoch, log=display.say, stop=stop.is_set)
        try:
            train_final(job, data, runtime, paths.weights, hooks, group)
        except Interrupted:
            raise Interrupted("stopped; all work so far is kept", where=str(paths.root),
                              fix=f"go on with: x3d-expand resume {paths.root}") from None
        except DeviceFault as error:
            raise DeviceFault(f"{error.what}; all work up to the last checkpoint is kept", where=str(paths.root),
                              fix=f"go on with: x3d-expand resume {paths.root}; where it fails again, {WAY_OUT}"
                              ) from error
        except CandidateFailed as error:
            raise RunError(f"the training failed: {error.what}", where=str(paths.root),
                           fix="change the recipe (--set final.lr=..., final.batch_size=...) in a new one") from error


def _finished(paths: RunPaths) -> dict[str, Any]:
    """What a finished training gave, as `api.train` returns it; its card is there."""
    if not paths.card.exists():
        write_card(paths)
    network, outcome = load_network(paths.network), read_json(paths.final_candidate.outcome, check_outcome)
    result, cost = outcome["result"], complexity_of(network.factors, network.classes)
    videos = sum(map(sum, outcome["confusion"][result["split"]]))
    return {"run": str(paths.root), "network": network.name, "gflops": cost.gflops, "params": cost.params,
            "classes": network.classes, "factors": network.factors.as_dict(), "videos": videos,
            "accuracy_interval": list(wilson_interval(result["accuracy"], videos)), **result,
            "weights": str(paths.weights)}
