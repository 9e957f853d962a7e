"""A training job, and the hooks by which a training reports. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from expand.config.schema import DataConfig, RecipeConfig
from expand.rundir.paths import CandidatePaths
from expand.space.factors import Factors
from expand.space.network import Network


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

    @property
    def factors(self) -> Factors:
        """The factors of the network."""
        return self.network.factors

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
