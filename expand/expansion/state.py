"""Candidates, their outcomes and the state of a search: plain values, which read and write as JSON.

An annotation holds the bounds that a field must keep in a journal, which may be untrusted; no real search comes near
them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, count, takewhile
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Len

from expand.space.axes import AXES
from expand.space.factors import Factors
from expand.space.network import factor_problems
from expand.untrusted_input import Wrong, matches, number, one_of, read_fields, record, text, whole

if TYPE_CHECKING:
    from expand.expansion.events import Event, FinalFinished, RunStarted

BASIS_AXIS = "basis"
REPEAT = re.compile(r"-r[0-9]+\Z")
"""The end of the id of a candidate that is trained once more with another seed."""
CANDIDATE_ID = re.compile(r"[a-z0-9_-]{1,100}")
"""A candidate's id names a folder, so it can hold neither a dot nor a separator."""
MOST_STEPS, MOST_CANDIDATES = 1000, 16
"""Steps of a search (a doubling repeated twenty times is a million), and candidates of a step (one an axis)."""


def original_id(id_: str) -> str:
    """Return the id of the candidate that the candidate `id_` repeats; `id_` itself where it is no repeat."""
    return REPEAT.sub("", id_)


def repeat_ids(id_: str) -> Iterator[str]:
    """Yield the ids of the repeats of the candidate `id_`, in the order in which they are proposed."""
    return (f"{id_}-r{number}" for number in count(1))


def read_factors(value: Any, name: str) -> Factors:
    """Return plain values as factors. Raises `Wrong` for those of which no network can be built."""
    for problem in factor_problems(value):
        raise Wrong(f"'{name}' cannot be: {problem}")
    return Factors(**value)


Id = Annotated[str, matches(CANDIDATE_ID, "a candidate's name: 1 to 100 of a-z, 0-9, '_' and '-'")]
AxisName = Annotated[str, one_of((BASIS_AXIS, *AXES))]
StepNumber = Annotated[int, whole(0, MOST_STEPS)]
CheckedFactors = Annotated[Factors, read_factors]
RightClips = Annotated[str, matches(re.compile(r"[0-9a-f]{1,1000000}"), "hexadecimal digits")]
Gflops = Annotated[float, number(1e-9, 1e9)]
Params = Annotated[int, whole(1, 10**13)]
Length = Annotated[int, whole(1, 10**6)]
"""Frames, pixels or a stride."""
Word = Annotated[str, matches(re.compile(r"[a-z0-9_]{1,40}"), "a word")]
Reason = Annotated[str, text()]
Share = Annotated[float, number(0, 1)]
Figure = Annotated[float, number(-1e12, 1e12)]
Amount = Annotated[float, number(0, 1e12)]
"""Seconds, megabytes, or clips a second."""
Loss = Annotated[float, number(-1e30, 1e30)]
Notes = Annotated[tuple[Reason, ...], Len(0, 1000)]
Breakdown = Annotated[Mapping[Annotated[str, text(100)], Figure], Len(0, 100)]


@dataclass(frozen=True)
class Candidate:
    """A network that a step may train.

    `axis` is the axis that was expanded (`basis` for step 0), `also` the axes that give the very same network;
    `ratio` is its complexity over the current network's; `overshoot` marks a single grid step that exceeds the
    expansion rate; `note` says what held the axis back, if anything; `init` where its initial weights come from.
    """

    id: Id
    step: StepNumber
    axis: AxisName
    factors: CheckedFactors
    gflops: Gflops
    params: Params
    ratio: Annotated[float, number(0, 1e9)] | None = 1.0
    also: Annotated[tuple[AxisName, ...], Len(0, len(AXES))] = ()
    overshoot: bool = False
    note: Reason | None = None
    init: Annotated[str, text(200)] = "scratch"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the journal and for `--json`, with the clip's frames, resolution and stride."""
        factors = self.factors
        return {**asdict(self), "also": list(self.also), "factors": factors.as_dict(), "frames": factors.frames,
                "resolution": factors.resolution, "stride": factors.stride}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Candidate:
        """The inverse of `as_dict`. Raises `Wrong` where a field cannot be."""
        return read_candidate(fields, "")


def read_candidate(value: Any, name: str) -> Candidate:
    """Return the candidate that `Candidate.as_dict` wrote. Raises `Wrong` where a field cannot be."""
    read = read_fields(Candidate, value, name)
    _clip(value, name)
    return Candidate(**read)


_clip = record(dict.fromkeys(("frames", "resolution", "stride"), whole(1, 10**6)))
CheckedCandidate = Annotated[Candidate, read_candidate]


@dataclass(frozen=True)
class Exclusion:
    """An axis that cannot grow at this step, and why."""

    axis: AxisName
    reason: Reason

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the journal."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """The result of training a candidate. `accuracy` (J) is top-1 in 0..1, `stderr` its standard error.

    `state` is `finished`, `failed`, or, in a race (`SearchConfig.rungs`), `paused` or `stopped`: measured after a
    `share` of its training, which goes on or does not. A failed one has a `reason` and no figures.
    `breakdown` holds seconds by phase, `notes` remarks on the training, such as gradients that were accumulated for
    lack of memory, `right` which val clips were right (`confidence.encode_right`).
    """

    id: Id
    state: Annotated[str, one_of(("finished", "failed", "paused", "stopped"))]
    reason: Reason | None = None
    accuracy: Share | None = None
    stderr: Share | None = None
    top5: Share | None = None
    loss: Loss | None = None
    wall_s: Amount | None = None
    peak_memory_mb: Amount | None = None
    clips_per_s: Amount | None = None
    breakdown: Breakdown = field(default_factory=dict)
    notes: Notes = ()
    right: RightClips | None = None
    share: Share | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the journal and for outcome.json."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Outcome:
        """The inverse of `as_dict`; keys of other versions are passed over. Raises `Wrong` where a field cannot be."""
        return read_outcome(fields, "")

    @property
    def is_finished(self) -> bool:
        """True if it was trained to its end and has an accuracy."""
        return self.state == "finished"

    @property
    def has_ended(self) -> bool:
        """True unless its training is to go on."""
        return self.state != "paused"


_figures = record({"accuracy": number(0, 1)})
_measured = ("stderr", "wall_s", "clips_per_s")
_presence = {"finished": _measured, "failed": ("reason",), "paused": (*_measured, "share"),
             "stopped": (*_measured, "share")}


def read_outcome(value: Any, name: str) -> Outcome:
    """Return the outcome that `Outcome.as_dict` wrote. Raises `Wrong` where a field cannot be, or where a state lacks
    what belongs to it."""
    outcome = Outcome(**read_fields(Outcome, value, name))
    if outcome.state != "failed":
        _figures(value, name)
    for own in _presence[outcome.state]:
        if own not in value:
            raise Wrong(f"'{own}' is missing")
    if outcome.state in ("paused", "stopped") and not 0 < (outcome.share or 0.0) < 1:
        raise Wrong(f"'share' is {outcome.share}, not a part of the training")
    return outcome


@dataclass(frozen=True)
class Step:
    """A step: its candidates, the axes left out, those that are trained once more with another seed (`repeats`, each a
    candidate of its own); once chosen, the winner's id, each candidate's score, and the verdict on the choice."""

    number: int
    candidates: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...] = ()
    repeats: tuple[Candidate, ...] = ()
    selected: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))
    tied: tuple[str, ...] | None = None
    """The candidates that the winner is not ahead of beyond the noise; None: not known (runs of earlier versions)."""
    p_values: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def winner(self) -> Candidate | None:
        """The selected candidate."""
        return next((c for c in self.candidates if c.id == self.selected), None)

    def trainings_of(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """Return one of the step's candidates, and its repeats."""
        return (candidate, *(each for each in self.repeats if original_id(each.id) == candidate.id))

    @property
    def ids(self) -> frozenset[str]:
        """The candidates' ids, those of the repeats among them."""
        return frozenset(c.id for c in (*self.candidates, *self.repeats))


@dataclass(frozen=True)
class Contraction:
    """The last expansion, of `axis`, shrunk; no candidate where that gives back the network before it."""

    axis: str
    candidate: Candidate | None
    reason: str | None = None


@dataclass(frozen=True)
class SearchState:
    """Everything that decisions depend on, and that the order of events is checked against, rebuilt from the journal's
    events.

    `steps` holds the last proposal of each step, `proposed` every candidate by its id.
    """

    started: RunStarted | None = None
    steps: tuple[Step, ...] = ()
    proposed: Mapping[str, Candidate] = field(default_factory=lambda: MappingProxyType({}))
    outcomes: Mapping[str, Outcome] = field(default_factory=lambda: MappingProxyType({}))
    contraction: Contraction | None = None
    winner: Candidate | None = None
    final: FinalFinished | None = None
    finished: bool = False

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> SearchState:
        """Return the state after `events`."""
        state = cls()
        for event in events:
            state = event.apply(state)
        return state

    @property
    def open_step(self) -> Step | None:
        """The last step, where it has no winner yet."""
        return self.steps[-1] if self.steps and self.steps[-1].selected is None else None

    @property
    def path(self) -> tuple[Candidate, ...]:
        """The chosen networks, the basis first."""
        return tuple(step.winner for step in self.steps if step.winner is not None)

    def outcomes_of(self, candidate: Candidate) -> tuple[Outcome, ...]:
        """Return the outcomes of a candidate and of its repeats, as far as there are any."""
        ids = takewhile(self.proposed.__contains__, chain([candidate.id], repeat_ids(candidate.id)))
        return tuple(self.outcomes[id_] for id_ in ids if id_ in self.outcomes)

    def accuracy_of(self, candidate: Candidate) -> float | None:
        """Return a candidate's J: the mean over its finished trainings; None without one."""
        found = [outcome.accuracy for outcome in self.outcomes_of(candidate)
                 if outcome.is_finished and outcome.accuracy is not None]
        return math.fsum(found) / len(found) if found else None

    def stderr_of(self, candidate: Candidate) -> float | None:
        """Return the standard error of a candidate's J: the choice of val clips, which repeats share, and that of the
        seeds, whose standard deviation the run reckons with. None without a finished training."""
        seed_sd = self.started.seed_sd if self.started else 0.0
        found = [outcome.stderr or 0.0 for outcome in self.outcomes_of(candidate) if outcome.is_finished]
        if not found:
            return None
        return math.sqrt(math.fsum(each ** 2 for each in found) / len(found) + seed_sd ** 2 / len(found))

    def without_outcome(self, candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """Return those of `candidates` whose training has not ended."""
        return tuple(c for c in candidates if c.id not in self.outcomes or not self.outcomes[c.id].has_ended)
