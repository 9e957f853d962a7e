from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.data.frames import content as content_module
from expand.data.frames.clip_files import UnreadableClip
from expand.data.frames.content import ContentMemo, content_hash, file_state


def write(path, data=b"abc", age_s=100.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.fixture
def hashed(monkeypatch):
    """The paths that were hashed, in order."""
    seen = []
    monkeypatch.setattr(content_module, "content_hash", lambda path: seen.append(path) or content_hash(path))
    return seen


def test_a_files_content_is_the_hash_of_its_bytes(tmp_path):
    assert content_hash(write(tmp_path / "a", b"x" * 3_000_000)) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_folders_content_is_that_of_its_frames_in_order(tmp_path):
    for folder, names in (("a", "1 2 10"), ("b", "007 8 30"), ("c", "2 1 10")):
        for name, data in zip(names.split(), (b"x", b"y", b"z")):
            write(tmp_path / folder / f"{name}.jpg", data)
        write(tmp_path / folder / "notes.txt", folder.encode())
    a, b, c = (content_hash(tmp_path / folder) for folder in "abc")
    assert a == b != c and a != content_hash(write(tmp_path / "file", b"xyz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableClip):
        content_hash(tmp_path / "empty")


def test_what_was_hashed_is_remembered_by_later_processes_until_it_changes(tmp_path, hashed):
    path = write(tmp_path / "a")
    content, state = ContentMemo(tmp_path / "memo").content(path)
    assert (content, state) == (content_hash(path), file_state(path))
    memo = ContentMemo(tmp_path / "memo")
    assert memo.known_content(path) == content and memo.content(path) == (content, state) and len(hashed) == 1
    write(path, b"abd", age_s=200)
    assert memo.known_content(path) is None
    assert memo.content(path)[0] == content_hash(path) != content and len(hashed) == 2
    assert ContentMemo(tmp_path / "memo").known_content(path) == content_hash(path)


def test_a_frame_that_is_added_replaced_or_renamed_changes_a_folders_state(tmp_path):
    for number in range(3):
        write(tmp_path / "a" / f"{number}.png", b"%d" % number)
    states = [file_state(tmp_path / "a")]
    write(tmp_path / "a" / "3.png")
    states.append(file_state(tmp_path / "a"))
    write(tmp_path / "a" / "1.png", b"new")
    states.append(file_state(tmp_path / "a"))
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "9.png")
    states.append(file_state(tmp_path / "a"))
    assert len(set(states)) == 4


def test_a_file_that_may_still_be_written_is_not_remembered(tmp_path, hashed):
    memo = ContentMemo(tmp_path / "memo")
    young = write(tmp_path / "a", age_s=0)
    assert memo.content(young) == memo.content(young) and len(hashed) == 2
    assert not (tmp_path / "memo").exists()


def test_a_file_that_is_written_while_it_is_hashed_is_not_remembered(tmp_path, monkeypatch):
    path, memo = write(tmp_path / "a"), ContentMemo(tmp_path / "memo")

    def hash_during_a_write(path):
        content = content_hash(path)
        write(path, b"meanwhile")
        return content

    monkeypatch.setattr(content_module, "content_hash", hash_during_a_write)
    memo.content(path)
    assert memo.known_content(path) is None and not (tmp_path / "memo").exists()


@given(cut=st.integers(0, 400), junk=st.binary(max_size=300), at=st.integers(0, 400))
def test_torn_and_foreign_lines_are_passed_over_and_never_give_a_wrong_content(tmp_path_factory, cut, junk, at):
    folder = tmp_path_factory.mktemp("memo")
    paths = [write(folder / name, name.encode()) for name in "abc"]
    memo = ContentMemo(folder / "memo")
    for path in paths:
        memo.content(path)
    good = (folder / "memo").read_bytes()
    (folder / "memo").write_bytes(good[:at] + junk + good[at:cut] if cut > at else good[:at] + junk)
    damaged = ContentMemo(folder / "memo")
    for path in paths:
        assert damaged.known_content(path) in (None, content_hash(path))
        assert damaged.content(path)[0] == content_hash(path)
    (folder / "memo").write_bytes(good + junk)
    assert all(ContentMemo(folder / "memo").known_content(path) == content_hash(path) for path in paths)


def test_two_torn_lines_do_not_make_a_whole_one(tmp_path):
    paths = [write(tmp_path / name, name.encode()) for name in "ab"]
    memo = ContentMemo(tmp_path / "memo")
    for path in paths:
        memo.content(path)
    first, second = (tmp_path / "memo").read_bytes().splitlines(keepends=True)
    for cut in range(len(first)):
        (tmp_path / "memo").write_bytes(first[:cut] + second[cut:])
        damaged = ContentMemo(tmp_path / "memo")
        assert all(damaged.known_content(path) in (None, content_hash(path)) for path in paths)


def test_a_memo_that_is_mostly_superseded_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(content_module, "SPARE_LINES", 20)
    path, other = write(tmp_path / "a"), write(tmp_path / "b")
    memo = ContentMemo(tmp_path / "memo")
    memo.content(other)
    for age_s in range(30):
        write(path, age_s=100 + age_s)
        memo.content(path)
    memo = ContentMemo(tmp_path / "memo")
    before = (tmp_path / "memo").stat().st_size
    memo.compact()
    assert (tmp_path / "memo").stat().st_size < before / 10
    again = ContentMemo(tmp_path / "memo")
    assert again.known_content(path) == again.known_content(other) == content_hash(path)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_written_only_costs_the_memory(tmp_path):
    path, memo = write(tmp_path / "a"), ContentMemo(tmp_path / "no such folder" / "memo")
    assert memo.content(path)[0] == content_hash(path) and memo.known_content(path) == content_hash(path)


def test_a_memo_on_a_read_only_disk_is_used_as_it_is(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")  # also for a file that is not there

    path = write(tmp_path / "a")
    ContentMemo(tmp_path / "memo").content(path)
    monkeypatch.setattr(content_module, "SPARE_LINES", -2)
    memo = ContentMemo(tmp_path / "memo")
    for name in ("open", "replace"):
        monkeypatch.setattr(content_module.os, name, refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    memo.compact()
    assert memo.known_content(path) == content_hash(path)


def _remember(folder, names):
    memo = ContentMemo(folder / "memo")
    for name in names:
        memo.content(folder / name)


def test_writers_at_the_same_time_lose_no_line(tmp_path):
    names = [[f"{process}-{number}" for number in range(50)] for process in range(3)]
    paths = [write(tmp_path / name, name.encode()) for some in names for name in some]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_remember, args=(tmp_path, some)) for some in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    memo = ContentMemo(tmp_path / "memo")
    assert all(memo.known_content(path) == content_hash(path) for path in paths)
