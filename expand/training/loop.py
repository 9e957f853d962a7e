"""Training one network, from its first weights to its outcome; it can be stopped and continued at any update."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from expand.config.schema import RecipeConfig
from expand.data import PreparedData
from expand.data.loading.batches import clips_of_batch
from expand.data.loading.loader import Batches
from expand.device_faults import lacks_memory
from expand.errors import CandidateFailed, Interrupted, UsageError
from expand.model import X3D
from expand.model.weights import load_checkpoint
from expand.training import checkpoint
from expand.training.checkpoint import Progress
from expand.training.cuda_graphs import GraphedStep
from expand.training.distributed import ALONE, Group, shared
from expand.training.job import Hooks, Job, Tick
from expand.training.measuring import Measured
from expand.training.metrics import Metrics
from expand.training.moving_average import MovingAverage
from expand.training.recipe import check_batches, learning_rate
from expand.training.runtime import Runtime
from expand.training.stopwatch import CLIPS, PHASES, STEP, Stopwatch
from expand.training.untrusted_checkpoint import Course, restore

CHECK_EVERY = 10
"""Updates between two looks at the loss; a look makes a GPU wait."""


class Training(Measured):
    """One network in training. `fit` brings it to the end of its recipe, `evaluate` measures it.

    In a `group` each process takes its share of every batch and of every evaluation; the first one writes the files.
    """

    def __init__(self, job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks, group: Group = ALONE) -> None:
        self.job, self.data, self.runtime, self.hooks, self.group = job, data, runtime, hooks, group
        self.watch = Stopwatch({})
        with self.watch.phase("build_s"):
            self._build()
        self.watch.go_on(self.progress.seconds)
        self.metrics = Metrics(job.paths.metrics)
        self.saved = time.monotonic()

    def _build(self) -> None:
        job, runtime = self.job, self.runtime
        runtime.prepare()
        runtime.reset_peak_memory()
        try:
            check_batches(job.recipe, len(self.data.train), job.network.geometry)
        except UsageError as error:
            raise CandidateFailed(error.what) from error
        torch.manual_seed(job.seed)
        self.model = X3D.of(job.network, dropout=job.recipe.dropout)
        if job.first_weights is not None:
            load_checkpoint(self.model, job.first_weights, self.hooks.log)
        self.model.to(runtime.device, memory_format=runtime.memory_format)
        self.optimizer = make_optimizer(self.model, job.recipe)
        self.called = shared(self.model, self.group, runtime.device)
        self.graphed = GraphedStep(self._gradients, list(self.model.parameters()),
                                   lambda text: self.hooks.log(f"{job.id}: {text}")) \
            if runtime.cuda_graphs and job.may_record and self.group.size == 1 else None
        self.average = MovingAverage(self.model, job.recipe.ema) if job.recipe.ema else None
        self.progress = self._restored()

    def _restored(self) -> Progress:
        job, course = self.job, Course(self.job.recipe.epochs, len(self.data.train), self.job.recipe.batch_size)
        found, self.last_is_good = checkpoint.go_on(
            job.paths, job.identity, checkpoint.most_bytes(self.model, job.recipe.epochs),
            lambda state: restore(state, self.model, self.optimizer, course, self.average),
            lambda text: self.hooks.log(f"{job.id}: {text}"))
        progress = found or Progress()
        progress.parts = min(self._most_parts(job.recipe.batch_size),
                             max(progress.parts, job.recipe.accumulation * job.parts))
        return progress

    def save(self) -> None:
        """Writes a checkpoint now; the last one becomes the one before, unless it was found damaged. Raises
        `CandidateFailed` where the loss is not finite: nobody could go on from it."""
        with self.watch.phase("disk_s"):
            self._settle_sums()
            self._check_loss()
            if self.group.is_first:
                paths = self.job.paths
                checkpoint.save(paths.checkpoint, self.job.identity, self.model, self.optimizer, self.progress,
                                self.average, paths.checkpoint_before if self.last_is_good else None)
        self.last_is_good, self.saved = True, time.monotonic()

    def spent(self) -> dict[str, float]:
        """Seconds of every phase until now, over all starts; their sum is the wall time."""
        self.watch.settle()
        return {phase: self.progress.seconds.get(phase, 0.0) for phase in PHASES}

    def fit(self) -> None:
        """Trains to the end of the recipe.

        Raises `Interrupted` (after a checkpoint) when asked to stop, `CandidateFailed` when the loss or a weight is not
        finite.
        """
        with self._train_batches() as batches:
            while self.progress.epoch < self.job.recipe.epochs:
                self._epoch(batches.epoch(self.progress.epoch, self.progress.batch))
        self._forget_graph()
        self.parts = min(self.progress.parts, self._most_parts(self.job.recipe.batch_size))
        self.save()

    def _epoch(self, batches: Batches) -> None:
        self.model.train()
        for x_BCTHW, y_B in self.watch.each(CLIPS, batches):
            clips = clips_of_batch(self.progress.batch, len(self.data.train), self.job.recipe.batch_size)
            with self.watch.phase(STEP):
                self._count(clips, *self._update(x_BCTHW, y_B, clips))
            if self.progress.batch % CHECK_EVERY == 0 or self.progress.batch == self.updates:
                self._look()
            if self._is_to_stop():
                self.save()
                raise Interrupted("stopped", where=self.job.id)
            if time.monotonic() - self.saved >= self.job.checkpoint_every_s:
                self.save()
        self._end_epoch()

    def _is_to_stop(self) -> bool:
        return self.group.any(self.hooks.stop())

    def _count(self, clips: int, loss: torch.Tensor, hits: torch.Tensor) -> None:
        """Adds an update to the running sums, which stay on the device until somebody looks."""
        progress = self.progress
        progress.batch += 1
        progress.seen += clips
        progress.loss_sum = progress.loss_sum + loss * clips
        progress.correct = progress.correct + hits
        progress.clips += clips

    def _update(self, x_BCTHW: torch.Tensor, y_B: torch.Tensor, clips: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of SGD on a batch of `clips`, of which these are this process's: the mean loss and the number of
        right guesses in the whole batch, still on the device.

        Where the memory does not suffice, the batch goes through the network in twice as many parts from now on.
        """
        rate = self._rate(self.progress.batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x_BCTHW = x_BCTHW.to(self.runtime.device, memory_format=self.runtime.memory_format, non_blocking=True)
        y_B = y_B.to(self.runtime.device, non_blocking=True)
        gradients = self.graphed or self._gradients
        while (sums := gradients(x_BCTHW, y_B, clips)) is None:
            self._halve(self._most_parts(clips))
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        loss_sum, hits = self.group.sum(sums)
        return loss_sum / clips, hits

    def _rate(self, batch: int) -> float:
        """The learning rate of an update of this epoch."""
        recipe, updates = self.job.recipe, self.updates
        return learning_rate(self.progress.epoch * updates + batch, recipe.epochs * updates, recipe)

    def _gradients(self, x_BCTHW: torch.Tensor, y_B: torch.Tensor, clips: int) -> torch.Tensor | None:
        """The gradients of a batch's mean loss, in `progress.parts` parts. Sums over the clips at hand: loss, right
        guesses; None where the memory did not suffice for a part that can be smaller."""
        # in a group batch norm is over all processes' parts, so that each may be one clip
        most = self._most_parts(clips) if self.group.size == 1 else max(1, clips // self.group.size)
        parts = min(self.progress.parts, most)
        sums = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            for part in range(parts):
                is_last = part == parts - 1
                with nullcontext() if is_last or self.group.size == 1 else self.called.no_sync():
                    sums += self._part(x_BCTHW, y_B, clips, part, parts)
        except (MemoryError, RuntimeError) as error:
            # in a group the others wait in the middle of this very batch, and nothing but the group's end frees them
            if not lacks_memory(error) or parts == most or self.group.size > 1:
                raise
            return None
        return sums

    def _part(self, x_BCTHW: torch.Tensor, y_B: torch.Tensor, clips: int, part: int, parts: int) -> torch.Tensor:
        """Adds the gradients of part `part` of `parts`; its summed loss and right guesses."""
        rows = slice(part * len(y_B) // parts, (part + 1) * len(y_B) // parts)
        y_B = y_B[rows]
        with self.runtime.autocast():
            logits_BK = self.called(x_BCTHW[rows])
            loss = nn.functional.cross_entropy(logits_BK, y_B, label_smoothing=self.job.recipe.label_smoothing,
                                               reduction="sum")
        (loss * (self.group.size / clips)).backward()  # in a group, the mean over the processes is taken
        return torch.stack([loss.detach().double(), (logits_BK.detach().argmax(1) == y_B).sum().double()])

    def _settle_sums(self) -> None:
        """Brings the running sums to the host, as plain numbers."""
        progress = self.progress
        progress.loss_sum, progress.correct = float(progress.loss_sum), int(progress.correct)

    def _look(self) -> None:
        with self.watch.phase(STEP):  # here a GPU's work is waited for
            self._settle_sums()
        self._check_loss()
        progress, recipe = self.progress, self.job.recipe
        loss = progress.loss_sum / progress.seen
        done, seconds = progress.epoch * self.updates + progress.batch, max(progress.train_s, 1e-9)
        self.hooks.tick(Tick(progress.epoch, recipe.epochs, done, recipe.epochs * self.updates, loss,
                             progress.clips / seconds, done / seconds))

    def _check_loss(self) -> None:
        if not math.isfinite(self.progress.loss_sum):
            raise CandidateFailed(f"the loss became {self.progress.loss_sum} in epoch {self.progress.epoch + 1}")

    def _end_epoch(self) -> None:
        progress = self.progress
        self._settle_sums()
        self._check_loss()
        self._check_weights(f"after epoch {progress.epoch + 1}")
        row = {"epoch": progress.epoch + 1, "lr": self._rate(progress.batch - 1),
               "loss": progress.loss_sum / progress.seen, "accuracy": progress.correct / progress.seen,
               "train_s": round(progress.train_s, 3), **self._measured(progress.epoch + 1)}
        progress.rows.append(row)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        if self.group.is_first:
            with self.watch.phase("disk_s"):
                self.metrics.write(progress.rows, is_last=progress.epoch == self.job.recipe.epochs)
        self.hooks.epoch(row)

    def _measured(self, epoch: int) -> dict[str, float]:
        """Columns of the figures on val after `epoch`: empty between two measurements, none where there are none."""
        every = self.job.recipe.eval_every
        if not every:
            return {}
        if epoch % every:
            return {"val_accuracy": math.nan, "val_loss": math.nan}
        self.save()  # an interruption of the measurement costs the measurement alone
        evaluation = self.evaluate("val")
        return {"val_accuracy": evaluation.accuracy, "val_loss": evaluation.loss}


def make_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; no weight decay on batch norm."""
    norms = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
    groups = [{"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": recipe.weight_decay},
              {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)
