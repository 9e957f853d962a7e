"""The convolutions are PyTorch's to rounding, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.model import convolution
from expand.model.convolution import Depthwise, Pointwise, SwishPointwise, plain_operators

LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def gradients(module, reference, x, call=None):
    """Output and gradients of x and of the weight, by `module` (called by `call`, if any) and by PyTorch's own
    convolution, in float64."""
    results = []
    for run in (call or module, reference):
        x = x.detach().requires_grad_()
        module.zero_grad()
        y = run(x)
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape, dtype=y.dtype))
        results.append((y, x.grad, module.weight.grad.clone()))
    return results


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), width=st.integers(1, 5), frames=st.integers(1, 5), height=st.integers(1, 9),
       side=st.integers(1, 9), kernel=st.sampled_from([(3, 3, 3), (5, 1, 1)]), stride=st.sampled_from([1, 2]),
       layout=st.sampled_from(LAYOUTS),
       way=st.sampled_from(["gradient_by_taps", "gradient_by_planes", "weight_gradient"]),
       large=st.sampled_from([1, convolution.LARGE_CLIP]))
def test_depthwise_equals_pytorch_in_value_and_both_gradients(batch, width, frames, height, side, kernel, stride,
                                                              layout, way, large):
    torch.manual_seed(0)
    module = Depthwise(width, kernel, stride=stride).double()
    x = torch.randn(batch, width, frames, height, side, dtype=torch.float64).to(memory_format=layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "weight_gradient", getattr(convolution, way))
        patch.setattr(convolution, "LARGE_CLIP", large)
        ours, reference = gradients(module, lambda x: F.conv3d(
            x, module.weight, None, module.stride, module.padding, 1, width), x)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), width=st.integers(1, 5), frames=st.integers(1, 3), side=st.integers(1, 7),
       stride=st.sampled_from([1, 2]), bias=st.booleans(), layout=st.sampled_from(LAYOUTS))
def test_pointwise_equals_pytorch_in_value_and_both_gradients(batch, width, frames, side, stride, bias, layout):
    torch.manual_seed(0)
    module = Pointwise(width, 4, stride=stride, bias=bias).double()
    x = torch.randn(batch, width, frames, side, side, dtype=torch.float64).to(memory_format=layout)
    ours, reference = gradients(module, lambda x: F.conv3d(x, module.weight, module.bias, module.stride), x)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("function", [lambda x, w: convolution._StridedPointwise.apply(x, w, 2),
                                      convolution._SwishFunction.apply])
def test_pointwise_gradients_agree_with_finite_differences(function):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, weight))


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), 1), ((3, 3, 3), 2), ((5, 1, 1), 1)])
def test_depthwise_gradients_agree_with_finite_differences(kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, *kernel, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: convolution._DepthwiseFunction.apply(x, w, stride), (x, weight))


def test_every_way_of_the_weight_gradient_is_taken_for_some_shape(monkeypatch):
    taken = []
    for way in ("gradient_by_taps", "gradient_by_planes"):
        original = getattr(convolution, way)
        monkeypatch.setattr(convolution, way, lambda *a, way=way, original=original: taken.append(way) or original(*a))
    module = Depthwise(2, (3, 3, 3))
    for side in (2, 8):
        module(torch.randn(1, 2, 1, side, side)).sum().backward()
    assert taken == ["gradient_by_taps", "gradient_by_planes"]


def test_clips_that_are_large_are_taken_alone_and_small_ones_together(monkeypatch):
    taken, original = [], convolution.gradient_by_planes
    monkeypatch.setattr(convolution, "gradient_by_planes", lambda x, *rest: taken.append(len(x)) or original(x, *rest))
    for frames, side in ((2, 8), (2, 160), (1, 260)):
        Depthwise(2, (3, 3, 3))(torch.randn(3, 2, frames, side, side)).sum().backward()
    assert taken == [3, 1, 1, 1, 3]


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 17), width=st.integers(1, 9), frames=st.integers(1, 6), side=st.integers(1, 7),
       layout=st.sampled_from(LAYOUTS), is_trained=st.booleans())
def test_in_float32_the_temporal_convolution_is_that_of_float64_to_rounding(batch, width, frames, side, layout,
                                                                            is_trained):
    torch.manual_seed(0)
    module = Depthwise(width, (5, 1, 1))
    x = torch.randn(batch, width, frames, side, side).to(memory_format=layout).requires_grad_()
    with torch.set_grad_enabled(is_trained):
        y = module(x)
    weight = module.weight.detach().double().requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected = F.conv3d(exact, weight, None, 1, (2, 0, 0), 1, width)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    if is_trained:
        for result, like in ((y, y), (expected, y.double())):
            torch.manual_seed(1)
            result.backward(torch.randn(y.shape).to(like.dtype))
        torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)


def test_the_temporal_convolution_keeps_channels_last_and_uses_torchs_own_only_where_it_is_observed():
    module, x = Depthwise(8, (5, 1, 1)), torch.randn(2, 8, 3, 6, 6).to(memory_format=torch.channels_last_3d)
    assert module(x).is_contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert "_convolution" in str(torch.jit.trace(module, x).inlined_graph)
        assert "mkldnn_convolution" not in str(torch.jit.trace(module, x).inlined_graph)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_strided_pointwise_convolution_is_channels_last_and_zero_between(layout):
    x = torch.randn(2, 3, 2, 5, 6).to(memory_format=layout).requires_grad_()
    gradient, = torch.autograd.grad(Pointwise(3, 4, stride=2)(x).sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d)
    assert (gradient[..., ::2, ::2] != 0).all()
    assert (gradient[..., 1::2, :] == 0).all() and (gradient[..., 1::2] == 0).all()


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), width=st.integers(1, 5), frames=st.integers(1, 3), side=st.integers(1, 7),
       layout=st.sampled_from(LAYOUTS), is_plain=st.booleans())
def test_swish_and_pointwise_equal_pytorch_in_value_and_both_gradients(batch, width, frames, side, layout, is_plain):
    torch.manual_seed(0)
    module = SwishPointwise(width, 4).double()
    x = torch.randn(batch, width, frames, side, side, dtype=torch.float64).to(memory_format=layout)

    def run(x):
        if not is_plain:
            return module(x)
        with plain_operators():
            return module(x)

    ours, reference = gradients(module, lambda x: F.conv3d(x * x.sigmoid(), module.weight), x, run)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_swish_and_pointwise_keep_their_input_alone_for_the_backward_pass():
    module, kept = SwishPointwise(3, 4), []
    x = torch.randn(2, 3, 2, 5, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x)
    assert sorted(tensor.numel() for tensor in kept) == [module.weight.numel(), x.numel()]
