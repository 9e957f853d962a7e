"""The time of a training by phase: every second belongs to exactly one phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
OTHER = "other_s"
"""The phase of everything else: displays, the loop itself."""
STEP, CLIPS = "step_s", "clips_s"
PHASES = ("build_s", CLIPS, STEP, "norms_s", "evaluate_s", "disk_s", OTHER)
"""Building the network and reading a checkpoint, waiting for train clips, the steps themselves, precise batch norm,
measuring on val and test, writing checkpoints and metrics, the rest."""


class Stopwatch:
    """Adds the time since its making to `seconds`, by phase. Phases nest: the time of an inner one is not
    counted to the outer one, so that the sum is the wall time."""

    def __init__(self, seconds: dict[str, float], clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._clock = seconds, clock
        self._phases = [OTHER]
        self._mark = clock()

    def update(self) -> None:
        """Bring `seconds` up to now."""
        now, phase = self._clock(), self._phases[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._mark
        self._mark = now

    def resume(self, seconds: dict[str, float]) -> None:
        """Add the time so far to `seconds`, those of earlier starts, and count there from now on."""
        self.update()
        for phase, value in self.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
        self.seconds = seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time to `name`."""
        self.update()
        self._phases.append(name)
        try:
            yield
        finally:
            self.update()
            self._phases.pop()

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, and count the time of waiting for each to `name`."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
