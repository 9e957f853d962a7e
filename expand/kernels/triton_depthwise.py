"""The depthwise 3-D convolution on a GPU, by our own Triton kernels if they beat PyTorch's
(docs/decisions/014-gpu.md).

A layer calls `supports` and `depthwise`. The implementation for a shape is chosen by one measurement on the present GPU
and remembered (`expand.kernels.timed_choice`), which also compares the results, so that a wrong one is never used.
Triton is imported on first use only, and comes with torch's CUDA builds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from expand.errors import UsageError
from expand.kernels.timed_choice import Choices, Rival, kept_choices

if TYPE_CHECKING:
    from types import ModuleType

KERNELS = ((3, 3, 3), (5, 1, 1))
"""The kernels of an X3D: of the blocks, with a spatial stride of 1 or 2, and of the stem, without one."""
DTYPES = (torch.float32, torch.bfloat16)
SWITCH = "X3D_EXPAND_TRITON"
MODES = ("auto", "on", "off")
TILE = 512
"""Positions x channels of a program: four of each thread's 128. Twice as many do not fit the registers (ptxas)."""
WIDTHS = (64, 32)
"""Channels of a tile: the width that leaves the fewest idle is used, of equal ones the wider."""
PROGRAMS = 512
"""Programs among which a weight gradient is divided; with fewer, frames are divided too: four for each processor of a
large GPU. The same on every GPU, so that sums are added up in the same order."""
MIN_CAPABILITY = (8, 0)
"""The first GPUs with bfloat16; older ones have no need of these kernels' registers."""
CONTIGUOUS = torch.channels_last_3d


@cache
def mode() -> str:
    """Return the mode in the environment variable X3D_EXPAND_TRITON: `auto` (measure), `on`, or `off`. Raises
    `UsageError` for anything else."""
    found = os.environ.get(SWITCH, "auto")
    if found not in MODES:
        raise UsageError(f"{found!r} is none of {', '.join(MODES)}", where=SWITCH, fix=f"unset {SWITCH}, or choose one")
    return found


@cache
def unavailable(device: int) -> str | None:
    """Return the reason why GPU number `device` cannot run the kernels, None if it can."""
    if torch.version.hip:
        return "the kernels were made for NVIDIA's GPUs"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"the GPU is older than compute capability {'.'.join(map(str, MIN_CAPABILITY))}"
    try:
        _device_code()
    except (ImportError, RuntimeError, OSError) as error:
        return f"Triton cannot be used: {error}"
    return None


@cache
def _device_code() -> ModuleType:
    from expand.kernels import triton_kernels
    return triton_kernels


def supports(x_BCTHW: Tensor, weight: Tensor) -> bool:
    """Return True if `depthwise` takes these tensors: floats on a GPU that runs the kernels, neither traced nor
    compiled (a tracer must see PyTorch's operator). Raises `UsageError` for a wrong X3D_EXPAND_TRITON."""
    if not (x_BCTHW.is_cuda and weight.is_cuda) or mode() == "off":
        return False
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return fits(x_BCTHW, weight) and unavailable(x_BCTHW.device.index) is None


def fits(x_BCTHW: Tensor, weight: Tensor) -> bool:
    """Return True if the kernels take these shapes and types; offsets within a clip have 32 bits."""
    is_depthwise = x_BCTHW.dim() == weight.dim() == 5 and weight.shape[:2] == (x_BCTHW.shape[1], 1)
    return (is_depthwise and tuple(weight.shape[2:]) in KERNELS and weight.dtype == torch.float32
            and x_BCTHW.dtype in DTYPES and 0 < x_BCTHW.numel() < 2**31 * x_BCTHW.shape[0])


def depthwise(x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Compute the depthwise convolution of B x C x T x H x W with `weight` (C x 1 x kT x kH x kW, float32), padded to
    keep the size, with a spatial `stride` of 1 or 2: as `F.conv3d` under the autocast in force, in channels-last
    memory.

    In the `auto` mode the first call of a shape runs PyTorch's operator and the Triton kernels a few times.
    """
    if x_BCTHW.is_cuda and torch.is_autocast_enabled("cuda"):  # the kernels read float32 weights, and sum in float32
        x_BCTHW = x_BCTHW.to(torch.get_autocast_dtype("cuda"))
    if tuple(weight.shape[2:]) == (5, 1, 1) and stride != 1:
        return _native(x_BCTHW, weight, stride)
    if mode() == "on" or _choice(x_BCTHW, weight, stride) == "triton":
        return triton_depthwise(x_BCTHW, weight, stride)
    return _native(x_BCTHW, weight, stride)


def _native(x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    padding = [side // 2 for side in weight.shape[2:]]
    return F.conv3d(x_BCTHW, weight.to(x_BCTHW.dtype), None, (1, stride, stride), padding, 1, weight.shape[0])


def _choice(x_BCTHW: Tensor, weight: Tensor, stride: int) -> str:
    """Return `triton` or `native`. The key leaves out the number of clips, so that a last, smaller batch follows the
    others."""
    is_trained = torch.is_grad_enabled() and (x_BCTHW.requires_grad or weight.requires_grad)
    key = (f"{'x'.join(map(str, x_BCTHW.shape[1:]))} kernel {'x'.join(map(str, weight.shape[2:]))} stride {stride} "
           f"{str(x_BCTHW.dtype).removeprefix('torch.')} {'train' if is_trained else 'eval'}")

    def rival(convolve: Callable[..., Tensor]) -> Rival:
        return lambda: _results(convolve, x_BCTHW, weight, stride, is_trained)

    return _choices(x_BCTHW.device.index).pick(key, {"native": rival(_native), "triton": rival(triton_depthwise)})


@cache
def _choices(device: int) -> Choices:
    code = _device_code()
    return kept_choices(device, f"triton {code.triton.__version__}", Path(str(code.__file__)))


def _results(convolve: Callable[..., Tensor], x_BCTHW: Tensor, weight: Tensor, stride: int,
             is_trained: bool) -> list[Tensor]:
    """Return the output and, for a training, the gradients, outside of the present graph. The output serves as its own
    gradient."""
    with torch.set_grad_enabled(is_trained), torch.autocast("cuda", enabled=False):
        x, w = x_BCTHW.detach(), weight.detach()
        inputs = [part.requires_grad_() for part, of in ((x, x_BCTHW), (w, weight)) if of.requires_grad and is_trained]
        y = convolve(x, w, stride)
        return [y.detach(), *(torch.autograd.grad(y, inputs, y.detach()) if inputs else ())]


def triton_depthwise(x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Compute `depthwise` by the Triton kernels, whatever the mode. Differentiable once."""
    return _Depthwise.apply(x_BCTHW, weight, stride)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
        x_BCTHW, weight = x_BCTHW.contiguous(memory_format=CONTIGUOUS), weight.contiguous()
        ctx.save_for_backward(x_BCTHW, weight)
        ctx.stride = stride
        return _convolve(x_BCTHW, weight, stride, flip=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCTHW: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_BCTHW, weight = ctx.saved_tensors
        grad_BCTHW = grad_BCTHW.contiguous(memory_format=CONTIGUOUS)
        grad_x = input_gradient(x_BCTHW, weight, grad_BCTHW, ctx.stride) if ctx.needs_input_grad[0] else None
        grad_w = weight_gradient(x_BCTHW, weight, grad_BCTHW, ctx.stride) if ctx.needs_input_grad[1] else None
        return grad_x, grad_w, None


def input_gradient(x_BCTHW: Tensor, weight: Tensor, grad_BCTHW: Tensor, stride: int) -> Tensor:
    """Compute the gradient with respect to the input, of its shape and type; all tensors in channels-last memory."""
    if stride == 1:
        return _convolve(grad_BCTHW, weight, 1, flip=True)
    grad_x = torch.empty_like(x_BCTHW, memory_format=CONTIGUOUS)
    clips, channels, frames = grad_BCTHW.shape[:3]
    grid, chunk, tile = _grid(clips, channels, frames, grad_BCTHW.shape[3] * grad_BCTHW.shape[4])
    _launch("spread", grid, x_BCTHW, grad_BCTHW, weight, grad_x, frames, *x_BCTHW.shape[3:], *grad_BCTHW.shape[3:],
            chunk, CHANNELS=channels, WHOLE_KT=weight.shape[2], KT=_planes(weight, frames), **tile)
    return grad_x


def _convolve(x_BCTHW: Tensor, weight: Tensor, stride: int, *, flip: bool) -> Tensor:
    clips, channels, frames, height, width = x_BCTHW.shape
    out = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    y_BCTHW = torch.empty((clips, channels, frames, *out), dtype=x_BCTHW.dtype, device=x_BCTHW.device,
                          memory_format=CONTIGUOUS)
    grid, chunk, tile = _grid(clips, channels, frames, out[0] * out[1])
    _launch("gather", grid, x_BCTHW, x_BCTHW, weight, y_BCTHW, frames, height, width, *out, stride, chunk, int(flip),
            CHANNELS=channels, WHOLE_KT=weight.shape[2], KT=_planes(weight, frames), K=weight.shape[3], **tile)
    return y_BCTHW


def weight_gradient(x_BCTHW: Tensor, weight: Tensor, grad_BCTHW: Tensor, stride: int) -> Tensor:
    """Compute the gradient with respect to the weight, C x 1 x kT x kH x kW float32; the others in channels-last
    memory.

    Programs leave parts that one reduction sums up: no order of execution touches the bits.
    """
    clips, channels, frames, height, width = x_BCTHW.shape
    out, planes, tile = grad_BCTHW.shape[3:], _planes(weight, frames), _tile(channels)
    columns = -(-channels // tile["BC"])
    rows = min(clips * -(-out[0] * out[1] // tile["BP"]), -(-PROGRAMS // columns))
    parts = torch.empty((rows, channels, 1, planes, *weight.shape[3:]), dtype=torch.float32, device=x_BCTHW.device)
    _launch("collect", (rows, columns), x_BCTHW, x_BCTHW, grad_BCTHW, parts, clips, frames, height, width, *out, stride,
            CHANNELS=channels, KT=planes, K=weight.shape[3], **tile)
    unused = (weight.shape[2] - planes) // 2
    return F.pad(parts.sum(0), (0, 0, 0, 0, unused, unused)) if unused else parts.sum(0)


def _planes(weight: Tensor, frames: int) -> int:
    """Return the number of the kernel's planes that meet more than padding: for a single frame, only the middle one."""
    return 1 if frames == 1 else weight.shape[2]


def _tile(channels: int) -> dict[str, int]:
    width = min(WIDTHS, key=lambda width: -(-channels // width) * width)
    return {"BP": TILE // width, "BC": width}


def _grid(clips: int, channels: int, frames: int, positions: int) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Return the grid of programs, the frames of each, and its tile. Frames are divided only if the GPU would idle
    otherwise: a chunk reads the last and the first frame of its neighbours again."""
    tile = _tile(channels)
    columns, tiles = -(-channels // tile["BC"]), clips * -(-positions // tile["BP"])
    chunks = min(-(-frames // 2), -(-PROGRAMS // (columns * tiles)))
    chunk = -(-frames // chunks)
    return (tiles * -(-frames // chunk), columns), chunk, tile


def _launch(name: str, grid: tuple[int, int], on: Tensor, *arguments: Tensor | int, **constants: int) -> None:
    with torch.cuda.device_of(on):
        getattr(_device_code(), name)[grid](*arguments, **constants, num_warps=4)
