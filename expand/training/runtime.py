"""The device, threads, precision and memory layout of a training."""

from __future__ import annotations

import gc
import os
import re
import resource
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from expand.config.schema import RunConfig
from expand.errors import GPU_WAY_OUT, RunError, UsageError, first_line, lacks_memory
from expand.kernels import library
from expand.machine import available_cores, keep_freed_memory
from expand.training.gpus import Gpu, complaints, usable_gpus

CONTEXT_BYTES = 600e6
"""GPU memory that each process takes beside its tensors, for driver, libraries and their code (an estimate)."""


@dataclass(frozen=True)
class Runtime:
    """The resolved `device`, CPU `threads` and `precision` (`fp32`, `tf32` or `bf16`). `sharers` processes share the
    device. With `cuda_graphs`, a training step is recorded and replayed. `gpus` are the numbers of this machine's GPUs
    that workers take in turn; empty: all."""

    device: torch.device
    threads: int
    precision: str
    cuda_graphs: bool = False
    sharers: int = 1
    gpus: tuple[int, ...] = ()

    @classmethod
    def of(cls, run: RunConfig, seen: Sequence[Gpu] | None = None) -> Runtime:
        """Return the runtime of a resolved configuration, on the GPUs of `seen` that torch can compute on; without
        `seen`, this process tests its own GPUs. Raises `UsageError` if the machine lacks them. On a Ray cluster the
        nodes count, which the executor tests."""
        if run.precision == "tf32" and run.device != "cuda":
            raise UsageError("tf32 is a precision of GPUs", where="run.precision", fix="use fp32, or --device cuda")
        if run.threads is None:
            raise ValueError("the configuration is not resolved")
        device = torch.device(run.device)
        if run.device == "cuda":  # under torchrun, each process of the machine has a GPU of its own
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        gpus: tuple[int, ...] = ()
        if run.device == "cuda" and run.executor != "ray":
            found = _gpus_for(run, device.index, seen)
            device, gpus = torch.device("cuda", found[0].index), tuple(gpu.index for gpu in found)
        return cls(device, run.threads, run.precision, run.cuda_graphs and device.type == "cuda", gpus=gpus)

    def of_worker(self, number: int, workers: int) -> Runtime:
        """Return the runtime of worker `number` (from 0) of `workers`: the workers take the GPUs in turn, and those on
        the same GPU share its memory evenly, so that what fits does not depend on what the others train."""
        if self.device.type != "cuda":
            return self
        gpus = self.gpus or tuple(range(torch.cuda.device_count()))
        first = gpus.index(self.device.index)
        mine = (first + number) % len(gpus)
        sharers = sum((first + other) % len(gpus) == mine for other in range(workers))
        return replace(self, device=torch.device("cuda", gpus[mine]), sharers=sharers)

    def remarks(self, processes: int) -> list[str]:
        """Return the reasons why trainings in `processes` processes are slower on this CPU than they could be, a line
        each: compiled kernels that are not in use, and more threads than cores."""
        if self.device.type != "cpu":
            return []
        remark = library.status().remark
        found = [remark] if remark else []
        cores = available_cores()
        if processes > 1 and processes * self.threads > cores:
            found.append(f"{processes} processes of {self.threads} threads on {cores} cores train several times slower "
                         f"than with run.threads={max(1, cores // processes)}")
        return found

    def prepare(self) -> None:
        """Set this process's GPU and CPU threads; results depend on the number of threads. Raises `RunError` if the GPU
        cannot be used, for which the candidate is not to blame."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        if self.device.type == "cuda":
            is_rounded = self.precision != "fp32"  # torch's own default rounds convolutions, not matrix products
            try:
                torch.cuda.set_device(self.device)
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_rounded
                # measured once a shape, so that the last bits may differ from run to run
                torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
                whole = torch.cuda.get_device_properties(self.device).total_memory
                torch.cuda.set_per_process_memory_fraction(memory_share(whole, self.sharers), self.device)
            except RuntimeError as error:
                what = "has no memory left" if lacks_memory(error) else "cannot be used"
                raise RunError(f"{what} ({first_line(error)})", where=f"GPU {self.device.index}",
                               fix="nvidia-smi shows its processes (it may be reserved for one process, or full); or "
                                   + GPU_WAY_OUT) from error

    def autocast(self) -> AbstractContextManager:
        """Return the autocast of the precision bf16, else a context without effect."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The type of the autocast, None without one."""
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def loader_workers(self) -> int:
        """Processes that prepare clips beside the training: none on a CPU, whose cores the training itself fills."""
        return min(8, self.threads) if self.device.type == "cuda" else 0

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels-last: 1.9 times faster on two CPU threads, and what cuDNN's bf16 kernels want."""
        return torch.channels_last_3d

    def release_memory(self) -> None:
        """Give GPU memory that no tensor uses back to other processes; after a training."""
        if self.device.type == "cuda":
            gc.collect()  # a training refers to itself
            with suppress(RuntimeError):  # a GPU that failed; the reason is reported elsewhere
                torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        """Start a new measurement of `peak_memory_mb`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with suppress(OSError):  # without it, the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM (Linux)

    def peak_memory_mb(self) -> float:
        """Return the most memory in use since the reset, MB (10^6 bytes): of the GPU's tensors,
        or of the whole process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with suppress(OSError):
            status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                peak_kb = int(found[1])
        return peak_kb * 1024 / 1e6


def memory_share(whole_bytes: int, sharers: int) -> float:
    """Return the share of a GPU's memory that each of `sharers` processes may fill with tensors, in 0..1: 1 for one
    process, and at least half of an even share, on a GPU that is too small for so many."""
    if sharers == 1:
        return 1.0
    return max(0.5 / sharers, (1 - sharers * CONTEXT_BYTES / whole_bytes) / sharers)


def _gpus_for(run: RunConfig, number: int, seen: Sequence[Gpu] | None) -> list[Gpu]:
    """Return this machine's GPUs for a `run`, first that of this process, which is number `number` of the machine's.
    Raises `UsageError` if there is none, or one lacks the precision."""
    if not torch.cuda.is_available():
        raise UsageError("no CUDA device is usable here", where="run.device",
                         fix="use --device cpu, or check the driver with nvidia-smi")
    if number >= torch.cuda.device_count():
        raise UsageError(f"more processes than this machine's {torch.cuda.device_count()} GPUs", where="torchrun",
                         fix="start one for each: torchrun --nproc-per-node gpu ...")
    found = usable_gpus(seen)
    if not found:
        raise UsageError(f"torch cannot compute on a GPU here: {'; '.join(complaints(seen))}", where="run.device",
                         fix="use --device cpu, or install a torch that was built for it: https://pytorch.org")
    lacking = [gpu for gpu in found if not gpu.has_bf16]
    if lacking and run.precision in ("bf16", "tf32"):
        raise UsageError(f"{lacking[0].name} (GPU {lacking[0].index}) does not compute with {run.precision}",
                         where="run.precision",
                         fix="use fp32 (float16 is not offered: it would need loss scaling), or choose other GPUs "
                             "with CUDA_VISIBLE_DEVICES")
    return found


def resolve_run(run: RunConfig, seen: Sequence[Gpu] | None = None) -> RunConfig:
    """Return `run` with device, threads and precision chosen for this machine and its GPUs `seen`; without `seen`, this
    process tests its own GPUs if a value depends on them."""
    device, precision = run.device, run.precision
    gpus: list[Gpu] = []
    if torch.cuda.is_available() and (device == "auto" or device == "cuda" and precision == "auto"):
        gpus = usable_gpus(seen)
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if precision == "auto":
        precision = "bf16" if device == "cuda" and gpus and all(gpu.has_bf16 for gpu in gpus) else "fp32"
    processes = run.workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return replace(run, device=device, threads=run.threads or max(1, available_cores() // processes),
                   precision=precision)
