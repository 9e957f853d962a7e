"""A network for inference alone: batch norm is folded into the convolution before it, activations are in place.

With its running statistics, a batch norm is one scale and one shift a channel, so that a convolution and its batch norm
are one convolution with a bias: the same function up to rounding, with a third fewer passes over memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expand.model import X3D
from expand.model.convolution import convolve, is_plain
from expand.model.x3d import ResBlock, SqueezeExcitation
from expand.space.network import Network


def for_inference(model: X3D, dtype: torch.dtype | None = None) -> X3D | FoldedX3D:
    """Return the form of `model` that computes `probabilities` fastest, for `torch.inference_mode`, with its present
    weights and on its device.

    Puts `model` into evaluation mode. Returns `model` itself if it is no `X3D`, or within `plain_operators`. `dtype` is
    that of the autocast under which the result will be called: its weights are cast once, not at every call.
    """
    model.eval()
    if not isinstance(model, X3D) or is_plain():
        return model
    return FoldedX3D(model, dtype)


class FoldedX3D:
    """The folded form of an `X3D`, with its description `network`. It shares no memory that a training changes."""

    def __init__(self, model: X3D, dtype: torch.dtype | None = None) -> None:
        self.network: Network | None = model.network
        with torch.no_grad():
            self._spatial = fold(model.stem.spatial, dtype=dtype)
            self._temporal = fold(model.stem.temporal, model.stem.bn, dtype)
            self._blocks = [_Block.of(block, dtype) for block in model.blocks]
            self._inner = fold(model.head.inner, model.head.inner_bn, dtype)
            self._features = fold(model.head.features, dtype=dtype)
            self._classifier = [tensor.detach().to(dtype or tensor.dtype, copy=True)
                                for tensor in model.head.classifier.parameters()]
        self._window = model.head.window

    def probabilities(self, x_BCTHW: Tensor) -> Tensor:
        """Return class probabilities, B x classes float32, as `X3D.probabilities` does."""
        return self._positions(x_BCTHW).float().softmax(-1).mean((1, 2, 3))

    def logits(self, x_BCTHW: Tensor) -> Tensor:
        """Return logits, B x classes, as `X3D.forward` does in evaluation."""
        return self._positions(x_BCTHW).mean((1, 2, 3))

    def _positions(self, x_BCTHW: Tensor) -> Tensor:
        """Return logits at each of the head's positions, B x T x H x W x classes."""
        x_BCTHW = torch.relu_(self._temporal(self._spatial(x_BCTHW)))
        for block in self._blocks:
            x_BCTHW = block(x_BCTHW)
        x_BCTHW, sides = torch.relu_(self._inner(x_BCTHW)), x_BCTHW.shape[2:]
        kernel = [min(side, most) for side, most in zip(sides, self._window, strict=True)]
        if kernel == list(sides):  # the average over the head's windows, as `Head` takes it
            x_BCTHW = x_BCTHW.mean((2, 3, 4), keepdim=True)
        else:
            x_BCTHW = F.avg_pool3d(x_BCTHW, kernel, stride=1)
        x_BTHWC = torch.relu_(self._features(x_BCTHW)).permute(0, 2, 3, 4, 1)
        return F.linear(x_BTHWC, *self._classifier)


@dataclass(frozen=True)
class _Block:
    a: Convolution
    b: Convolution
    gate: tuple[Convolution, Convolution] | None
    """Squeeze-and-excitation: `reduce` and `expand`."""
    c: Convolution
    shortcut: Convolution | None

    @classmethod
    def of(cls, block: ResBlock, dtype: torch.dtype | None) -> _Block:
        shortcut = fold(block.shortcut, block.shortcut_bn, dtype) if isinstance(block.shortcut, nn.Conv3d) else None
        gate = None
        if isinstance(block.se, SqueezeExcitation):
            gate = fold(block.se.reduce, dtype=dtype), fold(block.se.expand, dtype=dtype)
        return cls(fold(block.a, block.a_bn, dtype), fold(block.b, block.b_bn, dtype), gate,
                   fold(block.c, block.c_bn, dtype), shortcut)

    def __call__(self, x_BCTHW: Tensor) -> Tensor:
        y_BCTHW = self.b(torch.relu_(self.a(x_BCTHW)))
        if self.gate is not None:
            reduce, expand = self.gate
            gate_BC111 = expand(torch.relu_(reduce(y_BCTHW.mean((2, 3, 4), keepdim=True))))
            y_BCTHW.mul_(gate_BC111.sigmoid_())
        y_BCTHW = self.c(F.silu(y_BCTHW, inplace=True))
        y_BCTHW += x_BCTHW if self.shortcut is None else self.shortcut(x_BCTHW)
        return torch.relu_(y_BCTHW)


@dataclass(frozen=True)
class Convolution:
    """A convolution with a bias or none, padded to keep the size, with a spatial `stride`."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    groups: int

    def __call__(self, x_BCTHW: Tensor) -> Tensor:
        kernel = self.weight.shape[2:]
        if kernel.numel() == 1 and x_BCTHW.device.type == "cpu":
            x_BTHWC = x_BCTHW[..., ::self.stride, ::self.stride].permute(0, 2, 3, 4, 1)
            return F.linear(x_BTHWC, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)
        if x_BCTHW.shape[2] == 1:  # the other frames of the kernel meet only padding
            y_BCHW = F.conv2d(x_BCTHW.squeeze(2), self.weight[:, :, kernel[0] // 2], self.bias, self.stride,
                              [side // 2 for side in kernel[1:]], 1, self.groups)
            return y_BCHW.unsqueeze(2)
        return convolve(x_BCTHW, self.weight, self.stride, self.groups, self.bias)


def fold(convolution: nn.Conv3d, norm: nn.Module | None = None, dtype: torch.dtype | None = None) -> Convolution:
    """Return `convolution` and the batch norm after it (in evaluation) as one convolution, with weights of `dtype`
    (default: the convolution's own). The product is computed in float64."""
    weight, bias = convolution.weight.detach().double(), convolution.bias
    # `_BatchNorm`: also those that torch has for several processes
    if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
        scale_C = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift_C = 0.0 if bias is None else bias.double()
        weight = weight * scale_C.view(-1, 1, 1, 1, 1)
        bias = norm.bias.double() + (shift_C - norm.running_mean.double()) * scale_C
    own = convolution.weight.dtype  # rounded to it first, as autocast would find the weights
    weight = weight.to(own).to(dtype or own, memory_format=torch.channels_last_3d, copy=True)
    bias = None if bias is None else bias.detach().to(own).to(dtype or own, copy=True)
    return Convolution(weight, bias, convolution.stride[-1], convolution.groups)
