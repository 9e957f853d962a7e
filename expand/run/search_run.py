"""A run from the outside: made, opened, locked, carried on by the driver, and reported."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expand.config import Config, dump_config, parse_config, yaml_document
from expand.config.schema import RUN_NAME, RunConfig
from expand.data import ClipList, PreparedData, list_clips, prepare
from expand.data.sources import keep_clips
from expand.errors import ExpandError, RunError, UsageError
from expand.executors import early_start
from expand.executors.fork_server import Nursery
from expand.executors.forked_call import call_apart
from expand.expansion.forecast import check_target, forecast, largest_resolution
from expand.expansion.rules import Space
from expand.expansion.state import SearchState
from expand.exports.card import write_card
from expand.home import expanded
from expand.kernels import library
from expand.machine import available_cores
from expand.report.event_lines import event_line
from expand.report.plots import plot_expansion
from expand.report.summary import summarize
from expand.report.tables import steps_frame
from expand.report.text import duration, one_line
from expand.run.driver import Display, Driver
from expand.run.environment import environment
from expand.run.resolve import check_recipes, check_unchanged, settle
from expand.run.run_clips import list_again, prepare_again
from expand.rundir.files import make_dir, write_atomic, write_json
from expand.rundir.journal import Journal, read_events, run_started
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
from expand.training.estimate import estimate_seconds
from expand.training.gpus import Gpu, complaints, look_at_all
from expand.training.runtime import Runtime, settle_run
from expand.version import __version__


class Quiet:
    """A display that shows nothing."""

    def opened(self, paths: RunPaths) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def event(self, event: dict[str, Any], state: SearchState) -> None:
        """Nothing."""

    def tick(self, job_id: str, tick: Any) -> None:
        """Nothing."""


class Logged:
    """A display that also writes everything to the run's log.txt, with the time.

    The log is for people and no result depends on it: where it cannot be written (a full disk, a directory that is
    gone), that is said once, and the work goes on until something that matters meets the same.
    """

    def __init__(self, display: Display, paths: RunPaths) -> None:
        self.display, self.paths, self.tick = display, paths, display.tick
        self.has_failed = False

    def opened(self, paths: RunPaths) -> None:
        """Passes it on."""
        self.display.opened(paths)

    def say(self, text: str) -> None:
        """Writes and shows a remark."""
        self._write(one_line(text))
        self.display.say(text)

    def event(self, event: dict[str, Any], state: SearchState) -> None:
        """Writes and shows an event."""
        if line := event_line(event):
            self._write(line)
        self.display.event(event, state)

    def _write(self, line: str) -> None:
        try:
            with open(self.paths.log, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except (OSError, RunError) as error:
            if not self.has_failed:
                self.has_failed = True
                self.display.say(one_line(f"log.txt of {self.paths.root} cannot be written: {error}"))


@dataclass(frozen=True)
class Estimate:
    """What a search will come to: steps after the basis, candidates, their multiply-adds a clip in all, seconds (None
    where the device could not be tried: a Ray cluster's GPU, for one, from a machine without)."""

    steps: int
    candidates: int
    gflops: float
    seconds: float | None


def begin(config: Config, run_dir: Path | None, name: str, display: Display | None,
          confirm: Callable[[Estimate], bool]) -> Path:
    """Starts a run and works on it to its end; returns its directory. `name` is the stem of an unnamed run's name."""
    display = display or Quiet()
    listed = list_clips(config.data)
    space = Space(config.search, len(listed.classes))
    check_target(space)
    check_recipes(config, space)
    library.load()  # kernels or a device that are not there are said before the clips are decoded
    paths = RunPaths(run_dir or choose_dir(config, name))
    check_free(paths)
    with early_start(config.run) as nursery:
        gpus = _look_at_gpus(config.run, nursery)
        config = replace(config, run=settle_run(config.run, gpus))
        runtime = Runtime.of(config.run, gpus)
        for complaint in complaints(gpus):
            display.say(complaint)
        data = _prepare(config, listed, space, display.say, begins=True)
        config = settle(config, data, paths.root.resolve().name)
        check_recipes(config, space, len(data.train))
        estimate = _estimate(config, space, data, runtime, nursery, display)
        display.say(f"{estimate.candidates} candidates in {estimate.steps} steps, "
                    f"{estimate.gflops:.3g} GFLOPs a clip in all"
                    + ("" if estimate.seconds is None else f"; roughly {_rough(estimate.seconds)}"))
        if not confirm(estimate):
            raise UsageError("the search was not started", fix="a smaller --target-gflops, or fewer epochs "
                             "(--set candidate.epochs=N), makes it shorter")
        make_dir(paths.root)
        with RunLock(paths) as lock:
            check_free(paths)
            write_json(paths.env, environment(config, gpus[runtime.device.index].name if runtime.gpus else None))
            keep_clips(paths.clips, config.data, data.listed)
            write_atomic(paths.config, dump_config(config))
            _work(config, paths, data, runtime, display, nursery, lock)
    return paths.root


def go_on(run_dir: Path, display: Display | None, values: Mapping[str, Any] | None = None) -> Path:
    """Works on an existing run to its end; returns its directory. `values`: options by dotted key for this time only,
    of those that cannot alter a result."""
    display, paths = display or Quiet(), RunPaths(run_dir)
    stored_config(paths)  # before the lock, which is a file: there is none in what is no run
    with RunLock(paths) as lock:
        config = stored_config(paths, values)
        events = read_events(paths.journal)
        if SearchState.from_events(events).finished:
            if not paths.card.exists():  # it was deleted, or an older version ran
                write_card(paths)
            display.say(f"{run_dir} is finished")
            return paths.root
        started = run_started(events)
        if started:
            check_unchanged(started["config"], config, str(paths.config))
        listed = list_again(paths.clips, config.data, started and started["classes"])
        space = Space(config.search, len(listed.classes))
        with early_start(config.run) as nursery:
            runtime = Runtime.of(config.run, _look_at_gpus(config.run, nursery))
            data = prepare_again(
                listed, paths.clips, config.data, started,
                lambda clips, say: _prepare(config, clips, space, say, run_list=paths.clips), display.say)
            _work(config, paths, data, runtime, display, nursery, lock)
    return paths.root


def choose_dir(config: Config, stem: str) -> Path:
    """Where a run is kept that says no directory: named by its configuration, else by `stem` and a free number."""
    folder, name = expanded(config.run.runs_dir, "run.runs_dir"), config.run.name
    if name is None:
        stem, number = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "run", 1
        while (folder / f"{stem}-{number}").exists():
            number += 1
        name = f"{stem}-{number}"
    if not RUN_NAME.match(name):
        raise UsageError(f"{name!r} cannot name a run", where="--name",
                         fix="use letters, digits, '.', '_' and '-'; --run-dir takes any path")
    return folder / name


def check_free(paths: RunPaths) -> None:
    """Raises `RunError` where a run, or anything else, is kept in the directory."""
    if not paths.root.exists():
        return
    if not paths.root.is_dir():
        raise RunError("is not a directory", where=str(paths.root), fix="choose another --name or --run-dir")
    if paths.journal.exists() or paths.training.exists():
        raise RunError("a run is kept here", where=str(paths.root),
                       fix=f"go on with it: x3d-expand resume {paths.root}; or choose another --name")
    known = {path.name for path in (paths.config, paths.clips, paths.clips_begun, paths.env, paths.lock, paths.log,
                                    paths.first_weights)}
    if any(entry.name not in known and not entry.name.startswith(".tmp-") for entry in paths.root.iterdir()):
        raise RunError("holds files that are not a run's", where=str(paths.root),
                       fix="choose another --name or --run-dir")


def stored_config(paths: RunPaths, values: Mapping[str, Any] | None = None) -> Config:
    """The configuration that a run was begun with, as it stands there now, with other `values` by dotted key."""
    try:
        return parse_config(yaml_document.read_regular_file(paths.config), str(paths.config), values)
    except yaml_document.NotYaml as error:
        raise RunError(f"has no configuration that can be read ({paths.config.name} {error.what}), so it is no run or "
                       "was never begun", where=str(paths.root), fix="start one with: x3d-expand search") from error


def _prepare(config: Config, listed: ClipList, space: Space, report: Callable[[str], None], *, begins: bool = False,
             run_list: Path | None = None) -> PreparedData:
    """Frames kept at the largest short side that the search can come to need; the rest is as in `prepare`."""
    short_side = int(largest_resolution(space) * config.data.jitter_max) + 1
    return prepare(config.data, short_side=short_side, workers=available_cores(), report=report, listed=listed,
                   begins=begins, run_list=run_list)


def _look_at_gpus(run: RunConfig, nursery: Nursery | None) -> tuple[Gpu, ...]:
    """The GPUs of this machine, where the run may take one; looked at in another process, which alone needs a context
    on them. Raises `RunError` where that process fails."""
    if run.device == "cpu" or not torch.cuda.is_available():
        return ()
    try:
        return call_apart(look_at_all, nursery)
    except RunError as error:
        raise RunError(f"the GPUs could not be looked at: {error.what}", where="run.device",
                       fix="`x3d-expand doctor` looks at the installation; --device cpu does without") from error


def _estimate(config: Config, space: Space, data: PreparedData, runtime: Runtime, nursery: Nursery | None,
              display: Display) -> Estimate:
    """What the search will come to; its time is tried out in a process like those that train, and not known where that
    cannot be done."""
    space = Space(config.search, space.classes)  # with the limits settled
    steps = forecast(space)
    candidates = [c for step in steps for c in step]
    seconds = None
    if runtime.device.type != "cuda" or torch.cuda.is_available():
        try:
            seconds = call_apart(partial(estimate_seconds, steps, config, runtime, space.classes, data.counts), nursery)
        except ExpandError as error:
            display.say(f"how long it will take could not be tried out: {error.what}")
    return Estimate(len(steps) - 1, len(candidates), sum(c.gflops for c in candidates), seconds)


def _rough(seconds: float) -> str:
    unit = 60 if seconds > 90 else 5
    return duration(max(unit, round(seconds / unit) * unit))


def _work(config: Config, paths: RunPaths, data: PreparedData, runtime: Runtime, display: Display,
          nursery: Nursery | None, lock: RunLock) -> None:
    """Drives the run from where its journal ends; the report is renewed whatever happens."""
    display, journal, events = Logged(display, paths), Journal(paths.journal), read_events(paths.journal)
    display.opened(paths)
    started = run_started(events)
    if started is None:
        written = journal.append("run_started", **_start_fields(config, paths, data))
    else:
        written = journal.append("run_resumed")
    make_dir(paths.candidates)  # trainings make their own folders in it, and nothing above
    display.event(written, SearchState())
    for remark in runtime.remarks(config.run.workers):
        display.say(remark)
    space = Space(config.search, len(data.classes))
    with stop_signals() as stop:
        driver = Driver(config, space, paths, data, runtime, journal, SearchState.from_events(events), display,
                        stop.is_set, nursery, lock.check)
        try:
            driver.retry_failed()
            driver.run()
        finally:
            renew_report(paths, display.say)


def renew_report(paths: RunPaths, say: Callable[[str], None]) -> None:
    """Writes the report at the end of work, however that ended. What goes wrong is said and no more: the report can be
    had again at any time, and an error that ended the work must stay the one that the user sees."""
    try:
        write_report(paths)
    except Exception as error:  # noqa: BLE001 - nothing that a drawing meets may take the place of what ended the work
        say(f"the report was not written ({str(error).partition(chr(10))[0]}); "
            f"x3d-expand plot {paths.root} draws it again")


def write_report(paths: RunPaths) -> None:
    """Derives `report/` anew from the journal. Raises `RunError` where that is impossible."""
    summary = summarize(paths.root)
    write_atomic(paths.steps_csv, steps_frame(summary).to_csv(index=False))
    for out in (paths.plot_png, paths.plot_svg):
        plot_expansion(summary, out)


def _start_fields(config: Config, paths: RunPaths, data: PreparedData) -> dict[str, Any]:
    return {"name": paths.root.resolve().name, "version": __version__, "target_gflops": config.search.target_gflops,
            "criterion": config.search.criterion, "tolerance": config.search.tolerance,
            "workers": config.run.workers,
            "final_weight": config.final.epochs / config.candidate.epochs, "classes": list(data.classes),
            "splits": data.counts,
            "fingerprint": data.fingerprint, "config": dump_config(config)}


@contextlib.contextmanager
def stop_signals(*, patient: bool = False) -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one acts at once, as if nobody listened, unless `patient`."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        if not patient:
            for each, handler in before.items():
                signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
