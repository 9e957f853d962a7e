"""The undisturbed search, and what it means that another one ended as it did."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import expand
from expand.executors.fork_server import ForkServer
from tests.e2e.faults import named, one_fork_server
from tests.e2e.runs import TINY, call, results


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Path:
    """The small search, carried out in one process by the command: once for all processes of a test run. Beside it is
    what it printed (`printed.txt`)."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run_dir, printed = folder / "undisturbed", folder / "printed.txt"
    with (folder / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            text = call("search", *TINY, "--run-dir", run_dir)
            assert named(run_dir, "contraction_proposed") and named(run_dir, "candidates_stopped"), \
                "the run is to have every kind of decision"
            printed.write_text(text)
    return run_dir


@pytest.fixture
def ends_as_undisturbed(undisturbed: Path) -> Callable[[Path], None]:
    """Checks that a run has ended, with the decisions, figures and weights of the undisturbed one."""
    def check(run_dir: Path) -> None:
        assert expand.status(run_dir)["state"] == "finished"
        assert results(run_dir) == results(undisturbed)
        trained = [(event["id"], event["share"]) for event in named(run_dir, "candidate_finished")]
        assert len(trained) == len(set(trained)), "a candidate was trained again"
        ours, theirs = (torch.load(path / "final" / "weights.pt", weights_only=True)["model"]
                        for path in (run_dir, undisturbed))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    return check


@pytest.fixture
def finish(ends_as_undisturbed: Callable[[Path], None]) -> Callable[[Path], None]:
    """Resumes a run to its end, which must be that of the undisturbed one."""
    def to_the_end(run_dir: Path) -> None:
        expand.resume(run_dir)
        ends_as_undisturbed(run_dir)
        assert not list(run_dir.rglob(".tmp-*")), "what a killed process had begun to write is still there"

    return to_the_end


@pytest.fixture(scope="module")
def fork_server(own_cache: Path) -> Iterator[ForkServer]:
    """For all runs that are carried out in this process."""
    with one_fork_server() as shared:
        yield shared
