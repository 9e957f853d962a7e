"""The device, threads, precision and memory layout of a training, and the test of this machine's GPUs: which ones this
torch can compute on, and with which precision.

A test takes a CUDA context on the GPU, some hundred megabytes that the process keeps to its end. A search tests in
another process (`executors.fork_server`), because its driver computes nothing.
"""

from __future__ import annotations

import gc
import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from expand.config.schema import RunConfig
from expand.errors import GPU_WAY_OUT, RunError, UsageError, first_line, lacks_memory
from expand.kernels import library
from expand.machine import available_cores, keep_freed_memory

CONTEXT_BYTES = 600e6
"""GPU memory that each process takes beside its tensors, for driver, libraries and their code (an estimate)."""
BF16_CAPABILITY = (8, 0)
"""The lowest compute capability of NVIDIA's GPUs with bfloat16 and TF32."""


@dataclass(frozen=True)
class Gpu:
    """GPU number `index` of those that this process sees. `complaint` is the reason why torch cannot compute on it,
    None if it can. `has_bf16` is True if it computes with bfloat16 and TF32 itself (torch can also emulate bfloat16).
    """

    index: int
    name: str
    has_bf16: bool
    complaint: str | None = None


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
        `seen`, this process tests its own GPUs. Raises `UsageError` if there is none, or one lacks the precision. On a
        Ray cluster the nodes count, which the executor tests."""
        if run.precision == "tf32" and run.device != "cuda":
            raise UsageError("tf32 is a precision of GPUs", where="run.precision", fix="use fp32, or --device cuda")
        if run.threads is None:
            raise ValueError("the configuration is not resolved")
        if run.device != "cuda":
            return cls(torch.device(run.device), run.threads, run.precision)
        number = int(os.environ.get("LOCAL_RANK", "0"))  # under torchrun, each process of the machine has its own GPU
        if run.executor == "ray":
            return cls(torch.device("cuda", number), run.threads, run.precision, run.cuda_graphs)
        if not torch.cuda.is_available():
            raise UsageError("no CUDA device is usable here", where="run.device",
                             fix="use --device cpu, or check the driver with nvidia-smi")
        if number >= torch.cuda.device_count():
            raise UsageError(f"more processes than this machine's {torch.cuda.device_count()} GPUs", where="torchrun",
                             fix="start one for each: torchrun --nproc-per-node gpu ...")
        gpus = usable_gpus(seen)
        if not gpus:
            raise UsageError(f"torch cannot compute on a GPU here: {'; '.join(complaints(seen))}", where="run.device",
                             fix="use --device cpu, or install a torch that was built for it: https://pytorch.org")
        lacking = [gpu for gpu in gpus if not gpu.has_bf16]
        if lacking and run.precision in ("bf16", "tf32"):
            raise UsageError(f"{lacking[0].name} (GPU {lacking[0].index}) does not compute with {run.precision}",
                             where="run.precision",
                             fix="use fp32 (float16 is not offered: it would need loss scaling), or choose other GPUs "
                                 "with CUDA_VISIBLE_DEVICES")
        return cls(torch.device("cuda", gpus[0].index), run.threads, run.precision, run.cuda_graphs,
                   gpus=tuple(gpu.index for gpu in gpus))

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


def look_at(index: int) -> Gpu:
    """Test a GPU with a small convolution; an error becomes its complaint."""
    name, has_bf16 = f"GPU {index}", False
    try:
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        has_bf16 = bool(torch.version.hip) or tuple(capability) >= BF16_CAPABILITY
        complaint = None if torch.version.hip else _missing_code(capability, torch.cuda.get_arch_list())
        if complaint is None:
            run_convolution(torch.device("cuda", index))
    except (RuntimeError, AssertionError) as error:  # an assertion: a torch that was built without CUDA
        complaint = first_line(error)
    return Gpu(index, name, has_bf16, complaint)


def look_at_all() -> tuple[Gpu, ...]:
    """Test every GPU that this process sees."""
    return tuple(look_at(index) for index in range(torch.cuda.device_count()))


def _missing_code(capability: tuple[int, int], built_for: Sequence[str]) -> str | None:
    """Return the complaint that torch has no code for a GPU of this compute capability, None if it has. Compiled code
    (`sm_86`) runs on GPUs of the same major number and no smaller minor one, portable code (`compute_90`) on all later
    ones."""
    known = [(kind, (int(number[:-1]), int(number[-1]))) for arch in built_for
             for kind, number in re.findall(r"^(sm|compute)_(\d{2,})", arch)]
    fits = any(capability >= code and (kind == "compute" or capability[0] == code[0]) for kind, code in known)
    if fits or not known:
        return None
    return (f"this torch has no code for its compute capability {capability[0]}.{capability[1]} (it was built for "
            f"{', '.join(built_for)})")


def run_convolution(device: torch.device) -> None:
    """Compute a convolution and a product with their gradients. Raises torch's errors."""
    x_BCTHW = torch.ones(2, 4, 2, 8, 8, device=device, requires_grad=True)
    y_BCTHW = F.conv3d(x_BCTHW, torch.ones(4, 1, 3, 3, 3, device=device), padding=1, groups=4)
    (y_BCTHW.flatten(1) @ torch.ones(y_BCTHW[0].numel(), 4, device=device)).sum().backward()
    torch.cuda.synchronize(device)


def usable_gpus(seen: Sequence[Gpu] | None = None) -> list[Gpu]:
    """Return the GPUs to compute on: all of `seen` that this torch can compute on; without `seen`, this process's own,
    which under torchrun is the one of its number, else the first that works."""
    if seen is None:
        return next(([gpu] for gpu in _own() if gpu.complaint is None), [])
    return [gpu for gpu in seen if gpu.complaint is None]


def complaints(seen: Sequence[Gpu] | None = None) -> list[str]:
    """Return the reasons why GPUs are not used, or not fully, a line each."""
    looked = list(_own() if seen is None else seen)
    said = [f"{gpu.name} (GPU {gpu.index}) is not used: {gpu.complaint}" for gpu in looked if gpu.complaint]
    return said + [f"{gpu.name} (GPU {gpu.index}) has no bfloat16: it trains in fp32, by default"
                   for gpu in looked if not gpu.complaint and not gpu.has_bf16]


def _own() -> Iterator[Gpu]:
    """Yield the GPUs that this process may use, up to the first that works; each is tested when it is asked for."""
    if not torch.cuda.is_available():
        return
    count = torch.cuda.device_count()
    number = os.environ.get("LOCAL_RANK")
    for index in range(count) if number is None else range(int(number), min(int(number) + 1, count)):
        gpu = look_at(index)
        yield gpu
        if gpu.complaint is None:
            return
