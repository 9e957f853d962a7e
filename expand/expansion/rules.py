"""The decisions of progressive expansion, as pure functions (paper, section 3.2).

`propose` gives a step's candidates, `select` its winner, `contract` the network that lands on the target. They never
train, write or remember anything; `complexity` is any measure that grows along the axes, in the target's unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log2

from expand.config.schema import SearchConfig
from expand.errors import UsageError
from expand.expansion.state import BASIS_AXIS, Candidate, Exclusion
from expand.space.axes import AXES, Axis, Bounds
from expand.space.complexity import complexity_of
from expand.space.factors import Factors
from expand.space.network import is_within_bounds

MOST_GRID = 10_000
"""Values of an axis that are looked at in a step; the published grids have some 30 at most."""


@dataclass(frozen=True)
class Space:
    """The inputs of every decision: the search's configuration and the number of classes."""

    config: SearchConfig
    classes: int

    @property
    def bounds(self) -> Bounds:
        """The grid, the limits and the temporal split that shape the axes."""
        return Bounds(self.config.grid, self.config.limits, self.config.temporal_split)

    @property
    def target(self) -> float:
        """Return the budget. Raises `UsageError` where none is set."""
        if self.config.target_gflops is None:
            raise UsageError("no compute target is set", where="search.target_gflops",
                             fix="give --target-gflops G, the multiply-adds of one clip in 10^9")
        return self.config.target_gflops

    def complexity(self, factors: Factors) -> float:
        """Return C of a network: the named value that the target is stated in."""
        return complexity_of(factors, self.classes).gflops

    def basis(self) -> Candidate:
        """Return step 0: the network that the search starts from."""
        basis = self.config.basis
        factors = Factors.of(frames=basis.frames, stride=basis.stride, resolution=basis.resolution, width=basis.width,
                             bottleneck=basis.bottleneck, depth=basis.depth)
        return self.candidate(0, BASIS_AXIS, factors, base=factors)

    def candidate(self, step: int, axis: str, factors: Factors, base: Factors, *, name: str | None = None,
                  overshoot: bool = False, note: str | None = None) -> Candidate:
        """Return a candidate with its costs filled in."""
        cost = complexity_of(factors, self.classes)
        return Candidate(id=f"s{step:02d}-{name or axis}", step=step, axis=axis, factors=factors,
                         gflops=self.complexity(factors), params=cost.params,
                         ratio=self.complexity(factors) / self.complexity(base), overshoot=overshoot, note=note)

    def is_reached_by(self, gflops: float) -> bool:
        """Return True if a network of `gflops` meets the target within the tolerance: no further expansion is due."""
        return gflops >= self.target * (1 - self.config.tolerance)


@dataclass(frozen=True)
class Proposal:
    """A step's candidates, in the order of the configured axes, and the axes that cannot grow."""

    candidates: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...]


def propose(space: Space, current: Factors, step: int) -> Proposal:
    """Return one candidate for each axis: the largest grid value whose C is at most `expansion_rate` x the current C.

    Where even one grid step exceeds that, the candidate is this one step, marked `overshoot`. Axes that give the same
    network share one candidate. An axis that cannot grow is excluded with its reason.
    """
    candidates: list[Candidate] = []
    excluded: list[Exclusion] = []
    for name in space.config.axes:
        grown = _largest_growth(space, AXES[name], current)
        if isinstance(grown, str):
            excluded.append(Exclusion(name, grown))
            continue
        factors, note = grown
        twin = next((c for c in candidates if c.factors == factors), None)
        if twin is not None:
            candidates[candidates.index(twin)] = replace(twin, also=(*twin.also, name))
            continue
        overshoot = space.complexity(factors) > space.config.expansion_rate * space.complexity(current)
        candidates.append(space.candidate(step, name, factors, current, overshoot=overshoot, note=note))
    return Proposal(tuple(candidates), tuple(excluded))


def grid_steps(axis: Axis) -> Iterator[int]:
    """Yield 1, 2, ...: steps on an axis's grid. Raises `UsageError` after `MOST_GRID` of them, so that no grid, however
    fine for its target, is walked for hours."""
    yield from range(1, MOST_GRID + 1)
    raise UsageError(f"the grid of {axis.name} has more than {MOST_GRID:,} values on the way to the target",
                     where="search.grid", fix="make its steps larger, or the target smaller")


def _largest_growth(space: Space, axis: Axis, base: Factors) -> tuple[Factors, str | None] | str:
    """Return the axis's candidate with what held it back, or the reason why there is none."""
    floor, best, refusal, is_first = space.complexity(base), None, None, True
    for k in grid_steps(axis):
        grown = axis.grow(base, k, space.bounds)
        if not is_within_bounds(grown):
            break
        complexity = space.complexity(grown)
        if complexity <= floor:  # a small step in width can round to the same network
            continue
        exceeds = complexity > space.config.expansion_rate * floor
        if exceeds and not is_first:
            break
        is_first = False
        refusal = axis.refusal(base, grown, space.bounds)
        if refusal is None:
            best = grown
        if exceeds:
            break
    return (best, refusal) if best is not None else refusal or "no grid value is left"


@dataclass(frozen=True)
class Selection:
    """A step's winner and every finished candidate's score under the criterion."""

    winner: Candidate
    scores: Mapping[str, float | None]


def score(criterion: str, *, gain: float, gflops: float, ratio: float) -> float:
    """Return the score of a candidate that gains `gain` in J and costs `gflops` more, `ratio` times as much in all.

    `gain_per_gflop`: dJ/dC; `gain_per_doubling`: dJ/log2(ratio); `accuracy`: dJ (the paper's choice among candidates
    of about equal cost). A loss is never divided: being costlier must not make it look smaller, so that with every
    criterion a loss scores its own dJ.
    """
    if gain <= 0 or criterion == "accuracy":
        return gain
    return gain / gflops if criterion == "gain_per_gflop" else gain / log2(ratio)


def select(space: Space, base: Candidate, base_accuracy: float, candidates: tuple[Candidate, ...],
           accuracies: Mapping[str, float | None]) -> Selection | None:
    """Return the step's winner: the best score, then the higher J, then the lower C, then the earlier axis.

    `accuracies` holds each candidate's J by its id, None for a failed one, which does not compete. The network grows
    even where no candidate gains (the target is a budget to spend, as in the paper). None where all failed.
    """
    scores: dict[str, float | None] = {}
    ranks: dict[Candidate, tuple[float, float, float, int]] = {}
    for place, candidate in enumerate(candidates):
        accuracy, scores[candidate.id] = accuracies[candidate.id], None
        if accuracy is not None:
            value = scores[candidate.id] = score(
                space.config.criterion, gain=accuracy - base_accuracy, gflops=candidate.gflops - base.gflops,
                ratio=candidate.gflops / base.gflops)
            ranks[candidate] = (value, accuracy, -candidate.gflops, -place)
    return Selection(max(ranks, key=ranks.__getitem__), scores) if ranks else None


def find_outpaced(space: Space, base: Candidate, base_accuracy: float,
                  accuracies: Mapping[Candidate, float]) -> tuple[Candidate, tuple[Candidate, ...]]:
    """Return the leader of a step's race, and those that would score less than it even with `race_margin` more
    accuracy; `accuracies` holds each candidate's J after the same share of its training."""
    in_race = tuple(accuracies)
    selection = select(space, base, base_accuracy, in_race, {c.id: accuracies[c] for c in in_race})
    if selection is None:
        raise ValueError("a race without candidates")
    with_margin = select(space, base, base_accuracy, in_race,
                         {c.id: accuracies[c] + space.config.race_margin for c in in_race})
    assert with_margin is not None
    best = selection.scores[selection.winner.id] or 0.0
    return selection.winner, tuple(c for c in in_race if c != selection.winner
                                   and (with_margin.scores[c.id] or 0.0) < best)


def contract(space: Space, base: Factors, expanded: Candidate) -> Candidate | None:
    """Return the last expansion, shrunk to the largest grid value with C <= target; None where that is `base` itself.

    `expanded` exceeds the target and `base`, the network before it, does not.
    """
    axis, best = AXES[expanded.axis], base
    for k in grid_steps(axis):
        grown = axis.grow_towards(base, expanded.factors, k, space.bounds)
        if not is_within_bounds(grown) or space.complexity(grown) > space.target:
            break
        if space.complexity(grown) > space.complexity(base):
            best = grown
    if best is base:
        return None
    return space.candidate(expanded.step + 1, expanded.axis, best, base, name="contraction")
