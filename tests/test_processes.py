"""Work in processes of their own: its results, its errors, its deaths, and who is blamed for them."""

from __future__ import annotations

import errno
import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.errors import DataError, UsageError
from expand.processes import CONTEXT, HUNG, Child, ChildDied, died_of, heartbeat, process_map

TIMEOUT_S = 0.7
DEEDS = ("fine", "fine", "fine", "slow", "crash", "hang", "spin", "raise", "exit")


def count(last):
    yield from range(last)


def add(*numbers):
    return sum(numbers)


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
        yield bytes(300_000)


def pid(*_):
    return os.getpid()


def pids():
    yield os.getpid()
    time.sleep(60)


def work_silently(seconds, beats):
    for _ in range(beats):
        time.sleep(seconds)
        heartbeat()


def do(state, deed):
    name, number = deed
    if name == "slow":
        work_silently(TIMEOUT_S / 4, 6)
    if name == "crash":
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(60)
    if name == "spin":
        2 ** (1 << 38) % 3  # hours in C code that holds the interpreter
    if name == "exit":
        os._exit(9)
    if name == "raise":
        raise ValueError(number)
    return state + number


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def child():
    with Child(timeout_s=TIMEOUT_S) as child:
        yield child


def test_calls_and_streams_share_one_process(child):
    assert list(child.stream(count, 1000)) == list(range(1000))
    first = child.call(pid)
    assert child.call(add, 1, 2) == 3 and list(child.stream(count, 2)) == [0, 1]
    assert first == child.call(pid) != os.getpid()


def test_a_state_is_the_first_argument_of_every_call():
    with Child(state=5) as child:
        assert child.call(add, 1) == 6
        assert list(child.stream(count)) == [0, 1, 2, 3, 4]


def test_an_error_keeps_its_kind_and_its_shape_and_costs_no_process(child):
    first = child.call(pid)
    items = child.stream(fail, "there")
    assert next(items) == 1
    with pytest.raises(UsageError) as raised:
        next(items)
    assert str(raised.value) == "there: what\n  fix"
    with pytest.raises(TypeError) as raised:
        child.call(add, "a")
    assert "in add" in raised.value.__notes__[0]
    assert child.call(pid) == first


def test_what_cannot_be_sent_is_an_error(child):
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        child.call(open, os.devnull)
    assert child.call(add, 1) == 1


@pytest.mark.parametrize("number, reason", [(signal.SIGSEGV, r"crashes the decoder \(SIGSEGV\)"),
                                            (signal.SIGABRT, r"crashes the decoder \(SIGABRT\)"),
                                            (signal.SIGKILL, r"killed \(SIGKILL\).*memory")])
def test_a_crash_is_an_error_that_names_the_signal_and_the_next_call_goes_on(child, number, reason):
    with pytest.raises(ChildDied, match=reason) as raised:
        list(child.stream(die, number))
    assert died_of(raised.value.what) == "crash"
    assert child.call(add, 1, 2) == 3


@pytest.mark.parametrize("deed", ["hang", "spin"])
def test_silence_is_a_hang_even_while_the_interpreter_is_held(child, deed):
    start_s = time.monotonic()
    with pytest.raises(ChildDied, match=f"^{HUNG} {TIMEOUT_S:g} s$") as raised:
        child.call(do, 0, (deed, 0))
    assert died_of(raised.value.what) == "hang" and time.monotonic() - start_s < 20 * TIMEOUT_S


def test_beats_keep_a_long_call_alive_and_no_limit_means_none(child):
    assert child.call(work_silently, TIMEOUT_S / 4, 6) is None
    with Child(timeout_s=0) as patient:
        assert patient.call(work_silently, 1.5 * TIMEOUT_S, 1) is None


def test_neither_a_slow_reader_nor_idleness_is_a_hang(child):
    items = child.stream(count, 20_000)
    assert next(items) == 0
    time.sleep(1.5 * TIMEOUT_S)
    assert sum(1 for _ in items) == 19_999
    time.sleep(1.5 * TIMEOUT_S)
    assert child.call(add, 1) == 1


def test_the_child_waits_for_a_slow_reader(child, tmp_path):
    items = child.stream(touch_each, tmp_path)
    next(items)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) < 5
    items.close()


def test_the_child_ends_with_a_stream_that_is_given_up_and_with_its_object():
    child = Child()
    items = child.stream(pids)
    first = next(items)
    items.close()
    assert not alive(first)
    second = child.call(pid)
    del child, items
    gc.collect()
    deadline_s = time.monotonic() + 5
    while any(process.pid == second for process in multiprocessing.active_children()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_stream_ends_with_the_next_call_and_does_that_no_harm(child):
    items = child.stream(count, 10 ** 6)
    assert next(items) == 0
    others = child.stream(count, 3)
    assert next(others) == 0
    assert list(items) == []
    items.close()
    assert list(others) == [1, 2]


def test_a_child_that_was_killed_while_it_waited_is_blamed_on_no_item(child):
    first = child.call(pid)
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    assert child.call(pid) != first


def test_a_system_without_a_process_to_give_is_a_clear_error_and_the_next_call_goes_on(child, monkeypatch):
    def refuse():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        for call in (lambda: child.call(pid), lambda: list(process_map(pid, 0, range(3), 2))):
            with pytest.raises(DataError, match="no process .* temporarily unavailable") as raised:
                call()
            assert "ulimit" in raised.value.fix
    assert child.call(pid) != os.getpid()


def call_in_worker(pipe, child):
    pipe.send((child.call(pid), os.getpid()))
    child.close()


def test_a_daemon_may_have_a_child_and_leaves_that_of_its_parent_alone(child):
    mine = child.call(pid)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    worker = CONTEXT.Process(target=call_in_worker, args=(sender, child), daemon=True)
    worker.start()
    its, worker_pid = receiver.recv()
    worker.join()
    assert worker.exitcode == 0 and len({mine, its, worker_pid, os.getpid()}) == 4
    assert child.call(pid) == mine and not alive(its)


@settings(max_examples=6)
@given(st.lists(st.sampled_from(DEEDS), max_size=9), st.integers(1, 4))
def test_an_item_that_kills_its_child_is_blamed_alone_and_all_others_answer_in_order(deeds, workers):
    jobs = [(deed, number) for number, deed in enumerate(deeds)]
    raising = next((number for number, deed in enumerate(deeds) if deed == "raise"), None)
    results = []
    try:
        results.extend(process_map(do, 100, jobs, workers, timeout_s=TIMEOUT_S,
                                   died=lambda job, reason: (job, died_of(reason))))
        assert raising is None
    except ValueError as error:
        assert error.args == (raising,)
    kinds = {"crash": "crash", "exit": "crash", "hang": "hang", "spin": "hang"}
    assert results == [((deed, number), kinds[deed]) if deed in kinds else 100 + number
                       for deed, number in jobs[:raising]]


def test_without_a_word_for_it_a_death_is_an_error_that_names_the_item():
    with pytest.raises(DataError, match=r"died \(exit 9\)") as raised:
        list(process_map(do, 0, [("fine", 1), ("exit", 2), ("fine", 3)], 2))
    assert raised.value.where == "('exit', 2)" and "start again" in raised.value.fix


def test_a_crash_is_kept_out_of_this_process_with_one_worker_too():
    assert set(process_map(pid, 0, range(3), 1)) != {os.getpid()}
    assert list(process_map(pid, 0, [], 0)) == []


def count_calls(calls, item):
    with calls.get_lock():
        calls.value += 1
    return item


def test_a_shared_value_counts_in_all_processes():
    calls = CONTEXT.Value("i", 0)
    assert list(process_map(count_calls, calls, range(50), 3)) == list(range(50))
    assert calls.value == 50


def test_items_are_taken_as_they_are_needed_and_a_stop_leaves_no_process():
    taken = []
    results = process_map(pid, 0, (taken.append(number) or number for number in range(10 ** 9)), 2)
    children = {next(results) for _ in range(20)}
    assert len(taken) < 2000
    results.close()
    assert not any(alive(child) for child in children)


SCRIPT = """
    import os, sys, time
    from expand.processes import process_map

    def work(state, item):
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(60 if item > 1 else 0)

    for _ in process_map(work, None, range(WORK), 2):
        pass
    time.sleep(60)  # the children wait for work, or have gone
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_parent_ends_its_children(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("WORK", "4"))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True)
    children = {int(parent.stdout.readline()) for _ in range(4)}
    os.kill(parent.pid, number) if number == signal.SIGKILL else os.killpg(parent.pid, number)
    parent.wait(10)
    deadline_s = time.monotonic() + 5
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
