"""A generator in a process of its own: its items, its errors, its death."""

from __future__ import annotations

import faulthandler
import os
import signal
import time

import pytest

from expand.errors import DataError, UsageError
from expand.inference.child import in_child


def count(last):
    yield from range(last)


def fail(where):
    yield 1
    raise UsageError("what", where=where, fix="fix")


def die(number):
    yield 1
    faulthandler.disable()  # pytest's own; the crash is meant
    os.kill(os.getpid(), number)


def touch_each(folder):
    for number in range(1000):
        (folder / f"{number}").touch()
        yield bytes(100_000)


def pid():
    yield os.getpid()
    time.sleep(60)


def test_items_come_in_order_from_another_process():
    assert list(in_child(count, 1000)) == list(range(1000))
    assert next(in_child(pid)) != os.getpid()


def test_an_error_keeps_its_kind_and_its_shape():
    items = in_child(fail, "there")
    assert next(items) == 1
    with pytest.raises(UsageError) as raised:
        next(items)
    assert str(raised.value) == "there: what\n  fix"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_an_error_that_names_the_signal(number):
    with pytest.raises(DataError, match=f"crashes the decoder.*{number.name}"):
        list(in_child(die, number))


def test_the_child_waits_for_a_slow_reader(tmp_path):
    items = in_child(touch_each, tmp_path)
    next(items)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) < 5
    items.close()


def test_the_child_ends_with_the_iteration():
    items = in_child(pid)
    child = next(items)
    items.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
