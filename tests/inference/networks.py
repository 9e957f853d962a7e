"""A small network with random weights, kept as a training leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from expand.model import X3D
from expand.model.x3d import ResBlock
from expand.space.factors import Factors
from expand.space.network import Network
from expand.training.checkpoint import save_weights

FACTORS = Factors.of(frames=2, stride=3, resolution=32, width=0.4)


def save_network(path: Path, names: Sequence[str] | int, factors: Factors = FACTORS) -> Path:
    """Weights of a network of `factors` with classes `names`, or with so many nameless ones; its answers differ."""
    torch.manual_seed(0)
    classes, names = (names, None) if isinstance(names, int) else (len(names), tuple(names))
    model = X3D.of(Network("tiny", factors, classes, names))
    for module in model.modules():
        if isinstance(module, ResBlock):
            torch.nn.init.ones_(module.c_bn.weight)  # else the blocks are their shortcuts
    torch.nn.init.normal_(model.head.classifier.weight)
    save_weights(path, model)
    return path
