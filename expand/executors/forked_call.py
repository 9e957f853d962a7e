"""Short pieces of work in a process of their own, for what this process is not to do itself: a search's driver never
uses a GPU, whose memory, and maybe the whole GPU, belongs to the trainings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from expand.errors import RunError
from expand.executors.fork_server import Nursery

T = TypeVar("T")
LIMIT_S = 300.0
"""Seconds that a piece of work may take, torch's import included."""


def call_apart(work: Callable[[], T], nursery: Nursery | None = None, limit_s: float = LIMIT_S) -> T:
    """What `work` returns, in a process that is forked for it from `nursery`, by default from one for this alone, and
    ends with it. `work` is a function of a module, or a `functools.partial` of one.

    Raises its `ExpandError`; `RunError` where it fails in another way, dies or takes longer than `limit_s`.
    """
    with nullcontext(nursery) if nursery is not None else Nursery() as parent, parent.worker() as pipe:
        try:
            for kind in ("hello", None):
                if not pipe.poll(limit_s):
                    raise RunError(f"a process did not answer within {limit_s:g} s")
                found, content = pipe.recv()
                if found == "error":
                    raise content
                if kind == "hello":
                    pipe.send(("call", work))
        except (EOFError, OSError) as error:
            raise RunError(f"a process died in its work ({type(error).__name__})") from error
        return content
