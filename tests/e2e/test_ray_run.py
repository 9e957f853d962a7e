"""A search on a Ray cluster that the command starts itself, through the real command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from tests.e2e.faults import TINY, one_fork_server, search_here, until
from tests.e2e.runs import call, events, kill, results, start
from tests.executors.ray_nodes import QUICK

pytest.importorskip("ray")

START_S = 150.0
"""What a cluster and torch on it may take to start on a busy machine."""


@pytest.fixture(autouse=True)
def own_ray(monkeypatch):
    """A place for Ray's files that no other cluster of this machine has noted itself in."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie in it, whose paths cannot be long
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes(folder: str) -> list[str]:
    """Those of a cluster whose files are in `folder`."""
    found = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if folder in line]


@pytest.mark.timeout(600)
def test_a_search_on_ray_that_is_stopped_loses_its_cluster_and_is_killed_ends_locally_as_a_local_one_does(
        own_ray, own_cache, tmp_path):
    run_dir = tmp_path / "ray"
    process = start("search", *TINY, "--run-dir", run_dir, "--workers", "2", "--executor", "ray")
    until(lambda: len(events(run_dir)) >= 6, process, START_S)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err + out
    assert f"x3d-expand resume {run_dir}" in err and len(err.splitlines()) == 2, "and nothing of Ray's"
    assert time.monotonic() - asked < 30
    assert events(run_dir)[-1]["event"] == "run_interrupted"
    assert not processes(own_ray), "the command ends what it started"

    process = start("resume", run_dir)
    before = len(events(run_dir))
    until(lambda: len(events(run_dir)) >= before + 2, process, START_S)
    [raylet] = [line.split()[0] for line in processes(own_ray) if "/raylet/raylet " in line]
    os.kill(int(raylet), signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 1, err + out
    assert "the Ray cluster was lost (" in err  # whether Ray's last words or their absence are met first is chance
    assert f"x3d-expand resume {run_dir}" in err and len(err.splitlines()) == 2
    assert events(run_dir)[-1]["event"] == "run_failed"
    until(lambda: not processes(own_ray))

    process = start("resume", run_dir)
    before = len(events(run_dir))
    until(lambda: len(events(run_dir)) >= before + 2, process, START_S)
    kill(process)
    assert json.loads(call("status", run_dir, "--json"))["state"] in ("interrupted", "finished")
    until(lambda: not processes(own_ray))

    call("resume", run_dir, "--executor", "local")
    assert not list(run_dir.rglob(".tmp-*"))
    with one_fork_server():
        search_here(tmp_path / "local")
    assert results(run_dir) == results(tmp_path / "local")
