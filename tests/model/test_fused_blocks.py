"""The compiled parts of a network compute what its layers compute, forward and backward, and leave alone what is not
theirs."""

import copy
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from expand.kernels import library
from expand.model import X3D
from expand.model import fused_blocks as fused
from expand.model.convolution import plain_operators
from expand.model.x3d import Head, ResBlock, Stem
from expand.space.geometry import Block

pytestmark = pytest.mark.skipif(library.load() is None, reason="no compiled kernels: see `x3d-expand doctor`")
WIDTHS = st.sampled_from([8, 16, 24, 40])
SIZES = {"clips": st.integers(1, 4), "frames": st.integers(1, 6), "height": st.integers(1, 19),
         "width": st.integers(1, 19)}
LAYOUTS = st.sampled_from([torch.contiguous_format, torch.channels_last_3d])


def awake(part, seed=0):
    """`part` in float64 with weights that let a gradient through everywhere; a block's last norm starts as zero."""
    torch.manual_seed(seed)
    for parameter in part.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.5)
    return part.double().train()


def results(part, x, *, fast):
    """Result, gradients, running statistics and the result in evaluation."""
    part, x = copy.deepcopy(part), x.detach().clone(memory_format=torch.preserve_format)
    x.requires_grad_(not isinstance(part, Stem))
    called = []
    with pytest.MonkeyPatch.context() as patch:
        usable = fused.usable
        patch.setattr(fused, "usable", lambda *given: fast and (called.append(usable(*given)) or called[-1]))
        z = part(x)
        torch.manual_seed(1)
        z.backward(torch.randn(z.shape, dtype=torch.float64).to(z.dtype))
        with torch.no_grad():
            answer = part.eval()(x.detach())
    assert called == ([True, True] if fast else [])
    return {"z": z.detach(), "dx": x.grad, "answer": answer, **{k: p.grad for k, p in part.named_parameters()},
            **dict(part.named_buffers())}


def assert_same(part, x, **tolerance):
    reference = results(part, x, fast=False)
    for name, value in results(part, x, fast=True).items():
        assert (value is None) == (reference[name] is None), name
        if value is not None:
            torch.testing.assert_close(value, reference[name], msg=lambda text, name=name: f"{name}: {text}",
                                       **tolerance)


def clips(clips, channels, frames, height, width, layout=torch.channels_last_3d):
    return torch.randn(clips, channels, frames, height, width, dtype=torch.float64).to(memory_format=layout)


def has_several_positions(clips, frames, height, width):
    return clips * frames * -(-height // 2) * -(-width // 2) > 1


@settings(max_examples=60, deadline=None)
@given(**SIZES, outer_in=WIDTHS, inner=st.integers(1, 60), outer=WIDTHS, stride=st.sampled_from([1, 2]),
       se=st.sampled_from([0, 8]), projection_bn=st.booleans(), layout=LAYOUTS)
def test_a_block_equals_its_layers(clips, frames, height, width, outer_in, inner, outer, stride, se, projection_bn,
                                   layout):
    if not has_several_positions(clips, frames, height, width):
        return
    projection = stride == 2 or outer_in != outer
    part = awake(ResBlock(Block(outer_in, inner, outer, stride, se, projection, projection and projection_bn)))
    assert_same(part, torch.randn(clips, outer_in, frames, height, width, dtype=torch.float64).to(
        memory_format=layout), rtol=1e-7, atol=1e-7)


@contextmanager
def threads(count):
    """`count` threads in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("part", [Stem(8), ResBlock(Block(8, 20, 16, 2, 8, True, True)),
                                  ResBlock(Block(8, 20, 8, 1, 0, False, True)), Head(8, 20, 8, 3, 0.0, (3, 33, 21))],
                         ids=["stem", "block", "block of stride 1", "head"])
@pytest.mark.parametrize("count", [2, 5])
def test_several_threads_compute_the_same(part, count):
    with threads(count):
        assert_same(awake(part), clips(3, 3 if isinstance(part, Stem) else 8, 3, 33, 21), rtol=1e-7, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(**SIZES, channels=WIDTHS, layout=LAYOUTS)
def test_a_stem_equals_its_layers(clips, frames, height, width, channels, layout):
    if has_several_positions(clips, frames, height, width):
        assert_same(awake(Stem(channels)), torch.randn(clips, 3, frames, height, width, dtype=torch.float64).to(
            memory_format=layout), rtol=1e-7, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(**SIZES, channels=WIDTHS, inner=st.integers(1, 40))
def test_a_head_equals_its_layers(clips, frames, height, width, channels, inner):
    if has_several_positions(clips, frames, height, width):
        part = awake(Head(channels, inner, 16, 5, 0.0, (frames, height, width)))
        assert_same(part, torch.randn(clips, channels, frames, height, width, dtype=torch.float64), rtol=1e-7,
                    atol=1e-7)


@pytest.mark.parametrize(("stride", "se", "inner", "frames"), [(1, 8, 5, 2), (2, 0, 8, 2), (2, 8, 3, 1)])
def test_gradients_agree_with_finite_differences(stride, se, inner, frames):
    part = awake(ResBlock(Block(8, inner, 8, stride, se, stride == 2, stride == 2)))
    x = clips(2, 8, frames, 3, 4).requires_grad_()
    assert fused.usable(part, x, 8, 8)
    # the weights are the part's own, which gradcheck moves in place
    assert torch.autograd.gradcheck(lambda x, *weights: part(x), (x, *part.parameters()))


@pytest.mark.parametrize("frames", [1, 3])
def test_gradients_of_stem_and_head_agree_with_finite_differences(frames):
    stem, x = awake(Stem(8)), clips(2, 3, frames, 6, 5)
    assert fused.usable(stem, x, 3, 8)
    assert torch.autograd.gradcheck(lambda *weights: stem(x), tuple(stem.parameters()))
    head, y = awake(Head(8, 5, 4, 3, 0.0, (frames, 3, 3))), clips(2, 8, frames, 3, 3).requires_grad_()
    assert fused.usable(head, y, 8, 8)
    assert torch.autograd.gradcheck(lambda y, *weights: head.averages(y),
                                    (y, head.inner.weight, *head.inner_bn.parameters()))


def test_float32_is_as_near_to_float64_as_the_layers_are():
    part = awake(ResBlock(Block(24, 54, 24, 2, 8, True, True)))
    x = clips(4, 24, 4, 20, 20)
    exact = results(part, x, fast=False)
    part.float()
    of_layers, ours = (results(part, x.float(), fast=fast) for fast in (False, True))
    for name, value in ours.items():
        def error(of, name=name):
            return float((of[name] - exact[name]).abs().max() / exact[name].abs().max())
        assert error(ours) <= 3 * error(of_layers) + 2e-6, name
        assert value.dtype == of_layers[name].dtype


def test_a_whole_network_equals_its_layers_and_any_number_of_threads_repeats_itself():
    torch.manual_seed(0)
    model = X3D.preset("xs", classes=5, dropout=0.0)
    for module in model.modules():
        if isinstance(module, ResBlock):
            nn.init.ones_(module.c_bn.weight)
    model.double().train()
    x = clips(2, 3, 3, 40, 40)

    def gradients(count):
        with threads(count):
            model.zero_grad()
            model(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    one, again, two, two_again = gradients(1), gradients(1), gradients(2), gradients(2)
    with plain_operators():
        plain = gradients(1)
    for a, b, c, d, reference in zip(one, again, two, two_again, plain, strict=True):
        assert torch.equal(a, b) and torch.equal(c, d)
        torch.testing.assert_close(a, reference, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(c, reference, rtol=1e-6, atol=1e-8)


def test_a_result_of_nan_stays_nan():
    part = awake(ResBlock(Block(8, 8, 8, 1, 8, False, True)))
    x = clips(2, 8, 2, 4, 4)
    x[0, 0, 0, 0, 0] = float("nan")
    assert part(x).isnan().all()


def test_frozen_parameters_and_inputs_get_no_gradient():
    part = awake(ResBlock(Block(8, 8, 8, 1, 0, False, True)))
    part.a.weight.requires_grad_(False)
    part(clips(2, 8, 1, 4, 4)).sum().backward()
    assert part.a.weight.grad is None
    assert part.c.weight.grad is not None


def test_a_weight_that_changed_since_is_told():
    part = awake(ResBlock(Block(8, 8, 8, 1, 0, False, True)))
    z = part(clips(2, 8, 1, 4, 4))
    with torch.no_grad():
        part.b.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def block_for(change):
    part = awake(ResBlock(Block(8, 8, 8, 1, 8, False, True))).float()
    change(part)
    return part


@pytest.mark.parametrize("change", [
    lambda part: part.b_bn.register_forward_hook(lambda *given: None),
    lambda part: part.a.register_forward_pre_hook(lambda *given: None),
    lambda part: part.c_bn.eval(),
    lambda part: setattr(part.c_bn, "momentum", None),
    lambda part: setattr(part, "a_bn", nn.BatchNorm3d(8, track_running_stats=False)),
    lambda part: setattr(part, "a_bn", nn.SyncBatchNorm(8)),
    lambda part: part.b.half(),
], ids=["hook", "pre-hook", "frozen norm", "cumulative norm", "no statistics", "shared norm", "other type"])
def test_a_part_that_is_watched_or_changed_runs_layer_by_layer(change):
    x = clips(2, 8, 1, 4, 4).float()
    assert fused.usable(block_for(lambda part: None), x, 8, 8)
    assert not fused.usable(block_for(change), x, 8, 8)


def test_inputs_and_modes_of_others_run_layer_by_layer():
    part, x = block_for(lambda part: None), clips(2, 8, 1, 4, 4).float()
    assert not fused.usable(part, x.to("meta"), 8, 8)
    assert not fused.usable(part, x.bfloat16(), 8, 8)
    assert not fused.usable(part, x[:, :7], 8, 8)
    assert not fused.usable(part, x[:1, :, :, :1, :1], 8, 8)
    assert not fused.usable(part, x[0], 8, 8)
    with torch.no_grad():
        assert not fused.usable(part, x, 8, 8)  # training without gradients: precise statistics
        assert fused.usable(part.eval(), x, 8, 8)
    part.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fused.usable(part, x, 8, 8)
    with FlopCounterMode(display=False) as counter:
        part(x)
    assert counter.get_total_flops() > 0


def test_wrong_shapes_are_told_as_the_layers_tell_them():
    part = block_for(lambda part: None)
    with pytest.raises(RuntimeError):
        part(torch.randn(2, 7, 1, 4, 4))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        part(torch.randn(1, 8, 1, 1, 1))
