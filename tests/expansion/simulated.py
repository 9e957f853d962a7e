"""Spaces, candidates and whole searches that train nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

from expand.config.schema import BasisConfig, LimitsConfig, SearchConfig
from expand.expansion.decide import Done, Stuck, Train, decide
from expand.expansion.events import Event as TypedEvent
from expand.expansion.events import read_event
from expand.expansion.rules import Space
from expand.expansion.state import Candidate, Outcome, SearchState
from expand.space.factors import PUBLISHED_CLASSES

PAPER_PATH = ("x_bottleneck", "x_fast", "x_spatial", "x_depth", "x_temporal", "x_fast", "x_temporal", "x_spatial",
              "x_spatial", "x_depth", "x_width")
CLASSES = 16

Event = dict[str, Any]
Accuracy = Callable[[Candidate], float | None]
"""Made-up accuracies; None fails the candidate."""
AccuracyAt = Callable[[Candidate, float], float | None]
"""The same after a share of the training."""


def paper_space(target: float, **options: Any) -> Space:
    """The defaults: the paper's basis, grids and rate, counted with 400 classes."""
    return Space(SearchConfig(target_gflops=target, **options), PUBLISHED_CLASSES)


def small_space(target: float = 0.0075, *, limits: LimitsConfig | None = None, **options: Any) -> Space:
    """A basis of 32 px, 0.001952 GFLOPs."""
    return Space(SearchConfig(target_gflops=target, basis=BasisConfig(resolution=32), limits=limits or LimitsConfig(),
                              **options), CLASSES)


def outcome(id_: str, accuracy: float | None, until: float = 1.0) -> Outcome:
    """A finished outcome, one that is paused after the share `until`, or a failed one where there is no accuracy."""
    if accuracy is None:
        return Outcome(id_, "failed", reason="the loss is not finite")
    state, share = ("paused", until) if until < 1 else ("finished", None)
    return Outcome(id_, state, accuracy=accuracy, stderr=0.02, top5=1.0, loss=1.0, wall_s=1.0, clips_per_s=9.0,
                   share=share)


def chance_of(seed: int) -> Accuracy:
    """Accuracies that rise with C on the whole, with a noise that the seed and the network's id decide."""
    def accuracy(candidate: Candidate) -> float:
        noise = random.Random(f"{seed} {candidate.id}").uniform(-0.1, 0.1)
        return 0.9 * candidate.gflops / (candidate.gflops + 0.004) + noise

    return accuracy


def flat(candidate: Candidate) -> float:
    """Every network is as good as any other."""
    return 0.5


def failing(accuracy: Accuracy, *words: str) -> Accuracy:
    """As `accuracy`, but candidates with one of `words` in their id fail."""
    return lambda candidate: None if any(word in candidate.id for word in words) else accuracy(candidate)


def state_of(events: Iterable[Event]) -> SearchState:
    """The state after events as they stand in a journal."""
    return SearchState.from_events(map(read_event, events))


def simulate(space: Space, accuracy: Accuracy | AccuracyAt,
             events: Iterable[Event] = ()) -> tuple[list[Event], Done | Stuck]:
    """Carries a search on from `events` by `decide` and the events alone; returns all events and the last action.

    Every event passes through JSON, as in a journal.
    """
    written = list(events)
    state = state_of(written)
    for _ in range(1000):
        action = decide(state, space)
        if isinstance(action, Done | Stuck):
            return written, action
        for event in _carry_out(action, accuracy):
            written.append(json.loads(json.dumps(event)))
            state = read_event(written[-1]).apply(state)
    raise AssertionError("the search does not end")


def _carry_out(action: Any, accuracy: Accuracy | AccuracyAt) -> Iterable[Mapping[str, Any]]:
    takes_share = len(signature(accuracy).parameters) == 2
    if isinstance(action, TypedEvent):
        yield {"event": action.kind, **action.own_fields()}
    elif isinstance(action, Train):
        for candidate in action.candidates:
            reached = accuracy(candidate, action.until) if takes_share else accuracy(candidate)
            yield {"event": "candidate_finished", **outcome(candidate.id, reached, action.until).as_dict()}
    else:
        yield {"event": "final_finished", "accuracy": 0.9, "stderr": 0.01, "split": "test", "wall_s": 3.0}


def of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    """The events of one kind, in order."""
    return [event for event in events if event["event"] == kind]


def costing(candidate: Candidate, axis: str, gflops: float) -> Candidate:
    """A made-up rival in the same step as `candidate`."""
    return replace(candidate, id=f"s01-{axis}", axis=axis, gflops=gflops)
