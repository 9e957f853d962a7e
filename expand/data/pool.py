"""Work on clips in several processes: PyAV and NumPy hold the interpreter lock too long for threads to help."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from expand.errors import DataError

# Children touch no torch, so forking is safe where the system's own libraries allow it, and a caller's script needs
# no `if __name__ == "__main__"`.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
MAX_CHUNK = 4
"""Items that a process takes at once; an interruption waits for them."""

_job: tuple[Callable, Any] | None = None


def process_map(function: Callable[[Any, Any], Any], state: Any, items: Sequence, workers: int) -> Iterator:
    """`function(state, item)` for every item, in order, in `workers` processes; in this one where that is at most 1.

    `function` is a module's, results can be pickled; `state` may hold `CONTEXT.Value`s. The first exception of a call
    comes back here. Raises `DataError` where a process dies.
    """
    if workers <= 1 or len(items) <= 1:
        yield from (function(state, item) for item in items)
        return
    pool = ProcessPoolExecutor(workers, CONTEXT, _start_worker, (function, state, os.getpid()))
    try:
        with quiet_fork():
            results = pool.map(_call, items, chunksize=max(1, min(MAX_CHUNK, len(items) // (4 * workers))))
        yield from results
    except BrokenProcessPool as error:
        raise DataError("a process that worked on the clips died: no memory left, or a clip that crashes the decoder",
                        fix="start again; what was done is kept") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def quiet_fork() -> Iterator[None]:
    """Without Python's warning about forks of a process with threads: see `CONTEXT`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        yield


def _start_worker(function: Callable, state: Any, parent: int) -> None:
    global _job
    _job = (function, state)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this process soon after its parent was killed: it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _call(item: Any) -> Any:
    function, state = _job
    return function(state, item)
