"""A Ray cluster to train on: found or started, and looked at before anything is trained there."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from expand.errors import ExpandError, RunError, UsageError
from expand.executors.ray_request import Wanted
from expand.executors.ray_task import NodeFacts, Shared, look, token_complaint, versions, wait_until
from expand.rundir.files import TEMPORARY, write_atomic
from expand.version import __version__

LOOK_S = 120.0
"""What nodes may take to answer: their first process imports torch from what may be a slow disk."""
ANSWERS_S = 5.0
"""What a cluster's first process may take to answer."""
SHOWS_S = 15.0
"""What a shared file system may take to show here what a node wrote."""
STORE_BYTES = 100e6
"""Least object store of a cluster that this program starts."""
PRECISION = 1e-4
"""Of Ray's resources."""
FIRST = "start the cluster's processes (`ray start`) with the very Python that has x3d-expand; docs/cluster.md"


@dataclass(frozen=True)
class Shares:
    """What Ray is asked to set aside for a training: `gpus` of 0 to 1, of which `sharers` make up one GPU."""

    cpus: int
    gpus: float
    sharers: int


def connect(wanted: Wanted, content_bytes: int) -> bool:
    """Connects to the cluster of RAY_ADDRESS, or to the one that `ray start` began on this machine; where there is
    none, starts one on this machine, that ends with this process. Whether it did.

    Another program's private cluster on this machine is not taken (as `ray.init("auto")` would): it may end at any
    moment. Raises `UsageError` with Ray's reason.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    found = find()
    if found is None:  # the address is said, since without one Ray would take a cluster that is gone
        options |= {"address": "local", "num_cpus": wanted.workers * wanted.threads, "include_dashboard": False,
                    "num_gpus": None if wanted.on_gpu else 0,
                    "object_store_memory": int(STORE_BYTES + 2 * content_bytes)}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError, ray.exceptions.RayError) as error:
        raise _no_connection(first_line(error), found) from error
    return found is None


def find() -> str | None:
    """The address (host:port) that RAY_ADDRESS names or `ray start` left on this machine; None where there is none.

    Raises `UsageError` where nothing answers there: Ray would try for minutes, and then end its process.
    """
    named = os.environ.get("RAY_ADDRESS") or None
    if named == "local":
        os.environ.pop("RAY_ADDRESS")  # else Ray takes it for the address of a cluster in all its processes
        return None
    if named is not None and "://" in named:
        raise UsageError("is an address of Ray's client, and a search is started on a node of the cluster",
                         where=f"RAY_ADDRESS={named}", fix="give host:port, on a node that `ray start` made one")
    if named in (None, "auto"):
        left = services.find_bootstrap_address(None)
        return left if left and _answers(left) else None  # it stays there after a crash
    if not _answers(named):
        raise _no_connection(f"nothing answers within {ANSWERS_S:g} s", named)
    return named


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def _no_connection(what: str, address: str | None) -> UsageError:
    return UsageError(f"no connection to a Ray cluster: {what}", where=address or "ray",
                      fix="`ray status` says whether it is up; one with a token wants RAY_AUTH_MODE=token. Without "
                          "RAY_ADDRESS and after `ray stop`, x3d-expand starts one on this machine (docs/cluster.md)")


def first_line(error: BaseException) -> str:
    """What `error` says, in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def fitting_nodes(nodes: Sequence[dict[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
    """Those of `nodes` (as `ray.nodes()` has them) that a training fits on. Raises `UsageError` where there is none."""
    alive = [node for node in nodes if node["Alive"]]
    fitting = [node for node in alive if node["Resources"].get("CPU", 0) >= wanted.threads
               and (not wanted.on_gpu or node["Resources"].get("GPU", 0) > 0)]
    if not fitting:
        most = max((node["Resources"].get("CPU", 0) for node in alive), default=0)
        if wanted.on_gpu and most >= wanted.threads:
            raise UsageError("no node of the Ray cluster offers a GPU", where="run.device",
                             fix="use --device cpu, or say `--num-gpus` to `ray start` on the nodes that have one")
        raise UsageError(f"no node of the Ray cluster offers {wanted.threads} CPUs; the largest has {most:g}",
                         where="run.threads", fix=f"use --threads {max(1, int(most))} or less")
    return fitting


def shares(nodes: Sequence[dict[str, Any]], wanted: Wanted) -> Shares:
    """A GPU each, or even shares where there are more trainings than GPUs."""
    if not wanted.on_gpu:
        return Shares(wanted.threads, 0, 1)
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    sharers = max(1, math.ceil(wanted.workers / gpus))
    return Shares(wanted.threads, math.floor(1 / sharers / PRECISION) * PRECISION if sharers > 1 else 1, sharers)


def room(nodes: Sequence[dict[str, Any]], share: Shares) -> int:
    """How many trainings fit on `nodes` at a time."""
    return sum(int(min(node["Resources"].get("CPU", 0) // share.cpus,
                       node["Resources"].get("GPU", 0) * share.sharers if share.gpus else math.inf))
               for node in nodes)


def new_token(root: Path) -> tuple[Path, str]:
    """A file in the run directory by which a node can show that it sees the very same one, and its content. A token
    that a kill leaves there goes the way of all leftovers."""
    path, token = root / f"{TEMPORARY}{secrets.token_hex(4)}-ray", secrets.token_hex(16)
    write_atomic(path, token)
    return path, token


def check_nodes(nodes: Sequence[dict[str, Any]], shared: Shared, wanted: Wanted) -> list[str]:
    """Looks at each of `nodes`, at the same time. Remarks, a line each. Raises `UsageError` or `RunError` for the first
    that cannot train for this run."""
    own = ray.get_runtime_context().get_node_id()
    task = ray.remote(max_retries=1, num_cpus=0)(look)
    held, looks, replies = ray.put(shared), {}, {}
    for node in nodes:
        name = node["NodeID"]
        replies[name] = None if name == own else f"{shared.token_path.name}-{name[:12]}"
        looks[name] = task.options(scheduling_strategy=pinned(name)).remote(held, replies[name], wanted.on_gpu)
    ray.wait(list(looks.values()), num_returns=len(looks), timeout=LOOK_S)
    found = {}
    for node in nodes:
        name = node["NodeID"]
        found[name] = _facts(node, looks[name])
        where = f"node {found[name].host} ({node['NodeManagerAddress']})"
        if (error := complaint(where, found[name], str(wanted.root))) is not None:
            raise error
        if replies[name] is not None:
            _check_reply(where, shared.token_path.with_name(replies[name]), shared.token)
    return remarks(list(found.values()))


def pinned(node: str) -> NodeAffinitySchedulingStrategy:
    """On that node or nowhere."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _facts(node: dict[str, Any], answer: Any) -> NodeFacts:
    where = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    try:
        return ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(f"did not answer within {LOOK_S:g} s", where=where,
                       fix="look at it with `ray status`; `ray stop` on it takes it out of the cluster") from error
    except ray.exceptions.RayTaskError as error:  # of a missing or another x3d-expand, as a rule
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, ExpandError):
            raise cause from error
        raise UsageError(f"x3d-expand {__version__} does not run there ({first_line(cause)})", where=where,
                         fix=f"install x3d-expand {__version__} there; {FIRST}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"cannot be used: {first_line(error)}", where=where,
                       fix="look at it with `ray status`; `ray stop` on it takes it out of the cluster") from error


def complaint(where: str, facts: NodeFacts, root: str) -> ExpandError | None:
    """What keeps a node with these `facts` from training for this driver's run, if anything."""
    for name, ours in versions().items():
        if (there := facts.versions.get(name)) != ours:
            return UsageError(f"has {name} {there}, and this command {ours}", where=where,
                              fix=f"install the same versions on all nodes; {FIRST}")
    if facts.run_dir is not None:
        return UsageError(f"does not see the run directory {root} as this command does: {facts.run_dir}", where=where,
                          fix="put the run on a file system that all nodes share (--run-dir), at the same place")
    if facts.clip is not None:
        return UsageError(f"cannot read the clips: {facts.clip}", where=where,
                          fix="put the clips on a file system that all nodes share, at the same place")
    if not facts.gpu:
        return UsageError("offers a GPU that torch cannot use", where=where,
                          fix="check it with `x3d-expand doctor` there, or use --device cpu")
    return None


def _check_reply(where: str, path: Path, token: str) -> None:
    try:
        if not wait_until(lambda: token_complaint(path, token) is None, SHOWS_S):
            raise RunError(f"wrote into the run directory, which did not show here within {SHOWS_S:g} s", where=where,
                           fix="put the run on a file system that all nodes share (--run-dir)")
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remarks(found: Sequence[NodeFacts]) -> list[str]:
    """What a person may want to know of the nodes, a line each."""
    said = []
    builds = sorted({facts.kernels or "none" for facts in found})
    if len(builds) > 1:
        said.append(f"the nodes have different compiled kernels ({', '.join(builds)}): the last bits of a result may "
                    "depend on the node that it was trained on")
    blind = [facts.host for facts in found if not facts.has_frames]
    if blind:
        said.append(f"the decoded frames (data.cache_dir) are not on {', '.join(blind)}: they are decoded at each "
                    "access there, which is slower; a data.cache_dir that all nodes share avoids it")
    return said
