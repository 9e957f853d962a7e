"""A run from the outside: made, opened, locked, carried on by the driver, and reported."""

from __future__ import annotations

import contextlib
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from expand import __version__
from expand.config import Config, dump_config, parse_config
from expand.config.checks import RUN_NAME
from expand.data import ClipList, PreparedData, list_clips, prepare
from expand.data.sources import keep_clips, kept_clips
from expand.driver import Display, Driver
from expand.errors import ExpandError, RunError, UsageError
from expand.expansion.forecast import check_target, forecast, largest_resolution
from expand.expansion.rules import Space
from expand.expansion.state import SearchState
from expand.exports.card import write_card
from expand.kernels import library
from expand.machine import available_cores
from expand.report.lines import event_line
from expand.report.plots import plot_expansion
from expand.report.summary import summarize
from expand.report.tables import steps_frame
from expand.report.words import duration, one_line
from expand.rundir.files import make_dir, write_atomic, write_json
from expand.rundir.journal import Journal, read_events, run_started
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
from expand.settle import check_unchanged, settle
from expand.training.estimate import estimate_seconds
from expand.training.runtime import Runtime, settle_run

PACKAGES = ("torch", "torchvision", "av", "numpy", "pandas", "fvcore", "pyyaml", "click")


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
    """A display that also writes everything to the run's log.txt, with the time."""

    def __init__(self, display: Display, paths: RunPaths) -> None:
        self.display, self.paths, self.tick = display, paths, display.tick

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
        with open(self.paths.log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


@dataclass(frozen=True)
class Estimate:
    """What a search will come to: steps after the basis, candidates, their multiply-adds a clip in all, seconds."""

    steps: int
    candidates: int
    gflops: float
    seconds: float


def begin(config: Config, run_dir: Path | None, name: str, display: Display | None,
          confirm: Callable[[Estimate], bool]) -> Path:
    """Starts a run and works on it to its end; returns its directory. `name` is the stem of an unnamed run's name."""
    display = display or Quiet()
    listed = list_clips(config.data)
    space = Space(config.search, len(listed.classes))
    check_target(space)
    library.load()  # kernels or a device that are not there are said before the clips are decoded
    runtime = Runtime.of(settle_run(config.run))
    paths = RunPaths(run_dir or choose_dir(config, name))
    check_free(paths)
    data = _prepare(config, listed, space, display)
    config = settle(config, data, paths.root.resolve().name)
    estimate = _estimate(config, space, data, runtime)
    display.say(f"{estimate.candidates} candidates in {estimate.steps} steps, "
                f"{estimate.gflops:.3g} GFLOPs a clip in all; roughly {_rough(estimate.seconds)}")
    if not confirm(estimate):
        raise UsageError("the search was not started", fix="a smaller --target-gflops, or fewer epochs "
                         "(--set candidate.epochs=N), makes it shorter")
    make_dir(paths.root)
    with RunLock(paths):
        check_free(paths)
        write_json(paths.env, environment(config))
        keep_clips(paths.clips, config.data, data.listed)
        write_atomic(paths.config, dump_config(config))
        _work(config, paths, data, runtime, display)
    return paths.root


def go_on(run_dir: Path, display: Display | None) -> Path:
    """Works on an existing run to its end; returns its directory."""
    display, paths = display or Quiet(), RunPaths(run_dir)
    stored_config(paths)  # before the lock, which is a file: there is none in what is no run
    with RunLock(paths):
        config = stored_config(paths)
        events = read_events(paths.journal)
        if SearchState.from_events(events).finished:
            if not paths.card.exists():  # it was deleted, or an older version ran
                write_card(paths)
            display.say(f"{run_dir} is finished")
            return paths.root
        if started := run_started(events):
            check_unchanged(started["config"], config, str(paths.config))
        runtime = Runtime.of(config.run)
        listed = kept_clips(paths.clips, config.data)
        data = _prepare(config, listed, Space(config.search, len(listed.classes)), display)
        _work(config, paths, data, runtime, display)
    return paths.root


def choose_dir(config: Config, stem: str) -> Path:
    """Where a run is kept that says no directory: named by its configuration, else by `stem` and a free number."""
    folder, name = Path(config.run.runs_dir), config.run.name
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
    known = {path.name for path in (paths.config, paths.clips, paths.env, paths.lock, paths.log, paths.first_weights)}
    if any(entry.name not in known and not entry.name.startswith(".tmp-") for entry in paths.root.iterdir()):
        raise RunError("holds files that are not a run's", where=str(paths.root),
                       fix="choose another --name or --run-dir")


def stored_config(paths: RunPaths) -> Config:
    """The configuration that a run was begun with, as it stands there now."""
    try:
        return parse_config(paths.config.read_text(encoding="utf-8"), str(paths.config))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError("has no configuration that can be read, so it is no run or was never begun",
                       where=str(paths.root), fix="start one with: x3d-expand search") from error


def _prepare(config: Config, listed: ClipList, space: Space, display: Display) -> PreparedData:
    """Frames kept at the largest short side that the search can come to need."""
    short_side = int(largest_resolution(space) * config.data.jitter_max) + 1
    return prepare(config.data, short_side=short_side, workers=available_cores(), report=display.say, listed=listed)


def _estimate(config: Config, space: Space, data: PreparedData, runtime: Runtime) -> Estimate:
    space = Space(config.search, space.classes)  # with the limits settled
    steps = forecast(space)
    candidates = [c for step in steps for c in step]
    seconds = estimate_seconds(steps, config, runtime, space.classes, data.counts)
    return Estimate(len(steps) - 1, len(candidates), sum(c.gflops for c in candidates), seconds)


def _rough(seconds: float) -> str:
    unit = 60 if seconds > 90 else 5
    return duration(max(unit, round(seconds / unit) * unit))


def _work(config: Config, paths: RunPaths, data: PreparedData, runtime: Runtime, display: Display) -> None:
    """Drives the run from where its journal ends; the report is renewed whatever happens."""
    display, journal, events = Logged(display, paths), Journal(paths.journal), read_events(paths.journal)
    display.opened(paths)
    started = run_started(events)
    if started is None:
        written = journal.append("run_started", **_start_fields(config, paths, data))
    else:
        if started["fingerprint"] != data.fingerprint:
            raise RunError("the clips were changed since the run began", where=config.data.source,
                           fix="put the old clips back, or start a new run with the new ones")
        written = journal.append("run_resumed")
    display.event(written, SearchState())
    for remark in runtime.remarks(config.run.workers):
        display.say(remark)
    space = Space(config.search, len(data.classes))
    with stop_signals() as stop:
        driver = Driver(config, space, paths, data, runtime, journal, SearchState.from_events(events), display,
                        stop.is_set)
        try:
            driver.retry_failed()
            driver.run()
        finally:
            with contextlib.suppress(ExpandError):
                write_report(paths)


def write_report(paths: RunPaths) -> None:
    """Derives `report/` anew from the journal."""
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


def environment(config: Config) -> dict[str, Any]:
    """What a result may depend on besides the configuration, for env.json."""
    import torch

    device = torch.cuda.get_device_name() if config.run.device == "cuda" else platform.processor() or platform.machine()
    return {"x3d_expand": __version__, "git": _git_revision(), "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in PACKAGES}, "platform": platform.platform(),
            "device": device, "cores": available_cores(), "threads": config.run.threads, "seed": config.run.seed,
            "kernels": library.status().build, "cuda": torch.version.cuda if config.run.device == "cuda" else None}


def _git_revision() -> str | None:
    """The source's commit, where it runs from a checkout."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    return None
