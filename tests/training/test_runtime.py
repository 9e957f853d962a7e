"""Where a network trains, also on machines that these tests only pretend to be."""

from __future__ import annotations

import os

import pytest
import torch

from expand.config.schema import RunConfig
from expand.errors import RunError, UsageError, is_device_fault
from expand.kernels.library import KernelStatus
from expand.training import runtime as room
from expand.training.runtime import (
    Gpu,
    Runtime,
    complaints,
    lacks_memory,
    look_at,
    look_at_all,
    memory_share,
    resolve_run,
)


@pytest.fixture
def gpus(monkeypatch):
    """Makes the machine seem to have some GPUs; what is set on them is written down in the list that it returns."""
    done = []

    def have(count, *, bf16=True, memory=80e9, capabilities=None, built_for="sm_75 sm_80 sm_90 compute_90", broken=()):
        capabilities = capabilities or [(9, 0) if bf16 else (7, 5)] * count
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"Model {index}")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for.split())

        def try_out(device):
            done.append(("tried", str(device)))
            if device.index in broken:
                raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

        monkeypatch.setattr(room, "run_convolution", try_out)
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
    run = resolve_run(RunConfig())
    assert (run.device, run.precision) == expected


def test_threads_are_the_cores_divided_by_the_workers(monkeypatch):
    monkeypatch.setattr(room, "available_cores", lambda: 8)
    assert [resolve_run(RunConfig(device="cpu", workers=workers)).threads for workers in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_a_precision_that_only_gpus_have_is_refused_on_a_cpu():
    with pytest.raises(UsageError, match="tf32 is a precision of GPUs"):
        Runtime.of(resolve_run(RunConfig(device="cpu", precision="tf32")))


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus(0)
    with pytest.raises(UsageError, match="no CUDA device"):
        Runtime.of(RunConfig(device="cuda", threads=1, precision="fp32"))
    of_a_cluster = Runtime.of(RunConfig(device="cuda", threads=1, precision="fp32", executor="ray"))
    assert of_a_cluster.device.type == "cuda"  # the nodes may have one, and are looked at


def test_graphs_are_for_gpus_alone(gpus):
    gpus(1)
    of = {device: Runtime.of(resolve_run(RunConfig(device=device, cuda_graphs=True))) for device in ("cpu", "cuda")}
    assert not of["cpu"].cuda_graphs and of["cuda"].cuda_graphs
    assert not Runtime.of(resolve_run(RunConfig(device="cuda"))).cuda_graphs


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
    ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True), ("CUDA error: an illegal memory access", False),
    ("FIND was unable to find an engine to execute this computation", True),
    ("GET was unable to find an engine to execute this computation", True),
    ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True),
    ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
    ("CUDA error: device-side assert triggered", False), ("an operator failed", False)])
def test_what_cuda_and_its_libraries_say_of_memory_is_understood(text, lacks):
    assert lacks_memory(RuntimeError(text)) is lacks


@pytest.mark.parametrize("error, is_fault", [
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
    (torch.AcceleratorError("CUDA error: out of memory"), False),
    (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), True),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
    (RuntimeError("CUDA error: device-side assert triggered"), True),
    (RuntimeError("CUDA error: unspecified launch failure"), True),
    (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),  # once single clips say so too
    (RuntimeError("Offset increment outside graph capture encountered unexpectedly."), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), False),
    (torch.OutOfMemoryError("CUDA out of memory"), False),
    (RuntimeError("FIND was unable to find an engine to execute this computation"), False),
    (RuntimeError("an operator failed"), False), (MemoryError(), False), (ValueError("CUDA error"), False)])
def test_a_gpu_that_failed_is_told_from_memory_that_did_not_suffice(error, is_fault):
    assert is_device_fault(error) is is_fault


def test_tests_train_on_the_cpu_unless_they_are_asked_for_the_gpu():
    if os.environ.get("X3D_EXPAND_TEST_GPU") == "1":
        pytest.skip("they are")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()
    assert resolve_run(RunConfig()).device == "cpu"


@pytest.mark.parametrize("capability, built_for, fits", [
    ((9, 0), "sm_80 sm_90", True), ((8, 6), "sm_80", True), ((8, 0), "sm_86", False), ((10, 3), "sm_90", False),
    ((10, 3), "sm_90 compute_90", True), ((7, 0), "sm_75 sm_80 compute_80", False), ((12, 0), "sm_100 sm_120", True),
    ((9, 0), "sm_90a", True), ((6, 1), "", True)])
def test_a_gpu_for_which_torch_has_no_code_is_not_used(gpus, capability, built_for, fits):
    done = gpus(1, capabilities=[capability], built_for=built_for)
    assert resolve_run(RunConfig()).device == ("cuda" if fits else "cpu")
    assert (look_at(0).complaint is None) is fits and (("tried", "cuda:0") in done) is fits
    if not fits:
        with pytest.raises(UsageError, match="no code for its compute capability"):
            Runtime.of(resolve_run(RunConfig(device="cuda")))


def test_a_gpu_that_cannot_compute_a_convolution_is_passed_over(gpus):
    gpus(2, broken=[0])
    run = resolve_run(RunConfig())
    assert run.device == "cuda" and Runtime.of(run).device == torch.device("cuda", 1)
    assert "Model 0 (GPU 0) is not used: CUDA error: uncorrectable ECC" in complaints()[0]
    gpus(1, broken=[0])
    assert resolve_run(RunConfig()).device == "cpu"
    with pytest.raises(UsageError, match="cannot compute on a GPU here"):
        Runtime.of(RunConfig(device="cuda", threads=1, precision="fp32"))


def test_workers_take_only_gpus_that_compute(gpus):
    gpus(4, broken=[0, 2])
    runtime = Runtime.of(resolve_run(RunConfig(), look_at_all()), look_at_all())
    assert [runtime.of_worker(number, 3).device.index for number in range(3)] == [1, 3, 1]
    assert [runtime.of_worker(number, 3).sharers for number in range(3)] == [2, 1, 2]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_precision_that_the_gpu_does_not_have_is_refused(gpus, precision):
    gpus(1, bf16=False)
    with pytest.raises(UsageError, match=f"does not compute with {precision}") as caught:
        Runtime.of(resolve_run(RunConfig(device="cuda", precision=precision)))
    assert "use fp32" in caught.value.fix
    assert "trains in fp32" in complaints()[0]


def test_gpus_that_were_looked_at_elsewhere_are_not_looked_at_here(gpus, monkeypatch):
    gpus(2)
    seen = (Gpu(0, "old", False, "too old"), Gpu(1, "new", True))
    monkeypatch.setattr(room, "look_at", lambda index: pytest.fail("a look takes a context"))
    run = resolve_run(RunConfig(), seen)
    assert (run.device, run.precision) == ("cuda", "bf16")
    assert Runtime.of(run, seen).gpus == (1,) and "too old" in complaints(seen)[0]


def test_under_torchrun_a_process_looks_at_its_own_gpu_alone(gpus, monkeypatch):
    done = gpus(4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert Runtime.of(resolve_run(RunConfig())).device == torch.device("cuda", 2)
    assert {device for what, device in done if what == "tried"} == {"cuda:2"}


def test_a_gpu_that_is_not_to_be_had_is_an_error_of_the_run(gpus, monkeypatch):
    gpus(1)

    def busy(device):
        raise torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(RunError, match="busy or unavailable") as caught:
        Runtime(torch.device("cuda", 0), 1, "fp32").prepare()
    assert caught.value.where == "GPU 0" and "nvidia-smi" in caught.value.fix


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
