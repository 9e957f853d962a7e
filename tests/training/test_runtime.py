"""Where a network trains, also on machines that these tests only pretend to be."""

from __future__ import annotations

import pytest
import torch

from expand.config.schema import RunConfig
from expand.errors import UsageError
from expand.kernels.library import KernelStatus
from expand.training import runtime as room
from expand.training.runtime import Runtime, lacks_memory, memory_share, settle_run


@pytest.fixture
def gpus(monkeypatch):
    """Makes the machine seem to have some GPUs; what is set on them is written down in the list that it returns."""
    done = []

    def have(count, *, bf16=True, memory=80e9):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                            lambda including_emulation=True: bf16 or including_emulation)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("device", str(device))))
        monkeypatch.setattr(torch.cuda, "get_device_properties",
                            lambda device: type("Properties", (), {"total_memory": memory}))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction",
                            lambda share, device: done.append(("memory", round(share, 4), str(device))))
        return done

    return have


@pytest.fixture(autouse=True)
def as_before():
    """Global settings are put back."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    rounded = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = rounded


@pytest.mark.parametrize("count, bf16, expected", [(0, False, ("cpu", "fp32")), (1, True, ("cuda", "bf16")),
                                                   (1, False, ("cuda", "fp32"))])
def test_open_values_are_settled_by_what_the_machine_has(gpus, count, bf16, expected):
    gpus(count, bf16=bf16)
    run = settle_run(RunConfig())
    assert (run.device, run.precision) == expected


def test_threads_are_the_cores_divided_by_the_workers(monkeypatch):
    monkeypatch.setattr(room, "available_cores", lambda: 8)
    assert [settle_run(RunConfig(device="cpu", workers=workers)).threads for workers in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_a_precision_that_only_gpus_have_is_refused_on_a_cpu():
    with pytest.raises(UsageError, match="tf32 is a precision of GPUs"):
        Runtime.of(settle_run(RunConfig(device="cpu", precision="tf32")))


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus(0)
    with pytest.raises(UsageError, match="no CUDA device"):
        Runtime.of(RunConfig(device="cuda", threads=1, precision="fp32"))
    of_a_cluster = Runtime.of(RunConfig(device="cuda", threads=1, precision="fp32", executor="ray"))
    assert of_a_cluster.device.type == "cuda"  # the nodes may have one, and are looked at


def test_graphs_are_for_gpus_alone(gpus):
    gpus(1)
    of = {device: Runtime.of(settle_run(RunConfig(device=device, cuda_graphs=True))) for device in ("cpu", "cuda")}
    assert not of["cpu"].cuda_graphs and of["cuda"].cuda_graphs
    assert not Runtime.of(settle_run(RunConfig(device="cuda"))).cuda_graphs


@pytest.mark.parametrize("precision, is_rounded", [("fp32", False), ("tf32", True), ("bf16", True)])
def test_fp32_on_a_gpu_is_fp32_and_tf32_is_asked_for(gpus, precision, is_rounded):
    gpus(1)
    Runtime(torch.device("cuda", 0), 1, precision).prepare()
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is is_rounded
    assert torch.backends.cudnn.benchmark


def test_who_asks_torch_for_determinism_gets_no_measured_algorithms(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    Runtime(torch.device("cuda", 0), 1, "fp32").prepare()
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("count, workers, places, sharers", [
    (1, 3, [0, 0, 0], [3, 3, 3]), (2, 2, [0, 1], [1, 1]), (2, 3, [0, 1, 0], [2, 1, 2]),
    (4, 6, [0, 1, 2, 3, 0, 1], [2, 2, 1, 1, 2, 2])])
def test_workers_take_the_gpus_in_turn_and_share_them(gpus, count, workers, places, sharers):
    gpus(count)
    alone = Runtime(torch.device("cuda", 0), 1, "bf16", cuda_graphs=True)
    of = [alone.of_worker(number, workers) for number in range(workers)]
    assert [runtime.device for runtime in of] == [torch.device("cuda", place) for place in places]
    assert [runtime.sharers for runtime in of] == sharers
    assert all((runtime.precision, runtime.cuda_graphs) == ("bf16", True) for runtime in of)


def test_on_a_cpu_all_workers_are_alike():
    alone = Runtime(torch.device("cpu"), 1, "fp32")
    assert alone.of_worker(3, 4) == alone


def test_who_shares_a_gpu_gets_a_share_of_its_memory(gpus):
    done = gpus(2)
    Runtime(torch.device("cuda", 0), 1, "bf16").of_worker(1, 4).prepare()
    assert done == [("device", "cuda:1"), ("memory", round(memory_share(80e9, 2), 4), "cuda:1")]


@pytest.mark.parametrize("memory", [4e9, 16e9, 80e9])
def test_shares_of_a_gpu_leave_room_for_what_is_no_tensor(memory):
    assert memory_share(memory, 1) == 1.0
    shares = [memory_share(memory, sharers) for sharers in range(2, 12)]
    assert all(0 < share <= 1 / sharers for sharers, share in enumerate(shares, 2))
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("text, lacks", [
    ("CUDA error: out of memory", True), ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
    ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True), ("CUDA error: an illegal memory access", False)])
def test_what_cuda_says_of_memory_is_understood(text, lacks):
    assert lacks_memory(RuntimeError(text)) is lacks


def test_it_tells_what_slows_trainings_down_on_a_cpu(monkeypatch):
    monkeypatch.setattr(room, "available_cores", lambda: 4)
    monkeypatch.setattr(room.library, "status", lambda: KernelStatus("avx2"))
    cpu = torch.device("cpu")
    assert Runtime(cpu, 2, "fp32").remarks(2) == []
    assert Runtime(cpu, 8, "fp32").remarks(1) == []  # asked for by hand, and harmless by comparison
    [line] = Runtime(cpu, 2, "fp32").remarks(3)
    assert "3 processes of 2 threads on 4 cores" in line
    assert "run.threads=1" in line
    monkeypatch.setattr(room.library, "status", lambda: KernelStatus(why="not built", fix="build them"))
    [line] = Runtime(cpu, 2, "fp32").remarks(1)
    assert "not built" in line
    assert Runtime(torch.device("cuda", 0), 8, "bf16").remarks(3) == []
