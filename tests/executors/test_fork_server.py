"""What a search has done in other processes, so that its driver never uses a GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from expand.config import load_config
from expand.errors import CandidateFailed, RunError
from expand.executors.fork_server import ForkServer, call_in_process
from expand.expansion.rules import Space
from expand.exports import card
from expand.run import environment
from expand.run.environment import estimate_seconds
from expand.training.runtime import Runtime, look_at_all


def ended_badly():
    raise CandidateFailed("of its own")


def ended_worse():
    raise ValueError("a mistake\nat length")


def died():
    os._exit(3)


def test_work_apart_is_done_in_another_process_and_its_errors_are_told():
    with ForkServer() as fork_server:
        assert call_in_process(os.getpid, fork_server) not in (os.getpid(), call_in_process(os.getpid, fork_server))
        with pytest.raises(CandidateFailed, match="of its own"):
            call_in_process(ended_badly, fork_server)
        with pytest.raises(RunError, match="ValueError: a mistake$"):
            call_in_process(ended_worse, fork_server)
        with pytest.raises(RunError, match="died"):
            call_in_process(died, fork_server)


@pytest.fixture
def asked(monkeypatch):
    """The functions that are called in other processes, on a machine that seems to have a GPU."""
    found = []

    def apart(work, fork_server=None):
        found.append(getattr(work, "func", work))
        if found[-1] is look_at_all:
            return ()
        return 60.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("the driver would get a context"))
    monkeypatch.setattr(environment, "call_in_process", apart)
    return found


def estimate(**run):
    config = load_config(None, ["search.target_gflops=0.1", "search.limits.clip_s=2", "candidate.epochs=1",
                                "candidate.batch_size=8", "final.epochs=1"],
                         {f"run.{key}": value for key, value in run.items()})
    runtime = Runtime(torch.device(config.run.device, 0), 1, "fp32")
    data = SimpleNamespace(counts={"train": 32, "val": 8, "test": 0})
    return environment.estimate_search(config, Space(config.search, 5), data, runtime, None)


def test_gpus_are_looked_at_and_the_time_is_tried_out_in_other_processes(asked):
    config = load_config(None, [], {})
    assert environment.look_at_gpus(config.run, None) == ()
    assert estimate(device="cuda").seconds == 60.0
    assert asked == [look_at_all, estimate_seconds]


def test_a_driver_of_a_cluster_without_a_gpu_of_its_own_knows_no_time(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert estimate(device="cuda", executor="ray").seconds is None
    assert environment.look_at_gpus(load_config(None, [], {"run.device": "cuda"}).run, None) == ()
    assert asked == []


def test_a_time_that_cannot_be_tried_out_is_said_and_ends_nothing(asked, monkeypatch, lines):
    def failing(work, fork_server):
        raise RunError("a process died in its work (EOFError)")

    monkeypatch.setattr(environment, "call_in_process", failing)
    assert estimate(device="cpu").seconds is None
    assert "could not be tried out: a process died" in lines[0]


def test_the_latency_on_a_gpu_is_measured_in_another_process(asked, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(card, "load_model", lambda root: None)
    monkeypatch.setattr(card, "measure_latency", lambda *_: pytest.fail("here"))
    monkeypatch.setattr(card, "call_in_process", lambda work: done.append(work.args[0]) or {"latency_ms": 1.0})
    paths = SimpleNamespace(root=tmp_path, latency=tmp_path / "latency.json")
    config = load_config(None, [], {"run.device": "cuda"})
    assert card._latency(paths, config) == {"latency_ms": 1.0} and done == [tmp_path]
