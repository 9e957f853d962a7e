from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from expand.data import cache as cache_module
from expand.data.cache import FrameCache, read_frames
from expand.data.decode import ClipReader, UnreadableClip
from expand.errors import DataError
from tests.data.clips import steady, write_clip

ROOT = Path(__file__).parents[2]
PLENTY = 1e9


@pytest.fixture
def clip_path(tmp_path):
    return write_clip(tmp_path / "a.mp4", steady(10, 1.0), height=64, width=96)


def frames_of(clip):
    return read_frames(clip, np.arange(len(clip.times_s)), 0, clip.height)


def decoded(path, short_side):
    return np.stack([frame for _, frame in ClipReader(path, short_side)])


def test_the_cache_gives_what_the_decoder_gives(tmp_path, clip_path):
    for clip in (FrameCache(tmp_path / "c", PLENTY).get(clip_path, 3, 32) for _ in range(2)):  # built, then found
        assert (frames_of(clip) == decoded(clip_path, 32)).all()
        assert (clip.label, clip.height, clip.width) == (3, 32, 48)
        assert (clip.times_s == pytest.approx(np.arange(10) / 10, abs=1e-3)
                and clip.length_s == pytest.approx(0.9, abs=1e-3))


def test_any_rows_of_any_frames_can_be_read_with_repeats(tmp_path, clip_path):
    clip = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    assert (read_frames(clip, np.array([2, 2, 9]), 5, 11) == frames_of(clip)[[2, 2, 9], 5:11]).all()


def test_a_found_clip_is_not_decoded_again(tmp_path, clip_path, monkeypatch):
    FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    monkeypatch.setattr(cache_module, "ClipReader", None)
    FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)


def test_frames_at_the_sources_own_size_serve_every_larger_request_but_no_smaller(tmp_path, clip_path):
    cache = FrameCache(tmp_path / "c", PLENTY)
    assert cache.get(clip_path, 0, 80).store == cache.get(clip_path, 0, 64).store
    assert cache.get(clip_path, 0, 48).height == 48 and cache.get(clip_path, 0, 300).height == 64


def test_a_changed_file_is_decoded_anew(tmp_path, clip_path):
    cache = FrameCache(tmp_path / "c", PLENTY)
    cache.get(clip_path, 0, 32)
    write_clip(clip_path, steady(10, 0.4))
    assert len(cache.get(clip_path, 0, 32).times_s) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_frame_file_is_built_anew(tmp_path, clip_path, damage):
    store = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32).store
    content = store.read_bytes()
    store.write_bytes({"cut": content[100:], "empty": b"", "other": b"x" * len(content)}[damage])
    clip = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    assert (frames_of(clip) == decoded(clip_path, 32)).all()


def test_frames_that_vanish_under_a_run_are_a_clear_error(tmp_path, clip_path):
    clip = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    clip.store.unlink()
    with pytest.raises(DataError, match="are gone or cut") as raised:
        frames_of(clip)
    assert "resume" in str(raised.value)


def test_past_the_limit_frames_are_decoded_at_each_access_and_are_the_same(tmp_path):
    paths = [write_clip(tmp_path / f"{number}.mp4", steady(10, 1.0)) for number in range(3)]
    one = 10 * 32 * 48 * 3
    for _ in range(2):  # the second time from what the first left behind
        cache = FrameCache(tmp_path / "c", 1.5 * one)
        clips = [cache.get(path, 0, 32) for path in paths]
        assert [clip.store is None for clip in clips] == [False, True, True]
        assert "cache_gb" in cache.full_because
        for path, clip in zip(paths, clips):
            assert (read_frames(clip, np.array([1, 1, 8]), 4, 20) == decoded(path, 32)[[1, 1, 8], 4:20]).all()
    assert sum(file.stat().st_size for file in (tmp_path / "c").iterdir()) < 1.5 * one


def test_a_full_disk_ends_the_keeping_not_the_run(tmp_path, clip_path, monkeypatch):
    class FullDisk(cache_module.FrameCache):
        def _write(self, file, frame_HWC):
            return super()._write(_Full(), frame_HWC)

    class _Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    cache = FullDisk(tmp_path / "c", PLENTY)
    clip = cache.get(clip_path, 0, 32)
    assert clip.store is None and "disk" in cache.full_because
    assert (frames_of(clip) == decoded(clip_path, 32)).all()


def test_an_unreadable_clip_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(UnreadableClip):
        FrameCache(tmp_path / "c", PLENTY).get(tmp_path / "bad.mp4", 0, 32)
    assert not list((tmp_path / "c").iterdir())


def test_old_leftovers_are_swept_and_young_ones_left_to_their_owner(tmp_path):
    (tmp_path / "c").mkdir()
    old, young = tmp_path / "c" / "old.tmp", tmp_path / "c" / "young.tmp"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 2 * cache_module.STALE_S,) * 2)
    FrameCache(tmp_path / "c", PLENTY)
    assert young.exists() and not old.exists()


BUILD = """
import sys, pathlib
from expand.data.cache import FrameCache
cache = FrameCache(pathlib.Path(sys.argv[1]), 1e9)
print("ready", flush=True)
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.mp4")):
    cache.get(path, 0, 32)
"""


def start_building(tmp_path):
    command = [sys.executable, "-c", BUILD, str(tmp_path / "c"), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def check_all(tmp_path, paths):
    cache = FrameCache(tmp_path / "c", PLENTY)
    for path in paths:
        assert (frames_of(cache.get(path, 0, 32)) == decoded(path, 32)).all()


def test_a_kill_while_building_leaves_a_usable_cache(tmp_path):
    paths = [write_clip(tmp_path / f"{number}.mp4", steady(30, 2.0), 128, 128) for number in range(20)]
    for _ in range(3):
        process = start_building(tmp_path)
        seen = len(list((tmp_path / "c").iterdir()))
        while process.poll() is None and len(list((tmp_path / "c").iterdir())) <= seen:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    check_all(tmp_path, paths)


def test_two_processes_that_build_together_leave_a_usable_cache(tmp_path):
    paths = [write_clip(tmp_path / f"{number}.mp4", steady(30, 1.0), 64, 64) for number in range(10)]
    processes = [start_building(tmp_path) for _ in range(2)]
    for process in processes:
        assert process.wait() == 0
        process.stdout.close()
    assert not list((tmp_path / "c").glob("*.tmp"))
    check_all(tmp_path, paths)
