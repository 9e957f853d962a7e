"""Displays: ways to show a run to a person, as plain lines, as bars on a terminal or not at all, and in its log.txt.

A search and a single training show events and progress on a `Display`. Commands that only work through clips (`test`,
`predict`, `data check`) have a `Reporter`. Remarks are logged (`expand.logs`), and come to either from there.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from expand import logs, streams
from expand.errors import ExpandError, RunError
from expand.expansion.events import CandidateFinished, CandidateStarted, Event, FinalStarted, RunResumed
from expand.expansion.state import SearchState
from expand.expansion.text import duration, one_line
from expand.report.summary import summarize
from expand.rundir.paths import RunPaths

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from expand.training.job import Tick

logger = logging.getLogger(__name__)

PLAIN_EVERY_S = 10.0
"""Seconds between two progress lines when piped."""


class Display(Protocol):
    """The one way in which a run speaks to a person."""

    def opened(self, paths: RunPaths) -> None:
        """Take note of the run's directory, whose journal may be read from now on."""

    def say(self, text: str) -> None:
        """Show a remark."""

    def event(self, event: Event, state: SearchState) -> None:
        """Show an event that was written to the journal; `state` is the one after it."""

    def tick(self, job_id: str, tick: Tick) -> None:
        """Show the progress of the training `job_id`."""


class Quiet:
    """A display that shows nothing."""

    def opened(self, paths: RunPaths) -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Ignore it."""

    def event(self, event: Event, state: SearchState) -> None:
        """Ignore it."""

    def tick(self, job_id: str, tick: Tick) -> None:
        """Ignore it."""


class Plain:
    """A display of lines on standard output: every event, and the progress every `PLAIN_EVERY_S` seconds."""

    def __init__(self) -> None:
        self.paths: RunPaths | None = None
        self.shown = time.monotonic()
        self.ends_at: float | None = None

    def opened(self, paths: RunPaths) -> None:
        """Take the time left from the run's journal from now on."""
        self.paths = paths

    def say(self, text: str) -> None:
        """Show a remark."""
        click.echo(one_line(text))

    def event(self, event: Event, state: SearchState) -> None:
        """Show an event as a line, and estimate the time left for the search anew."""
        if self.paths and isinstance(event, CandidateFinished | RunResumed | FinalStarted):
            try:
                remaining_s = summarize(self.paths.root)["remaining_s"]
            except ExpandError:
                remaining_s = None
            self.ends_at = None if remaining_s is None else time.monotonic() + remaining_s
        if line := event.line():
            self.say(line)

    def tick(self, job_id: str, tick: Tick) -> None:
        """Show a training's progress, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self.shown >= PLAIN_EVERY_S:
            self.shown = now
            self.say(f"{job_id}: {self.progress_text(tick)}")

    def progress_text(self, tick: Tick) -> str:
        """Return epoch, loss, speed, and the time left for the training and for the search."""
        left = tick.seconds_left
        parts = [f"epoch {min(tick.epoch + 1, tick.epochs)} of {tick.epochs}", f"loss {tick.loss:.3f}",
                 f"{tick.clips_per_s:.0f} clips/s", f"{duration(left)} left"]
        if self.ends_at is not None:
            parts.append(f"search: about {duration(self.ends_at - time.monotonic())} left")
        return ", ".join(parts)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Make room while a question is asked or other text is printed."""
        yield


class Live(Plain):
    """A display of the same lines, above a bar for each training."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        """Show a remark above the bars."""
        self.progress.console.print(one_line(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def event(self, event: Event, state: SearchState) -> None:
        """Show an event above the bars, and add or remove the bar of its training."""
        super().event(event, state)
        if isinstance(event, CandidateStarted):
            self.bars[event.id] = self.progress.add_task(event.id, total=None, text="")
        elif isinstance(event, CandidateFinished) and event.outcome.id in self.bars:
            self.progress.remove_task(self.bars.pop(event.outcome.id))

    def tick(self, job_id: str, tick: Tick) -> None:
        """Move a training's bar on."""
        if job_id not in self.bars:
            self.bars[job_id] = self.progress.add_task(job_id, total=None, text="")
        self.progress.update(self.bars[job_id], total=tick.updates, completed=tick.update,
                             text=self.progress_text(tick))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Take the bars away meanwhile."""
        self.progress.stop()
        yield
        self.progress.start()


@contextmanager
def make_display() -> Iterator[Plain]:
    """Return a live display on a terminal that can move its cursor, a plain one elsewhere. Work goes on when the
    output is lost."""
    streams.tolerate_lost_output()
    if not sys.stdout.isatty() or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)
        yield Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(), transient=True) as progress:
        yield Live(progress)


@contextmanager
def show_log_on(display: Display | None, *, is_muted: bool = False) -> Iterator[Display]:
    """Show the log on `display` and return that; one that shows nothing if it is None. `is_muted`: drop the log."""
    if is_muted:
        with logs.muted():
            yield Quiet()
    elif display is None:
        yield Quiet()
    else:
        with logs.shown_by(display.say):
            yield display


def show_event(display: Display, event: Event, state: SearchState) -> None:
    """Log an event that was written to the journal, and show it on `display`; `state` is the one after it."""
    if line := event.line():
        logs.EVENTS.info(line)
    display.event(event, state)


class LogFile:
    """A run's log.txt: a line, with the time, for each record of the log.

    It is for people and no result depends on it: where it cannot be written (a full disk, a directory that is gone),
    that is said once, and the work goes on until something that matters meets the same.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.paths, self.has_failed = paths, False

    def write(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            with open(self.paths.log, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {one_line(record.getMessage())}\n")
        except (OSError, RunError) as error:
            if not self.has_failed:
                self.has_failed = True
                logger.warning(one_line(f"log.txt of {self.paths.root} cannot be written: {error}"))


class Reporter:
    """Results and progress of work on clips, shown on `display`; not at all where that is None."""

    def __init__(self, display: Plain | None) -> None:
        self.display, self.shown = display, time.monotonic()
        self.bar: TaskID | None = None
        self.since: tuple[float, int] | None = None  # when the first clips of a file or a split were done

    def show(self, text: str) -> None:
        """Print lines that are laid out already."""
        if self.display:
            with self.display.pause():
                click.echo(text)

    def progress(self, done: int, total: int) -> None:
        """Show clips a second and the time left: as a bar on a terminal, as a line now and then when piped."""
        now = time.monotonic()
        self.since = self.since or (now, done)
        since_s, before = self.since
        if done == total:
            self.since = None
        if self.display is None or done <= before:
            return
        clips_per_s = (done - before) / max(now - since_s, 1e-9)
        text = f"{done} of {total} clips, {clips_per_s:.1f} clips/s, {duration((total - done) / clips_per_s)} left"
        if isinstance(self.display, Live):
            bars = self.display.progress
            self.bar = bars.add_task("clips", total=total, text="") if self.bar is None else self.bar
            bars.update(self.bar, completed=done, text=text)
            if done == total:
                bars.remove_task(self.bar)
                self.bar = None
        elif now - self.shown >= PLAIN_EVERY_S:
            self.shown = now
            click.echo(text, err=True)  # standard output has the answers


@contextmanager
def make_reporter(*, silent: bool) -> Iterator[Reporter]:
    """Return a reporter on this terminal, where the log is shown too; a `silent` one for --json."""
    if silent:
        streams.tolerate_lost_output()
        yield Reporter(None)
        return
    with make_display() as display, logs.shown_by(display.say):
        yield Reporter(display)
