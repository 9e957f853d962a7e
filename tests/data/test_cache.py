from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from expand.data.frames import cache as cache_module
from expand.data.frames import file_locks as locks_module
from expand.data.frames.cache import FORMAT, FrameCache
from expand.data.frames.clip_files import UnreadableClip
from expand.data.frames.content import content_hash
from expand.data.frames.file_locks import claim, claim_another, release
from expand.data.frames.frame_access import read_frames
from expand.errors import DataError
from tests.data.clips import PLENTY, decoded, frames_of, steady, ten, write_clip, write_frames

ONE = 10 * 32 * 48 * 3
"""Bytes of the frames of a `ten` clip."""


@pytest.fixture
def clip_path(tmp_path):
    return write_clip(tmp_path / "a.mp4", steady(10, 1.0), height=64, width=96)


@pytest.fixture
def no_decoder(monkeypatch):
    """From `no_decoder()` on, nothing can be decoded."""
    return lambda: monkeypatch.setattr(cache_module, "ClipReader", None)


def make_older(file, seconds):
    stat = file.stat()
    os.utime(file, (stat.st_atime, stat.st_mtime - seconds))


def files(folder, pattern="*.frames"):
    return {file.name for file in folder.glob(pattern)}


def test_the_cache_gives_what_the_decoder_gives(tmp_path, clip_path):
    for clip in (FrameCache(tmp_path / "c", PLENTY).get(clip_path, 3, 32) for _ in range(2)):  # built, then found
        assert (frames_of(clip) == decoded(clip_path, 32)).all()
        assert (clip.label, clip.height, clip.width) == (3, 32, 48)
        assert clip.times_s == pytest.approx(np.arange(10) / 10, abs=1e-3)
        assert clip.length_s == pytest.approx(0.9, abs=1e-3)
        assert clip.stamps.dtype == np.int64 and len(clip.stamps) == 10


def test_any_rows_of_any_frames_can_be_read_with_repeats(tmp_path, clip_path):
    clip = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    assert (read_frames(clip, np.array([2, 2, 9]), 5, 11) == frames_of(clip)[[2, 2, 9], 5:11]).all()


@pytest.mark.parametrize("change", ["nothing", "touched", "renamed", "copied"])
def test_a_clip_with_the_same_bytes_is_not_decoded_again(tmp_path, clip_path, no_decoder, change):
    first = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    if change == "touched":
        make_older(clip_path, 1000)
    elif change == "renamed":
        clip_path = clip_path.rename(tmp_path / "b.mp4")
    elif change == "copied":
        clip_path = shutil.copy(clip_path, tmp_path / "b.mp4")
    no_decoder()
    again = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 1, 32)
    assert again.store == first.store and (again.path, again.label) == (clip_path, 1)
    assert (again.times_s == first.times_s).all() and (again.stamps == first.stamps).all()


def test_a_changed_file_is_decoded_anew_though_size_and_time_are_the_same(tmp_path):
    path, other = (write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 12))
    path.write_bytes(path.read_bytes().ljust(9999, b"\0"))
    assert FrameCache(tmp_path / "c", PLENTY).get(path, 0, 32).times_s[1] == pytest.approx(0.1, abs=2e-3)
    stat = path.stat()
    path.write_bytes(other.read_bytes().ljust(9999, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert FrameCache(tmp_path / "c", PLENTY).get(path, 0, 32).times_s[1] == pytest.approx(1 / 12, abs=2e-3)


def test_frames_at_the_sources_own_size_serve_every_larger_request_but_no_smaller(tmp_path, clip_path):
    cache = FrameCache(tmp_path / "c", PLENTY)
    assert cache.get(clip_path, 0, 80).store == cache.get(clip_path, 0, 64).store
    assert cache.get(clip_path, 0, 48).height == 48 and cache.get(clip_path, 0, 300).height == 64


def test_a_folder_of_frames_is_found_by_its_frames_and_rate_not_by_their_names(tmp_path, clip_path, no_decoder):
    frames_THWC = decoded(clip_path, 64)
    pictures = write_frames(tmp_path / "frames", frames_THWC)
    first = FrameCache(tmp_path / "c", PLENTY, frame_rate=10).get(pictures, 0, 32)
    assert (frames_of(first) == decoded(pictures, 32, frame_rate=10)).all() and len(first.times_s) == 10
    slower = FrameCache(tmp_path / "c", PLENTY, frame_rate=5).get(pictures, 0, 32)
    assert slower.store != first.store and slower.length_s == pytest.approx(2 * first.length_s)
    backwards = write_frames(tmp_path / "backwards", frames_THWC[::-1])
    other = FrameCache(tmp_path / "c", PLENTY, frame_rate=10).get(backwards, 0, 32)
    assert (frames_of(other) == frames_of(first)[::-1]).all() and other.store != first.store
    renamed = write_frames(tmp_path / "renamed", frames_THWC, stem="picture")
    no_decoder()
    assert FrameCache(tmp_path / "c", PLENTY, frame_rate=10).get(renamed, 0, 32).store == first.store


@pytest.mark.parametrize("damage", ["cut", "short", "empty", "other"])
def test_a_damaged_frame_file_is_built_anew(tmp_path, clip_path, damage):
    store = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32).store
    content = store.read_bytes()
    store.write_bytes({"cut": content[100:], "short": content[:-1], "empty": b"", "other": b"x" * len(content)}[damage])
    clip = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    assert (frames_of(clip) == decoded(clip_path, 32)).all()


def test_past_the_limit_frames_are_decoded_at_each_access_and_are_the_same(tmp_path, no_decoder):
    paths = [write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 11, 12)]
    for _ in range(2):
        cache = FrameCache(tmp_path / "c", 1.5 * ONE)
        clips = [cache.get(path, 0, 32) for path in paths]
        assert [clip.store is None for clip in clips] == [False, True, True]
        assert "cache_gb" in cache.full_because
        for path, clip in zip(paths, clips):
            assert (read_frames(clip, np.array([1, 1, 8]), 4, 20) == decoded(path, 32)[[1, 1, 8], 4:20]).all()
        no_decoder()  # the second time from what the first left behind: not even times are decoded again
    assert sum(file.stat().st_size for file in (tmp_path / "c").iterdir()) < 1.5 * ONE
    roomy = FrameCache(tmp_path / "c", PLENTY)
    assert roomy.get(paths[0], 0, 32).store and roomy.full_because is None


def test_once_there_is_room_the_frames_are_kept_and_the_description_alone_goes(tmp_path, clip_path):
    assert FrameCache(tmp_path / "c", 0).get(clip_path, 0, 32).store is None
    assert files(tmp_path / "c", "*.index")
    assert FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32).store.exists()
    assert not files(tmp_path / "c", "*.index")


def test_frames_of_other_sets_make_room_longest_unused_first(tmp_path):
    paths = [write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 11, 12, 13)]
    stores = [FrameCache(tmp_path / "c", PLENTY).get(path, 0, 32).store for path in paths[:3]]
    for store, seconds in zip(stores, (200, 300, 100)):
        make_older(store, seconds)
    FrameCache(tmp_path / "c", PLENTY).get(paths[1], 0, 32)  # is in use again
    cache = FrameCache(tmp_path / "c", 3.5 * ONE)
    assert cache.get(paths[3], 0, 32).store.exists()
    assert [store.exists() for store in stores] == [False, True, True]
    assert cache.full_because is None and cache.limit.used_bytes <= 3.5 * ONE


def test_frames_of_the_set_at_hand_and_of_those_prepared_beside_it_never_make_room(tmp_path):
    paths = [write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 11, 12)]
    own, others = (FrameCache(tmp_path / "c", PLENTY).get(path, 0, 32).store for path in paths[:2])
    cache, beside = FrameCache(tmp_path / "c", 2.5 * ONE), FrameCache(tmp_path / "c", 2.5 * ONE)
    cache.get(paths[0], 0, 32)
    beside.get(paths[1], 0, 32)
    assert cache.get(paths[2], 0, 32).store is None and own.exists() and others.exists()


def test_nothing_gives_way_for_what_would_not_fit_anyway(tmp_path):
    paths = [write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 11)]
    store = FrameCache(tmp_path / "c", PLENTY).get(paths[0], 0, 32).store
    assert FrameCache(tmp_path / "c", 0.5 * ONE).get(paths[1], 0, 32).store is None and store.exists()


@pytest.mark.parametrize("last_round", [False, True])
def test_a_clip_larger_than_the_limit_is_alone_not_kept_and_fills_no_disk(tmp_path, monkeypatch, last_round):
    paths = [write_clip(tmp_path / "long.mp4", steady(30, 2.0)), write_clip(tmp_path / "short.mp4", ten(10))]
    write, written = FrameCache._write, []
    monkeypatch.setattr(FrameCache, "_write", lambda *args: written.append(write(*args)) or written[-1])
    for _ in range(2):  # decoded, then known by its description
        cache = FrameCache(tmp_path / "c", 2.5 * ONE)
        long, short = (cache.get(path, 0, 32, last_round=last_round) for path in paths)
        assert long.store is None and short.store.exists() and cache.full_because is None
        assert (frames_of(long) == decoded(paths[0], 32)).all()
    assert sum(written) <= 2.5 * ONE + ONE / 10 + ONE


def test_descriptions_of_old_sets_and_formats_give_way_but_not_those_in_use(tmp_path):
    long, short = write_clip(tmp_path / "long.mp4", steady(30, 1.0)), write_clip(tmp_path / "short.mp4", ten(10))
    FrameCache(tmp_path / "c", 0).get(long, 0, 32)
    (own,) = (tmp_path / "c").glob("*.index")
    old = tmp_path / "c" / f"of-format-{FORMAT - 1}.index"
    old.write_bytes(bytes(1000))
    for file in (own, old):
        make_older(file, 100)
    cache = FrameCache(tmp_path / "c", ONE + own.stat().st_size + 500)
    assert cache.get(long, 0, 32).store is None and cache.get(short, 0, 32).store.exists()
    assert own.exists() and not old.exists()


def test_the_limit_counts_what_other_programs_put_there_meanwhile(tmp_path):
    paths = [write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 11, 12, 13)]
    one, other = FrameCache(tmp_path / "c", 3.5 * ONE), FrameCache(tmp_path / "c", 3.5 * ONE)
    kept = [cache.get(path, 0, 32).store is not None for cache, path in zip((one, other, one, other), paths)]
    assert kept == [True, True, True, False]


def test_a_clip_without_room_or_that_another_builds_is_put_off_until_all_were_asked_for(tmp_path):
    paths = [write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 11)]
    make_older(FrameCache(tmp_path / "c", PLENTY).get(paths[0], 0, 32).store, 100)
    cache = FrameCache(tmp_path / "c", 1.5 * ONE)
    assert cache.get(paths[1], 0, 32, last_round=False) is None and cache.full_because
    cache.begin_last_round()
    store = cache.get(paths[1], 0, 32).store
    assert files(tmp_path / "c") == {store.name}
    roomy = FrameCache(tmp_path / "c", PLENTY)
    builder = claim(tmp_path / "c" / f"{roomy._stem(paths[0], content_hash(paths[0]))}-32.tmp")
    assert roomy.get(paths[0], 0, 32, last_round=False) is None and roomy.full_because is None
    release(builder, remove=True)
    assert roomy.get(paths[0], 0, 32, last_round=False).store.exists()


def test_a_builder_that_does_nothing_is_not_waited_for_for_ever(tmp_path, clip_path):
    cache = FrameCache(tmp_path / "c", PLENTY, timeout_s=0.2)
    builder = claim(tmp_path / "c" / f"{cache._stem(clip_path, content_hash(clip_path))}-32.tmp")
    assert (frames_of(cache.get(clip_path, 0, 32)) == decoded(clip_path, 32)).all()
    release(builder, remove=True)
    assert not files(tmp_path / "c", "*.tmp")


def test_a_clip_that_another_process_built_meanwhile_is_not_decoded_again(tmp_path, clip_path, no_decoder):
    built = FrameCache(tmp_path / "other", PLENTY).get(clip_path, 0, 32).store
    cache = FrameCache(tmp_path / "c", PLENTY)
    builder = claim(tmp_path / "c" / f"{cache._stem(clip_path, content_hash(clip_path))}-32.tmp")

    def finish():
        shutil.copy(built, tmp_path / "c" / built.name)
        release(builder, remove=True)

    no_decoder()
    timer = threading.Timer(0.1, finish)
    timer.start()
    assert cache.get(clip_path, 0, 32).store == tmp_path / "c" / built.name
    timer.join()


def test_a_file_that_gets_its_final_name_while_it_is_claimed_is_left_alone(tmp_path, monkeypatch):
    path, final, lock = tmp_path / "x.tmp", tmp_path / "x.frames", locks_module._try_lock
    path.write_bytes(b"frames")

    def rename_and_lock(file):
        if not final.exists():
            path.rename(final)
        return lock(file)

    monkeypatch.setattr(locks_module, "_try_lock", rename_and_lock)
    file = claim(path)
    assert final.read_bytes() == b"frames" and os.path.samestat(os.fstat(file.fileno()), path.stat())
    release(file, remove=True)


def test_a_file_that_is_swept_before_it_is_locked_is_not_written_to(tmp_path, monkeypatch):
    lock, swept = locks_module._try_lock, []

    def sweep_and_lock(file):
        if not swept:
            swept.append(os.unlink(file.name))  # as the sweep of a program that starts at this moment
        return lock(file)

    monkeypatch.setattr(locks_module, "_try_lock", sweep_and_lock)
    file = claim_another(tmp_path / "x.tmp")
    assert swept and os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    release(file, remove=True)


def test_what_is_built_is_marked_by_this_machines_clock_whatever_the_disks_says(tmp_path, monkeypatch):
    paths = [write_clip(tmp_path / f"{fps}.mp4", ten(fps)) for fps in (10, 11)]
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 3_600_000_000_000)
    cache = FrameCache(tmp_path / "c", 1.5 * ONE)
    store = cache.get(paths[0], 0, 32).store
    assert cache.get(paths[1], 0, 32).store is None and store.exists()


def test_a_full_disk_ends_the_keeping_not_the_run(tmp_path, clip_path):
    class FullDisk(FrameCache):
        def _write(self, file, frame_HWC):
            return super()._write(_Full(), frame_HWC)

    class _Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    cache = FullDisk(tmp_path / "c", PLENTY)
    clip = cache.get(clip_path, 0, 32, last_round=False)
    assert clip.store is None and "disk" in cache.full_because
    assert (frames_of(clip) == decoded(clip_path, 32)).all()


def test_a_disk_that_is_all_but_full_is_not_filled_to_the_brim(tmp_path, clip_path, monkeypatch):
    """What is left is for the run's own files."""
    disk = SimpleNamespace(f_blocks=10 ** 9, f_frsize=1, f_bavail=4 * 10 ** 7)
    monkeypatch.setattr(os, "statvfs", lambda folder: disk)
    cache = FrameCache(tmp_path / "c", PLENTY)
    clip = cache.get(clip_path, 0, 32)
    assert clip.store is None and "disk" in cache.full_because and not files(tmp_path / "c", "*.tmp")
    assert (frames_of(clip) == decoded(clip_path, 32)).all()


def test_a_disk_without_room_for_a_single_file_ends_the_keeping_not_the_run(tmp_path, clip_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = FrameCache(tmp_path / "c", PLENTY)
    monkeypatch.setattr(cache_module, "claim", full)
    monkeypatch.setattr(cache_module, "claim_another", full)
    for _ in range(2):
        clip = cache.get(clip_path, 0, 32)
        assert clip.store is None and "disk" in cache.full_because
        assert (frames_of(clip) == decoded(clip_path, 32)).all()


def test_a_disk_that_fills_up_with_the_last_bytes_leaves_no_torn_file(tmp_path, clip_path, monkeypatch):
    class Description(bytes):
        def __len__(self):
            return super().__len__() + 1  # one more than the disk takes

    pack = cache_module.pack_description
    monkeypatch.setattr(cache_module, "pack_description", lambda about: Description(pack(about)))
    cache = FrameCache(tmp_path / "c", PLENTY)
    clip = cache.get(clip_path, 0, 32)
    assert clip.store is None and "disk" in cache.full_because and not files(tmp_path / "c")
    assert (frames_of(clip) == decoded(clip_path, 32)).all()


def test_a_builder_that_is_done_between_two_looks_is_no_error(tmp_path, clip_path, monkeypatch):
    answers = [None, None]
    monkeypatch.setattr(cache_module, "claim", lambda path: answers.pop() if answers else claim(path))
    assert FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32).store.exists()


def test_an_unreadable_clip_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(UnreadableClip):
        FrameCache(tmp_path / "c", PLENTY).get(tmp_path / "bad.mp4", 0, 32)
    assert files(tmp_path / "c", "*") == {"lock"}


@pytest.mark.parametrize(("make", "kind"), [(lambda path: None, "missing"), (os.mkfifo, "missing"),
                                            (os.mkdir, "empty"), (lambda path: path.touch(), "empty")])
def test_what_is_no_clip_is_named_in_the_decoders_words(tmp_path, make, kind):
    make(tmp_path / "x.mp4")
    with pytest.raises(UnreadableClip) as raised:
        FrameCache(tmp_path / "c", PLENTY).get(tmp_path / "x.mp4", 0, 32)
    assert raised.value.kind == kind


def test_leftovers_of_the_dead_are_swept_and_files_at_work_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "old.tmp").touch()
    at_work = claim(tmp_path / "c" / "young.tmp")
    FrameCache(tmp_path / "c", PLENTY)
    assert files(tmp_path / "c", "*.tmp") == {"young.tmp"}
    release(at_work, remove=True)


def test_a_file_system_without_locks_is_used_without_them(tmp_path, clip_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks_module.fcntl, "flock", refuse)
    (tmp_path / "c").mkdir()
    for name in ("old.tmp", "young.tmp"):
        (tmp_path / "c" / name).touch()
    make_older(tmp_path / "c" / "old.tmp", locks_module.STALE_S + 10)
    clip = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    assert clip.store.exists() and (frames_of(clip) == decoded(clip_path, 32)).all()
    assert files(tmp_path / "c", "*.tmp") == {"young.tmp"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_clear_error_unless_all_is_there(tmp_path, clip_path):
    first = FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32)
    (tmp_path / "c").chmod(0o500)
    try:
        assert FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 32).store == first.store
        with pytest.raises(DataError, match="cannot be written"):
            FrameCache(tmp_path / "c", PLENTY).get(clip_path, 0, 16)
    finally:
        (tmp_path / "c").chmod(0o700)
