"""The network `X3D(geometry)` and its parts (paper, table 1; FACTS: network)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from expand.errors import UsageError
from expand.model import fused_blocks as fused
from expand.model.convolution import Depthwise, Pointwise, SwishPointwise, is_plain
from expand.space.factors import PUBLISHED_CLASSES
from expand.space.geometry import Block, Geometry
from expand.space.network import Network, preset

BN_EPS = 1e-5
BN_MOMENTUM = 0.1


def norm(width: int) -> nn.BatchNorm3d:
    """Return a batch norm with the paper's constants."""
    return nn.BatchNorm3d(width, eps=BN_EPS, momentum=BN_MOMENTUM)


class Stem(nn.Module):
    """1x3x3 of stride 2 in space, depthwise 5x1x1 in time, BN, ReLU. B x 3 x T x H x W to B x C x T x H/2 x W/2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv3d(3, width, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.temporal = Depthwise(width, (5, 1, 1))
        self.bn = norm(width)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if not (is_plain() or x_BCTHW.requires_grad) and fused.usable(self, x_BCTHW, 3, self.bn.num_features):
            return fused.stem(self, x_BCTHW)
        return torch.relu_(self.bn(self.temporal(self.spatial(x_BCTHW))))


class SqueezeExcitation(nn.Module):
    """Channel gates from the global mean (Hu et al., arXiv 1709.01507), with biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.reduce = Pointwise(width, hidden, bias=True)
        self.expand = Pointwise(hidden, width, bias=True)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        gate_BC111 = self.expand(torch.relu(self.reduce(self.pool(x_BCTHW))))
        return x_BCTHW * torch.sigmoid(gate_BC111)


class ResBlock(nn.Module):
    """1x1x1, BN, ReLU, depthwise 3x3x3, BN, [SE], Swish, 1x1x1, BN; plus the shortcut; ReLU."""

    def __init__(self, shape: Block) -> None:
        super().__init__()
        self.shortcut: nn.Module
        self.shortcut_bn: nn.Module
        if shape.projection:
            self.shortcut = Pointwise(shape.outer_in, shape.outer, stride=shape.stride)
            self.shortcut_bn = norm(shape.outer) if shape.projection_bn else nn.Identity()
        else:
            self.shortcut = self.shortcut_bn = nn.Identity()
        self.a = Pointwise(shape.outer_in, shape.inner)
        self.a_bn = norm(shape.inner)
        self.b = Depthwise(shape.inner, (3, 3, 3), stride=shape.stride)
        self.b_bn = norm(shape.inner)
        self.se = SqueezeExcitation(shape.inner, shape.se) if shape.se else nn.Identity()
        self.c = SwishPointwise(shape.inner, shape.outer)
        self.c_bn = norm(shape.outer)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if not is_plain() and fused.usable(self, x_BCTHW, self.a.in_channels, self.c.out_channels):
            return fused.block(self, x_BCTHW)
        y_BCTHW = torch.relu_(self.a_bn(self.a(x_BCTHW)))
        y_BCTHW = self.se(self.b_bn(self.b(y_BCTHW)))
        y_BCTHW = self.c_bn(self.c(y_BCTHW))
        return torch.relu_(y_BCTHW + self.shortcut_bn(self.shortcut(x_BCTHW)))


class Head(nn.Module):
    """1x1x1, BN, ReLU, average, 1x1x1 without norm or bias, ReLU, dropout, linear. To B x T x H x W x classes logits.

    The average is over windows of `window` (T x H x W) positions, the size of the training clip's features, one
    position apart: a training clip has one window, the larger crop of an evaluation several. Both public
    implementations do this. A clip smaller than the window is averaged whole.
    """

    def __init__(self, width_in: int, inner: int, width: int, classes: int, dropout: float,
                 window: tuple[int, int, int]) -> None:
        super().__init__()
        self.window = window
        self.inner = Pointwise(width_in, inner)
        self.inner_bn = norm(inner)
        self.features = Pointwise(inner, width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        y_BTHWC = torch.relu_(self.features(self.averages(x_BCTHW))).permute(0, 2, 3, 4, 1)
        return self.classifier(self.dropout(y_BTHWC))

    def averages(self, x_BCTHW: Tensor) -> Tensor:
        """Return the windows' averages of the first convolution, norm and ReLU."""
        sides = x_BCTHW.shape[2:]
        kernel = [min(side, most) for side, most in zip(sides, self.window, strict=True)]
        is_one = kernel == list(sides) and not is_plain()
        if is_one and fused.usable(self, x_BCTHW, self.inner.in_channels, self.inner.in_channels):
            return fused.pool(self, x_BCTHW)
        y_BCTHW = torch.relu_(self.inner_bn(self.inner(x_BCTHW)))
        if is_one:
            return y_BCTHW.mean((2, 3, 4), keepdim=True)  # the same but for rounding, in half the time
        return nn.functional.avg_pool3d(y_BCTHW, kernel, stride=1)


class X3D(nn.Module):
    """The network of a geometry: clips B x 3 x T x H x W in, logits B x classes out; any T >= 1 and H, W >= 32.

    The weights do not depend on the geometry's `frames` and `resolution`; those describe the training clip. On a larger
    one, the head slides over it (`Head`). `network` is the description of a network made by `of` or `preset`.
    Initial weights come from torch's global generator: seed it before.
    """

    network: Network | None = None

    def __init__(self, geometry: Geometry, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.geometry = geometry
        self.stem = Stem(geometry.stem)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResBlock(block) for block in stage)) for stage in geometry.stages)
        self.head = Head(geometry.stages[-1][-1].outer, geometry.head_inner, geometry.head, geometry.classes, dropout,
                         geometry.head_window)
        self.apply(initialise)
        for block in self.blocks:  # each block starts as its shortcut (FACTS: init)
            nn.init.zeros_(block.c_bn.weight)

    @property
    def blocks(self) -> list[ResBlock]:
        """All residual blocks, in their order."""
        return [module for module in self.stages.modules() if isinstance(module, ResBlock)]

    @classmethod
    def of(cls, network: Network, *, dropout: float = 0.5) -> Self:
        """Return the network that `network` describes, with initial weights."""
        model = cls(network.geometry, dropout=dropout)
        model.network = network
        return model

    @classmethod
    def preset(cls, name: str, classes: int = PUBLISHED_CLASSES, *, dropout: float = 0.5) -> Self:
        """Return a published network (`xs`, `s`, `m`, `l`, `xl` or `x2d`; paper, table 1) with `classes` outputs and
        initial weights. Raises `UsageError` for other names."""
        return cls.of(preset(name, classes), dropout=dropout)

    @property
    def description(self) -> Network:
        """The network's description. Raises `UsageError` for a model that was made of a geometry alone."""
        if self.network is None:
            raise UsageError("the model has no description, so nothing would say what a clip must look like",
                             fix="make it with X3D.of(network) or X3D.preset(name), or load it")
        return self.network

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return logits, B x classes: the mean over the head's positions, as in PyTorchVideo."""
        return self.head(self.trunk(x_BCTHW)).mean((1, 2, 3))

    def probabilities(self, x_BCTHW: Tensor) -> Tensor:
        """Return class probabilities, B x classes float32: softmax at each of the head's positions, then the mean,
        as in SlowFast's test, with which the published accuracies were measured."""
        return self.head(self.trunk(x_BCTHW)).float().softmax(-1).mean((1, 2, 3))

    def trunk(self, x_BCTHW: Tensor) -> Tensor:
        """Return the features before the head: B x C x T x H/32 x W/32, halves rounded up."""
        x_BCTHW = self.stem(x_BCTHW)
        for stage in self.stages:
            x_BCTHW = stage(x_BCTHW)
        return x_BCTHW


def initialise(module: nn.Module) -> None:
    """Draw the initial weights of one layer (FACTS: init)."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
