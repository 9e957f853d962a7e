from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.data.frames.cache import FRAMES, INDEX, LOOK_AGAIN, SPARED_SHARE, SizeLimit


@dataclass(frozen=True)
class Stored:
    size: int
    age_s: int
    own: bool
    """Whether the set at hand has it."""


STORED = st.lists(st.builds(Stored, st.integers(1, 100), st.integers(1, 9), st.booleans()), max_size=12)


def fill(folder, stored):
    paths = []
    for number, entry in enumerate(stored):
        paths.append(folder / f"{number}{(FRAMES, INDEX)[number % 2]}")
        paths[-1].write_bytes(bytes(entry.size))
        os.utime(paths[-1], (time.time() - 10 * entry.age_s,) * 2)
    return paths


@given(stored=STORED, limit=st.integers(0, 500), wanted=st.integers(1, 120))
def test_room_is_made_by_the_longest_unused_of_others_alone_and_only_where_it_suffices(tmp_path_factory, stored, limit,
                                                                                    wanted):
    folder = tmp_path_factory.mktemp("size_limit")
    paths = fill(folder, stored)
    size_limit = SizeLimit(folder, limit)
    for path, entry in zip(paths, stored):
        if entry.own:
            size_limit.mark(path)
    assert size_limit.take(wanted, evict=False) == (sum(entry.size for entry in stored) + wanted <= limit)
    assert all(path.exists() for path in paths)
    size_limit = SizeLimit(folder, limit)  # counts anew
    for path, entry in zip(paths, stored):
        if entry.own:
            size_limit.mark(path)
    taken = size_limit.take(wanted, evict=True)
    left = [entry for path, entry in zip(paths, stored) if path.exists()]
    removed = [entry for path, entry in zip(paths, stored) if not path.exists()]
    needed = sum(entry.size for entry in stored if entry.own) + wanted
    assert taken == (needed <= limit)
    assert all(not entry.own for entry in removed)
    if not taken:
        assert not removed
        return
    assert sum(entry.size for entry in left) + wanted <= limit
    others = [entry for entry in left if not entry.own]
    if removed and others:
        assert min(entry.age_s for entry in removed) >= max(entry.age_s for entry in others)
    if removed:  # the last that went was needed, but for the little that is removed while at it
        last = min(removed, key=lambda entry: entry.age_s)
        before = sum(entry.size for entry in left) + max(entry.size for entry in removed
                                                         if entry.age_s == last.age_s) + wanted
        assert before > limit * (1 - LOOK_AGAIN)


def test_some_of_the_disk_is_left_free_and_old_frames_give_way_for_it(tmp_path, monkeypatch):
    def disk(folder):
        used = sum(file.stat().st_size for file in folder.iterdir())
        return SimpleNamespace(f_blocks=1000, f_frsize=1, f_bavail=1000 - used)

    monkeypatch.setattr(os, "statvfs", disk)
    (old,) = fill(tmp_path, [Stored(400, 9, own=False)])
    size_limit = SizeLimit(tmp_path, 10_000)
    spared = round(SPARED_SHARE * 1000)
    assert size_limit.has_room(600 - spared, evict=False) and not size_limit.has_room(601 - spared, evict=False)
    assert not size_limit.has_room(1001 - spared, evict=True) and old.exists() and size_limit.is_disk_full
    assert size_limit.take(601 - spared, evict=True) and not old.exists()
    assert not SizeLimit(tmp_path, 500).is_disk_full


@pytest.mark.parametrize("answer", [OSError(errno.ENOSYS, "not implemented"), SimpleNamespace(f_blocks=0, f_frsize=1,
                                                                                              f_bavail=0)])
def test_a_disk_that_does_not_say_how_full_it_is_sets_no_limit(tmp_path, monkeypatch, answer):
    def disk(folder):
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "statvfs", disk)
    assert SizeLimit(tmp_path, 100).has_room(100, evict=False)


@given(counts=st.lists(st.integers(1, 60), max_size=20), limit=st.integers(0, 300))
def test_two_programs_overshoot_by_no_more_than_the_share_after_which_they_look(tmp_path_factory, counts, limit):
    folder = tmp_path_factory.mktemp("size_limit")
    limits = [SizeLimit(folder, limit), SizeLimit(folder, limit)]
    for number, count in enumerate(counts):
        if limits[number % 2].take(count, evict=True):
            (folder / f"{number}.frames").write_bytes(bytes(count))
    total = sum(file.stat().st_size for file in folder.glob("*.frames"))
    assert total <= limit * (1 + LOOK_AGAIN) + max(counts, default=0)
