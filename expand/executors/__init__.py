"""Where candidates are trained. An executor takes jobs and yields what came of them as it comes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from expand.config.schema import RunConfig

if TYPE_CHECKING:
    from expand.data import PreparedData
    from expand.executors.base import Executor, Listener
    from expand.executors.fork_server import Nursery
    from expand.rundir.paths import RunPaths
    from expand.training.runtime import Runtime


def early_start(run: RunConfig) -> AbstractContextManager[Nursery | None]:
    """What an executor needs that takes some seconds and can be had before the clips are ready. Raises `UsageError`
    where the executor itself is not there."""
    if run.executor == "ray":
        from expand.executors.ray import check_installed

        check_installed()
        return nullcontext()
    from expand.executors.fork_server import Nursery

    return Nursery()


def make_executor(run: RunConfig, data: PreparedData, runtime: Runtime, paths: RunPaths, listener: Listener,
                  nursery: Nursery | None) -> Executor:
    """The executor that a settled configuration names; `nursery` is that of `early_start`."""
    if run.executor == "ray":
        from expand.executors.ray import RayExecutor

        return RayExecutor(data, runtime, run, paths, listener)
    from expand.executors.local import LocalExecutor

    return LocalExecutor(data, runtime, run, listener, nursery)
