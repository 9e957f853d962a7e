"""The state of a search: plain data, rebuilt from the journal's events (`expand.expansion.events`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from expand.expansion.types import Candidate, Exclusion, Outcome

if TYPE_CHECKING:
    from expand.expansion.events import Event, FinalFinished, RunStarted


@dataclass(frozen=True)
class Step:
    """A step: its candidates, the axes left out; once chosen, the winner's id, and each candidate's score."""

    number: int
    candidates: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...] = ()
    selected: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def winner(self) -> Candidate | None:
        """The selected candidate."""
        return next((c for c in self.candidates if c.id == self.selected), None)

    @property
    def ids(self) -> frozenset[str]:
        """The candidates' ids."""
        return frozenset(c.id for c in self.candidates)


@dataclass(frozen=True)
class Contraction:
    """The last expansion, of `axis`, shrunk; no candidate where that gives back the network before it."""

    axis: str
    candidate: Candidate | None
    reason: str | None = None


@dataclass(frozen=True)
class SearchState:
    """Everything that decisions depend on, and that the order of events is checked against.

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

    def without_outcome(self, candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """Return those of `candidates` that have no outcome yet."""
        return tuple(c for c in candidates if c.id not in self.outcomes)
