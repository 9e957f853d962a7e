from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from expand.data.loading import transforms
from expand.data.loading.transforms import (
    Box,
    centre_box,
    crop_boxes,
    jitter_colors,
    normalise,
    random_boxes,
    resample,
    resize,
)

sides = st.integers(1, 400)
draws = st.floats(0, 1, exclude_max=True)


def random_box(height, width, jitter, top, left):
    boxes = random_boxes(*(np.array([value]) for value in (height, width, jitter, top, left)))
    return Box(boxes.top_NK.item(), boxes.left_NK.item(), boxes.side_N.item())


@given(sides, sides, st.floats(1, 4), draws, draws)
def test_a_random_box_lies_in_the_frame_and_leaves_the_jittered_short_side(height, width, jitter, top, left):
    box = random_box(height, width, jitter, top, left)
    assert 0 <= box.top <= height - box.side and 0 <= box.left <= width - box.side
    assert box.side == max(1, round(min(height, width) / jitter))


def test_random_boxes_reach_every_corner():
    boxes = [random_box(6, 8, 2.0, top / 50, left / 50) for top in range(50) for left in range(50)]
    assert {box.top for box in boxes} == set(range(4)) and {box.left for box in boxes} == set(range(6))


@given(sides, sides)
def test_the_centre_box_is_the_largest_square_in_the_middle(height, width):
    box = centre_box(height, width)
    assert box.side == min(height, width)
    assert abs((height - box.side - box.top) - box.top) <= 1 and abs((width - box.side - box.left) - box.left) <= 1


@pytest.mark.parametrize("side", [24, 40, 64])
def test_resizing_is_torchvisions_antialiased_one(side):
    clip_THWC = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8)
    expected = tv.resize(clip_THWC.permute(0, 3, 1, 2), [side, side], antialias=True).permute(0, 2, 3, 1)
    resized = resize(clip_THWC, side)
    assert resized.shape == (2, side, side, 3) and resized.dtype == torch.uint8
    assert (resized.int() - expected.int()).abs().max() <= 1


def test_normalising_gives_floats_in_the_networks_layout():
    clips_BTHWC = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(2, 4, 5, 6, 3).contiguous()
    x_BCTHW = normalise(clips_BTHWC, 0.45, 0.225)
    assert x_BCTHW.shape == (2, 3, 4, 5, 6) and x_BCTHW.dtype == torch.float32
    assert x_BCTHW.is_contiguous(memory_format=torch.channels_last_3d)
    assert x_BCTHW[0, :, 0, 0, 0].tolist() == pytest.approx([-2.0, (1 - 0.45) / 0.225, (0.2 - 0.45) / 0.225], abs=1e-5)


def test_normalising_goes_into_memory_that_is_given():
    clips_BTHWC = torch.randint(0, 256, (3, 2, 5, 6, 3), dtype=torch.uint8)
    out = torch.empty(clips_BTHWC.shape)
    assert torch.equal(normalise(clips_BTHWC, 0.45, 0.225, out), normalise(clips_BTHWC, 0.45, 0.225))
    assert normalise(clips_BTHWC, 0.45, 0.225, out).data_ptr() == out.data_ptr()


def test_batches_larger_than_the_cache_are_normalised_alike(monkeypatch):
    clips_BTHWC = torch.randint(0, 256, (5, 2, 5, 6, 3), dtype=torch.uint8)
    whole = normalise(clips_BTHWC, 0.45, 0.225)
    monkeypatch.setattr(transforms, "CACHED_VALUES", 400)
    assert torch.equal(normalise(clips_BTHWC, 0.45, 0.225), whole)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=4), st.integers(1, 40),
       st.integers(1, 2), st.integers(0, 2**32 - 1))
def test_a_batch_is_resampled_as_its_clips_are_one_by_one(cuts, side, frames, seed):
    sides, flips = zip(*cuts)
    generator = torch.Generator().manual_seed(seed)
    size = max(sides) + seed % 3
    cuts_BTSSC = torch.randint(0, 256, (len(cuts), frames, size, size, 3), dtype=torch.uint8, generator=generator)
    x_BCTHW = resample(cuts_BTSSC, torch.tensor(sides), torch.tensor(flips), side, 0.45, 0.225)
    assert x_BCTHW.shape == (len(cuts), 3, frames, side, side)
    for x_CTHW, cut_TSSC, (own, flip) in zip(x_BCTHW, cuts_BTSSC, cuts):
        small_THWC = resize(cut_TSSC[:, :own, :own], side)
        expected = normalise((small_THWC.flip(2) if flip else small_THWC)[None], 0.45, 0.225)[0]
        assert (x_CTHW - expected).abs().max() * 0.225 * 255 < 1.5


def test_resampling_to_the_cuts_own_size_changes_nothing():
    cuts_BTSSC = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    x_BCTHW = resample(cuts_BTSSC, torch.tensor([16, 16]), torch.tensor([False, True]), 16, 0.45, 0.225)
    expected = normalise(torch.stack([cuts_BTSSC[0], cuts_BTSSC[1].flip(2)]), 0.45, 0.225)
    torch.testing.assert_close(x_BCTHW, expected, rtol=1e-5, atol=1e-5)
    assert x_BCTHW.is_contiguous(memory_format=torch.channels_last_3d)


@given(sides, sides)
def test_three_crops_are_the_ends_and_the_middle_of_the_longer_side(height, width):
    first, middle, last = crop_boxes(height, width, 3)
    assert (middle,) == crop_boxes(height, width, 1) == (centre_box(height, width),)
    assert first.side == last.side == min(height, width)
    assert (first.top, first.left) == (0, 0) and (last.top + last.side, last.left + last.side) == (height, width)
    assert (height == width) == (first == middle == last)


frames_cut = st.lists(st.tuples(sides, sides, st.floats(1, 4), draws, draws), min_size=1, max_size=9)


@given(frames_cut)
def test_the_boxes_of_a_batch_are_those_of_its_frames_one_by_one(cut):
    boxes = random_boxes(*(np.array(column) for column in zip(*cut)))
    for row, (height, width, jitter, top, left) in enumerate(cut):
        side = max(1, round(min(height, width) / jitter))  # by Python's own numbers
        assert boxes.side_N[row] == side
        assert boxes.top_NK[row].tolist() == [int(top * (height - side + 1))]
        assert boxes.left_NK[row].tolist() == [int(left * (width - side + 1))]


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(0, 2)] * 3), st.integers(1, 3), st.integers(8, 20))
def test_colours_are_multiplied_by_brightness_then_contrast_then_saturation(factors, frames, side):
    """By the formulas, in float: contrast moves away from a frame's mean grey, saturation from a pixel's own grey."""
    clip_THWC = torch.randint(0, 256, (frames, side, side + 3, 3), dtype=torch.uint8)
    brightness, contrast, saturation = factors
    grey = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    bright = (clip_THWC.double() * brightness).clamp(0, 255)
    mean_T111 = (bright @ grey).mean((1, 2))[:, None, None, None]
    contrasted = (contrast * bright + (1 - contrast) * mean_T111).clamp(0, 255)
    expected = (saturation * contrasted + (1 - saturation) * (contrasted @ grey)[..., None]).clamp(0, 255)
    found = jitter_colors(clip_THWC, factors)
    assert found.dtype == torch.uint8 and found.shape == clip_THWC.shape
    assert (found.double() - expected).abs().max() < 10  # each of the three steps rounds down, and the next doubles it
    assert (found.double() - expected).abs().mean() < 3


def test_factors_of_one_change_no_colour():
    clip_THWC = torch.randint(0, 256, (2, 9, 12, 3), dtype=torch.uint8)
    assert torch.equal(jitter_colors(clip_THWC, (1.0, 1.0, 1.0)), clip_THWC)
