"""The network: shapes, initial weights, and what a block does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.model import X3D
from expand.model.x3d import ResBlock
from expand.space.factors import X2D, Factors
from expand.space.geometry import Geometry

SMALL = Geometry.of(Factors.of(frames=2, stride=1, resolution=32, width=0.4), 5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(32, 65), st.integers(32, 65))
def test_any_clip_of_one_frame_and_32_px_or_more_gives_logits(batch, frames, height, width):
    with torch.device("meta"):
        logits = X3D(SMALL).eval()(torch.empty(batch, 3, frames, height, width))
    assert logits.shape == (batch, 5)


def test_real_logits_are_finite_for_the_smallest_clip():
    torch.manual_seed(0)
    assert torch.isfinite(X3D(SMALL).eval()(torch.randn(1, 3, 1, 32, 32))).all()


def test_first_weights_follow_the_paper():
    torch.manual_seed(0)
    model = X3D(Geometry.of(X2D, 400))
    blocks = [module for module in model.modules() if isinstance(module, ResBlock)]
    assert len(blocks) == 11
    assert all((block.c_bn.weight == 0).all() and (block.a_bn.weight == 1).all() for block in blocks)
    assert model.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    weight = model.stages[3][0].a.weight  # Kaiming normal, fan-out
    assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)


def test_a_block_starts_as_its_shortcut():
    torch.manual_seed(0)
    block = X3D(SMALL).stages[2][1].eval()
    x = torch.rand(1, SMALL.stages[2][1].outer, 2, 4, 4)
    assert torch.equal(block(x), x)


def test_memory_layout_does_not_change_the_result():
    torch.manual_seed(0)
    model = X3D(SMALL)
    for module in model.modules():
        if isinstance(module, ResBlock):
            torch.nn.init.ones_(module.c_bn.weight)  # else the blocks are their shortcuts and nothing is compared
    model.eval()
    x = torch.randn(2, 3, 2, 32, 32)
    plain = model(x)
    model.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last_3d)), plain, rtol=1e-4, atol=1e-5)


def test_time_matters_to_the_network():
    torch.manual_seed(0)
    model = X3D(SMALL).eval()
    x = torch.randn(1, 3, 4, 32, 32)
    assert not torch.allclose(model(x), model(x.flip(2)))
