"""Precise batch norm: statistics of the final weights over many clips, in place of a trail of those along the way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

from torch import Tensor, nn

from expand.model import X3D
from expand.training.runtime import Runtime

with warnings.catch_warnings():  # fvcore compiles its losses with torch.jit on import, which torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats


def measure_norms(model: X3D, clips: Iterable[Tensor], batches: int, runtime: Runtime) -> None:
    """Sets the running statistics of `model` to those of `batches` of `clips` (B x 3 x T x H x W each), with fvcore; it
    is left in training mode. Batches may differ in size. Each of several processes measures all `clips` by itself.

    An exception leaves the statistics as they were: fvcore works on a copy, where it may leave its hooks behind.
    """
    if get_bn_modules(model.train()):
        work = copy.deepcopy(model)
        for module in work.modules():
            if isinstance(module, nn.SyncBatchNorm):  # would add up the processes' batches, which are the same here
                module.__class__ = nn.BatchNorm3d
        inputs = (x_BCTHW.to(runtime.device, memory_format=runtime.memory_format) for x_BCTHW in clips)
        update_bn_stats(_UnderAutocast(work, runtime), inputs, num_iters=batches)
        model.load_state_dict(work.state_dict())


class _UnderAutocast(nn.Module):
    """The model's call alone under autocast: the clips, which are made as they are asked for, are made as ever."""

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        super().__init__()
        self.model, self.runtime = model, runtime

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self.model(x_BCTHW)
