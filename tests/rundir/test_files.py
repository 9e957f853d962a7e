from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.errors import RunError
from expand.rundir import files

WRITER = """
import sys
from pathlib import Path
from expand.rundir.files import write_atomic
path, size = Path(sys.argv[1]), int(sys.argv[2])
write_atomic(path, b"a" * size)
print("ready", flush=True)
while True:
    for letter in (b"b", b"a"):
        write_atomic(path, letter * size)
"""


def test_a_write_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "file.txt"
    files.write_atomic(path, "γτ\n")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_block_leaves_the_old_content(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    with pytest.raises(kind), files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise kind
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_the_temporary_path_is_beside_the_target_and_keeps_its_suffix(tmp_path: Path) -> None:
    with files.atomic_path(tmp_path / "plot.png") as temporary:
        temporary.write_bytes(b"x")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert not (tmp_path / "plot.png").exists()
    assert (tmp_path / "plot.png").read_bytes() == b"x"


STOPPED_WRITER = """
import os, signal, sys
from pathlib import Path
from expand.rundir import files
path, stage = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
def stop(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if stage == "after rename":
    files.sync_dir = stop
else:
    setattr(os, stage, stop)
files.write_atomic(path, b"new" * 1000)
"""


@pytest.mark.parametrize(("stage", "content"),
                         [("fsync", b"old"), ("replace", b"old"), ("after rename", b"new" * 1000)])
def test_a_kill_between_two_stages_of_a_write_leaves_one_of_the_two(tmp_path: Path, stage: str, content: bytes,
                                                                    start_python: Callable[..., Any]) -> None:
    path = tmp_path / "outcome.json"
    path.write_bytes(b"old")
    process = start_python(STOPPED_WRITER, path, stage)
    assert process.wait() == -signal.SIGKILL
    assert path.read_bytes() == content


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    files.write_atomic(path, b"old")
    with open(path, "rb") as reader:
        files.write_atomic(path, b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize("moment", [0.0, 0.003, 0.01, 0.03])
def test_a_killed_writer_leaves_the_old_content_or_the_new(tmp_path: Path, moment: float,
                                                           start_python: Callable[..., Any]) -> None:
    path, size = tmp_path / "checkpoint.pt", 3_000_000
    process = start_python(WRITER, path, size)
    time.sleep(moment)
    process.kill()
    process.wait()
    content = path.read_bytes()
    assert content in (b"a" * size, b"b" * size)
    files.clear_leftovers([tmp_path])
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_refused_write_is_told_with_the_path_and_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as caught:
        files.write_atomic(tmp_path / "file" / "below", b"x")
    assert str(tmp_path / "file") in str(caught.value)
    assert "Check the free space" in str(caught.value)


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    value = {"a": float("nan"), "b": [float("inf"), -float("inf")], "c": np.float32(0.5), "d": np.int64(3), "e": (1, 2),
             "f": np.float64("nan"), "g": np.bool_(True), "h": Path("x/y"), 4: None}
    files.write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == {
        "a": None, "b": [None, None], "c": 0.5, "d": 3, "e": [1, 2], "f": None, "g": True, "h": "x/y", "4": None}


def test_a_file_name_that_is_not_unicode_can_be_written(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"clip": os.fsdecode(b"clip-\xff.mp4")})
    assert files.read_json(tmp_path / "a.json") == {"clip": "clip-\\udcff.mp4"}


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), np.zeros(3)])
def test_what_has_no_place_in_json_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="no place in JSON"):
        files.write_json(tmp_path / "a.json", {"key": value})
    assert os.listdir(tmp_path) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=12)


@given(json_values)
@settings(deadline=None, max_examples=50)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert files.from_json(files.to_json(value).encode("utf-8")) == value


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a": 1} x'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "outcome.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match="is damaged") as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read: No such file") as caught:
        files.read_json(tmp_path / "env.json")
    assert str(tmp_path / "env.json") in str(caught.value)
