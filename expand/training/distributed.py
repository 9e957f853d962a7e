"""One training in several processes, started by `torchrun`: each takes a share of every batch, and what comes out is
what one process would have come to, but for rounding.

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
from expand.model.layers import Head


@dataclass(frozen=True)
class Group:
    """The processes of a training; this one is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and talks to people."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's of `count` rows; the shares differ by one at most."""
        return self.share_of(self.rank, count)

    def share_of(self, rank: int, count: int) -> range:
        """The share of process `rank`."""
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def any(self, answer: bool) -> bool:
        """Whether any process answers yes, the same for all."""
        return answer if self.size == 1 else bool(self.sum(torch.tensor(float(answer))))

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes; `value` itself takes it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What `work` gives in the first process, as JSON can carry it, in all. Its `ExpandError` is raised in all."""
        answer: list[Any] = [None]
        error: ExpandError | None = None
        if self.is_first:
            try:
                answer = [work()]
            except ExpandError as raised:
                error, answer = raised, [{"error": [type(raised).__name__, raised.what, raised.where, raised.fix]}]
        if self.size > 1:
            answer = json.loads(self._broadcast(json.dumps(answer)))
        if error is None and isinstance(answer[0], dict) and "error" in answer[0]:
            kind, what, where, fix = answer[0]["error"]
            error = _error(kind, what, where, fix)
        if error is not None:
            raise error
        return answer[0]

    def _broadcast(self, text: str) -> str:
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        length = torch.tensor(len(content))
        dist.broadcast(length, 0)
        if not self.is_first:
            content = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return bytes(content.tolist()).decode()


def _error(kind: str, what: str, where: str | None, fix: str | None) -> ExpandError:
    """An error of the kind `kind`; one that is made of other parts becomes its nearest kin."""
    found = getattr(errors, kind, ExpandError)
    return (UsageError if issubclass(found, UsageError) else found)(what, where=where, fix=fix)


ALONE = Group()
PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which decodes the clips alone."""


@contextmanager
def process_group() -> Iterator[Group]:
    """The processes that `torchrun` started, joined; this one alone where it did not."""
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


def shared(model: X3D, group: Group, device: torch.device) -> nn.Module:
    """`model` as it is called in training: in a group, its norms and its dropout are made the whole batch's, and
    gradients are averaged over the processes."""
    if group.size == 1:
        return model
    _share_norms(model, device)
    head: Head = model.head
    head.dropout = SharedDropout(head.dropout.p, group)
    # 1x1x1 weights have the same memory in both layouts, of which torch then makes much
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    on_gpu = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # `forward_sync_buffers`, which torch would rather have, is not in torch 2.11
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return nn.parallel.DistributedDataParallel(model, device_ids=on_gpu, broadcast_buffers=False)


def _share_norms(model: nn.Module, device: torch.device) -> None:
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():  # SyncBatchNorm refuses CPU tensors
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = SharedNorm


class SharedDropout(nn.Dropout):
    """Dropout with the mask that a single process would draw for the whole batch."""

    def __init__(self, p: float, group: Group) -> None:
        super().__init__(p)
        self.group = group

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        if not self.training or self.p == 0 or not torch.is_grad_enabled():  # nothing to learn: precise statistics
            return x_BTHWC
        rows = torch.zeros(self.group.size, dtype=torch.int64)
        rows[self.group.rank] = len(x_BTHWC)
        first, mine = int(self.group.sum(rows)[:self.group.rank].sum()), len(x_BTHWC)
        kept = x_BTHWC.new_empty((int(rows.sum()), *x_BTHWC.shape[1:])).bernoulli_(1 - self.p).div_(1 - self.p)
        return x_BTHWC * kept[first:first + mine]


class SharedNorm(nn.BatchNorm3d):
    """Batch norm over the batch of all processes, on the CPU. The processes' shares may differ in size."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):  # in precise statistics each process has the whole batch
            return super().forward(x_BCTHW)
        others = (0, 2, 3, 4)
        count = _SumOfAll.apply(x_BCTHW.new_tensor(x_BCTHW.numel() / x_BCTHW.shape[1]))
        mean = _SumOfAll.apply(x_BCTHW.sum(others)) / count
        centred = x_BCTHW - mean.view(-1, 1, 1, 1)
        var = _SumOfAll.apply(centred.square().sum(others)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
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
