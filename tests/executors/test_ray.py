"""What the Ray executor promises beyond what all do (`test_executors.py`): of nodes that differ, or are lost."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ray = pytest.importorskip("ray")

from expand import logs
from expand.config.schema import RunConfig
from expand.errors import RunError, UsageError
from expand.executors import early_start, make_executor, ray_cluster
from expand.executors.worker import run_job
from expand.rundir.paths import RunPaths
from expand.training.job import Hooks
from tests.executors.suite import Heard, figures, hold_until_two_have_begun, job, signal_after_checkpoint
from tests.training.small import RUNTIME

RUN = RunConfig(device="cpu", threads=1, precision="fp32", workers=2, executor="ray")


@pytest.fixture(scope="module")
def nodes(shared_cluster):
    """Two, of one CPU each."""
    with shared_cluster.in_use() as found:
        yield found


@pytest.fixture(scope="module")
def on_nodes(nodes, data, tmp_path_factory):
    """Gives one executor to the tests of the nodes, since each takes some ten seconds to begin; it tells `heard` now.
    The last of them loses it."""
    said: list[str] = []
    with logs.shown_by(said.append), on_ray(data, tmp_path_factory.mktemp("on_nodes"), Heard(), workers=4) as executor:
        executor.said = [*said]

        def telling(heard: Heard):
            executor.listener = heard.listener()
            return executor

        yield telling


def on_ray(data, folder: Path, heard: Heard, **options):
    return make_executor(replace(RUN, **options), data, RUNTIME, RunPaths(folder), heard.listener(), None)


def alone(data, folder: Path, **options) -> dict:
    """What a training gives in this process."""
    folder.mkdir(exist_ok=True)
    fields = run_job(job(folder, **options), data, RUNTIME, Hooks())
    return {key: fields.get(key) for key in ("state", "accuracy", "loss", "top5", "stderr")}


def test_candidates_are_spread_over_the_nodes_and_what_has_no_room_waits(nodes, on_nodes, data, tmp_path):
    seen_on = []
    hold = hold_until_two_have_begun()

    def begin(job, pid):
        seen_on.append(nodes.of_worker(f":{pid}"))
        hold(job, pid)

    executor = on_nodes(Heard(on_begin=begin))
    jobs = [job(tmp_path, name, epochs=6) for name in ("a", "b", "c", "of")]
    measured = figures(executor.run(jobs))
    assert measured == {name: alone(data, tmp_path / "alone", name=name, epochs=6) for name in ("a", "b", "c", "of")}
    assert set(seen_on) == set(nodes.raylets)
    assert executor.said == ["training on a Ray cluster of 2 nodes",
                                   "the Ray cluster has room for 2 of 4 trainings at a time"]
    heard = Heard()  # a result that comes at once does not overtake the news that it began
    assert figures(on_nodes(heard).run(jobs)) == measured and sorted(heard.began) == sorted(measured)


def test_a_lost_node_costs_a_retry_elsewhere(nodes, on_nodes, data, tmp_path):
    heard, held, vanished = Heard(), [], []

    def lose_node(job, pid):
        if vanished:
            return
        raylet = nodes.of_worker(f":{pid}")
        if raylet == nodes.raylets[0]:  # the driver's own: it is held, so that the other node gets a job
            os.kill(pid, signal.SIGSTOP)
            held.append(pid)
            return
        signal_after_checkpoint(signal.SIGSTOP, job, pid)  # the node vanishes, it does not end its processes first
        nodes.lose(raylet)
        vanished.append(pid)
        for other in held:
            os.kill(other, signal.SIGCONT)

    heard.on_begin = lose_node
    measured = figures(on_nodes(heard).run([job(tmp_path, name, epochs=12) for name in "ab"]))
    with suppress(ProcessLookupError):
        os.kill(*vanished, signal.SIGKILL)
    assert measured == {name: alone(data, tmp_path / "alone", name=name, epochs=12) for name in "ab"}
    assert [attempt for _, attempt, _ in heard.retried] == [1] and "node was lost" in heard.retried[0][2]


def test_too_many_threads_for_any_node_are_refused(nodes, data, tmp_path):
    executor = make_executor(RUN, data, replace(RUNTIME, threads=3), RunPaths(tmp_path), Heard().listener(), None)
    with pytest.raises(UsageError, match="offers 3 CPUs; the largest has 1"), executor:
        pass
    assert not list(tmp_path.iterdir())


def test_a_lost_cluster_ends_the_run_with_its_work_kept_and_the_local_executor_goes_on(nodes, on_nodes, data, tmp_path,
                                                                                       lines):
    heard = Heard()

    def lose_cluster(job, pid):
        signal_after_checkpoint(signal.SIGCONT, job, pid)
        nodes.lose(nodes.raylets[0])

    heard.on_begin = lose_cluster
    jobs = [job(tmp_path, "a", epochs=400, gflops=2.0), job(tmp_path, "waits", epochs=400)]  # both hear of it at once
    began = time.monotonic()
    with pytest.raises(RunError, match="the Ray cluster was lost .* all work so far is kept") as caught:
        list(on_nodes(heard).run(jobs))
    assert "x3d-expand resume" in caught.value.fix and time.monotonic() - began < 60
    assert (tmp_path / "a" / "checkpoint.pt").exists()
    heard = Heard(is_to_stop=lambda: bool(heard.began))
    lines.clear()
    local = replace(RUN, executor="local")
    with early_start(local) as fork_server, \
            make_executor(local, data, RUNTIME, RunPaths(tmp_path), heard.listener(), fork_server) as executor, \
            pytest.raises(Exception, match="stopped"):
        list(executor.run(jobs))
    assert not any("starts anew" in line for line in lines)


@pytest.mark.parametrize(("address", "words"), [
    ("127.0.0.1:9", "nothing answers"), ("no-port", "nothing answers"), ("ray://somewhere:10001", "Ray's client")])
def test_an_address_without_a_cluster_is_refused_at_once(data, tmp_path, monkeypatch, address, words):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=words), on_ray(data, tmp_path, Heard()):
        pass


def test_without_ray_the_way_to_install_it_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        on_ray(data, tmp_path, Heard())
    assert "pip install 'x3d-expand[ray]'" in caught.value.fix


@pytest.fixture
def request_here(data, tmp_path) -> ray_cluster.Request:
    """What a run in `tmp_path` asks of a cluster."""
    token = tmp_path / "token"
    token.touch()
    return ray_cluster.Request(2, 1, False, token, os.getcwd(), pickle.dumps(data.train[0]), ray_cluster.versions())


def test_a_node_that_can_train_for_the_run_is_told_with_its_kernels_and_frames(request_here, data):
    facts = ray_cluster.check_node(request_here)
    assert facts.host == socket.gethostname() and facts.has_frames
    remote = replace(data.train[0], store=data.train[0].store.with_name("gone"))
    assert not ray_cluster.check_node(replace(request_here, clip=pickle.dumps(remote))).has_frames


@pytest.mark.parametrize(("change", "words"), [
    (lambda asked, clip: {"versions": {**asked.versions, "x3d-expand": "0.0.1"}},
     f"node {socket.gethostname()} .*: has x3d-expand .*, and this command 0.0.1"),
    (lambda asked, clip: {"versions": {**asked.versions, "torch": "1.13.0"}}, "has torch .* and this command 1.13.0"),
    (lambda asked, clip: {"versions": {**asked.versions, "Python": "3.8"}}, "has Python .* and this command 3.8"),
    (lambda asked, clip: {"token": asked.token.with_name("other")}, "does not see the run directory .*No such file"),
    (lambda asked, clip: {"token": asked.token.parent / "gone" / "token"}, "does not see the run directory .*No such"),
    (lambda asked, clip: {"clip": pickle.dumps(replace(clip, store=None, path=asked.token.with_name("gone.mp4")))},
     "cannot read the clips: .*gone.mp4"),
    (lambda asked, clip: {"on_gpu": True}, "a GPU that torch cannot use")])
def test_a_node_that_cannot_train_for_the_run_is_named_with_what_is_wrong(request_here, data, monkeypatch, change,
                                                                           words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    request = replace(request_here, **change(request_here, data.train[0]))
    trainer = ray_cluster.Trainer()  # nodes that join later were not checked with the others
    for look in (lambda: ray_cluster.check_node(request), lambda: list(trainer.answers(request))):
        with pytest.raises(UsageError, match=words) as caught:
            look()
        assert caught.value.fix


def test_nodes_that_differ_in_ways_that_do_not_forbid_training_are_remarked_on():
    facts = ray_cluster.NodeFacts("far", "avx2", True)
    assert ray_cluster.list_remarks([facts, facts]) == []
    said = ray_cluster.list_remarks([facts, replace(facts, host="old", kernels="base", has_frames=False)])
    assert "avx2, base" in said[0] and "not on old" in said[1]


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def asks(workers: int, threads: int, *, on_gpu: bool) -> ray_cluster.Request:
    return ray_cluster.Request(workers, threads, on_gpu, Path("/r/token"), "/", None, {})


@given(workers=st.integers(1, 64), gpus=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_as_many_workers_as_are_requested_fit_on_the_gpus(workers, gpus):
    request = asks(workers, 1, on_gpu=True)
    nodes = [node(1000, count) for count in gpus]
    share, sharers = ray_cluster.plan_share(nodes, request)
    assert 0 < share <= 1 and (share == 1) == (workers <= sum(gpus))
    assert share * sharers <= 1
    assert sum(int(count / share + 1e-9) for count in gpus) >= workers
    assert ray_cluster.count_places(nodes, request, sharers) >= workers


def test_nodes_without_room_for_one_training_are_left_out_and_none_is_an_error():
    request = asks(2, 4, on_gpu=False)
    assert ray_cluster.select_nodes([node(2), node(4), node(8, alive=False)], request) == [node(4)]
    with pytest.raises(UsageError, match="offers 4 CPUs; the largest has 2") as caught:
        ray_cluster.select_nodes([node(2)], request)
    assert "--threads 2" in caught.value.fix
    with pytest.raises(UsageError, match="offers a GPU"):
        ray_cluster.select_nodes([node(8)], replace(request, on_gpu=True))
