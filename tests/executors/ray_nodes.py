"""A Ray cluster of several nodes on this machine, with real raylets, in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """
import json, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **json.loads(sys.argv[1])})
said, node = sys.__stdout__, cluster.head_node
while True:
    raylets = [each.process.pid for each in node.all_processes["raylet"]]
    print(json.dumps({"address": cluster.address, "raylet": raylets[0]}), file=said, flush=True)
    if not (line := sys.stdin.readline()):
        break
    node = cluster.add_node(**json.loads(line))
cluster.shutdown()
"""
QUICK = {"RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "500",
         "RAY_USAGE_STATS_ENABLED": "0"}
"""A node that is lost is noticed within some seconds."""
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


class Nodes:
    """The nodes of a cluster at `address`: the process numbers of their `raylets`, the head's first."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(NODE)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, **QUICK, "RAY_TMPDIR": str(folder)})
        self.raylets: list[int] = []
        self.address = self._told()["address"]

    def _told(self) -> dict[str, Any]:
        told = json.loads(self._process.stdout.readline())
        self.raylets.append(told["raylet"])
        return told

    def add(self) -> None:
        """One more node, of one CPU."""
        self._process.stdin.write(json.dumps(NODE) + "\n")
        self._process.stdin.flush()
        self._told()

    def of_worker(self, worker: str) -> int:
        """The raylet whose process `worker` (`host:pid`) is."""
        status = Path(f"/proc/{worker.rpartition(':')[2]}/stat").read_text(encoding="utf-8")
        return int(status.rpartition(")")[2].split()[1])

    def close(self) -> None:
        """Ends them all."""
        self._process.stdin.close()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:  # Ray waits for what a test has killed
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


    def lose(self, raylet: int) -> None:
        """Kills one."""
        os.kill(raylet, signal.SIGKILL)
        self.raylets.remove(raylet)


class Cluster:
    """A cluster of two nodes of one CPU each for a whole session, since it takes some ten seconds to start; another
    takes its place once a test has lost a node."""

    def __init__(self) -> None:
        self._nodes: Nodes | None = None
        self._folder: Path | None = None

    @contextmanager
    def in_use(self) -> Iterator[Nodes]:
        """Two nodes, which a search on Ray finds by RAY_ADDRESS meanwhile."""
        if self._nodes is None or len(self._nodes.raylets) < 2:
            self.close()
            self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' paths cannot be long
            self._nodes = Nodes(self._folder)
            self._nodes.add()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", self._nodes.address)
            yield self._nodes

    def close(self) -> None:
        """Ends it."""
        if self._nodes is not None:
            self._nodes.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._nodes = None
