"""How sure a step's choice is: its leader against each rival, in pairs, under the noise of clips and of seeds.

The candidates of a step see the same val clips, so the clips that both get right or wrong cancel out (McNemar, 1947).
A network trained again with another seed differs by far more than its clips tell, so the noise between seeds counts as
well. docs/decisions/023-confidence.md has the derivation and what was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expand.config.schema import SearchConfig
from expand.expansion.rules import score
from expand.expansion.state import Candidate, Outcome

SEED_SD_WEIGHT = 10
"""How many degrees of freedom `SearchConfig.seed_sd` counts for, beside those of the run's own repeats."""


@dataclass(frozen=True)
class Verdict:
    """A step's `leader`, the rivals that its lead is no proof against (`tied`), and each rival's p-value, corrected for
    the number of rivals (Holm, 1979)."""

    leader: str
    tied: tuple[str, ...]
    p_values: Mapping[str, float]


def encode_right(right: Sequence[bool]) -> str:
    """Return which val clips were right, in the split's order, as hexadecimal digits: four clips a digit, the first
    clip the highest bit, the last digit filled up with zeros."""
    bits = "".join("1" if each else "0" for each in right)
    bits += "0" * (-len(bits) % 4)
    return "".join(f"{int(bits[start:start + 4], 2):x}" for start in range(0, len(bits), 4))


def decode_right(digits: str, clips: int) -> tuple[bool, ...]:
    """The inverse of `encode_right` for `clips` clips."""
    bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
    return tuple(bit == "1" for bit in bits[:clips])


def pooled_seed_sd(seed_sd: float, trainings: Sequence[Sequence[Outcome]]) -> tuple[float, int]:
    """Return the standard deviation of an accuracy between seeds and its degrees of freedom: `seed_sd`, the configured
    estimate, pooled with what the repeats of `trainings` (a sequence of outcomes for each candidate) show."""
    squares, freedom = SEED_SD_WEIGHT * seed_sd ** 2, SEED_SD_WEIGHT
    for outcomes in trainings:
        accuracies = [outcome.accuracy or 0.0 for outcome in outcomes if outcome.is_finished]
        if len(accuracies) > 1:
            mean = math.fsum(accuracies) / len(accuracies)
            squares += math.fsum((accuracy - mean) ** 2 for accuracy in accuracies)
            freedom += len(accuracies) - 1
    return math.sqrt(squares / freedom), freedom


def compare(config: SearchConfig, clips: int, base: Candidate, base_accuracy: float,
            trainings: Mapping[Candidate, Sequence[Outcome]], leader: Candidate) -> Verdict:
    """Return how sure it is that `leader` is the best of a step under the criterion.

    `trainings` holds the outcomes of each candidate of the step, repeats included; failed and stopped ones do not
    compete. `clips` is the number of val clips, `base` the network before the step with its J. A rival is beaten when
    both tests reject after Holm's correction: Student's test on the difference of the scores, whose variance has the
    clips' part and the seeds' part, and, where a gain weighs the same for both, the exact McNemar test on the val
    clips.
    """
    finished = {candidate: [outcome for outcome in outcomes if outcome.is_finished]
                for candidate, outcomes in trainings.items()}
    means = {candidate: math.fsum(outcome.accuracy or 0.0 for outcome in outcomes) / len(outcomes)
             for candidate, outcomes in finished.items() if outcomes}
    sd, freedom = pooled_seed_sd(config.seed_sd, list(finished.values()))
    raw = {}
    for rival in means:
        if rival == leader:
            continue
        pair = leader, rival
        both_gain = min(means[each] for each in pair) > base_accuracy
        weights = [_weight(config.criterion, each, base) if both_gain else 1.0 for each in pair]
        gains = [weight * (means[each] - base_accuracy) for weight, each in zip(weights, pair, strict=True)]
        seeds = math.fsum((weight * sd) ** 2 / len(finished[each]) for weight, each in zip(weights, pair, strict=True))
        variance = seeds + _clips_variance(finished[leader], finished[rival], weights, clips)
        raw[rival.id] = _upper_tail(gains[0] - gains[1], variance, freedom)
        if math.isclose(*weights, rel_tol=0.02):
            raw[rival.id] = max(raw[rival.id], mcnemar(finished[leader], finished[rival], clips))
    corrected, largest = {}, 0.0
    for place, (id_, p_value) in enumerate(sorted(raw.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p_value * (len(raw) - place)))
        corrected[id_] = largest
    in_order = {candidate.id: corrected[candidate.id] for candidate in trainings if candidate.id in corrected}
    return Verdict(leader.id, tuple(id_ for id_, p_value in in_order.items() if p_value > 1 - config.confidence),
                   in_order)


def mcnemar(one: Sequence[Outcome], other: Sequence[Outcome], clips: int) -> float:
    """Return the exact one-sided p-value of the first training of `one` being no better than that of `other` on the
    same val clips: the binomial test of the clips on which just one of them is right. 0 where they do not say which
    clips they got right (runs of earlier versions): the test has no say then."""
    rights = _right_clips(one, clips)[:1], _right_clips(other, clips)[:1]
    if not all(rights):
        return 0.0
    from scipy.stats import binomtest  # late: its import costs half a second, and only a choice needs it

    pairs = Counter(zip(rights[0][0], rights[1][0], strict=True))
    for_one, for_other = pairs[True, False], pairs[False, True]
    if for_one + for_other == 0:
        return 1.0
    return float(binomtest(for_one, for_one + for_other, 0.5, alternative="greater").pvalue)


def _right_clips(outcomes: Sequence[Outcome], clips: int) -> list[tuple[bool, ...]]:
    """Return which clips each training got right, of those that say so."""
    return [decode_right(outcome.right, clips) for outcome in outcomes
            if outcome.right is not None and clips and len(outcome.right) == -(-clips // 4)]


def _weight(criterion: str, candidate: Candidate, base: Candidate) -> float:
    """Return the score of a gain of 1: what a gain in accuracy is worth under the criterion, at the candidate's cost.
    """
    if candidate.gflops <= base.gflops:  # the basis, which has no rival
        return 1.0
    return score(criterion, gain=1.0, gflops=candidate.gflops - base.gflops, ratio=candidate.gflops / base.gflops)


def _clips_variance(one: Sequence[Outcome], other: Sequence[Outcome], weights: Sequence[float], clips: int) -> float:
    """Return the variance of the weighted difference of two candidates' accuracies for the choice of val clips: by
    pairs where all their trainings say which clips were right, as of independent sets otherwise."""
    sides = one, other
    rights = [_right_clips(outcomes, clips) for outcomes in sides]
    if [len(found) for found in rights] == [len(outcomes) for outcomes in sides]:
        shares = [[sum(clip) / len(clip) for clip in zip(*found, strict=True)] for found in rights]
        differences = [weights[0] * mine - weights[1] * theirs for mine, theirs in zip(*shares, strict=True)]
        mean = math.fsum(differences) / clips
        return math.fsum((each - mean) ** 2 for each in differences) / max(1, clips - 1) / clips
    return math.fsum(weight ** 2 * math.fsum((outcome.stderr or 0.0) ** 2 for outcome in outcomes) / len(outcomes)
                     for weight, outcomes in zip(weights, sides, strict=True))


def _upper_tail(difference: float, variance: float, freedom: int) -> float:
    """Return the probability that Student's t with `freedom` degrees exceeds the difference over its deviation."""
    if variance <= 0:
        return 0.0 if difference > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(freedom, -difference / math.sqrt(variance)))
