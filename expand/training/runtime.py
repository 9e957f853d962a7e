"""Where a network trains: device, threads, precision and memory layout."""

from __future__ import annotations

import gc
import os
import re
import resource
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from expand.config.schema import RunConfig
from expand.errors import UsageError
from expand.kernels import library
from expand.machine import available_cores, keep_freed_memory

CONTEXT_BYTES = 600e6
"""What each process takes of a GPU beside its tensors: driver, libraries and their code (an estimate)."""


@dataclass(frozen=True)
class Runtime:
    """`device`, CPU `threads` and `precision` (`fp32`, `tf32` or `bf16`), all settled; `sharers` processes have the
    device to themselves together. `cuda_graphs`: whether a training step is to be recorded and replayed."""

    device: torch.device
    threads: int
    precision: str
    cuda_graphs: bool = False
    sharers: int = 1

    @classmethod
    def of(cls, run: RunConfig) -> Runtime:
        """The runtime that a settled configuration asks for. Raises `UsageError` where the machine lacks it; of a Ray
        cluster the nodes count, which the executor looks at."""
        is_here = run.executor != "ray"
        if is_here and run.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("no CUDA device is usable here", where="run.device",
                             fix="use --device cpu, or check the driver with nvidia-smi")
        if run.precision == "tf32" and run.device != "cuda":
            raise UsageError("tf32 is a precision of GPUs", where="run.precision", fix="use fp32, or --device cuda")
        device = _device(run.device)
        if is_here and device.type == "cuda" and device.index >= torch.cuda.device_count():
            raise UsageError(f"more processes than this machine's {torch.cuda.device_count()} GPUs", where="torchrun",
                             fix="start one for each: torchrun --nproc-per-node gpu ...")
        return cls(device, run.threads, run.precision, run.cuda_graphs and device.type == "cuda")

    def of_worker(self, number: int, workers: int) -> Runtime:
        """That of worker `number` (from 0) of `workers`: GPUs take turns, and those on the same one share its memory
        evenly, so that what fits does not depend on what the others train just now."""
        if self.device.type != "cuda":
            return self
        gpus = torch.cuda.device_count()
        mine = (self.device.index + number) % gpus
        sharers = sum((self.device.index + other) % gpus == mine for other in range(workers))
        return replace(self, device=torch.device("cuda", mine), sharers=sharers)

    def remarks(self, processes: int) -> list[str]:
        """What makes trainings in so many processes on the CPU slower than they could be, a line each: compiled kernels
        that are not in use, and more threads than cores, which wait for one another."""
        if self.device.type != "cpu":
            return []
        found = [library.status().remark] if library.status().remark else []
        cores = available_cores()
        if processes > 1 and processes * self.threads > cores:
            found.append(f"{processes} processes of {self.threads} threads on {cores} cores train several times slower "
                         f"than with run.threads={max(1, cores // processes)}")
        return found

    def prepare(self) -> None:
        """Sets this process's GPU and CPU threads; results depend on the threads' number."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        if self.device.type == "cuda":
            self._prepare_gpu()

    def _prepare_gpu(self) -> None:
        torch.cuda.set_device(self.device)
        is_rounded = self.precision != "fp32"  # torch's own default rounds convolutions, and not matrix products
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_rounded
        # measured once a shape, so that the last bits may differ from run to run
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        whole = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_share(whole, self.sharers), self.device)

    def autocast(self) -> AbstractContextManager:
        """bf16 autocast where it is used."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    @property
    def loader_workers(self) -> int:
        """Processes that prepare clips beside the training: none on a CPU, whose cores the training itself fills."""
        return min(8, self.threads) if self.device.type == "cuda" else 0

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels-last: 1.9 times faster on two CPU threads, and what cuDNN's bf16 kernels want."""
        return torch.channels_last_3d

    def release_memory(self) -> None:
        """Gives memory that no tensor uses back to a GPU, for other processes; after a training."""
        if self.device.type == "cuda":
            gc.collect()  # a training refers to itself
            torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        """Starts a new measurement of `peak_memory_mb`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (Linux)
        except OSError:
            pass  # the peak is then that of the whole process so far

    def peak_memory_mb(self) -> float:
        """Most memory in use since the reset, MB (10^6 bytes): of the GPU's tensors, or of the whole process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        try:
            status = Path("/proc/self/status").read_text()
            return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6
        except (OSError, TypeError):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
             "could not create a primitive", "could not create a memory object", "could not execute a primitive")
"""What errors without a kind of their own say; the last three are oneDNN's, which may have other reasons too."""


def memory_share(whole_bytes: int, sharers: int) -> float:
    """The share of a GPU's memory that each of `sharers` processes may fill with tensors, in 0..1: all that there is
    for one alone. At least half of an even share, on a GPU that is too small for so many."""
    if sharers == 1:
        return 1.0
    return max(0.5 / sharers, (1 - sharers * CONTEXT_BYTES / whole_bytes) / sharers)


def _device(name: str) -> torch.device:
    """Under torchrun, a GPU of its own for each process of the machine."""
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def lacks_memory(error: Exception) -> bool:
    """Whether `error` is a word for memory that did not suffice: torch's, Python's or oneDNN's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in NO_MEMORY)


def _has_bf16() -> bool:
    """Whether the GPU itself computes with bfloat16; torch would also emulate it, which is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def settle_run(run: RunConfig) -> RunConfig:
    """`run` with device, threads and precision settled for this machine."""
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = run.precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" and _has_bf16() else "fp32"
    processes = run.workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return replace(run, device=device, threads=run.threads or max(1, available_cores() // processes),
                   precision=precision)
