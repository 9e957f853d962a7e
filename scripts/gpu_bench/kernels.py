"""Stage 2: the Triton kernels against float64; where there is no GPU, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from expand.kernels import triton_depthwise
from gpu_bench.running import Check, Note, NotHere, Result, Setting

BLOCK, STEM = (3, 3, 3), (5, 1, 1)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest error, as a share of the largest value. A wrong kernel is off by a whole."""


def checks(setting: Setting, note: Note) -> dict[str, Check]:
    """A check for each kernel, stride, number of frames and type; each tries several sizes."""
    kinds = [*product((BLOCK,), (1, 2), (4, 1), TOLERANCE), *product((STEM,), (1,), (4, 1), TOLERANCE)]
    if setting.is_tiny:  # the interpreter takes its time
        kinds = [(BLOCK, 2, 1, torch.float32), (STEM, 1, 4, torch.bfloat16)]
    return {f"{'x'.join(map(str, kernel))}, stride {stride}, T = {frames}, {str(dtype).removeprefix('torch.')}":
            partial(compare, setting, kernel, stride, frames, dtype) for kernel, stride, frames, dtype in kinds}


def compare(setting: Setting, kernel: tuple[int, ...], stride: int, frames: int, dtype: torch.dtype) -> Result:
    """Compare output and gradients with PyTorch's in float64; the same inputs must also give the same bits. What a
    kernel does not write would be not a number."""
    sizes = [(1, 3, 5, 4)] if setting.is_tiny else [(2, 54, 28, 28), (3, 54, 17, 31), (2, 54, 1, 3)]
    if setting.is_full or (setting.is_gpu and frames == 4 and dtype == torch.float32):  # each width is built anew
        sizes += [(1, 33, 7, 5), *([(3, 24, 56, 55), (2, 108, 14, 14), (1, 432, 7, 7)] if setting.is_full else [])]
    if setting.is_gpu:
        if reason := triton_depthwise.unavailable(torch.device(setting.device).index or 0):
            raise NotHere(reason)
    else:
        _use_interpreter()
    worst = dict.fromkeys(("output", "input gradient", "weight gradient"), 0.0)
    is_same = True
    for clips, channels, height, width in sizes:
        made = torch.Generator().manual_seed(clips * channels)
        x = torch.randn(clips, channels, frames, height, width, generator=made).to(dtype)
        weight = torch.randn(channels, 1, *kernel, generator=made)
        out = [(side - 1) // stride + 1 for side in (height, width)]
        grad = torch.randn(clips, channels, frames, *out, generator=made).to(dtype)
        expected = _results(_exact, x.double(), weight.double(), grad.double(), stride)
        there = [each.to(setting.device) for each in (x, weight, grad)]
        there[0] = there[0].to(memory_format=torch.channels_last_3d)
        with _PoisonedMemory():
            got, again = (_results(triton_depthwise.triton_depthwise, *there, stride) for _ in range(2))
        is_same = is_same and all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
        for name, result, exact in zip(worst, got, expected, strict=True):
            error = float((result.cpu().double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
            worst[name] = max(worst[name], math.inf if math.isnan(error) else error)
    is_right = is_same and all(error <= TOLERANCE[dtype] for error in worst.values())
    line = ", ".join(f"{name} {error:.1e}" for name, error in worst.items()) + ("" if is_same else ", other bits again")
    return Result(line, {"errors": worst, "same_bits": is_same, "sizes": sizes}, is_right)


def _use_interpreter() -> None:
    """Have Triton interpret its kernels, with few programs: each takes milliseconds, whatever the size of its tile."""
    if importlib.util.find_spec("triton") is None:
        raise NotHere("Triton is not installed")
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotHere("Triton was imported before its interpreter was asked for")
    os.environ["TRITON_INTERPRET"] = "1"
    triton_depthwise.PROGRAMS, triton_depthwise.TILE = 2, 4096


def _exact(x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    padding = [side // 2 for side in weight.shape[2:]]
    return F.conv3d(x_BCTHW, weight, None, (1, stride, stride), padding, 1, weight.shape[0])


def _results(convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> list[Tensor]:
    x, weight = (each.detach().requires_grad_() for each in (x, weight))
    y = convolve(x, weight, stride)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), grad)]


class _PoisonedMemory:
    """Inside, torch fills new, unwritten tensors with NaN."""

    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)
