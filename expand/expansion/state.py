"""Where a search stands, rebuilt from its events, and what is to be done next.

`SearchState.apply` folds one journal event in; `decide` looks at a state and names the next thing to do. Both are
pure, so that a run continued after an interruption decides as an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from expand.expansion.rules import Space, contract, propose, select
from expand.expansion.types import Candidate, Exclusion, Outcome

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A step: its candidates, the axes left out, and the id of the winner once chosen."""

    number: int
    candidates: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...] = ()
    selected: str | None = None

    @property
    def winner(self) -> Candidate | None:
        """The selected candidate."""
        return next((c for c in self.candidates if c.id == self.selected), None)


@dataclass(frozen=True)
class Contraction:
    """The last expansion shrunk; no candidate where that gives back the network before it."""

    candidate: Candidate | None
    reason: str | None = None


@dataclass(frozen=True)
class SearchState:
    """Everything that decisions depend on."""

    steps: tuple[Step, ...] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=lambda: MappingProxyType({}))
    contraction: Contraction | None = None
    winner: Candidate | None = None
    final: Mapping[str, Any] | None = None
    finished: bool = False

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> SearchState:
        """The state after `events`."""
        state = cls()
        for event in events:
            state = state.apply(event)
        return state

    def apply(self, event: Event) -> SearchState:
        """The state after one more event; events that decide nothing change nothing."""
        change = _CHANGES.get(event["event"])
        return change(self, event) if change else self

    @property
    def path(self) -> tuple[Candidate, ...]:
        """The chosen networks, the basis first."""
        return tuple(step.winner for step in self.steps if step.winner is not None)

    def missing(self, candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """Those of `candidates` that have no outcome yet."""
        return tuple(c for c in candidates if c.id not in self.outcomes)


def _step_proposed(state: SearchState, event: Event) -> SearchState:
    step = Step(event["step"], tuple(map(Candidate.from_dict, event["candidates"])),
                tuple(Exclusion(e["axis"], e["reason"]) for e in event["excluded"]))
    return replace(state, steps=(*state.steps, step))


def _candidate_finished(state: SearchState, event: Event) -> SearchState:
    outcome = Outcome.from_dict(dict(event))
    return replace(state, outcomes=MappingProxyType({**state.outcomes, outcome.id: outcome}))


def _step_retried(state: SearchState, event: Event) -> SearchState:
    kept = {id_: outcome for id_, outcome in state.outcomes.items() if id_ not in event["ids"]}
    return replace(state, outcomes=MappingProxyType(kept))


def _step_selected(state: SearchState, event: Event) -> SearchState:
    return replace(state, steps=(*state.steps[:-1], replace(state.steps[-1], selected=event["id"])))


def _contraction_proposed(state: SearchState, event: Event) -> SearchState:
    candidate = event["candidate"] and Candidate.from_dict(event["candidate"])
    return replace(state, contraction=Contraction(candidate, event["reason"]))


_CHANGES = {
    "step_proposed": _step_proposed,
    "candidate_finished": _candidate_finished,
    "step_retried": _step_retried,
    "step_selected": _step_selected,
    "contraction_proposed": _contraction_proposed,
    "winner_chosen": lambda state, event: replace(state, winner=Candidate.from_dict(event["network"])),
    "final_finished": lambda state, event: replace(state, final=event),
    "run_finished": lambda state, event: replace(state, finished=True),
}


@dataclass(frozen=True)
class Record:
    """A decision: the event that states it, to be written to the journal."""

    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Train:
    """Candidates to train, independent of one another."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class TrainFinal:
    """The winner, to be trained by the `final` recipe."""

    winner: Candidate


@dataclass(frozen=True)
class Stuck:
    """No decision is possible: every candidate of a step failed."""

    step: Step
    reason: str


@dataclass(frozen=True)
class Done:
    """The search has ended."""


Action = Record | Train | TrainFinal | Stuck | Done


def decide(state: SearchState, space: Space) -> Action:
    """What is to be done next (paper, section 3.2: forward expansion, then backward contraction)."""
    if state.finished:
        return Done()
    if state.final is not None:
        return Record("run_finished", {})
    if state.winner is not None:
        return TrainFinal(state.winner)
    if not state.steps:
        return _record_step(0, (space.basis(),), ())
    step = state.steps[-1]
    if step.winner is None:
        missing = state.missing(step.candidates)
        return Train(missing) if missing else _choose(state, space)
    if step.winner.gflops > space.target:
        return _land(state, space)
    if space.reached(step.winner.gflops):
        return _crown(state, step.winner, None)
    proposal = propose(space, step.winner.factors, step.number + 1)
    if not proposal.candidates:
        reasons = "; ".join(f"{e.axis}: {e.reason}" for e in proposal.excluded)
        return _crown(state, step.winner, f"no axis can grow any further ({reasons})")
    return _record_step(step.number + 1, proposal.candidates, proposal.excluded)


def _record_step(number: int, candidates: tuple[Candidate, ...], excluded: tuple[Exclusion, ...]) -> Record:
    return Record("step_proposed", {"step": number, "candidates": [c.as_dict() for c in candidates],
                                    "excluded": [{"axis": e.axis, "reason": e.reason} for e in excluded]})


def _choose(state: SearchState, space: Space) -> Record | Stuck:
    step = state.steps[-1]
    base = state.path[-1] if state.path else step.candidates[0]
    known = state.outcomes[base.id]
    selection = select(space, base, known.accuracy if known.finished else 0.0, step.candidates, state.outcomes)
    if selection is None:
        reasons = "; ".join(f"{c.id}: {state.outcomes[c.id].reason}" for c in step.candidates)
        return Stuck(step, f"every candidate of step {step.number} failed ({reasons})")
    return Record("step_selected", {"step": step.number, "axis": selection.winner.axis, "id": selection.winner.id,
                                    "scores": dict(selection.scores)})


def _land(state: SearchState, space: Space) -> Action:
    """The last expansion passed the target: contract it, train what comes out, and end there."""
    expanded, base = state.path[-1], state.path[-2]
    if state.contraction is None:
        candidate = contract(space, base.factors, expanded)
        reason = None if candidate else (
            f"no grid value of {expanded.axis} lies between the network before it ({base.gflops:.4g} GFLOPs) and the "
            f"target ({space.target:g} GFLOPs)")
        return Record("contraction_proposed", {"axis": expanded.axis, "candidate": candidate and candidate.as_dict(),
                                               "reason": reason})
    candidate = state.contraction.candidate
    if candidate is None:
        return _crown(state, base, state.contraction.reason)
    if state.missing([candidate]):
        return Train((candidate,))
    outcome = state.outcomes[candidate.id]
    if not outcome.finished:
        return _crown(state, base, f"the contracted network failed: {outcome.reason}")
    return _crown(state, candidate, None)


def _crown(state: SearchState, winner: Candidate, note: str | None) -> Record:
    outcome = state.outcomes[winner.id]
    network = winner.as_dict()
    return Record("winner_chosen", {
        **{name: network[name] for name in ("id", "gflops", "params", "factors", "frames", "resolution", "stride")},
        "accuracy": outcome.accuracy, "stderr": outcome.stderr, "note": note, "network": network})
