"""Measuring a network in training: its batch norms and its accuracy, within the memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any, TypeVar

import torch
from torch.optim.swa_utils import AveragedModel

from expand.data import PreparedData
from expand.data.loading.batches import clips_of_batch, updates_per_epoch
from expand.data.loading.loader import TrainBatches, eval_loader
from expand.device_faults import lacks_memory
from expand.errors import CandidateFailed, Interrupted
from expand.machine import give_back_freed_memory
from expand.model import X3D
from expand.training.checkpoint import Progress
from expand.training.cuda_graphs import GraphedStep
from expand.training.distributed import Group
from expand.training.evaluate import Evaluation, judged, score_videos
from expand.training.job import Hooks, Job
from expand.training.precise_batch_norm import measure_norms
from expand.training.recipe import most_parts
from expand.training.runtime import Runtime
from expand.training.stopwatch import Stopwatch

T = TypeVar("T")


class Measured:
    """What `Training` can tell of its network between updates and after the last one; `Training` sets the fields."""

    job: Job
    data: PreparedData
    runtime: Runtime
    hooks: Hooks
    group: Group
    watch: Stopwatch
    model: X3D
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    graphed: GraphedStep | None
    progress: Progress
    parts: int
    """Parts of a batch in the last update."""

    @property
    def result(self) -> X3D:
        """The network that is measured and kept: the moving average where there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def updates(self) -> int:
        """Updates of an epoch."""
        return updates_per_epoch(len(self.data.train), self.job.recipe.batch_size)

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it was trained and measured."""
        recipe, found = self.job.recipe, []
        if self.parts > recipe.accumulation:
            found.append(f"for lack of memory, batches of {recipe.batch_size} went through the network in {self.parts} "
                         "parts")
        if self.progress.parts > self.parts:
            found.append("for lack of memory, it was measured in batches of "
                         f"{self._measured_batch}")
        return found

    def refresh_norms(self) -> None:
        """Precise batch-norm statistics, from fresh train clips, in smaller batches where the memory does not suffice.
        In a group every process looks at them all, since a variance is corrected by the number of clips in a batch."""
        batches = min(self.job.recipe.precise_bn_batches, self.updates)
        if batches:
            with self.watch.phase("norms_s"):
                self._with_less_memory(lambda: self._measure_norms(batches),
                                       self._most_parts(self.job.recipe.batch_size))
            self._check_weights("after its norms were measured")

    def _measure_norms(self, batches: int) -> None:
        recipe, clips = self.job.recipe, len(self.data.train)
        parts = max(1, self.progress.parts // recipe.accumulation)  # an accumulation alone has whole batches here
        counts = [min(parts, self._most_parts(clips_of_batch(batch, clips, recipe.batch_size)))
                  for batch in range(batches)]
        with self._train_batches(whole=True) as fresh:
            chosen = zip(self._stoppable(fresh.epoch(recipe.epochs)), counts, strict=False)
            pieces = (piece for (x_BCTHW, _), count in chosen for piece in x_BCTHW.tensor_split(count))
            measure_norms(self.result, pieces, sum(counts), self.runtime)

    def _most_parts(self, clips: int) -> int:
        """Into how many parts a batch of `clips` can go, with batch norm over a part."""
        return most_parts(clips, self.model.geometry)

    def _with_less_memory(self, work: Callable[[], T], most: int) -> T:
        """What `work` gives; where its memory did not suffice it is done again, with half of each batch at a time, down
        to `most` parts."""
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not lacks_memory(error) or self.progress.parts >= most or self.group.size > 1:
                    raise
            self._halve(most)

    def _stoppable(self, batches: Iterable[Any], rounds: int = 0) -> Iterator[Any]:
        """`batches` for as long as no process of the group is asked to stop; the training itself is on disk by then.

        All processes stop at the same batch, so every one asks the group at least `rounds` times: as often as the one
        with the most batches.
        """
        for number, batch in enumerate(chain(batches, repeat(None))):
            if batch is None and number >= rounds:
                return
            if self.group.any(self.hooks.stop()):
                raise Interrupted("stopped", where=self.job.id)
            if batch is not None:
                yield batch

    def evaluate(self, split: str) -> Evaluation:
        """Measures the network on `split` (`val` or `test`); in smaller batches where the memory does not suffice."""
        with self.watch.phase("evaluate_s"):
            return self._with_less_memory(lambda: self._evaluation(split), self.job.recipe.batch_size)

    @property
    def _measured_batch(self) -> int:
        """Clips that go through the network at a time when it is measured."""
        return max(1, self.job.recipe.batch_size // self.progress.parts)

    def _evaluation(self, split: str) -> Evaluation:
        clips, factors, recipe = getattr(self.data, split), self.job.factors, self.job.recipe
        mine = self.group.share(len(clips))
        batches = eval_loader(clips[mine.start:mine.stop], frames=factors.frames, stride=factors.stride,
                              resolution=factors.resolution, views=recipe.eval_clips,
                              batch_size=self._measured_batch,
                              config=self.job.data_config, workers=self.runtime.loader_workers,
                              device=self.runtime.device)
        most = max(len(self.group.share_of(rank, len(clips))) for rank in range(self.group.size))
        rounds = -(-most * recipe.eval_clips // self._measured_batch)
        scores, labels = score_videos(self.result, self._stoppable(batches, rounds), len(mine),
                                      len(self.data.classes), self.runtime)
        return judged(*self._gathered(scores, labels, len(clips), mine))

    def _gathered(self, scores: torch.Tensor, labels: torch.Tensor, clips: int,
                  mine: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and labels of all clips, from those of each process's."""
        if self.group.size == 1:
            return scores, labels
        all_scores, all_labels = scores.new_zeros(clips, scores.shape[1]), labels.new_zeros(clips)
        all_scores[mine.start:mine.stop], all_labels[mine.start:mine.stop] = scores, labels
        return self.group.sum(all_scores), self.group.sum(all_labels)

    def _train_batches(self, *, whole: bool = False) -> TrainBatches:
        """The batches of a training: this process's share of each, or each `whole`."""
        job = self.job
        return TrainBatches(self.data, frames=job.factors.frames, stride=job.factors.stride,
                            resolution=job.factors.resolution, batch_size=job.recipe.batch_size, seed=job.seed,
                            config=job.data_config, workers=self.runtime.loader_workers,
                            share=None if whole else self.group.share, device=self.runtime.device)

    def _check_weights(self, moment: str) -> None:
        """A compiled operator may turn a NaN into 0 (a maximum does), so that no loss and no score tells of it."""
        weights = self.result.state_dict()
        is_good = torch.stack([torch.isfinite(tensor).all() for tensor in weights.values()]).tolist()  # one wait
        spoilt = [name for name, good in zip(weights, is_good, strict=True) if not good]
        if spoilt:
            raise CandidateFailed(f"{len(spoilt)} of its weights are not finite {moment}, such as {spoilt[0]}")

    def _halve(self, most: int) -> None:
        """Twice as many parts from now on, but not more than `most`."""
        self.progress.parts = min(2 * self.progress.parts, most)
        self.optimizer.zero_grad(set_to_none=True)
        self._forget_graph()
        self.runtime.release_memory()
        give_back_freed_memory()
        self.hooks.log(f"{self.job.id}: the memory did not suffice; batches of {self.job.recipe.batch_size} go through "
                       f"the network in {self.progress.parts} parts from now on, with batch norm over a part")

    def _forget_graph(self) -> None:
        if self.graphed is not None:
            self.graphed.forget()
