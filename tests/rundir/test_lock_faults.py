"""The run's lock where the disk, or the directory, is not what it was; and where there are no locks at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from expand.errors import RunError
from expand.rundir.lock import RunLock, holder
from expand.rundir.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    root = tmp_path / "run"
    root.mkdir()
    return RunPaths(root)


@pytest.fixture(params=["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def refused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file system that answers every lock so."""
    code = getattr(errno, request.param)

    def flock(handle: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    yield os.strerror(code)


def test_a_file_system_without_locks_is_refused_with_the_way_out(paths: RunPaths, refused: str) -> None:
    with pytest.raises(RunError, match="gives no lock") as caught, RunLock(paths):
        pytest.fail("worked without a lock")
    text = str(caught.value)
    assert refused in text and str(paths.root / "lock") in text
    assert "--run-dir" in text and "-o flock" in text


def test_where_there_are_no_locks_no_process_holds_one(paths: RunPaths, refused: str) -> None:
    (paths.root / "lock").write_text('{"pid": 1, "host": "elsewhere", "started": 1.0}')
    assert holder(paths) is None


def test_a_directory_that_was_moved_or_deleted_or_replaced_is_noticed(paths: RunPaths) -> None:
    away = paths.root.with_name("away")
    with RunLock(paths) as lock:
        lock.check()
        os.rename(paths.root, away)
        with pytest.raises(RunError, match="moved or deleted") as caught:
            lock.check()
        assert f"x3d-expand resume {paths.root}" in str(caught.value)
        shutil.copytree(away, paths.root)
        with pytest.raises(RunError, match="replaced"):
            lock.check()
        shutil.rmtree(paths.root)
        os.rename(away, paths.root)
        lock.check()
        shutil.rmtree(paths.root)
        with pytest.raises(RunError, match="moved or deleted"):
            lock.check()


def test_a_lock_file_that_was_deleted_by_hand_is_noticed_by_its_holder(paths: RunPaths) -> None:
    with RunLock(paths) as lock:
        (paths.root / "lock").unlink()
        with RunLock(paths), pytest.raises(RunError, match="replaced"):
            lock.check()


def test_a_lock_is_given_back_where_its_file_cannot_be_emptied(paths: RunPaths,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, length: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(ZeroDivisionError), RunLock(paths):
        monkeypatch.setattr(os, "ftruncate", refuse)
        raise ZeroDivisionError
    monkeypatch.undo()
    assert holder(paths) is None
    with RunLock(paths):
        assert holder(paths) is not None
