"""The folded network answers as the network does, for every geometry."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expand.model import X3D
from expand.model.convolution import plain_operators
from expand.model.folded_batch_norm import FoldedX3D, fold, for_inference
from expand.space.factors import Factors
from expand.space.network import Network
from expand.training.evaluate import probabilities_of
from expand.training.runtime import Runtime
from tests.model.seeded import awaken

CASES = {"frames": st.integers(1, 5), "resolution": st.sampled_from([32, 40, 48, 72]),
         "width": st.sampled_from([0.1, 0.5, 1.0]), "bottleneck": st.sampled_from([0.5, 1.0, 2.25]),
         "depth": st.sampled_from([0.1, 0.4])}


def lively(model: nn.Module, seed: int = 0) -> X3D:
    """`model` as after a training, in evaluation and channels-last."""
    torch.manual_seed(seed)
    awaken(model, norms=0.3, classifier=0.1)
    return model.eval().to(memory_format=torch.channels_last_3d)


def network(factors: dict, *, first_projection_bn: bool = True) -> Network:
    return Network("n", Factors.of(stride=1, **factors), 5, first_projection_bn=first_projection_bn)


@settings(max_examples=40)
@given(st.fixed_dictionaries(CASES), st.booleans(), st.integers(0, 2), st.integers(0, 3), st.sampled_from([1, 2]),
       st.integers(0, 99))
def test_it_computes_what_the_network_computes(factors, norm_on_shortcut, more, frames_more, clips, seed):
    """In float64, where rounding hides nothing; also on clips that are larger than the training's."""
    model = lively(X3D.of(network(factors, first_projection_bn=norm_on_shortcut)), seed).double()
    side = factors["resolution"] + 32 * more
    x_BCTHW = torch.randn(clips, 3, factors["frames"] + frames_more, side, side, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(for_inference(model).logits(x_BCTHW), model(x_BCTHW), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(for_inference(model).probabilities(x_BCTHW), model.probabilities(x_BCTHW),
                                   rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("frames", [1, 4])
def test_in_float32_it_is_as_exact_as_the_network(frames, threads):
    model = lively(X3D.of(network({"frames": frames, "resolution": 64, "width": 1.0, "bottleneck": 2.25,
                                   "depth": 0.4})))
    x_BCTHW = torch.randn(3, 3, frames, 64, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found, own = for_inference(model).logits(x_BCTHW).double(), model(x_BCTHW).double()
            exact = model.double()(x_BCTHW.double())
    finally:
        torch.set_num_threads(before)
    scale = exact.abs().max()
    assert (found - exact).abs().max() < max(2 * (own - exact).abs().max(), 1e-6 * scale)


def test_it_is_of_the_weights_at_its_making_and_leaves_them_alone():
    model = lively(X3D.of(network({"frames": 2, "resolution": 32})))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    x_BCTHW = torch.randn(2, 3, 2, 32, 32)
    with torch.inference_mode():
        answering, input_before = for_inference(model), x_BCTHW.clone()
        first = answering.probabilities(x_BCTHW)
        assert torch.equal(x_BCTHW, input_before)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    with torch.inference_mode():
        assert torch.equal(answering.probabilities(x_BCTHW), first)
        assert not torch.equal(for_inference(model).probabilities(x_BCTHW), first)
    model.train()(x_BCTHW).sum().backward()  # nothing of it was made into an inference tensor
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_training_network_is_put_into_evaluation():
    model = X3D.of(network({"frames": 1, "resolution": 32})).train()
    assert isinstance(for_inference(model), FoldedX3D) and not model.training


def test_what_is_asked_for_plainly_stays_plain():
    model, other = X3D.of(network({"frames": 1, "resolution": 32})), nn.Linear(2, 2)
    with plain_operators():
        assert for_inference(model) is model
    assert for_inference(other) is other


def test_under_autocast_it_answers_too():
    model = lively(X3D.of(network({"frames": 2, "resolution": 32})))
    x_BCTHW = torch.randn(4, 3, 2, 32, 32)
    with torch.inference_mode():
        expected = model.probabilities(x_BCTHW).double()
        found = probabilities_of(for_inference(model), x_BCTHW, Runtime(torch.device("cpu"), 1, "bf16"))
    assert (found - expected).abs().max() < 0.1 and not torch.equal(found, expected)


def test_a_bias_before_the_norm_is_shifted_and_scaled():
    conv, norm = nn.Conv3d(2, 3, 1).double(), nn.BatchNorm3d(3).double().eval()
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64)
    assert math.isclose((fold(conv, norm)(x) - norm(conv(x))).abs().max().item(), 0, abs_tol=1e-12)
