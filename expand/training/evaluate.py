"""Accuracy of a network on a split: K clips a video, scores averaged (paper, section 4: inference)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from expand.errors import CandidateFailed
from expand.model import X3D
from expand.model.folded_batch_norm import FoldedX3D, for_inference
from expand.training.runtime import Runtime

FETCH_EVERY = 10
"""Batches between two fetches of results. A fetch waits for the GPU; without any, batches would fill its memory
faster than it measures them."""


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` (top-1) and `top5` in 0..1, `stderr` of the accuracy, mean `loss` (negative log-likelihood, nats).

    `confusion[i][j]`: videos of class i for which class j was predicted; `right`: for each video, in the split's order,
    whether its class was.
    """

    accuracy: float
    stderr: float
    top5: float
    loss: float
    confusion: list[list[int]]
    right: tuple[bool, ...] = ()


def standard_error(accuracy: float, videos: int) -> float:
    """Return the standard error of a share `accuracy` measured on `videos` independent videos."""
    return math.sqrt(accuracy * (1 - accuracy) / videos)


def standard_error_of_difference(right: Sequence[bool], other: Sequence[bool]) -> float:
    """Return the standard error of the difference of two accuracies on the same videos, from which of them each got
    right."""
    videos = len(right)
    for_one = sum(mine and not theirs for mine, theirs in zip(right, other, strict=True))
    for_other = sum(theirs and not mine for mine, theirs in zip(right, other, strict=True))
    return math.sqrt(for_one + for_other - (for_one - for_other) ** 2 / videos) / videos


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a share seen in `count` independent cases, in 0..1 (Wilson, J. Am. Stat. Assoc.
    22, 1927). Unlike `standard_error` it is not empty for a share of 0 or 1, and it is right for few cases.
    """
    z2_per_case = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / count
    middle = share + z2_per_case / 2
    half = math.sqrt(z2_per_case * (share * (1 - share) + z2_per_case / 4))
    return max(0.0, (middle - half) / (1 + z2_per_case)), min(1.0, (middle + half) / (1 + z2_per_case))


def probabilities_of(model: X3D | FoldedX3D, x_BCTHW: Tensor, runtime: Runtime) -> Tensor:
    """Return the class probabilities of clips, B x classes float64, on the CPU; for `torch.inference_mode`. For many
    clips, pass `for_inference(model)`."""
    return _on_device(model, x_BCTHW, runtime).cpu()


def _on_device(model: X3D | FoldedX3D, x_BCTHW: Tensor, runtime: Runtime) -> Tensor:
    """Return the same as `probabilities_of`, but on the device, without waiting for a GPU."""
    x_BCTHW = x_BCTHW.to(runtime.device, memory_format=runtime.memory_format, non_blocking=True)
    with runtime.autocast():
        return model.probabilities(x_BCTHW).double()


def score_videos(model: X3D, batches: Iterable[tuple[Tensor, ...]], videos: int, classes: int,
                 runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Return class probabilities (videos x classes, float64), averaged over each video's clips, and labels (videos).

    `batches` yields clips B x 3 x T x H x W, labels, and the videos' indices in the split.
    """
    scores = torch.zeros(videos, classes, dtype=torch.float64)
    labels = torch.zeros(videos, dtype=torch.int64)
    views = torch.zeros(videos, 1, dtype=torch.float64)
    folded = for_inference(model, runtime.autocast_dtype)
    waiting: list[tuple[Tensor, Tensor]] = []

    def add() -> None:
        for probabilities_BK, video_B in zip(_on_host([computed for computed, _ in waiting]),
                                             [video_B for _, video_B in waiting], strict=True):
            scores.index_add_(0, video_B, probabilities_BK)
        waiting.clear()

    with torch.inference_mode():
        for x_BCTHW, y_B, video_B in batches:
            waiting.append((_on_device(folded, x_BCTHW, runtime), video_B))
            views.index_add_(0, video_B, torch.ones(len(y_B), 1, dtype=torch.float64))
            labels[video_B] = y_B
            if len(waiting) == FETCH_EVERY:
                add()
        add()
    return scores / views, labels


def _on_host(some: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return `some` tensors of equal width, brought to the host together."""
    return torch.cat(list(some)).cpu().split([len(part) for part in some]) if some else []


def hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return for every video (a row of `scores`) True if its label is among the `k` best classes."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1)


def evaluation_of(scores: Tensor, labels: Tensor) -> Evaluation:
    """Return the figures of `scores` (videos x classes, probabilities). Raises `CandidateFailed` if a score is not
    finite."""
    if not torch.isfinite(scores).all():
        raise CandidateFailed("its scores are not finite")
    videos, classes = scores.shape
    guesses = scores.argmax(1)
    accuracy = (guesses == labels).double().mean().item()
    likelihood = scores.gather(1, labels[:, None]).clamp_min(1e-12)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    confusion.index_put_((labels, guesses), torch.ones_like(labels), accumulate=True)
    return Evaluation(accuracy, standard_error(accuracy, videos), hits(scores, labels, 5).double().mean().item(),
                      -likelihood.log().mean().item(), confusion.tolist(), tuple((guesses == labels).tolist()))
