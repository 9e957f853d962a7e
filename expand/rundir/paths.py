"""Every file name of a run, in one place, and the one definition of what is inside a run.

A run may be untrusted. Every name is checked before it is given out: it is refused where links on its way lead out of
the run's folder, or where something else stands there than a file or folder as it should be (a pipe would block the
process that opens it). Links that stay inside are followed, and so is one that leads to the run's folder itself. The
check costs tens of microseconds, and holds for the moment: it does not guard against a process that changes the folder
meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expand.errors import RunError
from expand.expansion.state import CANDIDATE_ID
from expand.untrusted_input import file_type

FINAL, NETWORK, WEIGHTS = "final", "network.yaml", "weights.pt"


def inside(root: Path, path: Path, *, folder: bool = False) -> Path:
    """Return `path`, which begins with `root`, where it may be used: it is a file (or a `folder`) in `root`, or nothing
    is there yet. Raises `RunError` otherwise."""
    place = root
    for part in path.relative_to(root).parts:
        place = place / part
        try:
            mode = os.lstat(place).st_mode
            if stat.S_ISLNK(mode):
                base, end = os.path.realpath(root), os.path.realpath(place)
                if os.path.commonpath((base, end)) != base:
                    raise RunError(f"is a link that leads out of the run, to {end}", where=str(place),
                                   fix="Put what it leads to in its place. To keep a run on another disk, move all of "
                                       "it there and link to its folder.")
                mode = os.stat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):  # the latter: `root` is no folder
            return path
        except OSError as error:
            raise RunError(f"cannot be used: {error.strerror or error}", where=str(place),
                           fix="Check the permissions there, or take it away.") from error
        is_folder = folder or place != path
        if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
            raise RunError(f"is {file_type(mode)}, and a run has a {'folder' if is_folder else 'file'} there",
                           where=str(place), fix="Take it away, or take the run back from a copy.")
    return path


@dataclass(frozen=True)
class CandidatePaths:
    """The files of one network in training, in the folder `dir`: a candidate's, or the final training's. `root` is the
    run's folder (by default `dir`), which no name may lead out of."""

    dir: Path
    root: Path | None = None

    def _file(self, name: str) -> Path:
        return inside(self.root or self.dir, self.dir / name)

    @property
    def spec(self) -> Path:
        """The network in training: factors, complexity, seed."""
        return self._file("spec.yaml")

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self._file("metrics.csv")

    @property
    def checkpoint(self) -> Path:
        """Weights, optimiser and position, to go on from."""
        return self._file("checkpoint.pt")

    @property
    def checkpoint_before(self) -> Path:
        """The one before, for as long as the training goes on."""
        return self._file("checkpoint-before.pt")

    @property
    def outcome(self) -> Path:
        """The result; there only when training has ended."""
        return self._file("outcome.json")

    @property
    def damaged_outcome(self) -> Path:
        """A result that could not be read, set aside."""
        return self._file("outcome-damaged.json")


@dataclass(frozen=True)
class RunPaths:
    """The files of the run in the folder `root`. Makes names only; creates nothing.

    Every property raises `RunError` where the name leads out of the run, or something of another kind is there.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    def _file(self, *parts: str) -> Path:
        return inside(self.root, self.root.joinpath(*parts))

    def _folder(self, *parts: str) -> Path:
        return inside(self.root, self.root.joinpath(*parts), folder=True)

    @property
    def config(self) -> Path:
        """The configuration with every default written out."""
        return self._file("config.yaml")

    @property
    def env(self) -> Path:
        """Versions, git, hardware, seeds."""
        return self._file("env.json")

    @property
    def journal(self) -> Path:
        """The only truth about the run: one event a line."""
        return self._file("journal.jsonl")

    @property
    def training(self) -> Path:
        """The beginning of a training that belongs to no search; its presence tells the two apart."""
        return self._file("training.yaml")

    @property
    def first_weights(self) -> Path:
        """The weights that such a training began with, where it did not draw them."""
        return self._file("first_weights.pt")

    @property
    def clips(self) -> Path:
        """The clips that a run uses, with their classes and splits, as they were when it began."""
        return self._file("clips.csv")

    @property
    def clips_begun(self) -> Path:
        """The same, with hashes of the clips; never edited, so that changes of the other can be told."""
        return self._file("clips-begun.csv")

    @property
    def tensorboard(self) -> Path:
        """The folder of such a training's TensorBoard events."""
        return self._folder("tensorboard")

    @property
    def log(self) -> Path:
        """The events and remarks of the run, for people."""
        return self._file("log.txt")

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run (`expand.rundir.lock`)."""
        return self._file("lock")

    @property
    def candidates(self) -> Path:
        """The folder of the candidates' folders."""
        return self._folder("candidates")

    @property
    def final(self) -> Path:
        """The folder of the winner: weights, network YAML, model card, exports."""
        return self._folder(FINAL)

    @property
    def network(self) -> Path:
        """The winner's factors."""
        return self._file(FINAL, NETWORK)

    @property
    def weights(self) -> Path:
        """The winner's trained weights."""
        return self._file(FINAL, WEIGHTS)

    @property
    def card(self) -> Path:
        """The winner's model card."""
        return self._file(FINAL, "README.md")

    @property
    def latency(self) -> Path:
        """The winner's measured latency."""
        return self._file(FINAL, "latency.json")

    @property
    def tests(self) -> Path:
        """The folder of what `test` measured later."""
        return self._folder("test")

    @property
    def report(self) -> Path:
        """The folder of what is derived from the journal; may be deleted and rebuilt at will."""
        return self._folder("report")

    @property
    def steps_csv(self) -> Path:
        """A row a candidate."""
        return self._file("report", "steps.csv")

    @property
    def plot_png(self) -> Path:
        """The expansion figure, pixels."""
        return self._file("report", "expansion.png")

    @property
    def plot_svg(self) -> Path:
        """The expansion figure, vectors."""
        return self._file("report", "expansion.svg")

    @property
    def final_candidate(self) -> CandidatePaths:
        """The final training's files: the same names as a candidate's, in `final/`."""
        return CandidatePaths(self.final, self.root)

    def candidate(self, candidate_id: str) -> CandidatePaths:
        """The files of the candidate `candidate_id`.

        Raises `RunError` for an id that is not made of `a-z 0-9 _ -`: such a name could lead out of the run.
        """
        if not isinstance(candidate_id, str) or not CANDIDATE_ID.fullmatch(candidate_id):
            raise RunError(f"{candidate_id!r} cannot be the name of a candidate", where=str(self.root),
                           fix="A name has 1 to 100 characters from a-z, 0-9, '_' and '-'.")
        return CandidatePaths(self._folder("candidates", candidate_id), self.root)

    def test_folder(self, name: str) -> Path:
        """The folder of one test's results, in `tests`. `name` is one part of a path."""
        return self._folder("test", name)

    def folders(self) -> Iterator[Path]:
        """The run's own folder, the winner's and the candidates', those that are there; none that leads out."""
        for folder in (self.root, self.final):
            if folder.is_dir():
                yield folder
        names = os.listdir(self.candidates) if self.candidates.is_dir() else []
        for name in sorted(names):
            if CANDIDATE_ID.fullmatch(name) and (folder := self.candidate(name).dir).is_dir():
                yield folder
