"""Work on a stranger's file in a process of its own: a decoder that crashes on it takes nothing else down."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from expand.data.pool import CONTEXT, quiet_fork
from expand.errors import DataError


def in_child(function: Callable[..., Iterator], *arguments: Any) -> Iterator:
    """What the generator `function(*arguments)` gives, one item at a time: it waits until the last one was taken.

    `function` is a module's; items and arguments can be pickled. An exception of it comes back here; the process is
    ended when the iteration is. Raises `DataError` where it dies.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_work, args=(receiver, sender, function, arguments), daemon=True)
    with quiet_fork():
        child.start()
    sender.close()
    try:
        while (message := _received(receiver, child)) is not None:
            if isinstance(message, Exception):
                raise message
            yield message[0]
    finally:
        receiver.close()
        child.kill()
        child.join()


def _received(receiver: Connection, child: Any) -> Any:
    try:
        return receiver.recv()
    except (EOFError, OSError) as error:  # the pipe's other end is gone, between two messages or amid one
        child.join()
        died_of = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"exit {child.exitcode}"
        raise DataError(f"crashes the decoder, or takes more memory than there is ({died_of})") from error


def _work(receiver: Connection, sender: Connection, function: Callable[..., Iterator], arguments: tuple) -> None:
    receiver.close()  # else a parent that was killed would leave this process waiting to be read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for item in function(*arguments):
            sender.send((item,))
        sender.send(None)
    except BrokenPipeError:  # nobody listens any more
        pass
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        sender.send(error)
