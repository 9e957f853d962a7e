"""The averages that make the measured network: a moving average of its weights, and precise batch norm.

Precise batch norm replaces the running statistics, a trail of those along the way, by the statistics of the final
weights over many clips.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from expand.model import X3D
from expand.training.runtime import Runtime

with warnings.catch_warnings():  # fvcore compiles its losses with torch.jit on import, which torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats


class MovingAverage(AveragedModel):
    """The exponential moving average of `model`, equal to torch's to the bit: the first update copies the weights, each
    later one moves the average by `1 - decay` of the way to them; buffers are always the model's.

    At every update, torch's own class copies its counter to the GPU, and the host waits until the GPU is idle. Here the
    counter stays on the host, and an update is a few launches.
    """

    module: X3D

    def __init__(self, model: X3D, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the present weights of `model`."""
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(model.parameters())
        if int(self.n_averaged) == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        self.n_averaged += 1


def update_precise_bn(model: X3D, clips: Iterable[Tensor], batches: int, runtime: Runtime) -> None:
    """Set the running statistics of `model` to those of `batches` of `clips` (B x 3 x T x H x W each), with fvcore, and
    leave it in training mode. Batches may differ in size. Each of several processes uses all `clips`.

    An exception leaves the statistics as they were: fvcore works on a copy, because it may leave its hooks behind.
    """
    if get_bn_modules(model.train()):
        work = copy.deepcopy(model)
        for module in work.modules():
            if isinstance(module, nn.SyncBatchNorm):  # would add up the processes' batches, which are the same here
                module.__class__ = nn.BatchNorm3d  # type: ignore[assignment]  # both have the same fields
        inputs = (x_BCTHW.to(runtime.device, memory_format=runtime.memory_format) for x_BCTHW in clips)
        update_bn_stats(_UnderAutocast(work, runtime), inputs, num_iters=batches)
        model.load_state_dict(work.state_dict())


class _UnderAutocast(nn.Module):
    """A model whose call alone runs under autocast: `clips` are made while fvcore asks for them, outside of it."""

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        super().__init__()
        self.model, self.runtime = model, runtime

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self.model(x_BCTHW)
