"""Training one network, from its initial weights to its measured accuracy. It can stop and resume at any update.

Two averages make the measured network: a moving average of its weights (`MovingAverage`), and precise batch norm, which
replaces the running statistics, a trail of those along the way, by the statistics of the final weights over many clips.
"""

from __future__ import annotations

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from expand.config.schema import RecipeConfig
from expand.data import PreparedData
from expand.data.loading import clips_of_batch, updates_per_epoch
from expand.data.loading.loader import TrainBatches, eval_loader
from expand.errors import CandidateFailed, Interrupted, UsageError, lacks_memory
from expand.machine import give_back_freed_memory
from expand.model import X3D
from expand.model.load import load_checkpoint
from expand.training import checkpoint
from expand.training.checkpoint import Extent
from expand.training.cuda_graphs import GraphedStep
from expand.training.distributed import ALONE, Group, distribute
from expand.training.evaluate import Evaluation, evaluation_of, score_videos
from expand.training.job import Hooks, Job, Tick, check_batches, learning_rate, max_micro_batches, sizes
from expand.training.progress import CLIPS, PHASES, STEP, Metrics, Progress, Stopwatch
from expand.training.runtime import Runtime

with warnings.catch_warnings():  # fvcore compiles its losses with torch.jit on import, which torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

logger = logging.getLogger(__name__)

CHECK_EVERY = 10
"""Updates between two looks at the loss; each look waits for the GPU."""
T = TypeVar("T")


class Training:
    """One network in training: `fit` trains it to the end of its recipe, `refresh_batch_norm` gives it precise
    batch-norm statistics, `evaluate` measures it.

    In a `group`, each process takes its share of every batch and of every evaluation; the first one writes the files.
    If memory runs out, batches are split into twice as many micro-batches, for the rest of the training.
    """

    def __init__(self, job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks, group: Group = ALONE) -> None:
        self.job, self.data, self.runtime, self.hooks, self.group = job, data, runtime, hooks, group
        self.epochs, self.batch_size = sizes(job.recipe)
        self.updates = updates_per_epoch(len(data.train), self.batch_size)
        self.metrics = Metrics(job.paths.metrics)
        self.watch = Stopwatch({})
        with self.watch.phase("build_s"):
            runtime.prepare()
            runtime.reset_peak_memory()
            try:
                check_batches(job.recipe, len(data.train), job.network.geometry)
            except UsageError as error:
                raise CandidateFailed(error.what) from error
            torch.manual_seed(job.seed)
            self.model = X3D.of(job.network, dropout=job.recipe.dropout)
            if job.first_weights is not None:
                load_checkpoint(self.model, job.first_weights)
            self.model.to(runtime.device).to(memory_format=runtime.memory_format)
            self.optimizer = make_optimizer(self.model, job.recipe)
            self.called: Callable[[Tensor], Tensor] = distribute(self.model, group, runtime.device)
            self.graphed = GraphedStep(self.gradients, list(self.model.parameters()), job.id) \
                if runtime.cuda_graphs and job.may_record and group.size == 1 else None
            self.average = MovingAverage(self.model, job.recipe.ema) if job.recipe.ema else None

            extent = Extent(self.epochs, len(data.train), self.batch_size)
            found, self.last_is_good = checkpoint.restore_newest(job, self.model, self.optimizer, extent, self.average)
            self.progress = found or Progress()
            self.progress.parts = min(self._max_micro_batches(self.batch_size),
                                      max(self.progress.parts, job.recipe.accumulation * job.parts))
        self.trained_parts = self.progress.parts
        self.watch.resume(self.progress.seconds)
        self.saved = time.monotonic()

    @property
    def result(self) -> X3D:
        """The network that is measured and kept: the moving average if there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def done(self) -> int:
        """The number of updates that are done, of `epochs` x `updates`."""
        return self.progress.epoch * self.updates + self.progress.batch

    def updates_until(self, share: float) -> int:
        """Return how many updates a share of the training is, rounded up."""
        return math.ceil(share * self.epochs * self.updates)

    @property
    def share(self) -> float:
        """The share of the updates that is done, 0 to 1."""
        return self.done / (self.epochs * self.updates)

    def fit(self, until: float = 1.0) -> None:
        """Train to the end of the recipe, or until a share `until` of its updates is done; a later call goes on, and
        what comes of it is the same as without the halt. At each epoch's end, check the weights, measure on val if the
        recipe says so, and add a row to metrics.csv.

        Raises `Interrupted` (after a checkpoint) when asked to stop, `CandidateFailed` when the loss or a weight is not
        finite.
        """
        progress, every = self.progress, self.job.recipe.eval_every
        last = self.updates_until(until)
        with self._train_batches() as batches:
            while self.done < last or progress.batch == self.updates:  # that update was done, its epoch was not ended
                self.model.train()
                for x_BCTHW, y_B in self.watch.each(CLIPS, batches.epoch(progress.epoch, progress.batch)):
                    clips = clips_of_batch(progress.batch, len(self.data.train), self.batch_size)
                    with self.watch.phase(STEP):
                        loss, hits = self.update(x_BCTHW, y_B, clips)
                        progress.batch += 1
                        progress.seen += clips
                        progress.clips += clips
                        progress.loss_sum = progress.loss_sum + loss * clips  # the sums stay on the device
                        progress.correct = progress.correct + hits
                    if progress.batch % CHECK_EVERY == 0 or progress.batch == self.updates:
                        with self.watch.phase(STEP):
                            loss_sum, _ = self._fetch_sums()
                        seconds = max(progress.train_s, 1e-9)
                        self.hooks.tick(Tick(progress.epoch, self.epochs, self.done, self.epochs * self.updates,
                                             loss_sum / progress.seen, progress.clips / seconds, self.done / seconds))
                    if self.group.any(self.hooks.stop()):
                        self.save()
                        raise Interrupted("stopped", where=self.job.id)
                    if time.monotonic() - self.saved >= self.job.checkpoint_every_s:
                        self.save()
                    if self.done == last:
                        break
                if progress.batch < self.updates:  # halted in the middle of an epoch
                    break
                loss_sum, correct = self._fetch_sums()
                self._check_weights(f"after epoch {progress.epoch + 1}")
                row = {"epoch": progress.epoch + 1, "lr": self._learning_rate(progress.batch - 1),
                       "loss": loss_sum / progress.seen, "accuracy": correct / progress.seen,
                       "train_s": round(progress.train_s, 3)}
                if every and (progress.epoch + 1) % every == 0:
                    self.save()  # an interruption of the evaluation costs the evaluation alone
                    evaluation = self.evaluate("val")
                    row |= {"val_accuracy": evaluation.accuracy, "val_loss": evaluation.loss}
                elif every:
                    row |= {"val_accuracy": math.nan, "val_loss": math.nan}
                progress.rows.append(row)
                progress.epoch, progress.batch = progress.epoch + 1, 0
                progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
                if self.group.is_first:
                    with self.watch.phase("disk_s"):
                        self.metrics.write(progress.rows, is_last=progress.epoch == self.epochs)
                self.hooks.epoch(row)
        self._forget_graph()
        self.trained_parts = min(progress.parts, self._max_micro_batches(self.batch_size))
        self.save()

    def update(self, x_BCTHW: Tensor, y_B: Tensor, clips: int) -> tuple[Tensor, Tensor]:
        """Take one step of SGD on a batch of `clips` clips, of which `x_BCTHW` is this process's share.

        Returns the mean loss and the number of right guesses of the whole batch, still on the device.
        """
        rate = self._learning_rate(self.progress.batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x_BCTHW = x_BCTHW.to(self.runtime.device, memory_format=self.runtime.memory_format, non_blocking=True)
        y_B = y_B.to(self.runtime.device, non_blocking=True)
        while (sums := (self.graphed or self.gradients)(x_BCTHW, y_B, clips)) is None:
            self._use_less_memory(self._max_micro_batches(clips))
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        loss_sum, hits = self.group.sum(sums)
        return loss_sum / clips, hits

    def gradients(self, x_BCTHW: Tensor, y_B: Tensor, clips: int) -> Tensor | None:
        """Compute the gradients of a batch's mean loss, accumulated over `progress.parts` micro-batches.

        Returns two sums over this process's share, the loss and the right guesses; None if memory ran out and
        micro-batches can be smaller.
        """
        # in a group, batch norm averages over all processes, so that one clip in each may suffice
        most = self._max_micro_batches(clips) if self.group.size == 1 else max(1, clips // self.group.size)
        parts = min(self.progress.parts, most)
        sums = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            for part in range(parts):
                is_last = part == parts - 1  # only then do the processes exchange gradients
                no_sync = nullcontext if is_last or not isinstance(self.called, DistributedDataParallel) \
                    else self.called.no_sync
                with no_sync():
                    rows = slice(part * len(y_B) // parts, (part + 1) * len(y_B) // parts)
                    sums += self._micro_batch(x_BCTHW[rows], y_B[rows], clips)
        except (MemoryError, RuntimeError) as error:
            # in a group, the other processes wait in the middle of this batch; only the end of the group frees them
            if not lacks_memory(error) or parts == most or self.group.size > 1:
                raise
            return None
        return sums

    def _micro_batch(self, x_BCTHW: Tensor, y_B: Tensor, clips: int) -> Tensor:
        """Run one micro-batch of a batch of `clips` forward and backward; return its summed loss and right guesses.

        A function of its own, so that nothing of one micro-batch is in memory during the next.
        """
        with self.runtime.autocast():
            logits_BK = self.called(x_BCTHW)
            loss = nn.functional.cross_entropy(logits_BK, y_B, label_smoothing=self.job.recipe.label_smoothing,
                                               reduction="sum")
        (loss * (self.group.size / clips)).backward()  # gradients are averaged over the processes of a group
        return torch.stack([loss.detach().double(), (logits_BK.detach().argmax(1) == y_B).sum().double()])

    def _learning_rate(self, batch: int) -> float:
        """Return the learning rate of update `batch` of this epoch."""
        update = self.progress.epoch * self.updates + batch
        return learning_rate(update, self.epochs * self.updates, self.job.recipe)

    def _fetch_sums(self) -> tuple[float, int]:
        """Bring the running sums to the host, waiting for the GPU. Raises `CandidateFailed` for a loss that is not
        finite."""
        progress = self.progress
        loss_sum, correct = float(progress.loss_sum), int(progress.correct)
        progress.loss_sum, progress.correct = loss_sum, correct
        if not math.isfinite(loss_sum):
            raise CandidateFailed(f"the loss became {loss_sum} in epoch {progress.epoch + 1}")
        return loss_sum, correct

    def mean_loss(self) -> float:
        """Return the mean training loss of the epoch so far, or of the last one where none has begun.
        """
        progress = self.progress
        return self._fetch_sums()[0] / progress.seen if progress.seen else progress.rows[-1]["loss"]

    def _check_weights(self, moment: str) -> None:
        """Raise `CandidateFailed` if a weight is not finite. A compiled operator may turn a NaN into 0 (a maximum
        does), so that neither the loss nor a score shows it."""
        weights = self.result.state_dict()
        is_good = torch.stack([torch.isfinite(tensor).all() for tensor in weights.values()]).tolist()  # one wait
        bad = [name for name, good in zip(weights, is_good, strict=True) if not good]
        if bad:
            raise CandidateFailed(f"{len(bad)} of its weights are not finite {moment}, such as {bad[0]}")

    def save(self) -> None:
        """Write a checkpoint; the last one becomes the previous one, unless it was found damaged. Raises
        `CandidateFailed` if the loss is not finite: such a training cannot resume."""
        with self.watch.phase("disk_s"):
            self._fetch_sums()
            if self.group.is_first:
                paths = self.job.paths
                checkpoint.save(paths.checkpoint, self.job.identity, self.model, self.optimizer, self.progress,
                                self.average, paths.checkpoint_before if self.last_is_good else None)
        self.last_is_good, self.saved = True, time.monotonic()

    def refresh_batch_norm(self) -> None:
        """Compute precise batch-norm statistics from fresh train clips.

        In a group, every process uses all the clips: a variance is corrected by the number of clips in a batch.
        """
        recipe, clips = self.job.recipe, len(self.data.train)
        batches = min(recipe.precise_bn_batches, self.updates)
        if not batches:
            return

        def measure() -> None:
            # gradient accumulation alone does not split these batches, lack of memory does
            parts = max(1, self.progress.parts // recipe.accumulation)
            counts = [min(parts, self._max_micro_batches(clips_of_batch(batch, clips, self.batch_size)))
                      for batch in range(batches)]
            with self._train_batches(whole=True) as fresh:
                chosen = zip(self._stoppable(fresh.epoch(self.epochs)), counts, strict=False)
                pieces = (piece for (x_BCTHW, _), count in chosen for piece in x_BCTHW.tensor_split(count))
                update_precise_bn(self.result, pieces, sum(counts), self.runtime)

        with self.watch.phase("norms_s"):
            self._retry_with_less_memory(measure, self._max_micro_batches(self.batch_size))
        self._check_weights("after its norms were measured")

    def evaluate(self, split: str) -> Evaluation:
        """Measure the network on `split` (`val` or `test`); in a group, each process measures its share of the clips.
        """
        clips, factors, views = getattr(self.data, split), self.job.factors, self.job.recipe.eval_clips
        mine = self.group.share(len(clips))

        def measure() -> Evaluation:
            size = self._evaluation_batch
            batches = eval_loader(clips[mine.start:mine.stop], frames=factors.frames, stride=factors.stride,
                                  resolution=factors.resolution, views=views, batch_size=size,
                                  config=self.job.data_config, workers=self.runtime.loader_workers,
                                  device=self.runtime.device)
            most = max(len(self.group.share_of(rank, len(clips))) for rank in range(self.group.size))
            scores, labels = score_videos(self.result, self._stoppable(batches, -(-most * views // size)), len(mine),
                                          len(self.data.classes), self.runtime)
            if self.group.size > 1:
                all_scores, all_labels = scores.new_zeros(len(clips), scores.shape[1]), labels.new_zeros(len(clips))
                all_scores[mine.start:mine.stop], all_labels[mine.start:mine.stop] = scores, labels
                scores, labels = self.group.sum(all_scores), self.group.sum(all_labels)
            return evaluation_of(scores, labels)

        with self.watch.phase("evaluate_s"):
            return self._retry_with_less_memory(measure, self.batch_size)

    @property
    def _evaluation_batch(self) -> int:
        """Clips that go through the network at a time in an evaluation."""
        return max(1, self.batch_size // self.progress.parts)

    @property
    def notes(self) -> list[str]:
        """Remarks on the training for its outcome: what lack of memory changed."""
        found = []
        if self.trained_parts > self.job.recipe.accumulation:
            found.append(f"for lack of memory, batches of {self.batch_size} were split into {self.trained_parts} "
                         "micro-batches")
        if self.progress.parts > self.trained_parts:
            found.append(f"for lack of memory, it was measured in batches of {self._evaluation_batch}")
        return found

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every phase until now, over all starts; their sum is the wall time."""
        self.watch.update()
        return {phase: self.progress.seconds.get(phase, 0.0) for phase in PHASES}

    def _train_batches(self, *, whole: bool = False) -> TrainBatches:
        """Return the training's batches: this process's share of each, or each one `whole`."""
        job = self.job
        return TrainBatches(self.data, frames=job.factors.frames, stride=job.factors.stride,
                            resolution=job.factors.resolution, batch_size=self.batch_size, seed=job.seed,
                            config=job.data_config, workers=self.runtime.loader_workers,
                            share=None if whole else self.group.share, device=self.runtime.device)

    def _stoppable(self, batches: Iterable[Any], rounds: int = 0) -> Iterator[Any]:
        """Yield `batches` until a process of the group is asked to stop. The training itself is on disk by then.

        All processes stop at the same batch, so each one asks the group at least `rounds` times: as often as the one
        with the most batches.
        """
        for number, batch in enumerate(chain(batches, repeat(None))):
            if batch is None and number >= rounds:
                return
            if self.group.any(self.hooks.stop()):
                raise Interrupted("stopped", where=self.job.id)
            if batch is not None:
                yield batch

    def _retry_with_less_memory(self, work: Callable[[], T], most: int) -> T:
        """Return what `work` returns. While it runs out of memory, repeat it with more micro-batches, up to `most`."""
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not lacks_memory(error) or self.progress.parts >= most or self.group.size > 1:
                    raise
            self._use_less_memory(most)

    def _max_micro_batches(self, clips: int) -> int:
        return max_micro_batches(clips, self.model.geometry)

    def _use_less_memory(self, most: int) -> None:
        """Split batches into twice as many micro-batches from now on, but not into more than `most`."""
        self.progress.parts = min(2 * self.progress.parts, most)
        self.optimizer.zero_grad(set_to_none=True)
        self._forget_graph()
        self.runtime.release_memory()
        give_back_freed_memory()
        logger.warning(f"{self.job.id}: out of memory; batches of {self.batch_size} are split into "
                       f"{self.progress.parts} micro-batches from now on, and batch norm averages over a micro-batch")

    def _forget_graph(self) -> None:
        if self.graphed is not None:
            self.graphed.forget()


def make_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimiser; without weight decay on batch norm."""
    norms = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
    groups = [{"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": recipe.weight_decay},
              {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0}]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)


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
            if isinstance(module, nn.Dropout):  # behind every batch norm: it would only draw random numbers
                module.p = 0.0
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
