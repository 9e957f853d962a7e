"""The two convolutions that X3D is made of, in the forms that train fastest with PyTorch's own operators on a CPU, and
on a GPU with a kernel of ours where that is faster (docs/decisions/014-gpu.md).

Both are exact, and both have the parameters of `nn.Conv3d`. On a CPU, PyTorch's own backward of a depthwise 3-D
convolution takes half of a training step: here its input gradient is a forward convolution with the flipped kernel, and
its weight gradient a sum over the kernel's taps (docs/decisions/003-cpu-convolutions.md). If the compiled kernels
are there, they compute whole blocks instead (`expand.model.fused_blocks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from expand.kernels import triton_depthwise

TINY_SIDE = 2
"""Up to this side of the output, a weight gradient is summed tap by tap rather than given to a 2-D kernel."""
LARGE_CLIP = 100_000
"""From this many values of a clip on, each clip's weight gradient is taken alone: its frames lie in a row and
in the cache, while the frames of several clips that a tap connects would have to be copied together."""


_is_reference = False


@contextmanager
def plain_operators() -> Iterator[None]:
    """Make the layers the reference implementation inside the block, with the operators of the public implementations
    (`nn.Conv3d` for all convolutions): for exporters, and to compare with other implementations."""
    global _is_reference
    before, _is_reference = _is_reference, True
    try:
        yield
    finally:
        _is_reference = before


def is_plain() -> bool:
    """Return True inside `plain_operators`."""
    return _is_reference


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution, with a spatial stride or none."""

    def __init__(self, width_in: int, width_out: int, *, stride: int = 1, bias: bool = False) -> None:
        super().__init__(width_in, width_out, 1, stride=(1, stride, stride), bias=bias)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if _is_reference or x_BCTHW.device.type != "cpu":
            return super().forward(x_BCTHW)
        stride = self.stride[-1]
        if stride > 1 and self.bias is None and _is_trained(x_BCTHW, self.weight):
            return _StridedPointwise.apply(x_BCTHW, self.weight, stride)
        return F.linear(_positions(x_BCTHW, stride), self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


class SwishPointwise(Pointwise):
    """Swish, x sigmoid(x), and a 1x1x1 convolution of its result. The backward pass computes the Swish again instead of
    keeping it: that saves an eighth of the memory of activations and costs a fiftieth of the time."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if self.bias is None and self.stride[-1] == 1 and _is_trained(x_BCTHW, self.weight):
            return _SwishFunction.apply(x_BCTHW, self.weight)
        # in one operator, Swish rounds differently than in the two of the public implementations
        return super().forward(x_BCTHW * torch.sigmoid(x_BCTHW) if _is_reference else F.silu(x_BCTHW))


class Depthwise(nn.Conv3d):
    """A depthwise convolution with odd `kernel`, padded to keep the size, with a spatial stride of 1 or 2."""

    def __init__(self, width: int, kernel: tuple[int, int, int], *, stride: int = 1) -> None:
        time, height, span = kernel
        super().__init__(width, width, kernel, stride=(1, stride, stride), padding=(time // 2, height // 2, span // 2),
                         groups=width, bias=False)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if _is_trained(x_BCTHW, self.weight):
            return _DepthwiseFunction.apply(x_BCTHW, self.weight, self.stride[-1])
        if not _is_reference and triton_depthwise.supports(x_BCTHW, self.weight):
            return triton_depthwise.depthwise(x_BCTHW, self.weight, self.stride[-1])
        if _is_reference or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return super().forward(x_BCTHW)
        return convolve(x_BCTHW, self.weight, self.stride[-1], self.groups)


def _is_trained(x_BCTHW: Tensor, weight: Tensor) -> bool:
    """Return True if a backward pass on a CPU will follow. A tracer (fvcore's counters) must see PyTorch's operator."""
    is_cpu = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype in (torch.float32, torch.float64)
    return bool(not _is_reference and is_cpu and torch.is_grad_enabled() and weight.requires_grad
                and not torch.is_autocast_enabled("cpu") and not torch.jit.is_tracing())


def _positions(x_BCTHW: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th position of each frame, B x T x H x W x C."""
    return x_BCTHW[..., ::stride, ::stride].permute(0, 2, 3, 4, 1)


class _SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCTHW: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_BCTHW, weight)
        return F.linear(F.silu(_positions(x_BCTHW, 1)), weight.flatten(1)).permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BCTHW, weight = ctx.saved_tensors
        x_BTHWC, grad_BTHWC = _positions(x_BCTHW, 1), _positions(grad_BCTHW, 1)
        grad_weight = grad_BTHWC.flatten(0, 3).t() @ F.silu(x_BTHWC).flatten(0, 3)
        grad_x = grad_BTHWC @ weight.flatten(1)
        torch.ops.aten.silu_backward.grad_input(grad_x, x_BTHWC, grad_input=grad_x)
        return grad_x.permute(0, 4, 1, 2, 3), grad_weight.view_as(weight)


class _StridedPointwise(torch.autograd.Function):
    """Keeps the input, which other layers keep too, not a copy of the positions in use. Its gradient has the input's
    layout; that of a slice would have the default one, in which all layers before are slow."""

    @staticmethod
    def forward(ctx, x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x_BCTHW, weight)
        ctx.stride = stride
        return F.linear(_positions(x_BCTHW, stride), weight.flatten(1)).permute(0, 4, 1, 2, 3)

    @staticmethod
    def backward(ctx, grad_BCTHW: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x_BCTHW, weight = ctx.saved_tensors
        grad_BTHWC = grad_BCTHW.permute(0, 2, 3, 4, 1)
        x_NC, grad_NC = _positions(x_BCTHW, ctx.stride).flatten(0, 3), grad_BTHWC.flatten(0, 3)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x_BCTHW, memory_format=torch.channels_last_3d)
            grad_x[..., ::ctx.stride, ::ctx.stride] = (grad_BTHWC @ weight.flatten(1)).permute(0, 4, 1, 2, 3)
        return grad_x, (grad_NC.t() @ x_NC).view_as(weight), None


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x_BCTHW, weight)
        ctx.stride = stride
        return convolve(x_BCTHW, weight, stride, len(weight))

    @staticmethod
    def backward(ctx, grad_BCTHW: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x_BCTHW, weight = ctx.saved_tensors
        grad_BCTHW = grad_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        grad_x = input_gradient(x_BCTHW, weight, grad_BCTHW, ctx.stride) if ctx.needs_input_grad[0] else None
        return grad_x, weight_gradient(x_BCTHW, weight, grad_BCTHW, ctx.stride), None


def convolve(x_BCTHW: Tensor, weight: Tensor, stride: int, groups: int, bias: Tensor | None = None) -> Tensor:
    """Compute a convolution, padded to keep the size, with a spatial `stride`.

    oneDNN is called by name for a kernel without spatial extent: on one thread and for fewer than 16 clips, torch uses
    its own code for the stem's 5x1x1, which takes 10 to 40 times as long and returns another layout, which the next
    layers must copy.
    """
    padding, strides = [side // 2 for side in weight.shape[2:]], (1, stride, stride)
    if (x_BCTHW.device.type == "cpu" and x_BCTHW.dtype == weight.dtype == torch.float32 and x_BCTHW.numel() > 0
            and weight.shape[-1] == weight.shape[-2] == 1 and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return torch.mkldnn_convolution(x_BCTHW, weight, bias, padding, strides, (1, 1, 1), groups)
    return F.conv3d(x_BCTHW, weight, bias, strides, padding, 1, groups)


def input_gradient(x_BCTHW: Tensor, weight: Tensor, grad_BCTHW: Tensor, stride: int) -> Tensor:
    """Compute the gradient of a depthwise convolution with respect to its input, as a forward convolution.

    With a stride, the output's gradient is first spread over the input's positions, with zeros between.
    """
    if stride > 1:
        spread = torch.zeros_like(x_BCTHW, memory_format=torch.channels_last_3d)
        spread[..., ::stride, ::stride] = grad_BCTHW
        grad_BCTHW = spread
    return convolve(grad_BCTHW, weight.flip(2, 3, 4), 1, len(weight))


def weight_gradient(x_BCTHW: Tensor, weight: Tensor, grad_BCTHW: Tensor, stride: int) -> Tensor:
    """Compute the gradient of a depthwise convolution with respect to its weight, C x 1 x kT x kH x kW."""
    is_tiny = grad_BCTHW.shape[-1] <= TINY_SIDE or grad_BCTHW.shape[-2] <= TINY_SIDE
    way = gradient_by_taps if is_tiny or weight.shape[-1] == 1 else gradient_by_planes
    if len(x_BCTHW) < 2 or x_BCTHW.shape[2] == 1 or x_BCTHW.shape[1:].numel() < LARGE_CLIP:
        return way(x_BCTHW, weight, grad_BCTHW, stride)
    total = torch.zeros_like(weight)
    for clip in range(len(x_BCTHW)):
        total = total + way(x_BCTHW[clip:clip + 1], weight, grad_BCTHW[clip:clip + 1], stride)
    return total


def _overlap(size_in: int, size_out: int, offset: int, stride: int) -> tuple[slice, slice]:
    """Return the positions of input and output that a tap connects, `offset` away from the kernel's middle."""
    first = max(0, -(offset // stride))
    last = min(size_out - 1, (size_in - 1 - offset) // stride)
    start = first * stride + offset
    return slice(start, max(start, last * stride + offset + 1), stride), slice(first, max(first, last + 1))


@lru_cache(maxsize=1024)
def _taps(sizes_in: tuple[int, ...], sizes_out: tuple[int, ...], kernel: tuple[int, ...],
          stride: int) -> tuple[tuple[tuple, tuple, tuple], ...]:
    """Return for every tap that meets more than padding its place in the weight, and the slices of the B x T x H x W
    x C input and output that it connects."""
    found = []
    for tap in product(*map(range, kernel)):
        overlaps = [_overlap(size_in, size_out, place - side // 2, step) for size_in, size_out, place, side, step
                    in zip(sizes_in, sizes_out, tap, kernel, (1, stride, stride), strict=True)]
        if all(of_out.start < of_out.stop for _, of_out in overlaps):
            found.append(((slice(None), 0, *tap), (slice(None), *(of_in for of_in, _ in overlaps)),
                          (slice(None), *(of_out for _, of_out in overlaps))))
    return tuple(found)


def gradient_by_taps(x_BCTHW: Tensor, weight: Tensor, grad_BCTHW: Tensor, stride: int) -> Tensor:
    """Compute the weight gradient by one product and sum a tap; taps that only meet padding stay zero."""
    x_BTHWC, grad_BTHWC = x_BCTHW.permute(0, 2, 3, 4, 1), grad_BCTHW.permute(0, 2, 3, 4, 1)
    result = torch.zeros_like(weight)
    for place, of_x, of_grad in _taps(x_BCTHW.shape[2:], grad_BCTHW.shape[2:], weight.shape[2:], stride):
        result[place] = (x_BTHWC[of_x] * grad_BTHWC[of_grad]).sum((0, 1, 2, 3))
    return result


def gradient_by_planes(x_BCTHW: Tensor, weight: Tensor, grad_BCTHW: Tensor, stride: int) -> Tensor:
    """Compute the weight gradient by one 2-D weight gradient a temporal tap, over the frames that it connects."""
    result = torch.zeros_like(weight)
    frames = x_BCTHW.shape[2]
    for tap in range(weight.shape[2]):
        of_x, of_grad = _overlap(frames, frames, tap - weight.shape[2] // 2, 1)
        if of_x.start >= of_x.stop:
            continue
        planes_x, planes_grad = _planes(x_BCTHW[:, :, of_x]), _planes(grad_BCTHW[:, :, of_grad])
        padding = [side // 2 for side in weight.shape[3:]]
        result[:, :, tap] = torch.ops.aten.convolution_backward(
            planes_grad, planes_x, weight[:, :, tap], None, [stride, stride], padding, [1, 1], False, [0, 0],
            weight.shape[0], [False, True, False])[1]
    return result


def _planes(x_BCTHW: Tensor) -> Tensor:
    """Return B x C x T x H x W as (B T) x C x H x W, channels-last."""
    return x_BCTHW.permute(0, 2, 1, 3, 4).flatten(0, 1).contiguous(memory_format=torch.channels_last)
