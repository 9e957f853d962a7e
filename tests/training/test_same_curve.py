"""The forms of the layers train alike: compiled kernels, PyTorch's operators in fast forms, and the plain ones.

Small batch norms make a training chaotic: a change in a weight's last bit grows to some hundredths in the loss within
fifty steps, in any form. So the curves are compared in float64, where the last bit is small enough to stay small and a
wrong gradient shows, and in float32 with a rate at which rounding does not grow.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from expand.kernels import library
from expand.model import convolution
from expand.model.convolution import plain_operators
from expand.model.x3d import ResBlock
from expand.rundir.paths import CandidatePaths
from expand.training.evaluate import Evaluation
from expand.training.job import Hooks, Job
from expand.training.loop import Training
from tests.training.small import CONFIG, RECIPE, RUNTIME, network

STEPS = 50
RATES = {torch.float32: 0.05, torch.float64: 0.2}
FAST = ("compiled", "pure")


class Trained(NamedTuple):
    """The loss of every step, and the figures on val at the end, which are taken in float32 alone."""

    losses: list[float]
    val: Evaluation | None


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The `Trained` of a form, a number of frames and a type; each trained once."""
    done = {}

    def of(form, frames, dtype):
        if (key := (form, frames, dtype)) not in done:
            done[key] = train_in(form, frames, dtype, data, tmp_path_factory.mktemp(form))
        return done[key]

    return of


def train_in(form, frames, dtype, data, folder):
    """`train` with the layers in one of their forms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, "" if form == "compiled" else library.OFF)
        if form == "compiled" and library.load() is None:
            pytest.skip("the compiled kernels are not built here")
        with plain_operators() if form == "plain" else nullcontext():
            return train(frames, dtype, data, folder)


def train(frames, dtype, data, folder):
    """A real training, each of whose losses is noted as it arises; from the same seed in every form."""
    epochs = -(-STEPS * RECIPE.batch_size // len(data.train))
    recipe = replace(RECIPE, epochs=epochs, lr=RATES[dtype])
    job = Job("final", network("small", frames=frames), 0.001, recipe, CONFIG, 7, CandidatePaths(folder), 1000.0)
    training, losses = Training(job, data, RUNTIME, Hooks()), []
    if dtype == torch.float64:
        in_float64(training)
    update = training.update

    def noted(*batch):
        loss, hits = update(*batch)
        losses.append(float(loss))
        return loss, hits

    training.update = noted
    training.fit()
    if dtype == torch.float64:
        return Trained(losses[:STEPS], None)
    training.refresh_batch_norm()
    return Trained(losses[:STEPS], training.evaluate("val"))


def in_float64(training):
    """From now on; and with blocks that matter from the first step on, where they else begin as their shortcuts."""
    model = training.model.double()
    for module in model.modules():
        if isinstance(module, ResBlock):
            nn.init.ones_(module.c_bn.weight)
    training.called = lambda x_BCTHW: model(x_BCTHW.double())


def largest_difference(found, expected):
    """Of two curves' losses at the same step."""
    assert len(found.losses) == len(expected.losses) == STEPS
    return max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True))


@pytest.mark.parametrize("form", FAST)
def test_in_float64_the_losses_of_fifty_steps_are_those_of_the_plain_layers(trained, form):
    expected = trained("plain", 4, torch.float64)
    assert 0 < largest_difference(trained(form, 4, torch.float64), expected) < 1e-7  # at 0, it is one form twice
    assert min(expected.losses) < expected.losses[0] - 0.1  # it learns


def test_a_gradient_that_is_wrong_by_a_hundredth_shows_in_the_losses(trained, data, tmp_path, monkeypatch):
    right = convolution.weight_gradient
    monkeypatch.setattr(convolution, "weight_gradient", lambda *tensors: 1.01 * right(*tensors))
    wrong = train_in("pure", 4, torch.float64, data, tmp_path)
    assert largest_difference(wrong, trained("plain", 4, torch.float64)) > 1e-3


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("form", FAST)
def test_in_float32_the_losses_of_fifty_steps_are_those_of_the_plain_layers(trained, form, frames):
    expected = trained("plain", frames, torch.float32)
    assert 0 < largest_difference(trained(form, frames, torch.float32), expected) < 1e-3


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("form", FAST)
def test_accuracy_on_val_is_that_of_the_plain_layers_within_noise(trained, form, frames):
    expected, found = trained("plain", frames, torch.float32).val, trained(form, frames, torch.float32).val
    assert found.accuracy == pytest.approx(expected.accuracy, abs=0.07)  # one clip of the 16
    assert found.loss == pytest.approx(expected.loss, abs=0.01)
