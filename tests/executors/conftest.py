from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest

from expand.config.schema import RunConfig
from expand.executors import early_start, make_executor
from expand.executors.supervisor import Executor
from expand.rundir.paths import RunPaths
from tests.executors.ray_nodes import Cluster
from tests.executors.suite import Heard
from tests.training.small import RUNTIME, clips

RUN = RunConfig(device="cpu", threads=1, precision="fp32", workers=2)


@pytest.fixture(scope="session")
def data(own_cache):
    return clips()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """The Ray cluster that all tests of this process share; started when it is first used."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module", params=["local", "ray"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def started(kind, shared_cluster):
    """What every executor of the module can use."""
    with early_start(replace(RUN, executor=kind)) as fork_server, \
            shared_cluster.in_use() if kind == "ray" else nullcontext():
        yield fork_server


@pytest.fixture(scope="module")
def lasting(kind, started, data, tmp_path_factory) -> Iterator[Callable[..., Executor]]:
    """Gives one executor to all that do not end it, since on Ray each takes some ten seconds to begin; it tells `heard`
    now. `options` are those of the section `run` that it looks at while it works."""
    run = replace(RUN, executor=kind)
    paths = RunPaths(tmp_path_factory.mktemp("lasting"))
    with make_executor(run, data, RUNTIME, paths, Heard().listener(), started) as executor:
        def telling(heard: Heard, **options) -> Executor:
            executor.listener, executor.config = heard.listener(), replace(run, **options)
            return executor

        yield telling
    assert not list(paths.root.iterdir()), "nothing of the executor's own is left"


@pytest.fixture
def executor(kind, started, data, tmp_path) -> Iterator[Callable[..., Executor]]:
    """Makes an executor that tells `heard`, for a run that ends it; `options` are those of the section `run`."""
    with ExitStack() as stack:
        def make(heard: Heard, **options) -> Executor:
            run = replace(RUN, executor=kind, **options)
            return stack.enter_context(
                make_executor(run, data, RUNTIME, RunPaths(tmp_path), heard.listener(), started))

        yield make
