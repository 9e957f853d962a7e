"""Nothing is written into a run that the same run would refuse to read."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from expand.config import yaml_document
from expand.data.sources import run_list
from expand.data.sources.clip import Clip, ClipList
from expand.errors import DataError, RunError, UsageError
from expand.expansion.events import CandidateFinished, Event, FinalFinished, RunFailed, UnknownEvent
from expand.expansion.state import Outcome
from expand.rundir import journal as journal_
from expand.rundir.journal import Journal, read_events
from expand.space.network import MAX_BYTES, dump_network, load_network, preset

ANY_TEXT = st.text(st.characters(exclude_categories=[]), min_size=1, max_size=20)
SURPRISES = ["1:30", "1e3", "0o7", "=", "<<", "no", "~", "2001-01-01", "a\r\nb", "\n", "\x85", "\u2028", "'\"", ": #",
             "*a", "&a", "!t", "caf\udce9", "\ufeff", "\U0001F3C3 跑步", "दौड़ना", "\x00", "\x1b[2J"]


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_TEXT | st.sampled_from(SURPRISES), min_size=1, max_size=4), ANY_TEXT)
@example(["caf\udce9"], "a folder whose name is Latin-1")
@example(["a\x85b"], "\x85")
def test_a_network_comes_back_with_class_names_in_any_script(names: list[str], own: str) -> None:
    network = replace(preset("xs", len(names)), class_names=tuple(names), name=own)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.yaml"
        path.write_bytes(dump_network(network).encode("utf-8"))
        assert load_network(path) == network


def test_names_that_are_no_utf8_are_read_only_from_texts_that_cost_little() -> None:
    odd = yaml_document.dump({"names": ["caf\udce9"], "more": "x" * yaml_document.MAX_CHARS_WITH_SURROGATES})
    with pytest.raises(yaml_document.NotYaml):
        yaml_document.parse_values(odd)


def test_a_network_that_could_not_be_read_again_is_not_written() -> None:
    names = tuple(f"{number:0100d}" for number in range(MAX_BYTES // 100))
    with pytest.raises(UsageError, match="more than 1 MB"):
        dump_network(replace(preset("xs", len(names)), class_names=names))


def test_a_list_of_clips_that_could_not_be_read_again_is_not_written(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_list, "LARGEST", 1000)
    listed = ClipList(("run",), tuple(Clip(Path(f"/clips/{number}.mp4"), 0, "train") for number in range(100)))
    with pytest.raises(DataError, match="100 clips is larger than 1 kB"):
        run_list.write_clips(tmp_path / "clips.csv", listed)
    assert not (tmp_path / "clips.csv").exists()


@pytest.mark.parametrize("event", [
    CandidateFinished(outcome=Outcome("s00-basis", "failed", reason="no caf\udce9")), RunFailed(reason="no caf\udce9"),
    FinalFinished.of({"split": "val", "accuracy": 0.5, "stderr": 0.1, "wall_s": 1.0, "loss": float("inf"),
                      "notes": ["no caf\udce9"], "of_another_version": float("nan")})])
def test_texts_and_numbers_that_json_does_not_know_are_written_as_it_does(event: Event, tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal.jsonl").append(event)
    assert "no caf\\udce9" in written.line()
    assert json.loads((tmp_path / "journal.jsonl").read_text()) == written.as_dict()


@pytest.mark.parametrize("event", [
    CandidateFinished(outcome=Outcome("s00-basis", "finished", accuracy=float("nan"), wall_s=1.0, clips_per_s=1.0)),
    RunFailed(reason="x" * 200_000), UnknownEvent(event="said", unknown={"text": "x" * 2000})])
def test_an_event_that_could_not_be_read_again_is_not_written(event: Event, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    before = Journal(path).append(UnknownEvent(event="counted"))
    if isinstance(event, UnknownEvent):
        monkeypatch.setattr(journal_, "LONGEST", 1000)
    with pytest.raises(RunError, match="was not written"):
        Journal(path).append(event)
    assert read_events(path) == [before]
