"""One training in several processes, started by `torchrun`: each takes a share of every batch, and the result is that
of one process, up to rounding.

Batch norm averages over the whole batch, and the dropout mask is drawn for the whole batch, so that the number of
processes is not part of the recipe.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from expand import errors
from expand.errors import ExpandError, UsageError
from expand.model import X3D
from expand.model.x3d import BN_MOMENTUM, Head


@dataclass(frozen=True)
class Group:
    """The processes of a training; this one is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that writes the files and the output."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's share of `count` rows; shares differ by one at most."""
        return self.share_of(self.rank, count)

    def share_of(self, rank: int, count: int) -> range:
        """Return the share of process `rank`."""
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def any(self, answer: bool) -> bool:
        """Return True in all processes if any one's `answer` is True."""
        return answer if self.size == 1 else bool(self.sum(torch.tensor(float(answer))))

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the processes, in the memory of `value`."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, work: Callable[[], Any]) -> Any:
        """Run `work` in the first process; return its result (as JSON) in all, or raise its `ExpandError` in all."""
        answer: list[Any] = [None]
        error: ExpandError | None = None
        if self.is_first:
            try:
                answer = [work()]
            except ExpandError as raised:
                error, answer = raised, [{"error": [type(raised).__name__, raised.what, raised.where, raised.fix]}]
        if self.size > 1:
            content = torch.frombuffer(bytearray(json.dumps(answer).encode()), dtype=torch.uint8)
            length = torch.tensor(len(content))
            dist.broadcast(length, 0)
            if not self.is_first:
                content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
            answer = json.loads(bytes(content.tolist()))
        if error is None and isinstance(answer[0], dict) and "error" in answer[0]:
            kind, what, where, fix = answer[0]["error"]
            found = getattr(errors, kind, ExpandError)
            if issubclass(found, UsageError):  # some of its kinds are made of other parts than these three
                found = UsageError
            error = found(what, where=where, fix=fix)
        if error is not None:
            raise error
        return answer[0]


ALONE = Group()
PATIENCE = timedelta(days=1)
"""The longest time that processes wait for the first one, which decodes the clips alone."""


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the processes that `torchrun` started, until the block ends; without torchrun, this process is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    # CPU tensors go by gloo, also beside GPUs: flags, scores and texts live on the host
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def distribute(model: X3D, group: Group, device: torch.device) -> nn.Module:
    """Return `model` as a training calls it: in a group, batch norm and dropout see the whole batch, and gradients are
    averaged over the processes."""
    if group.size == 1:
        return model
    share_batch_norm(model, device)
    head: Head = model.head
    head.dropout = SharedDropout(head.dropout.p, group)
    # 1x1x1 weights have the same memory in both layouts, of about which torch warns
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    on_gpu = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # `forward_sync_buffers`, its successor, is not in torch 2.11
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return nn.parallel.DistributedDataParallel(model, device_ids=on_gpu, broadcast_buffers=False)


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Make the batch norms of `model` average over the batches of all processes."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():  # SyncBatchNorm refuses CPU tensors
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = SharedNorm


class SharedDropout(nn.Dropout):
    """Dropout with this process's rows of the mask that a single process would draw for the whole batch."""

    def __init__(self, p: float, group: Group) -> None:
        super().__init__(p)
        self.group = group

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        if not self.training or self.p == 0 or not torch.is_grad_enabled():  # precise batch norm
            return x_BTHWC
        rows = torch.zeros(self.group.size, dtype=torch.int64)
        rows[self.group.rank] = len(x_BTHWC)
        first, mine = int(self.group.sum(rows)[:self.group.rank].sum()), len(x_BTHWC)
        kept = x_BTHWC.new_empty((int(rows.sum()), *x_BTHWC.shape[1:])).bernoulli_(1 - self.p).div_(1 - self.p)
        return x_BTHWC * kept[first:first + mine]


class SharedNorm(nn.BatchNorm3d):
    """Batch norm over the batch of all processes, on the CPU. The processes' shares may differ in size."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):  # precise batch norm: each process has whole batches
            return super().forward(x_BCTHW)
        others = (0, 2, 3, 4)
        count = _SumOfAll.apply(x_BCTHW.new_tensor(x_BCTHW.numel() / x_BCTHW.shape[1]))
        mean = _SumOfAll.apply(x_BCTHW.sum(others)) / count
        centred = x_BCTHW - mean.view(-1, 1, 1, 1)
        var = _SumOfAll.apply(centred.square().sum(others)) / count
        if self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, BN_MOMENTUM)
                self.running_var.lerp_(var * count / (count - 1), BN_MOMENTUM)
        scale = self.weight * (var + self.eps).rsqrt()
        return centred * scale.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


class _SumOfAll(torch.autograd.Function):
    """The sum over the processes. Every process's loss depends on every term, so the gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
