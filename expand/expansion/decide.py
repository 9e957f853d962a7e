"""The next thing to do in a search, as a pure function of its state, so that a run continued after an interruption
decides as an undisturbed one does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from expand.expansion.confidence import Verdict, compare
from expand.expansion.events import (
    CandidatesStopped,
    ContractionProposed,
    Event,
    RunFinished,
    StepProposed,
    StepRepeated,
    StepSelected,
    WinnerChosen,
)
from expand.expansion.rules import Space, contract, find_outpaced, propose, select
from expand.expansion.state import Candidate, SearchState, Step, repeat_ids


@dataclass(frozen=True)
class Train:
    """Candidates to train, independent of one another, to their end or `until` a share of their training is done."""

    candidates: tuple[Candidate, ...]
    until: float = 1.0


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


Action = Event | Train | TrainFinal | Stuck | Done
"""An event is a decision, to be written to the journal."""


def decide(state: SearchState, space: Space) -> Action:
    """Return the next action (paper, section 3.2: forward expansion, then backward contraction)."""
    if state.finished:
        return Done()
    if state.final is not None:
        return RunFinished()
    if state.winner is not None:
        return TrainFinal(state.winner)
    if not state.steps:
        return StepProposed(step=0, candidates=(space.basis(),), excluded=())
    step = state.steps[-1]
    if step.winner is None:
        if to_train := state.without_outcome((*step.candidates, *step.repeats)):
            return Train(to_train) if step.repeats or len(step.candidates) == 1 else \
                _race(state, step, to_train, space)
        return _choose(state, step, space)
    if step.winner.gflops > space.target:
        return _land_on_target(state, space)
    if space.is_reached_by(step.winner.gflops):
        return _choose_winner(state, step.winner, None)
    proposal = propose(space, step.winner.factors, step.number + 1)
    if not proposal.candidates:
        reasons = "; ".join(f"{e.axis}: {e.reason}" for e in proposal.excluded)
        return _choose_winner(state, step.winner, f"no axis can grow any further ({reasons})")
    return StepProposed(step=step.number + 1, candidates=proposal.candidates, excluded=proposal.excluded)


def _race(state: SearchState, step: Step, to_train: tuple[Candidate, ...], space: Space) -> Train | CandidatesStopped:
    """Train the candidates that are still in a step's race to the next rung; once all have reached it, stop those that
    are far behind. After the last rung, or without any, they are trained to their end."""
    shares = {c: state.outcomes[c.id].share or 0.0 if c.id in state.outcomes else 0.0 for c in to_train}
    lowest, highest = min(shares.values()), max(shares.values())
    if lowest == highest > 0:
        base = state.path[-1] if state.path else step.candidates[0]
        leader, outpaced = find_outpaced(space, base, state.accuracy_of(base) or 0.0,
                                         {c: state.outcomes[c.id].accuracy or 0.0 for c in to_train})
        if outpaced:
            return CandidatesStopped(step=step.number, leader=leader.id, ids=tuple(c.id for c in outpaced))
    until = next(rung for rung in (*space.config.rungs, 1.0) if rung > lowest) if len(to_train) > 1 else 1.0
    return Train(tuple(c for c in to_train if shares[c] < until), until)


def _choose(state: SearchState, step: Step, space: Space) -> StepRepeated | StepSelected | Train | Stuck:
    """Choose a step's winner. Where it is not ahead of its rivals beyond the noise, the tied ones are trained once more
    with other seeds first, as long as the budget for repeats allows it."""
    base = state.path[-1] if state.path else step.candidates[0]
    base_accuracy = state.accuracy_of(base) or 0.0
    selection = select(space, base, base_accuracy, step.candidates,
                       {c.id: state.accuracy_of(c) for c in step.candidates})
    if selection is None:
        if stopped := [c for c in step.candidates if state.outcomes[c.id].state == "stopped"]:
            # those that were ahead of them have failed; one at a time, so that a kill in between changes nothing
            best = max(stopped, key=lambda c: (state.outcomes[c.id].share or 0.0, state.outcomes[c.id].accuracy or 0.0))
            return Train((best,))
        reasons = "; ".join(f"{c.id}: {state.outcomes[c.id].reason}" for c in step.candidates)
        return Stuck(step, f"every candidate of step {step.number} failed ({reasons})")
    clips = state.started.splits.get("val", 0) if state.started else 0
    verdict = compare(space.config, clips, base, base_accuracy, {c: state.outcomes_of(c) for c in step.candidates},
                      selection.winner)
    if repeats := _repeats(space, step, verdict):
        return StepRepeated(step=step.number, candidates=repeats)
    return StepSelected(step=step.number, axis=selection.winner.axis, id=selection.winner.id,
                        scores=dict(selection.scores), tied=verdict.tied, p_values=dict(verdict.p_values))


def _repeats(space: Space, step: Step, verdict: Verdict) -> tuple[Candidate, ...]:
    """Return the tied candidates, each under a new id, from which its new seed follows; none where the step is decided
    or the budget (`SearchConfig.repeat_budget`) does not reach for all of them."""
    if not verdict.tied:
        return ()
    again = [c for c in step.candidates if c.id in (verdict.leader, *verdict.tied)]
    cost = sum(c.gflops for c in (*step.repeats, *again))
    if cost > space.config.repeat_budget * sum(c.gflops for c in step.candidates):
        return ()
    return tuple(replace(c, id=next(id_ for id_ in repeat_ids(c.id) if id_ not in step.ids)) for c in again)


def _land_on_target(state: SearchState, space: Space) -> Action:
    """The last expansion passed the target: contract it, train the result, and end there."""
    expanded, base = state.path[-1], state.path[-2]
    if state.contraction is None:
        candidate = contract(space, base.factors, expanded)
        reason = None if candidate else (
            f"no grid value of {expanded.axis} lies between the network before it ({base.gflops:.4g} GFLOPs) and the "
            f"target ({space.target:g} GFLOPs)")
        return ContractionProposed(axis=expanded.axis, candidate=candidate, reason=reason)
    candidate = state.contraction.candidate
    if candidate is None:
        return _choose_winner(state, base, state.contraction.reason)
    if state.without_outcome([candidate]):
        return Train((candidate,))
    outcome = state.outcomes[candidate.id]
    if not outcome.is_finished:
        return _choose_winner(state, base, f"the contracted network failed: {outcome.reason}")
    return _choose_winner(state, candidate, None)


def _choose_winner(state: SearchState, winner: Candidate, note: str | None) -> WinnerChosen:
    factors = winner.factors
    return WinnerChosen(id=winner.id, gflops=winner.gflops, params=winner.params, factors=factors,
                        frames=factors.frames, resolution=factors.resolution, stride=factors.stride,
                        accuracy=state.accuracy_of(winner) or 0.0, stderr=state.stderr_of(winner), note=note,
                        network=winner)
