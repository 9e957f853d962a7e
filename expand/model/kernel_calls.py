"""What the compiled parts of a network (fused.py) are written with: calls, their results' memory, and layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expand.kernels import library

LANES = 8
"""Inner widths are padded to a multiple of it."""


def _of(bn: nn.BatchNorm3d) -> tuple[int | float | Tensor, ...]:
    """A norm as the kernels take it."""
    return (bn.num_features, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.num_batches_tracked,
            float(bn.momentum), float(bn.eps))


def _lines(bn: nn.BatchNorm3d) -> Tensor:
    """Mean, 1 / deviation, scale and shift of a norm in evaluation: 4 x padded width."""
    lines = bn.weight.new_zeros(4, padded(bn.num_features))
    inverse = torch.rsqrt(bn.running_var + bn.eps)
    scale = bn.weight * inverse
    lines[:, :bn.num_features] = torch.stack([bn.running_mean, inverse, scale, bn.bias - bn.running_mean * scale])
    return lines


class Pass:
    """Calls for one dtype, and the memory of their results."""

    def __init__(self, like: Tensor) -> None:
        self.kernels, self.like = library.load(), like

    def __call__(self, name: str, *arguments: Tensor | float | None) -> None:
        self.kernels.call(name, self.like.dtype, *arguments)

    def empty(self, *shape: int) -> Tensor:
        """Room for a result."""
        return self.like.new_empty(shape)

    def normed(self, name: str, *arguments: Any, bn: nn.Module, after: Sequence[Tensor] = ()) -> Tensor | None:
        """Calls a function that measures the norm `bn` of its result, or in evaluation not. The norm's lines: None
        where `bn` is no norm."""
        if not isinstance(bn, nn.BatchNorm3d):
            self(name, *arguments, arguments[-1].shape[-1], *[None] * 5, 0.0, 0.0, None, *after)
            return None
        if not bn.training:
            self(name, *arguments, *_of(bn), None, *after)
            return _lines(bn)
        lines = self.empty(4, padded(bn.num_features))
        self(name, *arguments, *_of(bn), lines, *after)
        return lines


def rows_of(x_BCTHW: Tensor) -> Tensor:
    """B x T x H x W x C, contiguous."""
    return x_BCTHW.permute(0, 2, 3, 4, 1).contiguous()


def clips_of(x_BTHWC: Tensor) -> Tensor:
    """The way back."""
    return x_BTHWC.permute(0, 4, 1, 2, 3)


def weights_of(*layers: nn.Module) -> list[Tensor | None]:
    """Weight and bias of each layer, None for what it lacks."""
    return [layer._parameters.get(name) for layer in layers for name in ("weight", "bias")]


def strided(x_BTHWC: Tensor, stride: int) -> Tensor:
    """Every `stride`-th position of each frame."""
    return x_BTHWC[:, :, ::stride, ::stride]


def padded(width: int) -> int:
    """`width` rounded up to a multiple of `LANES`."""
    return -(-width // LANES) * LANES
