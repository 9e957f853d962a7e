"""The run cut at every event of its journal and at every byte of its last line: it ends as the undisturbed one does.

The driver is the real one; the trainings happen in this process, one after another, so that hundreds of cuts are cheap.
Real processes that are killed are in test_run.py and test_faults.py.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import expand
from expand.config import parse_config
from expand.errors import Interrupted
from expand.executors.supervisor import Finished
from expand.executors.worker import run_job
from expand.expansion.decide import decide
from expand.expansion.events import CandidateFinished, Event, FinalStarted, RunStarted
from expand.expansion.rules import Space
from expand.expansion.state import SearchState
from expand.run import driver
from expand.run import start as session
from expand.rundir.journal import Journal, read_events
from expand.training.job import Hooks, Job
from tests.e2e.faults import named, search_here
from tests.e2e.runs import results

NEVER = 1 << 60


class Here:
    """An `Executor` that trains in this process. `stop_in` updates and batches later it is asked to stop."""

    stop_in = NEVER
    trained: ClassVar[list[str]] = []

    def __init__(self, run: Any, data: Any, runtime: Any, paths: Any, listener: Any, fork_server: None) -> None:
        self.data, self.runtime, self.listener = data, runtime, listener

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """As every executor does."""
        for job in sorted(jobs, key=lambda job: -job.gflops):
            self.listener.begin(job, "here:1")
            is_known = job.paths.outcome.exists()
            yield Finished(job, run_job(job, self.data, self.runtime, Hooks(stop=self._stop)))
            Here.trained += [] if is_known else [job.id]

    def _stop(self) -> bool:
        Here.stop_in -= 1
        return Here.stop_in < 0


@pytest.fixture(scope="module", autouse=True)
def in_this_process(own_cache):
    """Without training processes, and without drawing a report at the end of each of so many runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "early_start", lambda run: nullcontext())
        patch.setattr(driver, "make_executor", Here)
        patch.setattr(session, "write_report", lambda paths: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The undisturbed run."""
    run_dir = tmp_path_factory.mktemp("cuts") / "undisturbed"
    assert search_here(run_dir)["contraction"]["id"], "the run is to have every kind of event"
    return run_dir


@pytest.fixture(scope="module")
def remade(finished, tmp_path_factory):
    """A copy of the run with `count` events and the first bytes of the one after them in its journal: one copy at a
    time, in the same place. Files that are replaced and never changed are links."""
    target = tmp_path_factory.mktemp("cut") / "run"

    def remake(count: int, torn: int = 0, *, retrain: bool = False) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(finished, target, copy_function=_copy)
        lines = _lines(finished)
        (target / "journal.jsonl").write_bytes(b"".join(lines[:count]) + b"".join(lines[count:])[:torn])
        if retrain:
            _forget_later_files(target)
        return target

    return remake


def _forget_later_files(run_dir: Path) -> None:
    """Deletes what the run wrote after the last event that is left of it."""
    left = read_events(run_dir / "journal.jsonl")
    ended = {event.outcome.id for event in left if isinstance(event, CandidateFinished)}
    for folder in (run_dir / "candidates").iterdir():
        if folder.name not in ended:
            shutil.rmtree(folder)
    kinds = {event.kind for event in left}
    for file in (run_dir / "final").iterdir():
        if "final_finished" not in kinds and not ("winner_chosen" in kinds and file.name == "network.yaml"):
            file.unlink()


def _copy(source: str, target: str) -> None:
    if source.endswith(".pt"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def _lines(run_dir: Path) -> list[bytes]:
    return (run_dir / "journal.jsonl").read_bytes().splitlines(keepends=True)


def _is_as_undisturbed(run_dir: Path, finished: Path) -> None:
    assert expand.status(run_dir)["state"] == "finished"
    assert results(run_dir) == results(finished)
    assert [event["id"] for event in named(run_dir, "step_selected")] == [
        event["id"] for event in named(finished, "step_selected")]
    trained = [event["id"] for event in named(run_dir, "candidate_finished")]
    assert len(trained) == len(set(trained))


def test_the_run_cut_at_every_event_and_within_the_next_ends_as_the_undisturbed_one(finished, remade):
    lines = _lines(finished)
    for count in range(len(lines)):
        Here.trained.clear()
        run_dir = remade(count, random.Random(count).randrange(0, len(lines[count])))
        expand.resume(run_dir)
        _is_as_undisturbed(run_dir, finished)
        assert not Here.trained, "what was on disk had ended, so that nothing was to be trained again"


@settings(max_examples=3, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink would take minutes
@given(st.data())
def test_the_run_cut_at_an_event_and_stopped_at_an_update_trains_to_the_same_end(finished, remade, data):
    lines = _lines(finished)
    count = data.draw(st.integers(1, len(lines) - 1), "events")
    torn = data.draw(st.integers(0, len(lines[count]) - 1), "bytes of the next")
    run_dir = remade(count, torn, retrain=True)
    Here.stop_in = data.draw(st.integers(0, 30), "updates and batches until the stop")
    try:
        expand.resume(run_dir)
    except Interrupted:
        assert named(run_dir, "run_interrupted")
    finally:
        Here.stop_in = NEVER
    expand.resume(run_dir)
    _is_as_undisturbed(run_dir, finished)
    ours, theirs = (torch.load(path / "final" / "weights.pt", weights_only=True)["model"]
                    for path in (run_dir, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_byte_of_every_last_line_leaves_a_journal_that_goes_on_to_the_same_bytes(finished, tmp_path):
    lines, events = _lines(finished), read_events(finished / "journal.jsonl")
    space = Space(parse_config((finished / "config.yaml").read_text(), "config.yaml").search,
                  len(events[0].classes))
    path = tmp_path / "journal.jsonl"
    for count, line in enumerate(lines):
        _decides_as_it_did(decide(SearchState.from_events(events[:count]), space), events[count:])
        for torn in range(len(line)):
            path.write_bytes(b"".join(lines[:count]) + line[:torn])
            whole = count + (torn == len(line) - 1)  # only the line end is missing
            assert read_events(path) == events[:whole]
            if whole < len(events) and (torn % 16 == 0 or torn > len(line) - 3):  # an append waits for the disk
                written = Journal(path, clock=lambda time=events[whole].time: time).append(events[whole])
                assert written == events[whole] and path.read_bytes() == b"".join(lines[:whole + 1])


def _decides_as_it_did(action: Any, then: list[Event]) -> None:
    """What is decided is the next decision that the undisturbed run wrote down."""
    if isinstance(action, Event):
        written = next(event for event in then if not isinstance(event, RunStarted | FinalStarted))
        assert written == replace(action, time=written.time)
