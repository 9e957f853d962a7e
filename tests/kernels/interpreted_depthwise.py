"""The Triton kernels against PyTorch in float64, run by Triton's interpreter on CPU tensors.

`test_triton_depthwise.py` starts this in a process of its own: the interpreter is for a whole process or not at all.
"""

from __future__ import annotations

import os

assert os.environ.get("TRITON_INTERPRET") == "1", "the kernels would be compiled for a GPU"

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from expand.kernels import triton_depthwise
from expand.kernels.triton_depthwise import triton_depthwise as convolve

CHANNELS_LAST = torch.channels_last_3d
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def inputs(shape, kernel, dtype, seed):
    """x, weight, and a gradient's source, reproducible; x is rounded to `dtype` before it goes anywhere."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=made).to(dtype).to(memory_format=CHANNELS_LAST)
    weight = torch.randn(shape[1], 1, *kernel, generator=made)
    return x.requires_grad_(), weight.requires_grad_(), made


def expected(x, weight, stride, grad):
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    padding = [side // 2 for side in weight.shape[2:]]
    y = F.conv3d(x, weight, None, (1, stride, stride), padding, 1, weight.shape[0])
    return y, *torch.autograd.grad(y, (x, weight), grad.double())


def close(got, exact, dtype):
    """Within rounding, of the largest value; zero results are zero."""
    assert got.shape == exact.shape
    assert (got.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()


def check(shape, kernel, stride, dtype, seed=0):
    x, weight, made = inputs(shape, kernel, dtype, seed)
    y = convolve(x, weight, stride)
    grad = torch.randn(y.shape, generator=made).to(dtype)
    grad_x, grad_w = torch.autograd.grad(y, (x, weight), grad)
    for result, exact in zip((y, grad_x, grad_w), expected(x, weight, stride, grad), strict=True):
        close(result.detach(), exact.detach(), dtype)
    assert (y.dtype, grad_x.dtype, grad_w.dtype) == (dtype, dtype, torch.float32)
    assert y.is_contiguous(memory_format=CHANNELS_LAST) and grad_x.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter takes milliseconds for each program and frame, whatever the size of its tile."""
    monkeypatch.setattr(triton_depthwise, "PROGRAMS", 2)
    monkeypatch.setattr(triton_depthwise, "TILE", 4096)


SHAPES = {"clips": st.integers(1, 2), "frames": st.integers(1, 3), "height": st.integers(1, 6),
          "width": st.integers(1, 6), "dtype": st.sampled_from(list(TOLERANCE))}
HERE = settings(max_examples=3, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HERE
@given(**SHAPES, channels=st.integers(1, 40), stride=st.sampled_from((1, 2)))
@example(clips=1, frames=1, height=1, width=1, dtype=torch.float32, channels=1, stride=2)
@example(clips=1, frames=1, height=5, width=4, dtype=torch.float32, channels=3, stride=2)
@example(clips=1, frames=2, height=4, width=6, dtype=torch.bfloat16, channels=54, stride=2)
@example(clips=1, frames=2, height=7, width=5, dtype=torch.float32, channels=33, stride=1)
def test_output_and_gradients_of_a_blocks_convolution_are_exact(clips, channels, frames, height, width, stride, dtype):
    check((clips, channels, frames, height, width), (3, 3, 3), stride, dtype)


@HERE
@given(**SHAPES, channels=st.integers(1, 40))
@example(clips=1, frames=7, height=2, width=3, dtype=torch.float32, channels=24)
def test_output_and_gradients_of_the_stems_convolution_are_exact(clips, channels, frames, height, width, dtype):
    check((clips, channels, frames, height, width), (5, 1, 1), 1, dtype)


@pytest.mark.parametrize("stride", [1, 2])
def test_more_tiles_than_programs_and_frames_in_chunks_give_the_same(stride, monkeypatch):
    shape = (1, 8, 3, 3, 5)
    monkeypatch.setattr(triton_depthwise, "TILE", 256)
    monkeypatch.setattr(triton_depthwise, "PROGRAMS", 1)
    few = _all(shape, stride)  # a program of `collect` takes several tiles, and one of the others all frames
    close_to_exact(shape, few, stride)
    monkeypatch.setattr(triton_depthwise, "PROGRAMS", 10_000)
    many = _all(shape, stride)  # a tile, and two frames
    assert torch.equal(few[0], many[0]) and torch.equal(few[1], many[1])
    close(many[2], few[2].double(), torch.float32)


def _all(shape, stride):
    x, weight, _ = inputs(shape, (3, 3, 3), torch.float32, 0)
    y = convolve(x, weight, stride)
    return y.detach(), *torch.autograd.grad(y, (x, weight), y.detach())


def close_to_exact(shape, results, stride):
    x, weight, _ = inputs(shape, (3, 3, 3), torch.float32, 0)
    for result, exact in zip(results, expected(x, weight, stride, results[0]), strict=True):
        close(result, exact.detach(), torch.float32)


def test_the_same_inputs_give_the_same_bits():
    first, second = _all((2, 24, 1, 4, 3), 1), _all((2, 24, 1, 4, 3), 1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_any_memory_layout_is_taken():
    x, weight, made = inputs((1, 8, 1, 3, 4), (3, 3, 3), torch.float32, 0)
    planes, transposed = x.detach().contiguous(), x.detach().transpose(3, 4).contiguous().transpose(3, 4)
    exact = convolve(x, weight, 2)
    assert torch.equal(convolve(planes, weight, 2), exact) and torch.equal(convolve(transposed, weight, 2), exact)
    grad = torch.randn(exact.shape, generator=made)
    spread = torch.stack([grad, grad], -1)[..., 0]
    for of in (x, weight):
        plain, = torch.autograd.grad(convolve(x, weight, 2), of, grad)
        strided, = torch.autograd.grad(convolve(x, weight, 2), of, spread)
        assert torch.equal(plain, strided)


def test_only_the_gradients_asked_for_are_computed(monkeypatch):
    x, weight, _ = inputs((1, 4, 2, 4, 4), (3, 3, 3), torch.float32, 0)
    launched = []
    launch = triton_depthwise._launch
    monkeypatch.setattr(triton_depthwise, "_launch", lambda name, *rest, **more: (launched.append(name),
                                                                                 launch(name, *rest, **more)))
    torch.autograd.grad(convolve(x.detach(), weight, 2).sum(), weight)
    assert launched == ["gather", "collect"]
    launched.clear()
    torch.autograd.grad(convolve(x, weight.detach(), 2).sum(), x)
    assert launched == ["gather", "spread"]


def test_what_is_not_a_number_stays_so_where_it_reaches():
    x = torch.zeros(1, 2, 1, 5, 5)
    x[0, 0, 0, 2, 2] = torch.nan
    y = convolve(x.to(memory_format=CHANNELS_LAST), torch.ones(2, 1, 3, 3, 3), 1)
    assert y[0, 0, 0].isnan().sum() == 9 and not y[0, 1].isnan().any()


def test_a_call_in_a_mode_without_choice_runs_the_kernels(monkeypatch):
    x, weight, _ = inputs((1, 4, 2, 4, 4), (3, 3, 3), torch.float32, 0)
    monkeypatch.setattr(triton_depthwise, "mode", lambda: "on")
    assert torch.equal(triton_depthwise.depthwise(x, weight, 1), convolve(x, weight, 1))
