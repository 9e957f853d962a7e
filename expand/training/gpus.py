"""The test of this machine's GPUs: which ones this torch can compute on, and with which precision.

A test takes a CUDA context on the GPU, some hundred megabytes that the process keeps to its end. A search tests in
another process (`executors.fork_server`), because its driver computes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from expand.errors import first_line

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
