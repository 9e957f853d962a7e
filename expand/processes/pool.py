"""Work on many items, shared among `Child` processes: a crash or a hang costs the one item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any, cast

from expand.errors import DataError
from expand.processes.child import Child, ChildDied

AHEAD = 1024
"""Items that `process_map` begins before an earlier one is done: as many results wait in memory while a clip hangs."""


def process_map(function: Callable[[Any, Any], Any], state: Any, items: Iterable, workers: int, *,
                timeout_s: float = 60.0, died: Callable[[Any, str], Any] | None = None) -> Iterator:
    """Yield `function(state, item)` for every item, in order, computed by `workers` (at least one) child processes.

    `function` is a module's, results can be pickled; `state` may hold `CONTEXT.Value`s. If a child dies over an item,
    or sends no `heartbeat` for `timeout_s`, the result is `died(item, reason)`, and another child takes the rest;
    without `died` that is a `DataError` that names the item. The exceptions of a call are raised here in its turn.
    """
    idle = [Child((function, state), timeout_s) for _ in range(max(1, workers))]
    busy: dict[Any, tuple[int, Any]] = {}  # by the Child, which `wait` takes for its `fileno`, unknown to its type
    done: dict[int, tuple[Any, Exception | None]] = {}
    numbered, given = enumerate(items), 0
    try:
        while True:
            while idle and len(busy) + len(done) < AHEAD and (job := next(numbered, None)):
                child = idle.pop()
                busy[child] = job
                child.begin(_call, job[1])
            if not busy:
                return
            for child in cast("list[Child]", wait(list(busy))):
                number, item = busy.pop(child)
                idle.append(child)
                try:
                    done[number] = child.result(), None
                except ChildDied as death:
                    if died:
                        done[number] = died(item, death.what), None
                    else:
                        done[number] = None, DataError(death.what, where=str(getattr(item, "path", item)),
                                                       fix="take it away and start again; what was done is kept")
                except Exception as error:  # noqa: BLE001 - raised below, in its turn
                    done[number] = None, error
            while given in done:
                result, failure = done.pop(given)
                if failure:
                    raise failure
                given += 1
                yield result
    finally:
        for child in (*idle, *busy):
            child.close()


def _call(job: tuple[Callable, Any], item: Any) -> Any:
    function, state = job
    return function(state, item)
