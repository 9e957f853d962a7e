"""What is to be trained, and how a training talks to the outside. No torch in here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from expand.config.schema import DataConfig, RecipeConfig
from expand.rundir.paths import CandidatePaths
from expand.space.factors import Factors
from expand.space.network import Network


@dataclass(frozen=True)
class Job:
    """One training: what, how, on which data settings, with which seed, and the files that it may write."""

    id: str
    network: Network
    gflops: float
    recipe: RecipeConfig
    data_config: DataConfig
    seed: int
    paths: CandidatePaths
    checkpoint_every_s: float
    first_weights: Path | None = None
    """A file with the weights to begin with; None: drawn with the seed."""
    weights: Path | None = None
    """Where the trained weights go, of a final training; None: a candidate."""
    parts: int = 1
    """At least so many times `RecipeConfig.accumulation` parts go through the network, from the start: the system ended
    an earlier try for lack of memory."""
    may_record: bool = True
    """Whether a step may be recorded as a CUDA graph: not after the GPU failed in an earlier try."""

    @property
    def factors(self) -> Factors:
        """The network's."""
        return self.network.factors

    @cached_property
    def identity(self) -> str:
        """Tells one training from another; a checkpoint of another identity is never continued.
        What it does not hold, clips and how they are read, a run guards by its own means
        (`run.resolve.check_unchanged`, the clips' fingerprint)."""
        network = replace(self.network, name="").as_dict()  # a run may be moved
        what = {"id": self.id, "network": network, "recipe": asdict(self.recipe), "seed": self.seed}
        if self.first_weights is not None:
            what["first_weights"] = hashlib.sha256(self.first_weights.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def candidate_seed(run_seed: int, identity: str) -> int:
    """A seed from the run's seed and the candidate's identity alone, so that the order of execution is no matter."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{identity}".encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Tick:
    """Progress for a display: update `update` of `updates` is done, in epoch `epoch` of `epochs`."""

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
    """How a training talks to the outside: `tick` after each look at the loss, `epoch` with each new row of
    metrics.csv, `log` for remarks, `stop` asks whether to end at the next update."""

    tick: Callable[[Tick], None] = lambda tick: None
    epoch: Callable[[dict[str, float]], None] = lambda row: None
    log: Callable[[str], None] = lambda text: None
    stop: Callable[[], bool] = lambda: False
