"""The moving average of a network's weights, without making a GPU wait."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """torch's exponential moving average of `model`, bit for bit: the first update copies the weights, each later one
    moves the average by `1 - decay` of the way to them; buffers are always the model's.

    torch's own copies its counter to the GPU at every update, for which the host waits until the GPU is idle. Here the
    counter stays on the host, and an update is a few launches.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes in the weights that `model` has now."""
        averages, weights = list(self.module.parameters()), list(model.parameters())
        if int(self.n_averaged) == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        self.n_averaged += 1
