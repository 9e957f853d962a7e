"""Forecasts: the path of a plan, and the number and cost of the candidates of a search not yet run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expand.errors import UsageError, did_you_mean
from expand.expansion.rules import Proposal, Space, contract, grid_steps, propose
from expand.expansion.state import Candidate
from expand.space.axes import AXES
from expand.space.network import is_within_bounds

MAX_STEPS = 64
"""A doubling repeated so often exceeds any machine; a forecast stops there."""


def check_target(space: Space) -> None:
    """Raise `UsageError` where the target leaves nothing to search: below the basis, or met by it."""
    basis = space.basis()
    least = basis.gflops / (1 - space.config.tolerance)  # what a target must exceed for an expansion to be due
    smaller = f"a smaller basis makes room: --set search.basis.resolution=R, or raise the target above {least:.4g}"
    if basis.gflops > space.target:
        raise UsageError(f"the target of {space.target:g} GFLOPs is below the basis, which costs {basis.gflops:.4g}",
                         where="search.target_gflops", fix=smaller)
    if space.is_reached_by(basis.gflops):
        raise UsageError(f"the basis already meets the target: it costs {basis.gflops:.4g} of {space.target:g} GFLOPs",
                         where="search.target_gflops", fix=smaller)


@dataclass(frozen=True)
class Plan:
    """A path through the space: the network after each step, the contraction if the target is passed, and the
    candidates that the next step would train."""

    basis: Candidate
    steps: tuple[Candidate, ...]
    contraction: Candidate | None
    next: Proposal | None


def follow(space: Space, path: Sequence[str]) -> Plan:
    """Return the plan that expands along the axes of `path`, in order, until the target is reached or the path ends.

    Raises `UsageError` for an unknown axis and for one that cannot grow where the path wants it.
    """
    for number, name in enumerate(path, start=1):
        if name not in AXES:
            raise UsageError(f"no axis is called '{name}'", where=f"--path, step {number}",
                             fix=did_you_mean(name, AXES) or f"the axes: {', '.join(AXES)}")
    basis = space.basis()
    current, steps = basis, []
    for number, name in enumerate(path, start=1):
        if space.is_reached_by(current.gflops):
            break
        proposal = propose(space, current.factors, number)
        base, current = current, _pick_axis(proposal, name, number)
        steps.append(current)
    if current.gflops > space.target and steps:
        return Plan(basis, tuple(steps), contract(space, base.factors, current), None)
    if space.is_reached_by(current.gflops):
        return Plan(basis, tuple(steps), None, None)
    return Plan(basis, tuple(steps), None, propose(space, current.factors, len(steps) + 1))


def _pick_axis(proposal: Proposal, name: str, number: int) -> Candidate:
    for candidate in proposal.candidates:
        if candidate.axis == name:
            return candidate
        if name in candidate.also:
            also = tuple(axis for axis in (candidate.axis, *candidate.also) if axis != name)
            return replace(candidate, axis=name, also=also, id=f"s{number:02d}-{name}")
    reason = next((e.reason for e in proposal.excluded if e.axis == name), "it is not among search.axes")
    raise UsageError(f"{name} cannot grow: {reason}", where=f"--path, step {number}")


def forecast(space: Space, start: Candidate | None = None) -> list[tuple[Candidate, ...]]:
    """Return the candidates of every step to come after `start` (the basis, itself included, where none is given), the
    contraction's last.

    The choices are not known yet, so the path is taken along the candidate whose cost is the middle one; the number
    and cost of the candidates depend little on it.
    """
    steps: list[tuple[Candidate, ...]] = []
    base = current = start or space.basis()
    if start is None:
        steps.append((current,))
    number = current.step
    while not space.is_reached_by(current.gflops) and len(steps) < MAX_STEPS:
        number += 1
        candidates = propose(space, current.factors, number).candidates
        if not candidates:
            return steps
        steps.append(candidates)
        base, current = current, sorted(candidates, key=lambda c: c.gflops)[len(candidates) // 2]
    if current.gflops > space.target:
        contracted = contract(space, base.factors, current)
        if contracted:
            steps.append((contracted,))
    return steps


def largest_resolution(space: Space) -> int:
    """Return the largest training crop, pixels, that the search can come to try: what frames must be kept for.

    A candidate never costs more than `expansion_rate` x the target, unless it is a single grid step.
    """
    axis, basis = AXES["x_spatial"], space.basis().factors
    if "x_spatial" not in space.config.axes:
        return basis.resolution
    ceiling = space.config.expansion_rate * space.target
    best = basis
    for k in grid_steps(axis):
        grown = axis.grow(basis, k, space.bounds)
        if axis.refusal(basis, grown, space.bounds) or not is_within_bounds(grown):
            break
        best = grown
        if space.complexity(grown) > ceiling:
            break
    return best.resolution
