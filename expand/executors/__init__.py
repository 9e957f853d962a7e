"""The places where candidates are trained. An executor takes jobs and yields each result as it arrives."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from expand.config.schema import RunConfig
from expand.executors.fork_server import ForkServer

if TYPE_CHECKING:
    from expand.data import PreparedData
    from expand.executors.supervisor import Executor, Listener
    from expand.rundir.paths import RunPaths
    from expand.training.runtime import Runtime


def early_start(run: RunConfig) -> AbstractContextManager[ForkServer | None]:
    """Start the part of an executor that takes some seconds and does not need the clips. Raises `UsageError` where the
    executor itself is not installed."""
    if run.executor == "ray":
        from expand.executors.ray import check_installed

        check_installed()
        return nullcontext()
    return ForkServer()


def make_executor(run: RunConfig, data: PreparedData, runtime: Runtime, paths: RunPaths, listener: Listener,
                  fork_server: ForkServer | None) -> Executor:
    """Return the executor that a resolved configuration names; `fork_server` is the one of `early_start`, and None for
    Ray."""
    if run.executor == "ray":
        from expand.executors.ray import RayExecutor

        return RayExecutor(data, runtime, run, paths, listener)
    from expand.executors.local import LocalExecutor

    if fork_server is None:
        raise ValueError("the local executor needs a fork server")
    return LocalExecutor(data, runtime, run, listener, fork_server)
