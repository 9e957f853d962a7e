"""Where the package's log goes. Modules log to loggers of their own names, all below `expand`. Importing the package
attaches nothing: a program that uses it decides with `logging` alone. While a command, a run or a training process
works, its receivers get the log from level INFO on.

A receiver gets what its own thread logs, so that two runs in a process do not mix. What a display shows does not reach
the handlers of the root logger, which may print on the same terminal. All else reaches them as without receivers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

PACKAGE = logging.getLogger("expand")
EVENTS = logging.getLogger("expand.events")
"""Gets the line of each event of a run. Displays are told of events by themselves, and do not show these lines again.
"""


class _Receiver(NamedTuple):
    receive: Callable[[logging.LogRecord], None]
    is_alone: bool
    """No handler of the root logger is to get the same."""


_receivers: ContextVar[tuple[_Receiver, ...]] = ContextVar("receivers", default=())
"""Those of this thread."""


class _Router(logging.Handler):
    """The handler of the package's logger while any thread has receivers."""

    def __init__(self) -> None:
        super().__init__()
        self._count, self._counting = 0, threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        receivers, root = _receivers.get(), logging.getLogger()
        for receiver in receivers:
            receiver.receive(record)
        is_alone = any(receiver.is_alone for receiver in receivers)
        if root.handlers and self._propagated and record.levelno >= self._level and not is_alone:
            root.callHandlers(record)

    def attach(self) -> None:
        """Attach it, unless that was done."""
        with self._counting:
            self._count += 1
            if self._count == 1:
                self._own_level, self._level = PACKAGE.level, PACKAGE.getEffectiveLevel()
                self._propagated = PACKAGE.propagate
                PACKAGE.setLevel(min(logging.INFO, self._level))
                PACKAGE.propagate = False  # `emit` does it
                PACKAGE.addHandler(self)

    def detach(self) -> None:
        """Undo `attach`."""
        with self._counting:
            self._count -= 1
            if self._count == 0:
                PACKAGE.removeHandler(self)
                PACKAGE.setLevel(self._own_level)
                PACKAGE.propagate = self._propagated


_router = _Router()


@contextmanager
def _routed_to(*receivers: _Receiver) -> Iterator[None]:
    before = _receivers.get()
    _router.attach()
    _receivers.set(receivers)
    try:
        yield
    finally:
        _receivers.set(before)
        _router.detach()


def received_by(receive: Callable[[logging.LogRecord], None], *, alone: bool = False) -> AbstractContextManager[None]:
    """Have `receive` get each record that this thread logs in the block; if `alone`, no root handler gets it."""
    return _routed_to(*_receivers.get(), _Receiver(receive, alone))


def shown_by(say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Have `say` show each text that this thread logs in the block, but for events."""

    def receive(record: logging.LogRecord) -> None:
        if record.name != EVENTS.name:
            say(record.getMessage())

    return received_by(receive, alone=True)


def muted() -> AbstractContextManager[None]:
    """Drop what this thread logs in the block."""
    return _routed_to(_Receiver(lambda record: None, is_alone=True))
