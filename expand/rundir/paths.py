"""Every file name of a run, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from expand.errors import RunError

CANDIDATE_ID = re.compile(r"[a-z0-9_-]{1,100}")
"""What a candidate may be called: it names a folder, so it can hold neither a dot nor a separator."""


@dataclass(frozen=True)
class CandidatePaths:
    """The files of one network in training: a candidate's, or the final training's."""

    dir: Path

    @property
    def spec(self) -> Path:
        """What is trained: factors, complexity, seed."""
        return self.dir / "spec.yaml"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.dir / "metrics.csv"

    @property
    def checkpoint(self) -> Path:
        """Weights, optimiser and position, to go on from."""
        return self.dir / "checkpoint.pt"

    @property
    def outcome(self) -> Path:
        """The result; there only when training has ended."""
        return self.dir / "outcome.json"


@dataclass(frozen=True)
class RunPaths:
    """The files of the run in the folder `root`. Makes names only; creates nothing."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @property
    def config(self) -> Path:
        """The configuration with every default written out."""
        return self.root / "config.yaml"

    @property
    def env(self) -> Path:
        """Versions, git, hardware, seeds."""
        return self.root / "env.json"

    @property
    def journal(self) -> Path:
        """The only truth about the run: one event a line."""
        return self.root / "journal.jsonl"

    @property
    def training(self) -> Path:
        """What a training that belongs to no search was begun with; its presence tells the two apart."""
        return self.root / "training.yaml"

    @property
    def first_weights(self) -> Path:
        """The weights that such a training began with, where it did not draw them."""
        return self.root / "first_weights.pt"

    @property
    def clips(self) -> Path:
        """The clips that a run uses, with their classes and splits, as they were when it began."""
        return self.root / "clips.csv"

    @property
    def tensorboard(self) -> Path:
        """The folder of such a training's TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def log(self) -> Path:
        """What the run said, for people."""
        return self.root / "log.txt"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run (`expand.rundir.lock`)."""
        return self.root / "lock"

    @property
    def candidates(self) -> Path:
        """The folder of the candidates' folders."""
        return self.root / "candidates"

    @property
    def final(self) -> Path:
        """The folder of the winner: weights, network YAML, model card, exports."""
        return self.root / "final"

    @property
    def network(self) -> Path:
        """The winner's factors."""
        return self.final / "network.yaml"

    @property
    def weights(self) -> Path:
        """The winner's trained weights."""
        return self.final / "weights.pt"

    @property
    def card(self) -> Path:
        """The winner's model card."""
        return self.final / "README.md"

    @property
    def latency(self) -> Path:
        """The winner's measured latency."""
        return self.final / "latency.json"

    @property
    def tests(self) -> Path:
        """The folder of what `test` measured later."""
        return self.root / "test"

    @property
    def report(self) -> Path:
        """The folder of what is derived from the journal; may be deleted and rebuilt at will."""
        return self.root / "report"

    @property
    def steps_csv(self) -> Path:
        """A row a candidate."""
        return self.report / "steps.csv"

    @property
    def plot_png(self) -> Path:
        """The expansion figure, pixels."""
        return self.report / "expansion.png"

    @property
    def plot_svg(self) -> Path:
        """The expansion figure, vectors."""
        return self.report / "expansion.svg"

    @property
    def final_candidate(self) -> CandidatePaths:
        """The final training's files: the same names as a candidate's, in `final/`."""
        return CandidatePaths(self.final)

    def candidate(self, candidate_id: str) -> CandidatePaths:
        """The files of the candidate `candidate_id`.

        Raises `RunError` for an id that is not made of `a-z 0-9 _ -`: such a name could lead out of the run.
        """
        if not isinstance(candidate_id, str) or not CANDIDATE_ID.fullmatch(candidate_id):
            raise RunError(f"{candidate_id!r} cannot be the name of a candidate", where=str(self.root),
                           fix="A name has 1 to 100 characters from a-z, 0-9, '_' and '-'.")
        return CandidatePaths(self.candidates / candidate_id)
