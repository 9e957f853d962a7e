from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.errors import RunError
from expand.expansion.events import Event, UnknownEvent
from expand.rundir.journal import Journal, read_events

APPENDER = """
import sys
from pathlib import Path
from expand.expansion.events import UnknownEvent
from expand.rundir.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append(UnknownEvent(event="counted", unknown={"number": 0, "text": "γτ" * 3000}))
print("ready", flush=True)
number = 0
while True:
    number += 1
    journal.append(UnknownEvent(event="counted", unknown={"number": number, "text": "γτ" * 3000}))
"""

COUNTED = UnknownEvent(event="counted")
fields = st.dictionaries(st.sampled_from(["id", "reason", "accuracy", "axis"]),
                         st.text(st.characters(codec="utf-8"), max_size=12)
                         | st.floats(allow_nan=False, allow_infinity=False) | st.none(), max_size=3)
histories = st.lists(st.tuples(st.sampled_from(["counted", "said"]), fields), min_size=1, max_size=5)


def write_history(path: Path, history: list[tuple[str, dict[str, Any]]]) -> list[Event]:
    journal = Journal(path, clock=lambda: 1.5e9)
    return [journal.append(UnknownEvent(event=event, unknown=values)) for event, values in history]


@given(histories)
@settings(max_examples=30, deadline=None)
def test_what_append_returns_is_what_is_read(history: list[tuple[str, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        assert write_history(path, history) == read_events(path)


@given(histories, st.data())
@settings(max_examples=60, deadline=None)
def test_cut_at_any_byte_the_journal_gives_its_whole_events_and_goes_on(
        history: list[tuple[str, dict[str, Any]]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        events = write_history(path, history)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        lengths = [len(b"\n".join(content.split(b"\n")[:count])) for count in range(1, len(events) + 1)]
        whole = events[:sum(length <= cut for length in lengths)]

        assert read_events(path) == whole
        assert path.read_bytes() == content[:cut], "reading must not change the file"
        added = Journal(path).append(COUNTED)
        assert read_events(path) == [*whole, added]
        assert path.read_bytes().count(b"\n") == len(whole) + 1


@pytest.mark.parametrize("tail", [b"\0" * 50, b"\xce", b'{"event": "a", "time": NaN}', b"[1]", b'"text"', b"12"])
def test_a_tail_that_is_no_event_is_dropped_by_the_next_append(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path).append(COUNTED)
    with open(path, "ab") as file:
        file.write(tail)
    assert read_events(path) == [first]
    second = Journal(path).append(COUNTED)
    assert read_events(path) == [first, second]


@pytest.mark.parametrize("damage", [b"{", b"\xff", b"null", b"{}", b'{"event": 3, "time": 1}', b'{"event": "a"}',
                                    b'{"event": "a", "time": Infinity}'])
def test_damage_in_the_middle_is_named_by_file_and_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    write_history(path, [("a", {}), ("b", {}), ("c", {})])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    with pytest.raises(RunError, match="not an event of the journal") as caught:
        read_events(path)
    assert f"{path}, line 2: " in str(caught.value)


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    event = Journal(path).append(UnknownEvent(event="said", unknown={"reason": "one\u2028two\x85three\r\nfour"}))
    assert read_events(path) == [event]


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert Journal(path).append(UnknownEvent(event="counted", unknown={"loss": float("nan")})).unknown["loss"] is None
    assert b"NaN" not in path.read_bytes()


def test_the_time_comes_from_the_clock(tmp_path: Path) -> None:
    event = Journal(tmp_path / "journal.jsonl", clock=lambda: 12.5).append(COUNTED)
    assert event.as_dict() == {"event": "counted", "time": 12.5}


def test_no_journal_means_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "journal.jsonl") == []


def test_a_refused_append_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written") as caught:
        Journal(tmp_path / "missing" / "journal.jsonl").append(COUNTED)
    assert "journal.jsonl" in str(caught.value)


@pytest.mark.parametrize("moment", [0.0, 0.004, 0.02])
def test_events_of_a_killed_process_are_whole_and_in_order(tmp_path: Path, moment: float,
                                                           start_python: Callable[..., Any]) -> None:
    path = tmp_path / "journal.jsonl"
    process = start_python(APPENDER, path)
    time.sleep(moment)
    process.kill()
    process.wait()
    numbers = [event.unknown["number"] for event in read_events(path)]
    assert numbers == list(range(max(1, len(numbers))))
    Journal(path).append(COUNTED)
    assert len(read_events(path)) == len(numbers) + 1
