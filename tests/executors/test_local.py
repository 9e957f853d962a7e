"""What a worker process of the local executor does at its start and after each training; whole runs with several
workers are in tests/e2e."""

from __future__ import annotations

import multiprocessing
import threading
from types import SimpleNamespace

import pytest
import torch

from expand.errors import Interrupted
from expand.executors import local
from expand.training.runtime import Runtime


@pytest.fixture
def as_worker(monkeypatch):
    """Lets this process begin as worker after worker would; returns what starts one and gives its runtime."""
    monkeypatch.setattr(local, "signal", SimpleNamespace(SIGINT=2, SIGTERM=15, SIG_IGN=1, signal=lambda *_: None))
    monkeypatch.setattr(local, "threading", SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=lambda: None)))
    monkeypatch.setattr(local, "_worker", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    numbers = multiprocessing.get_context("spawn").Value("i", 0)

    def begin(device, workers):
        local._start_worker("clips", Runtime(device, 1, "fp32"), workers, numbers, "messages", threading.Event(), 1)
        return local._worker[1]

    return begin


def test_each_worker_takes_the_next_gpu(as_worker):
    runtimes = [as_worker(torch.device("cuda", 0), 3) for _ in range(3)]
    assert [(runtime.device.index, runtime.sharers) for runtime in runtimes] == [(0, 2), (1, 1), (0, 2)]


def test_on_a_cpu_every_worker_has_the_runtime_of_the_executor(as_worker):
    assert as_worker(torch.device("cpu"), 2) == as_worker(torch.device("cpu"), 2) == Runtime(
        torch.device("cpu"), 1, "fp32")


@pytest.mark.parametrize("error", [None, Interrupted("stopped")])
def test_after_a_training_a_worker_gives_memory_back_however_it_ended(monkeypatch, error):
    done = []

    def train(job, data, runtime, hooks):
        done.append("trained")
        if error:
            raise error
        return "outcome"

    runtime = SimpleNamespace(release_memory=lambda: done.append("released"))
    monkeypatch.setattr(local, "train_candidate", train)
    monkeypatch.setattr(local, "_worker", ("clips", runtime, SimpleNamespace(put=lambda message: None),
                                           threading.Event()))
    if error:
        with pytest.raises(Interrupted):
            local._train(SimpleNamespace(id="a"))
    else:
        assert local._train(SimpleNamespace(id="a")) == "outcome"
    assert done == ["trained", "released"]
