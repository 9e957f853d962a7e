"""Training one network, from its first weights to its outcome; it can be stopped and continued at any update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from expand.config.schema import RecipeConfig
from expand.data import PreparedData
from expand.data.loader import Batches, TrainBatches, eval_loader
from expand.errors import CandidateFailed, Interrupted
from expand.model import X3D
from expand.model.weights import load_checkpoint
from expand.training import checkpoint
from expand.training.checkpoint import Progress
from expand.training.distributed import ALONE, Group, shared
from expand.training.evaluate import Evaluation, judged, score_videos
from expand.training.graphs import GraphedStep
from expand.training.job import Hooks, Job, Tick
from expand.training.metrics import Metrics
from expand.training.norms import measure_norms
from expand.training.recipe import clips_of_batch, learning_rate, updates_per_epoch
from expand.training.runtime import Runtime, lacks_memory
from expand.training.stopwatch import CLIPS, PHASES, STEP, Stopwatch

CHECK_EVERY = 10
"""Updates between two looks at the loss; a look makes a GPU wait."""


class Training:
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
        torch.manual_seed(job.seed)
        self.model = X3D.of(job.network, dropout=job.recipe.dropout)
        if job.first_weights is not None:
            load_checkpoint(self.model, job.first_weights, self.hooks.log)
        self.model.to(runtime.device, memory_format=runtime.memory_format)
        self.optimizer = make_optimizer(self.model, job.recipe)
        self.called = shared(self.model, self.group, runtime.device)
        self.graphed = GraphedStep(self._gradients, list(self.model.parameters()),
                                   lambda text: self.hooks.log(f"{job.id}: {text}")) \
            if runtime.cuda_graphs and self.group.size == 1 else None
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(job.recipe.ema)) \
            if job.recipe.ema else None
        self.progress = self._restored()

    def _restored(self) -> Progress:
        state, complaint = checkpoint.load(self.job.paths.checkpoint, self.job.identity)
        if complaint:
            self.hooks.log(f"{self.job.id}: the checkpoint is {complaint}; training starts anew")
        if state is None:
            return Progress(parts=self.job.recipe.accumulation)
        return checkpoint.restore(state, self.model, self.optimizer, self.average)

    @property
    def result(self) -> X3D:
        """The network that is measured and kept: the moving average where there is one."""
        return self.average.module if self.average is not None else self.model

    def save(self) -> None:
        """Writes a checkpoint now."""
        with self.watch.phase("disk_s"):
            self._settle_sums()
            if self.group.is_first:
                checkpoint.save(self.job.paths.checkpoint, self.job.identity, self.model, self.optimizer,
                                self.progress, self.average)
        self.saved = time.monotonic()

    def spent(self) -> dict[str, float]:
        """Seconds of every phase until now, over all starts; their sum is the wall time."""
        self.watch.settle()
        return {phase: self.progress.seconds.get(phase, 0.0) for phase in PHASES}

    @property
    def updates(self) -> int:
        """Updates of an epoch."""
        return updates_per_epoch(len(self.data.train), self.job.recipe.batch_size)

    def fit(self) -> None:
        """Trains to the end of the recipe.

        Raises `Interrupted` (after a checkpoint) when asked to stop, `CandidateFailed` when the loss is not finite.
        """
        with self._train_batches() as batches:
            while self.progress.epoch < self.job.recipe.epochs:
                self._epoch(batches.epoch(self.progress.epoch, self.progress.batch))
        self._forget_graph()
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

    def _train_batches(self, *, whole: bool = False) -> TrainBatches:
        """The batches of a training: this process's share of each, or each `whole`."""
        job = self.job
        return TrainBatches(self.data, frames=job.factors.frames, stride=job.factors.stride,
                            resolution=job.factors.resolution, batch_size=job.recipe.batch_size, seed=job.seed,
                            config=job.data_config, workers=self.runtime.loader_workers,
                            share=None if whole else self.group.share, device=self.runtime.device)

    def _update(self, x_BCTHW: torch.Tensor, y_B: torch.Tensor, clips: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of SGD on a batch of `clips`, of which these are this process's: the mean loss and the number of
        right guesses in the whole batch, still on the device.

        Where the memory does not suffice, the batch goes through the network in twice as many parts from now on.
        """
        progress, recipe = self.progress, self.job.recipe
        rate = learning_rate(progress.epoch * self.updates + progress.batch, recipe.epochs * self.updates, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x_BCTHW = x_BCTHW.to(self.runtime.device, memory_format=self.runtime.memory_format, non_blocking=True)
        y_B = y_B.to(self.runtime.device, non_blocking=True)
        gradients = self.graphed or self._gradients
        while (sums := gradients(x_BCTHW, y_B, clips)) is None:
            self._halve(clips)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        loss_sum, hits = self.group.sum(sums)
        return loss_sum / clips, hits

    def _gradients(self, x_BCTHW: torch.Tensor, y_B: torch.Tensor, clips: int) -> torch.Tensor | None:
        """The gradients of a batch's mean loss, in `progress.parts` parts. Sums over the clips at hand: loss, right
        guesses; None where the memory did not suffice for a part that can be smaller."""
        parts = max(1, min(self.progress.parts, clips // self.group.size))
        sums = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            for part in range(parts):
                is_last = part == parts - 1
                with nullcontext() if is_last or self.group.size == 1 else self.called.no_sync():
                    sums += self._part(x_BCTHW, y_B, clips, part, parts)
        except (MemoryError, RuntimeError) as error:
            # in a group the others wait in the middle of this very batch, and nothing but the group's end frees them
            if not lacks_memory(error) or parts == clips or self.group.size > 1:
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

    def _forget_graph(self) -> None:
        if self.graphed is not None:
            self.graphed.forget()

    def _halve(self, clips: int) -> None:
        self.progress.parts = min(2 * self.progress.parts, clips)
        self.optimizer.zero_grad(set_to_none=True)
        self._forget_graph()
        self.runtime.release_memory()
        self.hooks.log(f"{self.job.id}: the memory did not suffice; batches of {self.job.recipe.batch_size} go through "
                       f"the network in {self.progress.parts} parts from now on, with batch norm over a part")

    def _settle_sums(self) -> None:
        """Brings the running sums to the host, as plain numbers."""
        progress = self.progress
        progress.loss_sum, progress.correct = float(progress.loss_sum), int(progress.correct)

    def _look(self) -> None:
        with self.watch.phase(STEP):  # here a GPU's work is waited for
            self._settle_sums()
        progress, recipe = self.progress, self.job.recipe
        loss = progress.loss_sum / progress.seen
        if not math.isfinite(loss):
            raise CandidateFailed(f"the loss became {loss} in epoch {progress.epoch + 1}")
        done, seconds = progress.epoch * self.updates + progress.batch, max(progress.train_s, 1e-9)
        self.hooks.tick(Tick(progress.epoch, recipe.epochs, done, recipe.epochs * self.updates, loss,
                             progress.clips / seconds, done / seconds))

    def _end_epoch(self) -> None:
        progress = self.progress
        self._settle_sums()
        row = {"epoch": progress.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"],
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

    def refresh_norms(self) -> None:
        """Precise batch-norm statistics, from fresh train clips. In a group every process looks at them all, since a
        variance is corrected by the number of clips in a batch."""
        batches = min(self.job.recipe.precise_bn_batches, self.updates)
        if batches:
            with self.watch.phase("norms_s"), self._train_batches(whole=True) as fresh:
                clips = (x for x, _ in self._stoppable(fresh.epoch(self.job.recipe.epochs)))
                measure_norms(self.result, clips, batches, self.runtime)

    def _stoppable(self, batches: Iterable[Any]) -> Iterator[Any]:
        """`batches` for as long as nobody asks to stop; the training itself is on disk by then."""
        for batch in batches:
            if self.hooks.stop():
                raise Interrupted("stopped", where=self.job.id)
            yield batch

    def evaluate(self, split: str) -> Evaluation:
        """Measures the network on `split` (`val` or `test`); in smaller batches where the memory does not suffice."""
        try:
            with self.watch.phase("evaluate_s"):
                return self._evaluation(split)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error) or self.progress.parts >= self.job.recipe.batch_size or self.group.size > 1:
                raise
        self._halve(self.job.recipe.batch_size)
        return self.evaluate(split)

    def _evaluation(self, split: str) -> Evaluation:
        clips, factors, recipe = getattr(self.data, split), self.job.factors, self.job.recipe
        mine = self.group.share(len(clips))
        batches = eval_loader(clips[mine.start:mine.stop], frames=factors.frames, stride=factors.stride,
                              resolution=factors.resolution, views=recipe.eval_clips,
                              batch_size=max(1, recipe.batch_size // self.progress.parts),
                              config=self.job.data_config, workers=self.runtime.loader_workers,
                              device=self.runtime.device)
        scores, labels = score_videos(self.result, self._stoppable(batches), len(mine), len(self.data.classes),
                                      self.runtime)
        return judged(*self._gathered(scores, labels, len(clips), mine))

    def _gathered(self, scores: torch.Tensor, labels: torch.Tensor, clips: int,
                  mine: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and labels of all clips, from those of each process's."""
        if self.group.size == 1:
            return scores, labels
        all_scores, all_labels = scores.new_zeros(clips, scores.shape[1]), labels.new_zeros(clips)
        all_scores[mine.start:mine.stop], all_labels[mine.start:mine.stop] = scores, labels
        return self.group.sum(all_scores), self.group.sum(all_labels)


def make_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; no weight decay on batch norm."""
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters()}
    groups = [{"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": recipe.weight_decay},
              {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)
