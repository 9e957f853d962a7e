"""The convolutions are PyTorch's to rounding, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.model import convolution
from expand.model.convolution import Depthwise, Pointwise

LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def gradients(module, reference, x):
    """Output and gradients of x and of the weight, by `module` and by PyTorch's own convolution, in float64."""
    results = []
    for run in (module, reference):
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
       layout=st.sampled_from(LAYOUTS), way=st.sampled_from(["_by_taps", "_by_planes"]))
def test_depthwise_equals_pytorch_in_value_and_both_gradients(batch, width, frames, height, side, kernel, stride,
                                                              layout, way):
    torch.manual_seed(0)
    module = Depthwise(width, kernel, stride=stride).double()
    x = torch.randn(batch, width, frames, height, side, dtype=torch.float64).to(memory_format=layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "weight_gradient", getattr(convolution, way))
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


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), 1), ((3, 3, 3), 2), ((5, 1, 1), 1)])
def test_depthwise_gradients_agree_with_finite_differences(kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, *kernel, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: convolution._DepthwiseFunction.apply(x, w, stride), (x, weight))


def test_every_way_of_the_weight_gradient_is_taken_for_some_shape(monkeypatch):
    taken = []
    for way in ("_by_taps", "_by_planes"):
        original = getattr(convolution, way)
        monkeypatch.setattr(convolution, way, lambda *a, way=way, original=original: taken.append(way) or original(*a))
    module = Depthwise(2, (3, 3, 3))
    for side in (2, 8):
        module(torch.randn(1, 2, 1, side, side)).sum().backward()
    assert taken == ["_by_taps", "_by_planes"]
