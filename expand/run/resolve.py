"""The configuration of a run, resolved: every value that was left open is filled in, every path is absolute. Needs no
torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from expand.config import Config, config_diff, parse_config
from expand.config.schema import RUN_NAME
from expand.errors import RunError
from expand.expansion.rules import Space
from expand.home import expand_home
from expand.space.axes import AXES
from expand.space.geometry import Geometry
from expand.training.recipe import check_batches
from expand.training.recipe import resolve as resolve_recipe

if TYPE_CHECKING:
    from expand.data import PreparedData

HARMLESS = ("run.name", "run.executor", "run.workers", "run.runs_dir", "run.checkpoint_every_s", "run.heartbeat_s",
            "run.retries", "data.cache_dir", "data.cache_gb", "data.timeout_s")
"""Options that cannot alter a result, so that a run may be continued with other values."""
PATHS = ("path", "train", "val", "test", "root", "class_names", "quarantine", "cache_dir")
"""Options of the data that are paths."""
ANY_NUMBER = 10**6
"""A number of train clips to check with before they are counted."""


def resolve_config(config: Config, data: PreparedData, name: str) -> Config:
    """Return `config`, whose section `run` is resolved, with nothing left open for the clips `data`. `name` is that of
    the run's folder, which may be any; the configuration names the run only where it could be given that name."""
    limits = config.search.limits
    if limits.clip_s is None:
        limits = replace(limits, clip_s=round(data.median_s, 6))
    paths: dict[str, Any] = {key: str(expand_home(path, f"data.{key}").resolve()) for key in PATHS
                             if (path := getattr(config.data, key)) is not None}
    clips = len(data.train)
    return replace(config, data=replace(config.data, **paths), search=replace(config.search, limits=limits),
                   candidate=resolve_recipe(config.candidate, clips), final=resolve_recipe(config.final, clips),
                   run=replace(config.run, name=name if RUN_NAME.match(name) else None))


def check_recipes(config: Config, space: Space, clips: int = ANY_NUMBER) -> None:
    """Raise `UsageError` where a search cannot train its networks for want of clips in a batch (`check_batches`), with
    `clips` in the train split. The final training counts as the basis, which its winner cannot be smaller than, unless
    the first step of every axis is one that can be trained and that the target allows."""
    basis = space.basis().factors
    check_batches(resolve_recipe(config.candidate, clips), clips, Geometry.of(basis, space.classes), "candidate")
    first = [AXES[name].grow(basis, 1, space.bounds) for name in space.config.axes]
    smallest = first if all(space.complexity(factors) <= space.target for factors in first) else [basis]
    for factors in smallest:
        check_batches(resolve_recipe(config.final, clips), clips, Geometry.of(factors, space.classes), "final")


def check_unchanged(begun: str, config: Config, where: str) -> None:
    """Raise `RunError` with the difference where `config` would alter the results of a run that began with `begun`."""
    changes = [line for line in config_diff(parse_config(begun, where), config)
               if not line.startswith(tuple(f"{key}:" for key in HARMLESS))]
    if changes:
        raise RunError("the configuration was changed since the run began: " + "; ".join(changes), where=where,
                       fix="put the old values back, or start a new run with the new ones")
