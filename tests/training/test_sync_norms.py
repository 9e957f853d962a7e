"""Batch norm over several processes as torch has it for GPUs: folded, measured, and stopped together.

torch's `SyncBatchNorm` computes on a CPU only where it has nothing to synchronise; in training a class of its kind does
it here.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from expand.errors import Interrupted
from expand.model import X3D
from expand.model.folded_batch_norm import FoldedX3D, for_inference
from expand.rundir.paths import CandidatePaths
from expand.training import distributed
from expand.training.distributed import ALONE, Group
from expand.training.job import Hooks, Job
from expand.training.loop import Training, make_optimizer
from tests.model.seeded import awaken
from tests.training.small import CONFIG, RECIPE, RUNTIME, clips, network


class OnCpu(nn.SyncBatchNorm):
    """Synchronises in training, with or without gradients, as torch's does on a GPU."""

    def forward(self, x_BCTHW):
        if not self.training:
            return super().forward(x_BCTHW)
        others = (0, 2, 3, 4)
        sums = torch.stack([x_BCTHW.sum(others), x_BCTHW.square().sum(others),
                            torch.full((x_BCTHW.shape[1],), float(x_BCTHW[:, 0].numel()))])
        dist.all_reduce(sums)
        mean, count = sums[0] / sums[2], sums[2]
        var = sums[1] / count - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        return F.batch_norm(x_BCTHW, mean, var, self.weight, self.bias, eps=self.eps)


def of_cpu(model, device):
    for module in nn.SyncBatchNorm.convert_sync_batchnorm(model).modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = OnCpu


def test_torchs_own_is_folded_like_any_other_norm():
    torch.manual_seed(0)
    model = X3D.of(network("small", frames=2))
    awaken(model, norms=0.3, classifier=0.1)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    assert not any(isinstance(module, nn.BatchNorm3d) for module in model.modules())
    x_BCTHW = torch.randn(2, 3, 2, 32, 32)
    with torch.inference_mode():
        folded = for_inference(model)
        assert isinstance(folded, FoldedX3D)
        torch.testing.assert_close(folded.logits(x_BCTHW), model(x_BCTHW), rtol=1e-4, atol=1e-5)
    _, undecayed = make_optimizer(model, RECIPE).param_groups
    assert len(undecayed["params"]) == 2 * sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def training(folder: Path, group: Group) -> Training:
    job = Job("final", network("small", frames=1), 0.001, RECIPE, CONFIG, 7, CandidatePaths(folder), 1000.0)
    return Training(job, clips(), RUNTIME, Hooks(), group)


def measure(rank: int, folder: str) -> None:
    """One of two processes: what it measures, and where a stop that one of them hears ends both."""
    distributed.share_batch_norm = of_cpu
    nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # refuses CPUs
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    group, calls = Group(rank, 2), []
    measured = training(Path(folder), group)
    assert any(isinstance(module, OnCpu) for module in measured.model.modules())
    measured.refresh_batch_norm()
    evaluation = measured.evaluate("val")
    found = {"loss": evaluation.loss, "mean": measured.model.stem.bn.running_mean.tolist(),
             "var": measured.model.stem.bn.running_var.tolist(), "stopped": []}
    for work, after in ((measured.refresh_batch_norm, 1), (lambda: measured.evaluate("val"), 0)):
        calls.clear()
        measured.hooks = Hooks(stop=lambda after=after: calls.append(0) or (rank == 1 and len(calls) > after))
        try:
            work()
        except Interrupted:
            found["stopped"].append(len(calls))
    Path(folder, f"found{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_processes_measure_what_one_alone_does_and_stop_together(tmp_path):
    torch.multiprocessing.spawn(measure, (str(tmp_path),), nprocs=2)
    found = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(2)]
    alone = training(tmp_path / "alone", ALONE)
    alone.refresh_batch_norm()
    norm = alone.model.stem.bn
    for each in found:
        assert each["stopped"] == [2, 1]
        assert each["loss"] == pytest.approx(alone.evaluate("val").loss, rel=1e-5)
        torch.testing.assert_close(torch.tensor(each["mean"]), norm.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.tensor(each["var"]), norm.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 2), (2, 3), (0, 2), (2, 2)])
def test_processes_with_different_numbers_of_batches_ask_the_group_equally_often(sizes, tmp_path):
    asked = []

    class Counting(Group):
        def any(self, answer):
            asked[-1] += 1
            return answer

    measured = training(tmp_path, ALONE)
    measured.group = Counting(0, 2)
    for size in sizes:
        asked.append(0)
        assert list(measured._stoppable(range(size), max(sizes))) == list(range(size))
    assert asked == [max(sizes)] * 2
