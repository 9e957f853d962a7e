"""The events of a run's journal, one class each: fields with their bounds, when the event may come, how it changes the
state of the search, and its line in the log.

A journal may be untrusted. The bounds do not ask whether a search went well, only that its journal can be worked with:
no real search comes near them. Events and fields of later versions are passed over, and kept. Whether the proposals are
those that the configuration gives is not asked: a run that an older version began must be able to resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

from annotated_types import Len

from expand.expansion.state import (
    CANDIDATE_ID,
    MOST_CANDIDATES,
    Amount,
    AxisName,
    Breakdown,
    Candidate,
    CheckedCandidate,
    CheckedFactors,
    Contraction,
    Exclusion,
    Figure,
    Gflops,
    Id,
    Length,
    Loss,
    Notes,
    Outcome,
    Params,
    Reason,
    SearchState,
    Share,
    Step,
    StepNumber,
    Word,
    original_id,
    read_outcome,
)
from expand.expansion.text import axis_name, duration, number, one_line, percent, split_note, value_text
from expand.space.axes import AXES
from expand.untrusted_input import (
    LARGEST_YAML,
    NOT_READ,
    Wrong,
    check_of,
    matches,
    one_of,
    read_fields,
    record,
    text,
    whole,
)
from expand.untrusted_input import number as number_from

FINAL = "final"
"""The id of the winner's final training."""
MOST_CLASSES = 1_000_000
MOST_REPEATS = 1000
LONGEST_NAME = 10_000
"""Characters of a class's name: as many as a line of a list of clips may have."""

Worker = Annotated[str, text(1000)]

_classes: dict[str, type[Event]] = {}
"""The kinds of events, by the name that each has in the journal."""


def read_event(value: Mapping[str, Any]) -> Event:
    """Return the event that `Event.as_dict` wrote. Raises `Wrong` with a sentence where a field cannot be."""
    return _classes.get(value["event"], UnknownEvent).read(value, "")


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of a run.

    A subclass with a `kind`, its name in the journal, is an event that can be written, read, replayed and shown. Its
    fields stand in the journal in the order given here; one with a default may be missing there. `time` (unix seconds)
    is filled in by the journal; `unknown` holds the fields of other versions.
    """

    kind: ClassVar[str]
    time: Annotated[float, number_from(-1e12, 1e12)] = 0.0
    unknown: Mapping[str, Any] = field(default_factory=dict, metadata=NOT_READ)

    def __init_subclass__(cls) -> None:
        if kind := vars(cls).get("kind"):
            _classes[kind] = cls

    @classmethod
    def read(cls, value: Mapping[str, Any], name: str) -> Self:
        """Return the event with the fields `value`, which sentences call `name`. Raises `Wrong` where one cannot be."""
        read = read_fields(cls, value, name)
        return cls(**read, unknown={key: item for key, item in value.items() if key not in read and key != "event"})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the event with fields that this process made: unchecked, since the journal checks what it writes."""
        own = {each.name for each in fields(cls)}
        return cls(**{key: item for key, item in values.items() if key in own},
                   unknown={key: item for key, item in values.items() if key not in own})

    def own_fields(self) -> dict[str, Any]:
        """Return the fields of this kind of event as they stand in the journal."""
        return {each.name: _as_plain(getattr(self, each.name)) for each in fields(self)[len(fields(Event)):]}

    def as_dict(self) -> dict[str, Any]:
        """Return the event as it stands in the journal."""
        return {"event": self.kind, "time": self.time, **self.own_fields(), **self.unknown}

    def check_order(self, state: SearchState) -> None:
        """Raise `Wrong` where the event cannot come in `state`."""
        _require(state.started is not None, "it comes before the run began")

    def apply(self, state: SearchState) -> SearchState:
        """Return the state after the event, which may come in `state`."""
        return state

    def describe(self) -> str | None:
        """Return a sentence for the log, None for an event that needs none. Its texts are those of the journal."""
        return None

    def line(self) -> str | None:
        """Return the event as one printable line for the log, or None."""
        description = self.describe()
        return None if description is None else one_line(description)


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of another version, called `event` there."""

    event: str

    @classmethod
    def read(cls, value: Mapping[str, Any], name: str) -> Self:
        """Return the event with all its fields as `unknown`."""
        rest = {key: item for key, item in value.items() if key not in ("event", "time")}
        return cls(event=value["event"], time=value.get("time", 0.0), unknown=rest)

    def as_dict(self) -> dict[str, Any]:
        """Return the event as it stands in the journal."""
        return {"event": self.event, "time": self.time, **self.unknown}

    def check_order(self, state: SearchState) -> None:
        """It may come at any time."""


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A run began. `final_weight`: epochs of the final training over those of a candidate's; `seed_sd`: the standard
    deviation of an accuracy between seeds that its choices reckon with."""

    kind = "run_started"
    name: Annotated[str, text(1000)]
    version: Annotated[str, text(100)] = ""
    target_gflops: Gflops
    criterion: Word
    tolerance: Annotated[float, number_from(0, 1)] = 0.0
    workers: Annotated[int, whole(1, 10**6)] = 1
    seed_sd: Share = 0.0
    final_weight: Annotated[float, number_from(0, 1e9)] = 1.0
    classes: Annotated[tuple[Annotated[str, text(LONGEST_NAME)], ...], Len(1, MOST_CLASSES)]
    splits: Annotated[Mapping[str, int], record({}, dict.fromkeys(("train", "val", "test"), whole(0, 10**9)))]
    fingerprint: Annotated[str, text(1000)]
    config: Annotated[str, text(LARGEST_YAML)]

    def check_order(self, state: SearchState) -> None:
        _require(state.started is None, "the run had begun before")

    def apply(self, state: SearchState) -> SearchState:
        return replace(state, started=self)

    def describe(self) -> str:
        splits = ", ".join(f"{count} {split}" for split, count in self.splits.items() if count)
        return (f"run {self.name}: {len(self.classes)} classes, {splits} clips, target {number(self.target_gflops)} "
                f"GFLOPs, criterion {self.criterion}")


@dataclass(frozen=True, kw_only=True)
class RunResumed(Event):
    """A process went on with the run."""

    kind = "run_resumed"

    def describe(self) -> str:
        return "the run goes on"


@dataclass(frozen=True, kw_only=True)
class RunInterrupted(Event):
    """Work stopped because someone asked for it."""

    kind = "run_interrupted"
    reason: Reason | None = None

    def describe(self) -> str:
        return "interrupted"


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """Work stopped because of an error."""

    kind = "run_failed"
    reason: Reason

    def describe(self) -> str:
        return f"failed: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The search has ended, with everything trained."""

    kind = "run_finished"

    def apply(self, state: SearchState) -> SearchState:
        return replace(state, finished=True)

    def describe(self) -> str:
        return "finished"


@dataclass(frozen=True, kw_only=True)
class StepProposed(Event):
    """A step's candidates, and the axes that cannot grow. A step without a winner may be proposed again; the last
    proposal counts."""

    kind = "step_proposed"
    step: StepNumber
    candidates: Annotated[tuple[CheckedCandidate, ...], Len(1, MOST_CANDIDATES)]
    excluded: Annotated[tuple[Exclusion, ...], Len(0, len(AXES))]

    def check_order(self, state: SearchState) -> None:
        """It comes first, or once the step before has a winner."""
        super().check_order(state)
        due = state.open_step.number if state.open_step else len(state.steps)
        _require(self.step == due, f"step {due} is due, not {self.step}")
        _require_growth_goes_on(state)
        known = _without_open_step(state)
        for candidate in self.candidates:
            _require_new(candidate, self.step, known)
            known[candidate.id] = candidate

    def apply(self, state: SearchState) -> SearchState:
        before = state.steps[:-1] if state.open_step else state.steps
        proposed = {**_without_open_step(state), **{candidate.id: candidate for candidate in self.candidates}}
        return replace(state, steps=(*before, Step(self.step, self.candidates, self.excluded)),
                       proposed=MappingProxyType(proposed))

    def describe(self) -> str:
        candidates = []
        for c in map(Candidate.as_dict, self.candidates):
            remark = f", held back: {c['note']}" if c["note"] else ""
            if c["overshoot"]:
                remark = f", {number(c['ratio'])} times: a single grid step exceeds the expansion rate"
            candidates.append(f"{axis_name(c)} to {value_text(c)} ({number(c['gflops'])} GFLOPs{remark})")
        excluded = "".join(f"; not {axis_name({'axis': e.axis})}: {e.reason}" for e in self.excluded)
        return f"step {self.step}: {'; '.join(candidates)}{excluded}"


@dataclass(frozen=True, kw_only=True)
class CandidateStarted(Event):
    """A candidate's training began, or `resumed` from its checkpoint, in the process `worker`."""

    kind = "candidate_started"
    id: Id
    resumed: bool = False
    worker: Worker | None = None

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        _require_proposed(state, self.id)

    def describe(self) -> str:
        return f"{self.id}: training" + (", from its checkpoint" if self.resumed else "")


@dataclass(frozen=True, kw_only=True)
class CandidateRetried(Event):
    """A training's process died or hung, and another one takes over. `id` is a candidate's, or `FINAL`."""

    kind = "candidate_retried"
    id: Annotated[str, matches(CANDIDATE_ID, "the name of a training")]
    attempt: Annotated[int, whole(0, 10**6)]
    reason: Reason

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        if self.id != FINAL:
            _require_proposed(state, self.id)

    def describe(self) -> str:
        return f"{self.id}: {self.reason}; it goes on in another process (attempt {self.attempt + 1})"


@dataclass(frozen=True, kw_only=True)
class CandidateFinished(Event):
    """A candidate's training ended, or paused at a rung of its step's race; the fields of its `outcome` stand in the
    journal as the event's own."""

    kind = "candidate_finished"
    outcome: Outcome

    @classmethod
    def read(cls, value: Mapping[str, Any], name: str) -> Self:
        outcome = read_outcome(value, name)
        rest = {key: item for key, item in value.items() if key not in ("event", "time", *vars(outcome))}
        return cls(outcome=outcome, time=value.get("time", 0.0), unknown=rest)

    def own_fields(self) -> dict[str, Any]:
        return self.outcome.as_dict()

    def check_order(self, state: SearchState) -> None:
        """It comes once for a candidate, unless its step is tried again, or it was paused or stopped before."""
        super().check_order(state)
        own, before = self.outcome, state.outcomes.get(self.outcome.id)
        _require_proposed(state, own.id)
        _require(own.state != "stopped", "a training that pauses is stopped by an event of its own")
        _require(before is None or before.state in ("paused", "stopped"), f"{own.id} has ended before")
        if own.state == "paused" and before is not None:
            _require(before.state == "paused" and (own.share or 0.0) > (before.share or 0.0),
                     f"{own.id} was further before")

    def apply(self, state: SearchState) -> SearchState:
        return replace(state, outcomes=MappingProxyType({**state.outcomes, self.outcome.id: self.outcome}))

    def describe(self) -> str:
        outcome = self.outcome
        if outcome.state == "failed":
            return f"{outcome.id}: failed: {outcome.reason}"
        moment = "" if outcome.share is None else f" after {number(100 * outcome.share)} % of its training,"
        figures = (f"{outcome.id}: {percent(outcome.accuracy, outcome.stderr)} %{moment} in "
                   f"{duration(outcome.wall_s)}, {number(outcome.clips_per_s)} clips/s")
        return "; ".join((figures, *outcome.notes))


@dataclass(frozen=True, kw_only=True)
class CandidatesStopped(Event):
    """At a rung of a step's race, the candidates with these `ids` are so far behind the `leader` that their training
    does not go on."""

    kind = "candidates_stopped"
    step: StepNumber
    leader: Id
    ids: Annotated[tuple[Id, ...], Len(1, MOST_CANDIDATES)]

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        step = _require_open_step(state, self.step)
        _require(self.leader not in self.ids, f"{self.leader} leads")
        for id_ in (self.leader, *self.ids):
            _require(id_ in step.ids, f"{id_} is not of step {self.step}")
            _require(id_ in state.outcomes and state.outcomes[id_].state == "paused", f"{id_} is not paused")

    def apply(self, state: SearchState) -> SearchState:
        stopped = {id_: replace(state.outcomes[id_], state="stopped") for id_ in self.ids}
        return replace(state, outcomes=MappingProxyType({**state.outcomes, **stopped}))

    def describe(self) -> str:
        return f"step {self.step}: stopped early, far behind {self.leader}: {', '.join(self.ids)}"


@dataclass(frozen=True, kw_only=True)
class StepRetried(Event):
    """All candidates of a step failed, and those with these `ids` are to be trained again."""

    kind = "step_retried"
    step: StepNumber
    ids: Annotated[tuple[Id, ...], Len(0, MOST_CANDIDATES)]

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        step = _require_open_step(state, self.step)
        for id_ in self.ids:
            _require(id_ in step.ids, f"{id_} is not of step {self.step}")

    def apply(self, state: SearchState) -> SearchState:
        kept = {id_: outcome for id_, outcome in state.outcomes.items() if id_ not in self.ids}
        return replace(state, outcomes=MappingProxyType(kept))

    def describe(self) -> str:
        return f"step {self.step}: all candidates failed and are trained again"


@dataclass(frozen=True, kw_only=True)
class StepRepeated(Event):
    """A step's leader is not ahead beyond the noise: the `candidates`, those that are tied, are to be trained again,
    each with another seed."""

    kind = "step_repeated"
    step: StepNumber
    candidates: Annotated[tuple[CheckedCandidate, ...], Len(1, MOST_CANDIDATES)]

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        step = _require_open_step(state, self.step)
        _require(len(step.repeats) + len(self.candidates) <= MOST_REPEATS, "there are too many repeats")
        known = dict(state.proposed)
        for candidate in self.candidates:
            _require_new(candidate, self.step, known)
            original = known.get(original_id(candidate.id))
            _require(original is not None and original.id in step.ids and original.factors == candidate.factors,
                     f"{candidate.id} repeats no candidate of step {self.step}")
            known[candidate.id] = candidate

    def apply(self, state: SearchState) -> SearchState:
        step = replace(state.steps[-1], repeats=(*state.steps[-1].repeats, *self.candidates))
        proposed = {**state.proposed, **{candidate.id: candidate for candidate in self.candidates}}
        return replace(state, steps=(*state.steps[:-1], step), proposed=MappingProxyType(proposed))

    def describe(self) -> str:
        names = ", ".join(axis_name(candidate.as_dict()) for candidate in self.candidates)
        return f"step {self.step}: tied: {names}; each is trained once more with another seed"


@dataclass(frozen=True, kw_only=True)
class StepSelected(Event):
    """A step's winner, and the candidates' scores under the criterion (None for a failed one); the rivals that it is
    not ahead of beyond the noise (`tied`; None: an earlier version did not ask), and the p-value of each rival."""

    kind = "step_selected"
    step: StepNumber
    axis: AxisName
    id: Id
    scores: Annotated[Mapping[Id, Figure | None], Len(0, MOST_CANDIDATES)] = field(default_factory=dict)
    tied: Annotated[tuple[Id, ...], Len(0, MOST_CANDIDATES)] | None = None
    p_values: Annotated[Mapping[Id, Share], Len(0, MOST_CANDIDATES)] = field(default_factory=dict)

    def check_order(self, state: SearchState) -> None:
        """It comes when all candidates of the step have ended; the winner has an accuracy."""
        super().check_order(state)
        step = _require_open_step(state, self.step)
        _require(self.id in step.ids, f"{self.id} is not of step {self.step}")
        _require(not state.without_outcome((*step.candidates, *step.repeats)), "not all of its candidates have ended")
        _require_accuracy(state, self.id)

    def apply(self, state: SearchState) -> SearchState:
        step = replace(state.steps[-1], selected=self.id, scores=self.scores, tied=self.tied, p_values=self.p_values)
        return replace(state, steps=(*state.steps[:-1], step))

    def describe(self) -> str:
        verdict = "" if self.tied is None or not self.p_values else \
            f", tied with {', '.join(self.tied)}" if self.tied else ", decided"
        return f"step {self.step}: {axis_name({'axis': self.axis})} chosen ({self.id}){verdict}"


@dataclass(frozen=True, kw_only=True)
class ContractionProposed(Event):
    """The last expansion passed the target, and is shrunk; no `candidate` where that gives the network before it."""

    kind = "contraction_proposed"
    axis: AxisName
    candidate: CheckedCandidate | None
    reason: Reason | None

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        _require(len(state.steps) >= 2 and not state.open_step, "there is no expansion to contract")
        _require_growth_goes_on(state)
        if self.candidate is not None:
            _require_new(self.candidate, len(state.steps), state.proposed)

    def apply(self, state: SearchState) -> SearchState:
        added = {self.candidate.id: self.candidate} if self.candidate else {}
        return replace(state, contraction=Contraction(self.axis, self.candidate, self.reason),
                       proposed=MappingProxyType({**state.proposed, **added}))

    def describe(self) -> str:
        if self.candidate is None:
            return f"contraction: {self.reason}"
        candidate = {**self.candidate.as_dict(), "axis": self.axis}
        return (f"contraction of {axis_name({'axis': self.axis})} to {value_text(candidate)} "
                f"({number(candidate['gflops'])} GFLOPs)")


@dataclass(frozen=True, kw_only=True)
class WinnerChosen(Event):
    """The network to be trained by the final recipe, with its accuracy on val as a candidate; `note` says why growth
    ended below the target, if it did."""

    kind = "winner_chosen"
    id: Id
    gflops: Gflops
    params: Params
    factors: CheckedFactors
    frames: Length
    resolution: Length
    stride: Length
    accuracy: Share
    stderr: Share | None
    note: Reason | None = None
    network: CheckedCandidate

    def check_order(self, state: SearchState) -> None:
        """It comes once, when a network that was proposed has its accuracy and no step is in work."""
        super().check_order(state)
        _require(not state.open_step and state.winner is None, "it is not the time for it")
        _require_proposed(state, self.id)
        _require_accuracy(state, self.id)
        _require(self.network.id == self.id and self.network.factors == state.proposed[self.id].factors,
                 f"its network is not the one that was proposed as {self.id}")

    def apply(self, state: SearchState) -> SearchState:
        return replace(state, winner=self.network)

    def describe(self) -> str:
        return f"winner: {self.id}, {number(self.gflops, 4)} GFLOPs" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True, kw_only=True)
class FinalStarted(Event):
    """The winner's final training began, or `resumed` from its checkpoint, in the process `worker`."""

    kind = "final_started"
    resumed: bool = False
    worker: Worker | None = None

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        _require(state.winner is not None and state.final is None, "it is not the time for it")

    def describe(self) -> str:
        return "final: training the winner by the final recipe"


@dataclass(frozen=True, kw_only=True)
class FinalFinished(Event):
    """The winner's final training ended; `accuracy` and its companions are those of `split`. `from_candidate`: the
    weights are the candidate's, since longer training did not help."""

    kind = "final_finished"
    split: Annotated[str, one_of(("val", "test"))]
    accuracy: Share
    stderr: Share | None
    top5: Share | None = None
    loss: Loss | None = None
    val_accuracy: Share | None = None
    val_stderr: Share | None = None
    from_candidate: bool = False
    wall_s: Annotated[float, number_from(0, 1e12)]
    notes: Notes = ()

    @classmethod
    def read(cls, value: Mapping[str, Any], name: str) -> Self:
        _check_more_figures(value, name)
        return super().read(value, name)

    def check_order(self, state: SearchState) -> None:
        super().check_order(state)
        _require(state.winner is not None and state.final is None, "it is not the time for it")

    def apply(self, state: SearchState) -> SearchState:
        return replace(state, final=self)

    def describe(self) -> str:
        stands_on = split_note(self.split, self.split == "val")
        figures = (f"final: {percent(self.accuracy, self.stderr)} % {stands_on}, trained in "
                   f"{duration(self.wall_s)}")
        return "; ".join((figures, *self.notes))


_check_more_figures = record({}, {"peak_memory_mb": check_of(Amount | None), "breakdown": check_of(Breakdown)})
"""The figures that a final training does not write and that an outcome may have: bounded, and otherwise unknown."""


def _as_plain(value: Any) -> Any:
    """Return a field as JSON holds it."""
    if isinstance(value, tuple):
        return [_as_plain(item) for item in value]
    return value.as_dict() if hasattr(value, "as_dict") else value


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Wrong(otherwise)


def _without_open_step(state: SearchState) -> dict[str, Candidate]:
    """Return the candidates that a new proposal of the last step does not replace."""
    replaced = state.open_step.ids if state.open_step else ()
    return {id_: candidate for id_, candidate in state.proposed.items() if id_ not in replaced}


def _require_growth_goes_on(state: SearchState) -> None:
    _require(state.contraction is None and state.winner is None, "the expansion had ended before")


def _require_new(candidate: Candidate, step: int, known: Mapping[str, Candidate]) -> None:
    _require(candidate.id not in known, f"{candidate.id} was proposed before")
    _require(candidate.step == step, f"{candidate.id} is of step {candidate.step}, not of {step}")


def _require_proposed(state: SearchState, id_: str) -> None:
    _require(id_ in state.proposed, f"no step proposed {id_}")


def _require_open_step(state: SearchState, number_: int) -> Step:
    step = state.open_step
    if step is None or step.number != number_:
        raise Wrong(f"step {number_} is not the one in work")
    return step


def _require_accuracy(state: SearchState, id_: str) -> None:
    _require(id_ in state.outcomes and state.outcomes[id_].is_finished, f"{id_} has no accuracy")
