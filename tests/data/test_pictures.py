"""The loader against a plain reference, which makes every clip on its own as one would write it down."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from expand.config.schema import DataConfig
from expand.data.frames import frame_access as access
from expand.data.frames.frame_access import CachedClip
from expand.data.loading import loader, pictures
from expand.data.loading.loader import ORDER_STREAM, TrainBatches, eval_loader
from expand.data.loading.prepared import PreparedData
from expand.data.loading.transforms import COLOR_STREAM, DRAWS, SAMPLE_STREAM, crop_boxes, jitter_colors
from expand.errors import DataError
from expand.space.geometry import evaluation_crop

SIZES = [(20, 20, 5), (20, 28, 9), (28, 20, 1), (20, 20, 12), (20, 20, 7), (24, 20, 30)] * 3
"""Height, width and number of frames of the clips: frames of one size and of others, one frame and many."""
CONFIG = DataConfig(path="unused")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    clips = []
    for label, (height, width, frames) in enumerate(SIZES):
        store = root / f"{label}.frames"
        store.write_bytes(rng.bytes(height * width * frames * 3))
        times_s = np.concatenate([[0.0], rng.uniform(0.01, 0.08, frames - 1).cumsum()])
        clips.append(CachedClip(root / f"{label}.mp4", label, times_s, height, width, store, 20))
    return PreparedData((), tuple(clips), tuple(clips), (), (), 1.0, "")


def made(clip, start_s, frames, stride, box, side, flip, factors=None):
    """One clip, C x T x side x side: its nearest frames, cut, recoloured, resized as uint8, mirrored, normalised."""
    stored_THWC = np.fromfile(clip.store, np.uint8).reshape(-1, clip.height, clip.width, 3)
    index_T = []
    for number in range(frames):
        wanted_s, times_s = start_s + number * (stride / 30), clip.times_s
        after = min(max(int(np.searchsorted(times_s, wanted_s)), 1), len(times_s) - 1)
        before = max(after - 1, 0)
        index_T.append(before if wanted_s - times_s[before] <= times_s[after] - wanted_s else after)
    top, left, own = box
    cut_TCHW = torch.from_numpy(stored_THWC[index_T, top:top + own, left:left + own]).permute(0, 3, 1, 2)
    if factors:
        cut_TCHW = jitter_colors(cut_TCHW.permute(0, 2, 3, 1), factors).permute(0, 3, 1, 2)
    if own != side:
        cut_TCHW = interpolate(cut_TCHW, (side, side), mode="bilinear", antialias=True)
    cut_TCHW = cut_TCHW.flip(3) if flip else cut_TCHW
    return ((cut_TCHW.double() / 255 - CONFIG.mean) / CONFIG.std).permute(1, 0, 2, 3)


def plain_epoch(data, frames, stride, side, batch, seed, epoch, color_jitter=0.0):
    """The batches of an epoch, as (x_BCTHW float64, labels)."""
    order = np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(len(data.train)).tolist()
    draws = np.random.default_rng([SAMPLE_STREAM, seed, epoch]).random((len(order), DRAWS)).tolist()
    low, high = 1 - color_jitter, 1 + color_jitter
    factors = np.random.default_rng([COLOR_STREAM, seed, epoch]).random((len(order), 3)) * (high - low) + low
    clips = []
    for number in order:
        clip, (when, scale, top, left, flip) = data.train[number], draws[number]
        start_s = when * max(0.0, clip.length_s - (frames - 1) * stride / 30)
        jitter = CONFIG.jitter_min + scale * (CONFIG.jitter_max - CONFIG.jitter_min)
        own = max(1, round(min(clip.height, clip.width) / jitter))
        box = int(top * (clip.height - own + 1)), int(left * (clip.width - own + 1)), own
        clips.append((made(clip, start_s, frames, stride, box, side, flip < 0.5,
                           factors[number].tolist() if color_jitter else None), clip.label))
    batches = [clips[first:first + batch] for first in range(0, len(clips), batch)]
    return [(torch.stack([x for x, _ in some]), [label for _, label in some])
            for some in batches if len(some) > 1 or batch == 1]


def assert_close(x_BCTHW, expected_BCTHW):
    torch.testing.assert_close(x_BCTHW.double(), expected_BCTHW, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(1, 4), stride=st.integers(1, 9), side=st.integers(4, 40), batch=st.integers(1, 19),
       seed=st.integers(0, 2**32 - 1), room=st.sampled_from([1, 5000, 1 << 17]))
def test_an_epoch_is_what_its_clips_are_one_by_one(data, frames, stride, side, batch, seed, room):
    """Whatever is read, resized and made together."""
    with pytest.MonkeyPatch.context() as patch, \
            TrainBatches(data, frames=frames, stride=stride, resolution=side, batch_size=batch, seed=seed,
                         config=CONFIG) as batches:
        patch.setattr(pictures, "TOGETHER_BYTES", room)
        found, expected = list(batches.epoch(3)), plain_epoch(data, frames, stride, side, batch, seed, 3)
    for (x_BCTHW, y_B), (plain_BCTHW, labels) in zip(found, expected, strict=True):
        assert y_B.tolist() == labels and x_BCTHW.is_contiguous(memory_format=torch.channels_last_3d)
        assert_close(x_BCTHW, plain_BCTHW)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("room", [1, 1 << 17])
def test_color_jitter_changes_the_colours_of_a_clip_and_no_other_draw(data, monkeypatch, on_device, room):
    monkeypatch.setattr(pictures, "TOGETHER_BYTES", room)
    config = dataclasses.replace(CONFIG, color_jitter=0.4)
    with TrainBatches(data, frames=3, stride=2, resolution=20, batch_size=4, seed=1, config=config,
                      on_device=on_device) as batches:
        found = list(batches.epoch(2))
    expected, grey_level = plain_epoch(data, 3, 2, 20, 4, 1, 2, color_jitter=0.4), 1 / 255 / CONFIG.std
    plain = plain_epoch(data, 3, 2, 20, 4, 1, 2)
    for (x_BCTHW, y_B), (jittered_BCTHW, labels), (plain_BCTHW, _) in zip(found, expected, plain, strict=True):
        assert y_B.tolist() == labels
        assert (x_BCTHW - jittered_BCTHW).abs().max() < (1.6 if on_device else 0.01) * grey_level
        assert all((x_CTHW - plain_CTHW).abs().max() > 3 * grey_level
                   for x_CTHW, plain_CTHW in zip(x_BCTHW, plain_BCTHW, strict=True))


def test_colours_are_left_alone_unless_asked_for_and_always_in_an_evaluation(data, monkeypatch):
    monkeypatch.setattr(pictures, "jitter_colors", None)
    shape = {"frames": 2, "stride": 2, "resolution": 16, "batch_size": 4}
    with TrainBatches(data, **shape, seed=1, config=CONFIG) as batches:
        assert len(list(batches.epoch(0))) == len(batches.epoch(0))
    config = dataclasses.replace(CONFIG, color_jitter=0.5)
    assert list(eval_loader(data.val, **shape, views=1, config=config))
    with TrainBatches(data, **shape, seed=1, config=config) as batches, pytest.raises(TypeError):
        list(batches.epoch(0))


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 3), stride=st.integers(1, 9), resolution=st.integers(8, 36), batch=st.integers(1, 40),
       views=st.integers(1, 4), crops=st.sampled_from([1, 3]))
def test_an_evaluation_is_what_its_clips_are_one_by_one(data, frames, stride, resolution, batch, views, crops):
    batches = list(eval_loader(data.val, frames=frames, stride=stride, resolution=resolution, views=views,
                               batch_size=batch, config=CONFIG, crops=crops))
    side, expected = evaluation_crop(resolution), []
    for clip in data.val:
        slack = max(0.0, clip.length_s - (frames - 1) * stride / 30)
        starts_s = np.linspace(0.0, slack, views) if views > 1 else [slack / 2]
        expected += [made(clip, start_s, frames, stride, (box.top, box.left, box.side), side, False)
                     for start_s in starts_s for box in crop_boxes(clip.height, clip.width, crops)]
    whole = max(1, batch // crops) * crops
    assert [len(y_B) for _, y_B, _ in batches[:-1]] == [whole] * (len(batches) - 1) and len(batches[-1][1]) <= whole
    x_BCTHW, y_B, index_B = (torch.cat(parts) for parts in zip(*batches))
    assert index_B.tolist() == [number for number in range(len(data.val)) for _ in range(views * crops)]
    assert y_B.tolist() == [data.val[number].label for number in index_B.tolist()]
    assert_close(x_BCTHW, torch.stack(expected))


def test_batches_made_at_once_are_those_made_one_by_one(data, monkeypatch):
    """From any batch on, and each with its own rows."""
    def epoch(start):
        with TrainBatches(data, frames=2, stride=3, resolution=16, batch_size=4, seed=2, config=CONFIG) as batches:
            promised = batches.epoch(0, start)
            found = list(promised)
            assert len(found) == len(promised)
            return found

    at_once = [epoch(start) for start in range(6)]
    monkeypatch.setattr(loader, "TOGETHER_PIXELS", 1)
    for start, found in enumerate(at_once):
        for batch, other in zip(found, epoch(start), strict=True):
            assert all(torch.equal(part, same) for part, same in zip(batch, other, strict=True))


def test_small_clips_of_equal_cuts_are_resized_in_one_call(data, monkeypatch):
    calls, resize = [], pictures.resize
    monkeypatch.setattr(pictures, "resize", lambda clip_THWC, side: calls.append(len(clip_THWC))
                        or resize(clip_THWC, side))
    clips = [clip for clip in data.val if (clip.height, clip.width) == (20, 20)]
    list(eval_loader(clips, frames=1, stride=1, resolution=32, views=1, batch_size=16, config=CONFIG))
    assert calls == [len(clips)]


def test_a_frame_file_that_is_cut_is_noticed_amid_a_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(access, "_warned", bytearray(1))
    short = tmp_path / "short.frames"
    short.write_bytes(data.train[3].store.read_bytes()[:100])
    torn = dataclasses.replace(data.train[3], store=short, path=tmp_path / "gone.mp4", content="0" * 64)
    loader_ = eval_loader([data.val[0], torn], frames=1, stride=1, resolution=16, views=1, batch_size=2, config=CONFIG)
    with pytest.warns(UserWarning, match="gone or cut"), pytest.raises(DataError) as raised:
        list(loader_)
    assert raised.value.where == str(tmp_path / "gone.mp4")
