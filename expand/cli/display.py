"""What a person sees while a search runs: a live line on a terminal, plain lines when piped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from expand import streams
from expand.errors import ExpandError
from expand.expansion.state import SearchState
from expand.report.event_lines import event_line
from expand.report.summary import summarize
from expand.report.text import duration, one_line
from expand.rundir.paths import RunPaths

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from expand.training.job import Tick

PLAIN_EVERY_S = 10.0
"""Seconds between two progress lines when piped."""


class Plain:
    """Lines on standard output: every event, and the progress now and then."""

    def __init__(self) -> None:
        self.paths: RunPaths | None = None
        self.shown = time.monotonic()
        self.ends_at: float | None = None

    def opened(self, paths: RunPaths) -> None:
        """From now on the journal tells the time left."""
        self.paths = paths

    def say(self, text: str) -> None:
        """A remark."""
        click.echo(one_line(text))

    def event(self, event: dict[str, Any], state: SearchState) -> None:
        """An event, as a line; the time left for the search changes with it."""
        if event["event"] in ("candidate_finished", "run_resumed", "final_started"):
            remaining = self._remaining_s()
            self.ends_at = None if remaining is None else time.monotonic() + remaining
        if line := event_line(event):
            self.say(line)

    def tick(self, job_id: str, tick: Tick) -> None:
        """A training's progress, now and then."""
        now = time.monotonic()
        if now - self.shown >= PLAIN_EVERY_S:
            self.shown = now
            self.say(f"{job_id}: {self.progress_text(tick)}")

    def progress_text(self, tick: Tick) -> str:
        """Epoch, speed, and the time left for the candidate and for the search."""
        left = tick.seconds_left
        parts = [f"epoch {min(tick.epoch + 1, tick.epochs)} of {tick.epochs}", f"loss {tick.loss:.3f}",
                 f"{tick.clips_per_s:.0f} clips/s", f"{duration(left)} left"]
        if self.ends_at is not None:
            parts.append(f"search: about {duration(self.ends_at - time.monotonic())} left")
        return ", ".join(parts)

    def _remaining_s(self) -> float | None:
        try:
            return summarize(self.paths.root)["remaining_s"] if self.paths else None
        except ExpandError:
            return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While a question is asked."""
        yield


class Live(Plain):
    """The same lines, above a bar for each training."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        """A remark, above the bars."""
        self.progress.console.print(one_line(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def event(self, event: dict[str, Any], state: SearchState) -> None:
        """An event, above the bars; the bar of a training comes and goes with it."""
        super().event(event, state)
        if event["event"] == "candidate_started":
            self.bars[event["id"]] = self.progress.add_task(event["id"], total=None, text="")
        elif event["event"] == "candidate_finished" and event["id"] in self.bars:
            self.progress.remove_task(self.bars.pop(event["id"]))

    def tick(self, job_id: str, tick: Tick) -> None:
        """Moves a bar on."""
        if job_id not in self.bars:
            self.bars[job_id] = self.progress.add_task(job_id, total=None, text="")
        self.progress.update(self.bars[job_id], total=tick.updates, completed=tick.update,
                             text=self.progress_text(tick))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The bars are taken away while a question is asked."""
        self.progress.stop()
        yield
        self.progress.start()


@contextmanager
def make_display() -> Iterator[Plain]:
    """A live display on a terminal that can move its cursor, a plain one elsewhere. The work goes on where nothing can
    be shown."""
    streams.go_on_without_output()
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


class Told:
    """What the reader is told meanwhile, on `display`; nothing where that is None."""

    def __init__(self, display: Plain | None) -> None:
        self.display, self.bar, self.shown = display, None, time.monotonic()
        self.since: tuple[float, int] | None = None  # when the first clips of a file or a split were done

    def say(self, text: str) -> None:
        """A remark."""
        if self.display:
            self.display.say(text)

    def show(self, text: str) -> None:
        """Lines that are laid out already."""
        if self.display:
            with self.display.paused():
                click.echo(text)

    def progress(self, done: int, total: int) -> None:
        """Clips a second and the time left: a bar on a terminal, a line now and then when piped."""
        now = time.monotonic()
        self.since = self.since or (now, done)
        if self.display and done > self.since[1]:
            self._tell(done, total, (done - self.since[1]) / max(now - self.since[0], 1e-9), now)
        if done == total:
            self.since = None

    def _tell(self, done: int, total: int, clips_per_s: float, now: float) -> None:
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
def told(silent: bool) -> Iterator[Told]:
    """Somebody to tell things to; nobody where `silent`, for --json."""
    if silent:
        streams.go_on_without_output()
        yield Told(None)
        return
    with make_display() as display:
        yield Told(display)
