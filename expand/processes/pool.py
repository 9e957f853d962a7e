"""Work on many files, spread over `Child`ren: whoever dies or hangs over one costs that one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

from expand.errors import DataError
from expand.processes.child import Child, ChildDied

AHEAD = 1024
"""Items that `process_map` begins before an earlier one is done: what a clip that hangs lets wait in memory."""


def process_map(function: Callable[[Any, Any], Any], state: Any, items: Iterable, workers: int, *,
                timeout_s: float = 60.0, died: Callable[[Any, str], Any] | None = None) -> Iterator:
    """`function(state, item)` for every item, in order, by `workers` (at least one) `Child`ren.

    `function` is a module's, results can be pickled; `state` may hold `CONTEXT.Value`s. An item over which a child
    dies, or is silent for `timeout_s` (see `beat`), gives `died(item, reason)`, and the rest go on in another child;
    without `died` it is a `DataError` that names the item. The exceptions of a call come back here in its turn.
    """
    idle = [Child((function, state), timeout_s) for _ in range(max(1, workers))]
    busy: dict[Child, tuple[int, Any]] = {}
    done: dict[int, tuple[Any, Exception | None]] = {}
    numbered, given = enumerate(items), 0
    try:
        while True:
            while idle and len(busy) + len(done) < AHEAD and (job := next(numbered, None)):
                child = idle.pop()
                busy[child] = job
                child.begin(_apply, job[1])
            if not busy:
                return
            for child in wait(list(busy)):
                number, item = busy.pop(child)
                idle.append(child)
                done[number] = _outcome(child, item, died)
            while given in done:
                result, error = done.pop(given)
                if error:
                    raise error
                given += 1
                yield result
    finally:
        for child in (*idle, *busy):
            child.close()


def _apply(job: tuple[Callable, Any], item: Any) -> Any:
    function, state = job
    return function(state, item)


def _outcome(child: Child, item: Any, died: Callable[[Any, str], Any] | None) -> tuple[Any, Exception | None]:
    try:
        return child.result(), None
    except ChildDied as death:
        if died:
            return died(item, death.what), None
        return None, DataError(death.what, where=str(getattr(item, "path", item)),
                               fix="take it away and start again; what was done is kept")
    except Exception as error:  # noqa: BLE001 - the caller gets it in its turn
        return None, error
