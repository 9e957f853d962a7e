"""A network that only answers: batch norm folded into the convolution before it, activations in place.

With its running statistics a batch norm is one scale and one shift a channel, so a convolution and its norm are one
convolution with a bias: the same function up to rounding, with a third fewer passes over memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expand.model import X3D
from expand.model.convolution import is_plain, wants_onednn
from expand.model.layers import ResBlock, SqueezeExcitation
from expand.space.network import Network


def for_inference(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module | Answering:
    """What gives `model`'s `probabilities` fastest, for `torch.inference_mode`; made for the weights that it has now,
    on the device where it is. `model` is put into evaluation; anything but an `X3D` comes back as it is, and so does
    one within `plain_operators`.

    `dtype` is the one of the autocast that it will be called under: its weights are cast once, and not at every call.
    """
    model.eval()
    if not isinstance(model, X3D) or is_plain():
        return model
    return Answering(model, dtype)


class Answering:
    """The folded form of an `X3D`: `probabilities`, `logits` and the description `network`. It shares no memory that a
    training changes."""

    def __init__(self, model: X3D, dtype: torch.dtype | None = None) -> None:
        self.network: Network | None = model.network
        with torch.no_grad():
            self._spatial = folded(model.stem.spatial, dtype=dtype)
            self._temporal = folded(model.stem.temporal, model.stem.bn, dtype)
            self._blocks = [_Block.of(block, dtype) for stage in model.stages for block in stage]
            self._inner = folded(model.head.inner, model.head.inner_bn, dtype)
            self._features = folded(model.head.features, dtype=dtype)
            self._classifier = [tensor.detach().to(dtype or tensor.dtype, copy=True)
                                for tensor in model.head.classifier.parameters()]
        self._window = model.head.window

    def probabilities(self, x_BCTHW: Tensor) -> Tensor:
        """Class probabilities, B x classes float32, as `X3D.probabilities` gives them."""
        return self._positions(x_BCTHW).float().softmax(-1).mean((1, 2, 3))

    def logits(self, x_BCTHW: Tensor) -> Tensor:
        """Logits, B x classes, as `X3D.forward` gives them in evaluation."""
        return self._positions(x_BCTHW).mean((1, 2, 3))

    def _positions(self, x_BCTHW: Tensor) -> Tensor:
        """Logits at each of the head's positions, B x T x H x W x classes."""
        x_BCTHW = torch.relu_(self._temporal(self._spatial(x_BCTHW)))
        for block in self._blocks:
            x_BCTHW = block(x_BCTHW)
        x_BCTHW = self._averages(torch.relu_(self._inner(x_BCTHW)))
        x_BTHWC = torch.relu_(self._features(x_BCTHW)).permute(0, 2, 3, 4, 1)
        return F.linear(x_BTHWC, *self._classifier)

    def _averages(self, x_BCTHW: Tensor) -> Tensor:
        """Over the head's windows, as `Head` takes them."""
        sides = x_BCTHW.shape[2:]
        kernel = [min(side, most) for side, most in zip(sides, self._window, strict=True)]
        if kernel == list(sides):
            return x_BCTHW.mean((2, 3, 4), keepdim=True)
        return F.avg_pool3d(x_BCTHW, kernel, stride=1)


@dataclass(frozen=True)
class _Block:
    a: Convolution
    b: Convolution
    gate: Callable[[Tensor], Tensor]
    c: Convolution
    shortcut: Convolution | None

    @classmethod
    def of(cls, block: ResBlock, dtype: torch.dtype | None) -> _Block:
        shortcut = None if isinstance(block.shortcut, nn.Identity) else folded(block.shortcut, block.shortcut_bn, dtype)
        gate = _gate(block.se, dtype) if isinstance(block.se, SqueezeExcitation) else _as_it_is
        return cls(folded(block.a, block.a_bn, dtype), folded(block.b, block.b_bn, dtype), gate,
                   folded(block.c, block.c_bn, dtype), shortcut)

    def __call__(self, x_BCTHW: Tensor) -> Tensor:
        y_BCTHW = self.b(torch.relu_(self.a(x_BCTHW)))
        y_BCTHW = self.c(F.silu(self.gate(y_BCTHW), inplace=True))
        y_BCTHW += x_BCTHW if self.shortcut is None else self.shortcut(x_BCTHW)
        return torch.relu_(y_BCTHW)


def _as_it_is(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW


def _gate(se: SqueezeExcitation, dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Squeeze-and-excitation, into the memory of its input."""
    reduce, expand = folded(se.reduce, dtype=dtype), folded(se.expand, dtype=dtype)

    def gated(x_BCTHW: Tensor) -> Tensor:
        gate_BC111 = expand(torch.relu_(reduce(x_BCTHW.mean((2, 3, 4), keepdim=True))))
        return x_BCTHW.mul_(gate_BC111.sigmoid_())

    return gated


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
        padding = [side // 2 for side in kernel]
        if x_BCTHW.shape[2] == 1:  # the kernel's other frames meet padding alone
            y_BCHW = F.conv2d(x_BCTHW.squeeze(2), self.weight[:, :, kernel[0] // 2], self.bias, self.stride,
                              padding[1:], 1, self.groups)
            return y_BCHW.unsqueeze(2)
        stride = (1, self.stride, self.stride)
        if wants_onednn(x_BCTHW, self.weight):
            return torch.mkldnn_convolution(x_BCTHW, self.weight, self.bias, padding, stride, (1, 1, 1), self.groups)
        return F.conv3d(x_BCTHW, self.weight, self.bias, stride, padding, 1, self.groups)


def folded(convolution: nn.Conv3d, norm: nn.Module | None = None, dtype: torch.dtype | None = None) -> Convolution:
    """`convolution` and the batch norm after it in evaluation, as one, with weights of `dtype` (by default those of
    the convolution's type). The product is taken in float64."""
    weight, bias = convolution.weight.detach().double(), convolution.bias
    if isinstance(norm, _BatchNorm):  # also those that torch has for several processes
        scale_C = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift_C = 0.0 if bias is None else bias.double()
        weight = weight * scale_C.view(-1, 1, 1, 1, 1)
        bias = norm.bias.double() + (shift_C - norm.running_mean.double()) * scale_C
    own = convolution.weight.dtype  # rounded to it first, as autocast would find the weights
    weight = weight.to(own).to(dtype or own, memory_format=torch.channels_last_3d, copy=True)
    bias = None if bias is None else bias.detach().to(own).to(dtype or own, copy=True)
    return Convolution(weight, bias, convolution.stride[-1], convolution.groups)
