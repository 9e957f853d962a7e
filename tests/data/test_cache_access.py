from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from torch.utils.data import DataLoader

from expand.data.frames import frame_access as access
from expand.data.frames.cache import FrameCache
from expand.data.frames.frame_access import GREY, read_frames
from expand.errors import DataError
from tests.data.clips import PLENTY, decoded, frames_of, steady, ten, write_clip, write_frames


@pytest.fixture(autouse=True)
def own_child(monkeypatch):
    """No child of an earlier test, and whether something was told is forgotten."""
    access._warned[0] = 0
    yield
    if access._own:
        access._own[1].close()
    access._own = None


@pytest.fixture
def clip_path(tmp_path):
    return write_clip(tmp_path / "a.mp4", steady(30, 1.0), height=64, width=96)


@pytest.fixture
def clip(tmp_path, clip_path):
    return FrameCache(tmp_path / "c", PLENTY, timeout_s=20).get(clip_path, 0, 32)


@pytest.fixture
def direct(clip):
    return replace(clip, store=None)


def cut(store):
    store.write_bytes(store.read_bytes()[:5000])


def make_a_folder(store):
    store.unlink()
    store.mkdir()


@pytest.mark.parametrize("lose", [lambda store: store.unlink(), cut, make_a_folder,
                                  lambda store: shutil.rmtree(store.parent)])
def test_frames_that_vanish_under_a_run_are_decoded_bit_for_bit_and_that_is_said_once(clip, lose):
    index_T = np.array([3, 3, 17, 29])
    before = read_frames(clip, index_T, 4, 20)
    lose(clip.store)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            assert (read_frames(clip, index_T, 4, 20) == before).all()
    assert len(told) == 1 and "are gone or cut" in str(told[0].message)
    assert str(clip.path) in str(told[0].message) and "data.cache_gb" in str(told[0].message)


@pytest.mark.parametrize("index_T", [[0], [29], [7, 7, 8], [2, 28]])
def test_decoding_at_each_access_gives_the_stored_frames(clip, direct, index_T):
    index_T = np.array(index_T)
    assert (read_frames(direct, index_T, 0, 32) == read_frames(clip, index_T, 0, 32)).all()
    assert (read_frames(replace(direct, stamps=None), index_T, 0, 32) == read_frames(clip, index_T, 0, 32)).all()


def test_a_folder_of_frames_is_decoded_at_each_access_too(tmp_path, clip_path):
    pictures = write_frames(tmp_path / "p", decoded(clip_path, 64))
    clip = FrameCache(tmp_path / "c", PLENTY, frame_rate=15).get(pictures, 0, 32)
    assert (frames_of(replace(clip, store=None)) == frames_of(clip)).all()


@pytest.mark.parametrize(("change", "what"), [
    (lambda path: path.unlink(), "can no longer be read"),
    (lambda path: write_clip(path, steady(30, 0.5), 64, 96), "other content than when the run started"),
    (lambda path: path.write_bytes(b"nothing"), "other content than when the run started"),
])
def test_a_clip_that_is_gone_or_another_is_a_clear_error(direct, change, what):
    assert frames_of(direct).shape == (30, 32, 48, 3)
    change(direct.path)
    with pytest.raises(DataError, match=what) as raised:
        frames_of(direct)
    assert str(direct.path) in str(raised.value)


def test_fewer_or_other_frames_are_found_without_a_known_content_too(tmp_path, direct):
    blind = replace(direct, content="", state="")
    write_clip(direct.path, steady(30, 0.5), 64, 96)
    with pytest.raises(DataError, match="gives fewer frames than when the run started"):
        frames_of(blind)
    write_clip(direct.path, steady(30, 1.0), 64, 64)
    with pytest.raises(DataError, match="frames of another size than when the run started"):
        frames_of(blind)


def test_a_clip_that_was_only_touched_is_the_same(direct, monkeypatch):
    before = frames_of(direct)
    os.utime(direct.path, (1, 1))
    assert (frames_of(direct) == before).all()


class Crash:
    """In place of `ClipReader`: crashes the first `deaths` times, which are counted in the file `at`."""

    at, deaths = None, 0

    def __init__(self, *args, **options):
        with open(self.at, "a") as file:
            file.write("x")
        if self.at.stat().st_size <= self.deaths:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        self._reader = access_reader(*args, **options)

    def __iter__(self):
        return iter(self._reader)


access_reader = access.ClipReader


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_crash_is_tried_again_once_and_then_gives_grey_frames_and_names_the_clip(direct, tmp_path, monkeypatch,
                                                                                 deaths):
    before = frames_of(replace(direct))
    access._own[1].close()
    monkeypatch.setattr(Crash, "at", tmp_path / "tries")
    monkeypatch.setattr(Crash, "deaths", deaths)
    monkeypatch.setattr(access, "ClipReader", Crash)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = read_frames(direct, np.arange(30), 0, 32)
    assert (tmp_path / "tries").stat().st_size == 2
    if deaths == 1:
        assert (found == before).all() and not told
    else:
        assert (found == GREY).all() and found.shape == before.shape and found.dtype == np.uint8
        assert len(told) == 1 and str(direct.path) in str(told[0].message) and "SIGSEGV" in str(told[0].message)
    assert (read_frames(direct, np.arange(30), 0, 32) == before).all()  # the next access goes on with a new process


def test_a_hang_costs_its_patience_and_gives_grey_frames(direct, monkeypatch):
    class Hang:
        def __init__(self, *args, **options):
            time.sleep(60)

    monkeypatch.setattr(access, "ClipReader", Hang)
    start_s = time.monotonic()
    with pytest.warns(UserWarning, match="no frame for 0.2 s"):
        assert (frames_of(replace(direct, timeout_s=0.2)) == GREY).all()
    assert time.monotonic() - start_s < 10


def test_a_grey_frame_is_what_the_recipe_makes_zero():
    assert (GREY / 255 - 0.45) / 0.225 == pytest.approx(0, abs=0.01)


class Clips:
    def __init__(self, clip):
        self.clip = clip

    def __len__(self):
        return 6

    def __getitem__(self, number):
        own = access._own[1].pid if access._own else None
        return read_frames(self.clip, np.array([number, number + 9]), 0, 32), own, os.getpid()


def test_a_loaders_workers_decode_with_children_of_their_own(direct):
    expected = frames_of(direct)  # this process has a child by now, which the workers must leave alone
    ours = access._own[1].pid
    first = {}
    for number, (frames, own, worker) in enumerate(DataLoader(Clips(direct), batch_size=None, num_workers=2)):
        assert (np.asarray(frames) == expected[[number, number + 9]]).all()
        assert (own is None) == (worker not in first) and own != ours  # none was inherited
        first[worker] = own
    assert (frames_of(direct) == expected).all() and access._own[1].pid == ours


def test_the_same_length_and_size_is_no_proof_that_a_clip_is_the_same(tmp_path):
    path = write_clip(tmp_path / "x.mp4", ten(10))
    direct = replace(FrameCache(tmp_path / "c", PLENTY).get(path, 0, 32), store=None)
    write_clip(path, ten(12))
    with pytest.raises(DataError, match="other content"):
        frames_of(direct)
