"""`X3D(geometry)`: the network (paper, table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from expand.model.layers import Head, ResBlock, Stem
from expand.space.geometry import Geometry


class X3D(nn.Module):
    """The network of a geometry: clips B x 3 x T x H x W in, logits B x classes out; any T >= 1 and H, W >= 32.

    The weights do not depend on the geometry's `frames` and `resolution`; those describe the training clip.
    Initial weights come from torch's global generator: seed it before.
    """

    def __init__(self, geometry: Geometry, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.geometry = geometry
        self.stem = Stem(geometry.stem)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResBlock(block) for block in stage)) for stage in geometry.stages)
        self.head = Head(geometry.stages[-1][-1].outer, geometry.head_inner, geometry.head, geometry.classes, dropout)
        self.apply(_initialise)
        for module in self.modules():
            if isinstance(module, ResBlock):  # each block starts as its shortcut (FACTS: init)
                nn.init.zeros_(module.c_bn.weight)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_BCTHW = self.stem(x_BCTHW)
        for stage in self.stages:
            x_BCTHW = stage(x_BCTHW)
        return self.head(x_BCTHW)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
