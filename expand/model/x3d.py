"""`X3D(geometry)`: the network (paper, table 1)."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from expand.errors import UsageError
from expand.model.layers import Head, ResBlock, Stem
from expand.space.factors import PUBLISHED_CLASSES
from expand.space.geometry import Geometry
from expand.space.network import Network, preset


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
