"""Where the time of a training goes: every second of it belongs to exactly one phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
OTHER = "other_s"
"""The phase of what no other one claims: displays, the loop itself."""
STEP, CLIPS = "step_s", "clips_s"
PHASES = ("build_s", CLIPS, STEP, "norms_s", "evaluate_s", "disk_s", OTHER)
"""Building the network and reading a checkpoint, waiting for train clips, the steps themselves, precise batch norm,
measuring on val and test, writing checkpoints and metrics, the rest."""


class Stopwatch:
    """Adds the time since its making to `seconds`, by phase. Phases nest: the inner one's time is not the outer one's,
    so the sum is the wall time."""

    def __init__(self, seconds: dict[str, float], clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._clock = seconds, clock
        self._phases = [OTHER]
        self._mark = clock()

    def settle(self) -> None:
        """Brings `seconds` up to now."""
        now, phase = self._clock(), self._phases[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._mark
        self._mark = now

    def go_on(self, seconds: dict[str, float]) -> None:
        """Adds what was counted so far to `seconds`, those of an earlier start, and counts there from now on."""
        self.settle()
        for phase, value in self.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
        self.seconds = seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's time to `name`."""
        self.settle()
        self._phases.append(name)
        try:
            yield
        finally:
            self.settle()
            self._phases.pop()

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, with the time that they take to come counted to `name`."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
