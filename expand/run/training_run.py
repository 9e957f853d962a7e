"""A single training from beginning to end: started or resumed.

Whatever can be wrong without torch is said before `expand.run.single_training`, which does the work, imports it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from expand.config import Config, parse_config
from expand.config.schema import DataConfig
from expand.data import list_clips
from expand.run.display import Display
from expand.run.resolve import ANY_NUMBER, check_free, check_unchanged, choose_dir, resolve_recipe, stored_config
from expand.rundir.contents import read_training, weights_at
from expand.rundir.paths import RunPaths
from expand.space.network import Network
from expand.training.job import check_batches


def start(network: Network, config: Config, init: Path | None, run_dir: Path | None,
          display: Display | None) -> dict[str, Any]:
    """Train `network` to the end of `config.final`, from the weights of `init` where that is given; return what
    `api.train` promises."""
    paths = RunPaths(run_dir or choose_dir(config, network.name))
    check_free(paths)
    weights = None if init is None else weights_at(init)
    check_batches(resolve_recipe(config.final, ANY_NUMBER), ANY_NUMBER, network.geometry)
    default = DataConfig()  # the network's own mean and std are taken where the configuration leaves the defaults
    own = {name: getattr(network, name) for name in ("mean", "std")
           if getattr(config.data, name) == getattr(default, name)}
    config = replace(config, data=replace(config.data, **own))
    listed = list_clips(config.data)
    from expand.run.single_training import Beginning, create_and_train

    return create_and_train(Beginning(paths, network, config, listed, init, weights), display)


def resume(run_dir: Path, display: Display | None) -> dict[str, Any]:
    """Train on from the last checkpoint; leave a finished training as it is. Returns what `start` does."""
    paths = RunPaths(run_dir)
    spec = read_training(paths)
    config = current_config(paths, spec)
    check_unchanged(spec["config"], config, str(paths.config))
    from expand.run.single_training import train_on

    return train_on(paths, config, display)


def current_config(paths: RunPaths, spec: dict[str, Any]) -> Config:
    """Return the configuration as it stands in the directory now; where none does, that of the beginning, `spec`."""
    return stored_config(paths) if paths.config.exists() else parse_config(spec["config"], str(paths.training))
