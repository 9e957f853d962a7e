"""The time that a run has worked, and an estimate of the time to come, from its journal alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from expand.expansion.events import Event, RunResumed, RunStarted

USUAL_CANDIDATES = 6
"""Candidates in a step before the first is proposed: one an axis."""
USUAL_RATIO = 2.0
"""Growth in a step before the first is seen: the paper's c-hat."""
MOST_STEPS = 64
"""Bound on the steps looked ahead; growth below it would make any figure meaningless."""


def elapsed_s(events: Sequence[Event], now: float | None) -> float:
    """Return the seconds that the run was at work: from each `run_started` or `run_resumed` to the last event before
    the next.

    What a killed process did after its last event is not counted. `now` (unix seconds) ends the last span of a run that
    is at work; None where it is not. Between two events the clock may have been set: back, and the time between them is
    not known and counts as none; ahead, and it cannot be told from a long training.
    """
    total, last = 0.0, None
    for event in events:
        if isinstance(event, RunStarted | RunResumed):
            last = event.time
        elif last is not None:
            total, last = total + max(0.0, event.time - last), event.time
    return total if last is None or now is None else total + max(0.0, now - last)


def remaining_s(summary: Mapping[str, Any], busy_s: float = 0.0, *, final_weight: float = 1.0,
                tolerance: float = 0.0, workers: int = 1) -> float | None:
    """Return the estimated seconds of training to come; None until a candidate has finished, 0 when all is done.

    The rule: (seconds a GFLOP of the finished candidates: sum of their wall time / sum of their complexities) x (sum of
    the complexities still to be trained, those of steps shared by `workers` processes) - `busy_s`, the time that the
    candidate in training has had. To come are

    - the step's unfinished candidates;
    - then steps until the target, less its share `tolerance`, is reached, each of as many candidates as the last step,
      each `ratio` times as complex as the network before it (`ratio`: the median over the candidates proposed so far,
      at first 2);
    - a contraction where the target is passed, as one candidate of the target's complexity (or of its own, once known);
    - the final training, the same times `final_weight`: its epochs over a candidate's, from the event `run_started`.
    """
    if summary["state"] == "finished":
        return 0.0
    done = [each for each in _candidates_of(summary) if each["state"] == "finished" and each["wall_s"]]
    cost = sum(candidate["gflops"] for candidate in done)
    if not cost:
        return None
    rate = sum(candidate["wall_s"] for candidate in done) / cost
    return max(0.0, rate * _gflops_to_come(summary, final_weight, tolerance, workers) - busy_s)


def _candidates_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    contraction = summary["contraction"]
    extra = [contraction] if contraction and contraction["id"] else []
    return [candidate for step in summary["steps"] for candidate in step["candidates"]] + extra


def _gflops_to_come(summary: Mapping[str, Any], final_weight: float, tolerance: float, workers: int) -> float:
    winner, contraction, target = summary["winner"], summary["contraction"], summary["target_gflops"] or 0.0
    if winner:
        return 0.0 if winner["accuracy"] is not None else winner["gflops"] * final_weight
    if contraction:
        own = contraction["gflops"] or target
        return own * final_weight + (own if contraction["state"] in ("waiting", "running", "interrupted") else 0.0)
    open_ones = [candidate["gflops"] for candidate in _candidates_of(summary)
                 if candidate["state"] in ("waiting", "running", "interrupted")]
    to_choose = sum(open_ones) + _steps_gflops(summary, target, target * (1 - tolerance))
    return to_choose / workers + target * final_weight


def _steps_gflops(summary: Mapping[str, Any], target: float, enough: float) -> float:
    """The complexities of the steps after the current one until `enough`, and of the contraction."""
    steps = summary["steps"]
    ratios = [candidate["ratio"] for step in steps[1:] for candidate in step["candidates"] if candidate["ratio"]]
    ratio = max(1.05, median(ratios) if ratios else USUAL_RATIO)
    count = len(steps[-1]["candidates"]) if len(steps) > 1 else USUAL_CANDIDATES
    sizes = [candidate["gflops"] for candidate in steps[-1]["candidates"]]
    current = steps[-1]["gflops"] or (median(sizes) if sizes else target) or 1.0
    total = 0.0
    for _ in range(min(MOST_STEPS, math.ceil(math.log(max(1.0, enough / current)) / math.log(ratio) - 1e-9))):
        current *= ratio
        total += count * current
    return total + (target if current > target else 0.0)
