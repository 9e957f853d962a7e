"""Scores of a video's clips are averaged; the figures are those of the averaged scores."""

import math

import pytest
import torch

from expand.errors import CandidateFailed
from expand.training.evaluate import evaluation_of, score_videos, standard_error
from expand.training.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), 1, "fp32")


class Echo(torch.nn.Module):
    """Gives back the probabilities that are written into the clip's first values."""

    def probabilities(self, x):
        return x.flatten(1)[:, :3]


def batches(videos):
    """(probabilities of each view, label) by video, two clips a batch."""
    rows = [(torch.tensor(view), label, index) for index, (views, label) in enumerate(videos) for view in views]
    for first in range(0, len(rows), 2):
        some = rows[first:first + 2]
        x = torch.zeros(len(some), 3, 1, 1, 1)
        for i, (view, _, _) in enumerate(some):
            x[i, :, 0, 0, 0] = view
        yield x, torch.tensor([row[1] for row in some]), torch.tensor([row[2] for row in some])


def test_a_video_is_judged_by_the_mean_of_its_clips_probabilities():
    videos = [([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]], 1),   # two of three clips say 1; so does the mean
              ([[0.9, 0.05, 0.05], [0.4, 0.55, 0.05], [0.4, 0.55, 0.05]], 0),  # the mean overrules the majority
              ([[0.2, 0.3, 0.5]] * 3, 0)]
    result = evaluation_of(*score_videos(Echo(), batches(videos), 3, 3, RUNTIME))
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.stderr == pytest.approx(math.sqrt(2 / 9 / 3))
    assert result.confusion == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert result.top5 == 1.0
    assert result.loss == pytest.approx(-(math.log(1.6 / 3) + math.log(1.7 / 3) + math.log(0.2)) / 3, rel=1e-5)


def test_scores_that_are_not_finite_fail_the_candidate():
    with pytest.raises(CandidateFailed, match="not finite"):
        evaluation_of(*score_videos(Echo(), batches([([[float("nan"), 0.5, 0.5]], 0)]), 1, 3, RUNTIME))


@pytest.mark.parametrize(("accuracy", "videos", "stderr"), [(0.5, 400, 0.025), (1.0, 10, 0.0), (0.0, 10, 0.0)])
def test_standard_error_is_that_of_a_share(accuracy, videos, stderr):
    assert standard_error(accuracy, videos) == pytest.approx(stderr)
