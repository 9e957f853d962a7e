"""A GPU that fails under a training ends the process, and nothing is held against the candidate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expand.config.schema import RunConfig
from expand.errors import DeviceFault
from expand.executors import worker
from expand.executors.supervisor import Executor, Listener, Worker
from expand.model import X3D
from expand.run import single_training
from expand.run.display import Quiet
from expand.rundir.paths import CandidatePaths, RunPaths
from expand.training.candidate import train_candidate, train_final
from expand.training.distributed import ALONE
from expand.training.job import Hooks, Job, Kind
from expand.training.loop import Training
from expand.training.runtime import Runtime
from tests.training.small import CONFIG, RECIPE, RUNTIME, final, network

FAULTS = [torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nat length"),
          RuntimeError("CUDA error: uncorrectable ECC error encountered"),
          RuntimeError("CUDA error: device-side assert triggered"),
          RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")]


@pytest.fixture
def job(tmp_path):
    return Job("s00-basis", network("s00-basis", frames=1), 0.001, RECIPE, CONFIG, 7, CandidatePaths(tmp_path / "job"),
               0.0)


def failing(monkeypatch, error, after=3):
    """Every update after the first ones meets `error`."""
    update, done = Training.update, []

    def updated(self, *batch):
        done.append(batch)
        if len(done) > after:
            raise error
        return update(self, *batch)

    monkeypatch.setattr(Training, "update", updated)


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_nothing_is_written_but_the_checkpoint_and_another_process_goes_on_from_it(job, data, monkeypatch, error):
    with monkeypatch.context() as patch:
        failing(patch, error)
        kind, reason = worker._train(job, data, RUNTIME, Hooks())
    assert kind == "fault" and "the GPU failed" in reason and "\n" not in reason
    assert job.paths.checkpoint.exists() and not job.paths.outcome.exists()
    later = Training(job, data, RUNTIME, Hooks())
    assert later.progress.batch == 3
    undisturbed = train_candidate(replace(job, paths=CandidatePaths(job.paths.dir.parent / "other")), data, RUNTIME,
                                  Hooks())
    assert train_candidate(job, data, RUNTIME, Hooks()).loss == undisturbed.loss


def test_a_final_training_on_a_gpu_that_failed_is_no_failed_one(job, data, monkeypatch):
    failing(monkeypatch, FAULTS[0])
    with pytest.raises(DeviceFault, match="illegal memory access"):
        train_final(final(job), data, RUNTIME, Hooks())


@pytest.mark.parametrize("text", ["GET was unable to find an engine to execute this computation",
                                  "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"])
def test_a_library_without_memory_has_batches_halved_down_to_the_smallest_part(job, data, monkeypatch, text):
    sizes = []

    def forward(self, x_BCTHW):
        sizes.append(len(x_BCTHW))
        raise RuntimeError(text)

    monkeypatch.setattr(X3D, "forward", forward)
    try:
        reason = train_candidate(job, data, RUNTIME, Hooks()).reason
    except DeviceFault as fault:  # where it says so of the smallest part too, the GPU may have failed
        reason = fault.what
    assert sizes == [8, 4, 2] and text in reason  # of one clip, this network has one value a channel


def test_giving_memory_back_to_a_gpu_that_failed_hides_nothing(monkeypatch):
    def empty():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    Runtime(torch.device("cuda", 0), 1, "fp32").release_memory()


class Told(Executor):
    """A supervisor whose processes are these tests: it gives work to pipes and hears what it is told."""

    def _start(self, number):
        self.ours, theirs = torch.multiprocessing.get_context("spawn").Pipe()
        self.ours.send(("hello", "here:1"))
        return Worker(number, theirs)

    def _runtime_of(self, worker):
        return RUNTIME

    def _find_reason(self, worker):
        return "its process died", False

    def _react_to_failed_start(self, worker):
        raise AssertionError


def test_the_supervisor_tries_again_in_another_process_without_recordings_and_not_for_ever(job, data):
    retried, given = [], []
    listener = Listener(lambda *_: None, lambda job, attempt, reason: retried.append((attempt, reason)),
                        lambda *_: None, lambda: False)
    executor = Told(data, RUNTIME, RunConfig(device="cpu", threads=1, precision="fp32", retries=2), listener)
    hand_out = executor._hand_out_jobs

    def and_fail():
        hand_out()
        while executor.ours.poll():
            kind, content = executor.ours.recv()
            if kind == "job":
                given.append(content)
                executor.ours.send(("fault", "the GPU failed (an ECC error)"))

    executor._hand_out_jobs = and_fail
    [finished] = executor.run([job])
    assert [attempt for attempt, _ in retried] == [1, 2] and all("ECC" in reason for _, reason in retried)
    assert [each.may_record for each in given] == [True, False, False]
    assert finished.fields["state"] == "failed" and "the last of 3 times" in finished.fields["reason"]
    assert executor._workers == []


def test_a_single_training_on_a_gpu_that_failed_says_how_to_go_on(job, data, monkeypatch, tmp_path):
    failing(monkeypatch, FAULTS[0])
    paths = RunPaths(tmp_path / "run")
    alone = replace(job, id="final", paths=paths.final_candidate, weights=paths.weights, kind=Kind.FINAL)
    paths.root.mkdir()
    with pytest.raises(DeviceFault, match="all work up to the last checkpoint is kept") as caught:
        single_training._train(paths, alone, data, RUNTIME, ALONE, Quiet())
    assert caught.value.exit_code == 1 and f"x3d-expand resume {paths.root}" in caught.value.fix
    assert paths.final_candidate.checkpoint.exists() and not paths.final_candidate.outcome.exists()


def test_a_training_after_a_fault_records_no_graphs(job, data):
    on_gpu = replace(RUNTIME, cuda_graphs=True)
    assert Training(job, data, on_gpu, Hooks()).graphed is not None
    assert Training(replace(job, may_record=False), data, on_gpu, Hooks()).graphed is None
    assert replace(job, may_record=False).identity == job.identity
