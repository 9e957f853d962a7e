"""A small network whose weights are no first weights: its batch norms do something,
and its logits are of usual size."""

from __future__ import annotations

import torch
from torch import nn

from expand.model import X3D
from expand.space.factors import Factors
from expand.space.network import Network

NETWORK = Network("mine", Factors.of(frames=2, stride=3, resolution=32, width=0.4, depth=0.4), 5,
                  ("a", "b", "ć", "d", "e"), mean=0.4, std=0.2)
CROP = 36


def trained() -> X3D:
    """As after a training, and left in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = X3D.of(NETWORK)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        nn.init.normal_(model.head.classifier.weight, std=1.0)
    return model.train()


def clips(batch: int) -> torch.Tensor:
    """Noise, batch x 3 x 2 x 36 x 36."""
    return torch.randn(batch, 3, 2, CROP, CROP, generator=torch.Generator().manual_seed(batch))


def logits(model: X3D, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """What the model says in evaluation."""
    with torch.inference_mode():
        return model.eval()(x_BCTHW)
