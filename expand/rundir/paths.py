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


class _Name:
    """The name of a file or folder in the folder `root` (a candidate's: `dir`) of its owner, checked at each access."""

    def __init__(self, *parts: str, folder: bool = False) -> None:
        self.parts, self.folder = parts, folder

    def __get__(self, paths: CandidatePaths | RunPaths, owner: type) -> Path:
        base = paths.dir if isinstance(paths, CandidatePaths) else paths.root
        return inside(paths.root or base, base.joinpath(*self.parts), folder=self.folder)


@dataclass(frozen=True)
class CandidatePaths:
    """The files of one network in training, in the folder `dir`: a candidate's, or the final training's. `root` is the
    run's folder (by default `dir`), which no name may lead out of."""

    dir: Path
    root: Path | None = None

    spec = _Name("spec.yaml")
    """The network in training: factors, complexity, seed."""
    metrics = _Name("metrics.csv")
    """A row an epoch."""
    checkpoint = _Name("checkpoint.pt")
    """Weights, optimiser and position, to go on from."""
    checkpoint_before = _Name("checkpoint-before.pt")
    """The one before, for as long as the training goes on."""
    outcome = _Name("outcome.json")
    """The result; there only when training has ended."""
    damaged_outcome = _Name("outcome-damaged.json")
    """A result that could not be read, set aside."""

    def outcome_at(self, share: float) -> Path:
        """Return the file for the result after a share of the training: a rung of its step's race."""
        return inside(self.root or self.dir, self.dir / f"rung-{100 * share:g}.json")


@dataclass(frozen=True)
class RunPaths:
    """The files of the run in the folder `root`. Makes names only; creates nothing.

    Every name raises `RunError` where it leads out of the run, or something of another kind is there.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    config = _Name("config.yaml")
    """The configuration with every default written out."""
    env = _Name("env.json")
    """Versions, git, hardware, seeds."""
    journal = _Name("journal.jsonl")
    """The only truth about the run: one event a line."""
    training = _Name("training.yaml")
    """The beginning of a training that belongs to no search; its presence tells the two apart."""
    first_weights = _Name("first_weights.pt")
    """The weights that such a training began with, where it did not draw them."""
    clips = _Name("clips.csv")
    """The clips that a run uses, with their classes and splits, as they were when it began."""
    clips_begun = _Name("clips-begun.csv")
    """The same, with hashes of the clips; never edited, so that changes of the other can be told."""
    tensorboard = _Name("tensorboard", folder=True)
    """The folder of such a training's TensorBoard events."""
    log = _Name("log.txt")
    """The events and remarks of the run, for people."""
    lock = _Name("lock")
    """Held by the process that works on the run (`expand.rundir.lock`)."""
    candidates = _Name("candidates", folder=True)
    """The folder of the candidates' folders."""
    final = _Name(FINAL, folder=True)
    """The folder of the winner: weights, network YAML, model card, exports."""
    network = _Name(FINAL, NETWORK)
    """The winner's factors."""
    weights = _Name(FINAL, WEIGHTS)
    """The winner's trained weights."""
    card = _Name(FINAL, "README.md")
    """The winner's model card."""
    latency = _Name(FINAL, "latency.json")
    """The winner's measured latency."""
    tests = _Name("test", folder=True)
    """The folder of what `test` measured later."""
    report = _Name("report", folder=True)
    """The folder of what is derived from the journal; may be deleted and rebuilt at will."""
    steps_csv = _Name("report", "steps.csv")
    """A row a candidate."""
    plot_png = _Name("report", "expansion.png")
    """The expansion figure, pixels."""
    plot_svg = _Name("report", "expansion.svg")
    """The expansion figure, vectors."""

    @property
    def final_candidate(self) -> CandidatePaths:
        """The final training's files: the same names as a candidate's, in `final/`."""
        return CandidatePaths(self.final, self.root)

    def candidate(self, candidate_id: str) -> CandidatePaths:
        """Return the files of the candidate `candidate_id`.

        Raises `RunError` for an id that is not made of `a-z 0-9 _ -`: such a name could lead out of the run.
        """
        if not isinstance(candidate_id, str) or not CANDIDATE_ID.fullmatch(candidate_id):
            raise RunError(f"{candidate_id!r} cannot be the name of a candidate", where=str(self.root),
                           fix="A name has 1 to 100 characters from a-z, 0-9, '_' and '-'.")
        folder = inside(self.root, self.root / "candidates" / candidate_id, folder=True)
        return CandidatePaths(folder, self.root)

    def test_folder(self, name: str) -> Path:
        """Return the folder of one test's results, in `tests`. `name` is one part of a path."""
        return inside(self.root, self.root / "test" / name, folder=True)

    def folders(self) -> Iterator[Path]:
        """Yield the run's own folder, the winner's and the candidates' that exist; none that leads out of the run."""
        for folder in (self.root, self.final):
            if folder.is_dir():
                yield folder
        names = os.listdir(self.candidates) if self.candidates.is_dir() else []
        for name in sorted(names):
            if CANDIDATE_ID.fullmatch(name) and (folder := self.candidate(name).dir).is_dir():
                yield folder
