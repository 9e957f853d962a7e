"""What the Ray executor promises beyond what all do (`test_executors.py`): of nodes that differ, or are lost."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ray = pytest.importorskip("ray")

from expand import logs
from expand.config.schema import RunConfig
from expand.errors import RunError, UsageError
from expand.executors import early_start, make_executor, ray_node, ray_process
from expand.executors import ray as ray_executor
from expand.executors.worker import run_job
from expand.rundir.paths import RunPaths
from expand.training.job import Hooks
from tests.executors.suite import Heard, figures, hold_until_two_have_begun, job, signal_after_checkpoint
from tests.training.small import RUNTIME

RUN = RunConfig(device="cpu", threads=1, precision="fp32", workers=2, executor="ray")


@pytest.fixture(scope="module")
def nodes(ray_cluster):
    """Two, of one CPU each."""
    with ray_cluster.in_use() as found:
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


FACTS = ray_node.NodeFacts("far", ray_node.versions(), "avx2", None, None, True, True)


@pytest.mark.parametrize(("change", "words"), [
    ({"versions": {**FACTS.versions, "x3d-expand": "0.0.1"}}, "far: has x3d-expand 0.0.1, and this command"),
    ({"versions": {**FACTS.versions, "torch": "1.13.0"}}, "has torch 1.13.0"),
    ({"versions": {**FACTS.versions, "Python": "3.8"}}, "has Python 3.8"),
    ({"run_dir": "No such file or directory"}, "does not see the run directory /r .*No such file"),
    ({"clip": "clip.mp4: gone"}, "cannot read the clips: clip.mp4: gone"),
    ({"gpu": False}, "a GPU that torch cannot use")])
def test_a_node_that_cannot_train_for_the_run_is_named_with_what_is_wrong(change, words):
    assert ray_process.find_obstacle("node far", FACTS, Path("/r")) is None
    error = ray_process.find_obstacle("node far", replace(FACTS, **change), Path("/r"))
    with pytest.raises(UsageError, match=words):
        raise UsageError(str(error))
    assert error.fix


def test_a_look_at_a_node_tells_another_run_directory_and_missing_clips(data, tmp_path):
    token = ray_process.write_token(tmp_path)
    request = ray_node.Request(2, 1, False, tmp_path, os.getcwd(), pickle.dumps(data.train[0]))
    facts = ray_node.look(request, token, "reply")
    assert facts.run_dir is None and facts.clip is None and facts.has_frames and facts.gpu
    assert (tmp_path / "reply").read_text() == token.content
    assert ray_node.look(request, replace(token, content="other"), None).run_dir == "its files are others there"
    gone = replace(token, path=tmp_path / "elsewhere" / token.path.name)
    assert "No such file" in ray_node.look(request, gone, "reply").run_dir
    with pytest.raises(RunError, match="does not see the run directory") as caught:
        ray_node.train(0, os.getcwd(), gone, ("127.0.0.1", 9), b"")
    assert "file system that all nodes" in caught.value.fix
    lost = replace(data.train[0], store=None, path=tmp_path / "gone.mp4")
    facts = ray_node.look(replace(request, clip=pickle.dumps(lost)), token, None)
    assert "gone.mp4" in facts.clip and not facts.has_frames


def test_a_node_that_cannot_reach_the_command_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()[:2]
    with pytest.raises(RunError, match=f"cannot connect to the command at 127.0.0.1:{address[1]}") as caught:
        ray_node.train(0, os.getcwd(), ray_process.write_token(tmp_path), address, b"")
    assert "all ports" in caught.value.fix


def test_a_connection_without_the_key_is_closed_and_nothing_of_it_is_read(data, tmp_path):
    executor = on_ray(data, tmp_path, Heard())
    executor._server = socket.create_server(("127.0.0.1", 0))
    executor._server.setblocking(False)
    worker = ray_executor._Task(0, None, task=3)
    executor._workers.append(worker)

    def connect(said: bytes) -> socket.socket:
        connection = socket.create_connection(executor._server.getsockname())
        connection.sendall(said)
        return connection

    def is_closed(connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True

    with executor._server, connect(ray_node.greeting(b"x" * 32, 3)) as wrong, \
            connect(ray_node.greeting(executor._key, 4)) as unknown, connect(executor._key) as slow:
        while len(executor._unidentified) != 1:
            executor._accept_connections()
        assert worker.pipe is None and is_closed(wrong) and is_closed(unknown)
        slow.sendall(ray_node.greeting(executor._key, 3)[32:])
        while worker.pipe is None:
            executor._accept_connections()
        Connection(os.dup(slow.fileno())).send(("hello", "far:1"))
        assert worker.pipe.recv() == ("hello", "far:1")
        worker.pipe.close()


def test_nodes_that_differ_in_ways_that_do_not_forbid_training_are_remarked_on():
    assert ray_process.list_remarks([FACTS, FACTS]) == []
    said = ray_process.list_remarks([FACTS, replace(FACTS, host="old", kernels="base", has_frames=False)])
    assert "avx2, base" in said[0] and "not on old" in said[1]


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@given(workers=st.integers(1, 64), gpus=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_as_many_workers_as_are_requested_fit_on_the_gpus(workers, gpus):
    request = ray_node.Request(workers, 1, True, Path("/r"), "/")
    nodes = [node(1000, count) for count in gpus]
    share = ray_process.plan_share(nodes, request)
    assert 0 < share.gpus <= 1 and (share.gpus == 1) == (workers <= sum(gpus))
    assert share.gpus * share.sharers <= 1
    assert sum(int(count / share.gpus + 1e-9) for count in gpus) >= workers
    assert ray_process.count_places(nodes, share) >= workers


def test_nodes_without_room_for_one_training_are_left_out_and_none_is_an_error():
    request = ray_node.Request(2, 4, False, Path("/r"), "/")
    assert ray_process.select_nodes([node(2), node(4), node(8, alive=False)], request) == [node(4)]
    with pytest.raises(UsageError, match="offers 4 CPUs; the largest has 2") as caught:
        ray_process.select_nodes([node(2)], request)
    assert "--threads 2" in caught.value.fix
    with pytest.raises(UsageError, match="offers a GPU"):
        ray_process.select_nodes([node(8)], replace(request, on_gpu=True))
