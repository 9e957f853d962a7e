"""A training job, the arithmetic of its recipe, and the hooks by which a training reports. Imports no torch.

The recipe is the paper's, scaled to the data set (section 4; FACTS: recipe).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from expand.config.schema import DataConfig, RecipeConfig
from expand.data.loading import clips_of_batch, updates_per_epoch
from expand.errors import UsageError
from expand.rundir.paths import CandidatePaths
from expand.space.factors import Factors
from expand.space.geometry import Geometry
from expand.space.network import Network

REFERENCE_BATCH = 128
"""The batch size that `RecipeConfig.lr` is stated for where `lr_scaling` is linear."""
UPDATES = 2000
"""The number of updates that the epochs are chosen for, where the recipe leaves them open."""
EPOCHS = (30, 256)
BATCHES = (8, 128)
"""The bounds of epochs and batch size where the recipe leaves them open."""


class Kind(StrEnum):
    """The kind of a job: a step's candidate, or a final training, that of the winner or of a single network."""

    CANDIDATE = "candidate"
    FINAL = "final"


@dataclass(frozen=True)
class Job:
    """One training: its network, recipe, data settings and seed, and the files that it may write."""

    id: str
    network: Network
    gflops: float
    recipe: RecipeConfig
    data_config: DataConfig
    seed: int
    paths: CandidatePaths
    checkpoint_every_s: float
    first_weights: Path | None = None
    """A file with the initial weights; None: drawn with the seed."""
    candidate_weights: Path | None = None
    """The weights of the candidate that a final training must not fall behind; None: there is no candidate."""
    weights: Path | None = None
    """The file for the trained weights, of a final training only."""
    parts: int = 1
    """Batches are split into at least this many times `RecipeConfig.accumulation` micro-batches, from the start: the
    system ended an earlier try for lack of memory."""
    kind: Kind = Kind.CANDIDATE
    may_record: bool = True
    """False after the GPU failed in an earlier try: no step is recorded as a CUDA graph."""
    until: float = 1.0
    """The share of the training after which it is to pause, at a rung of its step's race; 1: not at all."""

    @property
    def factors(self) -> Factors:
        """The factors of the network."""
        return self.network.factors

    @property
    def outcome(self) -> Path:
        """The file for what comes of it."""
        return self.paths.outcome if self.until >= 1 else self.paths.outcome_at(self.until)

    @cached_property
    def identity(self) -> str:
        """A digest of all that makes this training, which never resumes from another one's checkpoint. Clips and
        how they are read are not part of it: a run checks them itself (`resolve.check_unchanged`, their fingerprint).
        """
        network = replace(self.network, name="").as_dict()  # a run may be moved
        what = {"id": self.id, "network": network, "recipe": asdict(self.recipe), "seed": self.seed}
        if self.first_weights is not None:
            what["first_weights"] = hashlib.sha256(self.first_weights.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def candidate_seed(run_seed: int, identity: str) -> int:
    """Return a candidate's seed. It follows from the run's seed and the candidate's identity alone, so that the order
    of execution does not matter."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{identity}".encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Tick:
    """A training's progress for a display: `update` of `updates` updates are done, in epoch `epoch` of `epochs`."""

    epoch: int
    epochs: int
    update: int
    updates: int
    loss: float
    clips_per_s: float
    updates_per_s: float

    @property
    def seconds_left(self) -> float:
        """Seconds to the end of the training at the present speed."""
        return (self.updates - self.update) / self.updates_per_s


@dataclass(frozen=True)
class Hooks:
    """A training's callbacks: `tick` after each look at the loss, `epoch` with each new row of metrics.csv; `stop`
    returns True if the training is to end at the next update."""

    tick: Callable[[Tick], None] = lambda tick: None
    epoch: Callable[[dict[str, float]], None] = lambda row: None
    stop: Callable[[], bool] = lambda: False


def resolve_recipe(recipe: RecipeConfig, clips: int) -> RecipeConfig:
    """Return `recipe` with its open values chosen for a train split of `clips` clips (see the fields' texts)."""
    batch_size = recipe.batch_size or min(max(clips // 8, BATCHES[0]), BATCHES[1])
    passes = math.ceil(UPDATES / updates_per_epoch(clips, batch_size))
    epochs = recipe.epochs or min(max(passes, EPOCHS[0]), EPOCHS[1])
    return replace(recipe, batch_size=batch_size, epochs=epochs)


def sizes(recipe: RecipeConfig) -> tuple[int, int]:
    """Return the epochs and the batch size of a recipe that `resolve_recipe` made."""
    if recipe.epochs is None or recipe.batch_size is None:
        raise ValueError("the recipe is not resolved")
    return recipe.epochs, recipe.batch_size


def max_micro_batches(clips: int, geometry: Geometry) -> int:
    """Return into how many micro-batches a batch of `clips` can be split: none has fewer than `Geometry.least_clips`.
    """
    return max(1, clips // geometry.least_clips)


def check_batches(recipe: RecipeConfig, clips: int, geometry: Geometry, section: str = "final") -> None:
    """Raise `UsageError` if a batch of `clips` train clips has too few values a channel for batch norm in the network
    `geometry`. `section` holds the recipe's options: `candidate` or `final`."""
    _, batch_size = sizes(recipe)
    smallest = clips_of_batch(updates_per_epoch(clips, batch_size) - 1, clips, batch_size)
    if smallest >= geometry.least_clips:
        return
    reason = (f"batch norm needs two values a channel, and of a clip of {geometry.frames} frame and "
              f"{geometry.resolution} pixels the last layers have one")
    if batch_size < geometry.least_clips:
        raise UsageError(f"batches of {smallest} clip cannot be trained on: {reason}", where=f"{section}.batch_size",
                         fix=f"take {geometry.least_clips} clips or more a batch (--set {section}.batch_size=8), "
                             "or a network of more frames or pixels")
    raise UsageError(f"{smallest} train clip alone cannot be trained on: {reason}", where="data.train",
                     fix="give more clips, or take a network of more frames or pixels")


def learning_rate(update: int, updates: int, recipe: RecipeConfig) -> float:
    """Return the learning rate of `update`, of `updates` in all: half a period of a cosine, after a linear warm-up from
    `warmup_start` x the peak."""
    peak = recipe.lr * sizes(recipe)[1] / REFERENCE_BATCH if recipe.lr_scaling == "linear" else recipe.lr

    def cosine(at: float) -> float:
        return peak * 0.5 * (1 + math.cos(math.pi * at / updates))

    warmup = recipe.warmup_share * updates
    if update >= warmup:
        return cosine(update)
    start = recipe.warmup_start * peak
    return start + (cosine(warmup) - start) * update / warmup
