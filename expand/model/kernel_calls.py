"""Helpers of the compiled blocks (fused_blocks.py): kernel calls, memory for their results, and layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expand.kernels import library

LANES = 8
"""Inner widths are padded to a multiple of this."""


class Pass:
    """The kernel calls of one pass through a part, for the dtype of `like`. `fused_blocks.usable` says that there is a
    library."""

    def __init__(self, like: Tensor) -> None:
        kernels = library.load()
        if kernels is None:
            raise RuntimeError("there are no compiled kernels")
        self.kernels, self.like = kernels, like

    def __call__(self, name: str, *arguments: Tensor | float | None) -> None:
        self.kernels.call(name, self.like.dtype, *arguments)

    def empty(self, *shape: int) -> Tensor:
        """Return memory for a result."""
        return self.like.new_empty(shape)

    def call_and_norm(self, name: str, *arguments: Any, bn: nn.Module, after: Sequence[Tensor] = ()) -> Tensor:
        """Call a function that measures the batch norm `bn` of its result in training; in evaluation it does not.

        Returns the norm's lines: mean, 1 / deviation, scale and shift, 4 x padded width.
        """
        if not isinstance(bn, nn.BatchNorm3d) or bn.running_mean is None or bn.running_var is None:
            raise TypeError(f"{type(bn).__name__} is no batch norm with statistics")
        lines = self.empty(4, pad_width(bn.num_features)) if bn.training else None
        self(name, *arguments, bn.num_features, bn.weight, bn.bias, bn.running_mean, bn.running_var,
             bn.num_batches_tracked, float(bn.momentum or 0.0), float(bn.eps), lines, *after)
        if lines is None:
            lines = bn.weight.new_zeros(4, pad_width(bn.num_features))
            inverse = torch.rsqrt(bn.running_var + bn.eps)
            scale = bn.weight * inverse
            lines[:, :bn.num_features] = torch.stack(
                [bn.running_mean, inverse, scale, bn.bias - bn.running_mean * scale])
        return lines


def rows_of(x_BCTHW: Tensor) -> Tensor:
    """Return the tensor as B x T x H x W x C, contiguous."""
    return x_BCTHW.permute(0, 2, 3, 4, 1).contiguous()


def clips_of(x_BTHWC: Tensor) -> Tensor:
    """Return the tensor as B x C x T x H x W: the inverse of `rows_of`."""
    return x_BTHWC.permute(0, 4, 1, 2, 3)


def weights_of(*layers: nn.Module) -> list[Tensor | None]:
    """Return weight and bias of each layer, None for those that it lacks."""
    return [layer._parameters.get(name) for layer in layers for name in ("weight", "bias")]


def take_every(x_BTHWC: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th position of each frame."""
    return x_BTHWC[:, :, ::stride, ::stride]


def pad_width(width: int) -> int:
    """Return `width` rounded up to a multiple of `LANES`."""
    return -(-width // LANES) * LANES
