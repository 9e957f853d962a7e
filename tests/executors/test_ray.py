"""What the Ray executor promises beyond what all do (`test_executors.py`): of nodes that differ, or are lost."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ray = pytest.importorskip("ray")

from expand.config.schema import RunConfig
from expand.errors import RunError, UsageError
from expand.executors import cluster, early_start, make_executor, ray_task
from expand.executors.base import carry_out
from expand.rundir.paths import RunPaths
from expand.training.job import Hooks
from tests.executors.ray_nodes import ray_nodes
from tests.executors.suite import Heard, figures, job, signal_after_checkpoint
from tests.training.small import RUNTIME

RUN = RunConfig(device="cpu", threads=1, precision="fp32", workers=2, executor="ray")


@pytest.fixture(scope="module")
def nodes():
    """Two, of one CPU each."""
    with ray_nodes(2) as found:
        yield found


@pytest.fixture(scope="module")
def on_nodes(nodes, data, tmp_path_factory):
    """Gives one executor to the tests of the nodes, since each takes some ten seconds to begin; it tells `heard` now.
    The last of them loses it."""
    folder, began = tmp_path_factory.mktemp("on_nodes"), Heard()
    with on_ray(data, folder, began, workers=4) as executor:
        executor.began = began

        def telling(heard: Heard):
            executor.listener = heard.listener()
            return executor

        yield telling


def on_ray(data, folder: Path, heard: Heard, **options):
    return make_executor(replace(RUN, **options), data, RUNTIME, RunPaths(folder), heard.listener(), None)


def alone(data, folder: Path, **options) -> dict:
    """What a training gives in this process."""
    folder.mkdir(exist_ok=True)
    fields = carry_out(job(folder, **options), data, RUNTIME, Hooks())
    return {key: fields.get(key) for key in ("state", "accuracy", "loss", "top5", "stderr")}


def test_candidates_are_spread_over_the_nodes_and_what_has_no_room_waits(nodes, on_nodes, data, tmp_path):
    seen_on = []
    executor = on_nodes(Heard(on_begin=lambda job, pid: seen_on.append(nodes.of_worker(f":{pid}"))))
    jobs = [job(tmp_path, name, epochs=6) for name in ("a", "b", "c", "of")]
    measured = figures(executor.run(jobs))
    assert measured == {name: alone(data, tmp_path / "alone", name=name, epochs=6) for name in ("a", "b", "c", "of")}
    assert set(seen_on) == set(nodes.raylets)
    assert executor.began.said == ["training on a Ray cluster of 2 nodes",
                                   "the Ray cluster has room for 2 of 4 trainings at a time"]
    heard = Heard()  # a result that comes at once does not overtake the news that it began
    assert figures(on_nodes(heard).run(jobs)) == measured and sorted(heard.began) == sorted(measured)


def test_a_lost_node_costs_a_retry_elsewhere(nodes, on_nodes, data, tmp_path):
    heard, vanished = Heard(), []

    def lose_node(job, pid):
        raylet = nodes.of_worker(f":{pid}")
        if raylet == nodes.raylets[0] or heard.retried:
            return  # the driver's own: another test's
        signal_after_checkpoint(signal.SIGSTOP, job, pid)  # the node vanishes, it does not end its processes first
        os.kill(raylet, signal.SIGKILL)
        nodes.raylets.remove(raylet)
        vanished.append(pid)

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


def test_a_lost_cluster_ends_the_run_with_its_work_kept_and_the_local_executor_goes_on(nodes, on_nodes, data, tmp_path):
    heard = Heard()

    def lose_cluster(job, pid):
        signal_after_checkpoint(signal.SIGCONT, job, pid)
        os.kill(nodes.raylets[0], signal.SIGKILL)

    heard.on_begin = lose_cluster
    jobs = [job(tmp_path, "a", epochs=400, gflops=2.0), job(tmp_path, "waits", epochs=400)]  # both hear of it at once
    began = time.monotonic()
    with pytest.raises(RunError, match="the Ray cluster was lost .* all work so far is kept") as caught:
        list(on_nodes(heard).run(jobs))
    assert "x3d-expand resume" in caught.value.fix and time.monotonic() - began < 60
    assert (tmp_path / "a" / "checkpoint.pt").exists()
    heard = Heard(is_to_stop=lambda: bool(heard.began))
    local = replace(RUN, executor="local")
    with early_start(local) as nursery, \
            make_executor(local, data, RUNTIME, RunPaths(tmp_path), heard.listener(), nursery) as executor, \
            pytest.raises(Exception, match="stopped"):
        list(executor.run(jobs))
    assert not any("starts anew" in line for line in heard.said)


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


FACTS = ray_task.NodeFacts("far", ray_task.versions(), "avx2", None, None, True, True)


@pytest.mark.parametrize(("change", "words"), [
    ({"versions": {**FACTS.versions, "x3d-expand": "0.0.1"}}, "far: has x3d-expand 0.0.1, and this command"),
    ({"versions": {**FACTS.versions, "torch": "1.13.0"}}, "has torch 1.13.0"),
    ({"versions": {**FACTS.versions, "Python": "3.8"}}, "has Python 3.8"),
    ({"run_dir": "No such file or directory"}, "does not see the run directory /r .*No such file"),
    ({"clip": "clip.mp4: gone"}, "cannot read the clips: clip.mp4: gone"),
    ({"gpu": False}, "a GPU that torch cannot use")])
def test_a_node_that_cannot_train_for_the_run_is_named_with_what_is_wrong(change, words):
    assert cluster.complaint("node far", FACTS, "/r") is None
    error = cluster.complaint("node far", replace(FACTS, **change), "/r")
    with pytest.raises(UsageError, match=words):
        raise UsageError(str(error))
    assert error.fix


def test_a_look_at_a_node_tells_another_run_directory_and_missing_clips(data, tmp_path):
    import pickle

    path, token = cluster.new_token(tmp_path)
    shared = ray_task.Shared(pickle.dumps((data, RUNTIME)), os.getcwd(), path, token, 1)
    facts = ray_task.look(shared, "reply", on_gpu=False)
    assert facts.run_dir is None and facts.clip is None and facts.has_frames and facts.gpu
    assert (tmp_path / "reply").read_text() == token
    assert ray_task.look(replace(shared, token="other"), None, on_gpu=False).run_dir == "its files are others there"
    gone = replace(shared, token_path=tmp_path / "elsewhere" / path.name)
    assert "No such file" in ray_task.look(gone, "reply", on_gpu=False).run_dir
    with pytest.raises(RunError, match="does not see the run directory") as caught:
        ray_task.check_token(gone)
    assert "file system that all nodes" in caught.value.fix
    lost = replace(data, train=(replace(data.train[0], store=None, path=tmp_path / "gone.mp4"), *data.train[1:]))
    facts = ray_task.look(replace(shared, content=pickle.dumps((lost, RUNTIME))), None, on_gpu=False)
    assert "gone.mp4" in facts.clip and not facts.has_frames


def test_nodes_that_differ_in_ways_that_do_not_forbid_training_are_remarked_on():
    assert cluster.remarks([FACTS, FACTS]) == []
    said = cluster.remarks([FACTS, replace(FACTS, host="old", kernels="base", has_frames=False)])
    assert "avx2, base" in said[0] and "not on old" in said[1]


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@given(workers=st.integers(1, 64), gpus=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_so_many_workers_as_are_wanted_fit_on_the_gpus(workers, gpus):
    wanted = cluster.Wanted(workers, 1, True, Path("/r"), "/")
    nodes = [node(1000, count) for count in gpus]
    share = cluster.shares(nodes, wanted)
    assert 0 < share.gpus <= 1 and (share.gpus == 1) == (workers <= sum(gpus))
    assert share.gpus * share.sharers <= 1
    assert sum(int(count / share.gpus + 1e-9) for count in gpus) >= workers
    assert cluster.room(nodes, share) >= workers


def test_nodes_without_room_for_one_training_are_left_out_and_none_is_an_error():
    wanted = cluster.Wanted(2, 4, False, Path("/r"), "/")
    assert cluster.fitting_nodes([node(2), node(4), node(8, alive=False)], wanted) == [node(4)]
    with pytest.raises(UsageError, match="offers 4 CPUs; the largest has 2") as caught:
        cluster.fitting_nodes([node(2)], wanted)
    assert "--threads 2" in caught.value.fix
    with pytest.raises(UsageError, match="offers a GPU"):
        cluster.fitting_nodes([node(8)], replace(wanted, on_gpu=True))
