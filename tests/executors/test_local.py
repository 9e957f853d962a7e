"""What only the executor of this machine does: its processes' numbers, memory, and where they come from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from expand.errors import Interrupted, RunError
from expand.executors import local, supervisor
from expand.executors.fork_server import ForkServer
from expand.executors.local import LocalExecutor
from tests.executors.conftest import RUN
from tests.executors.suite import Heard, job, kill
from tests.training.small import RUNTIME

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fork_server():
    with ForkServer() as started:
        yield started


def test_a_new_process_takes_the_number_and_so_the_gpu_of_the_one_that_died(data, fork_server, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(type(RUNTIME), "of_worker",
                        lambda self, number, workers: asked.append((number, workers)) or self)
    heard = Heard()
    heard.on_begin = lambda this, pid: kill(this, pid) if len(heard.began) == 1 else None
    with LocalExecutor(data, RUNTIME, RUN, heard.listener(), fork_server) as executor:
        list(executor.run([job(tmp_path, "first", epochs=12)]))
        assert asked == [(0, 2), (0, 2)]
        list(executor.run([job(tmp_path, "second"), job(tmp_path, "third")]))
    assert asked[2:] == [(1, 2)]


def test_where_the_system_ended_a_process_for_lack_of_memory_batches_go_in_parts(data, fork_server, tmp_path,
                                                                                 monkeypatch):
    kills = iter(range(1000))
    monkeypatch.setattr(local, "oom_kills", lambda: next(kills))  # as if each look found one more
    heard = Heard()
    heard.on_begin = lambda this, pid: kill(this, pid) if len(heard.began) == 1 else None
    with LocalExecutor(data, RUNTIME, RUN, heard.listener(), fork_server) as executor:
        [finished] = executor.run([job(tmp_path, "large", epochs=12)])
    assert "lack of memory" in heard.retried[0][2]
    assert finished.fields["state"] == "finished" and "2 micro-batches" in " ".join(finished.fields["notes"])


def test_a_fork_server_that_was_killed_is_replaced(data, tmp_path):
    heard = Heard()
    with ForkServer() as fork_server, LocalExecutor(data, RUNTIME, RUN, heard.listener(), fork_server) as executor:
        list(executor.run([job(tmp_path, "a")]))
        os.kill(fork_server._process.pid, signal.SIGKILL)
        fork_server._process.wait()
        list(executor.run([job(tmp_path, "b"), job(tmp_path, "c")]))
    assert sorted(heard.began) == ["a", "b", "c"] and heard.retried == []


def test_a_fork_server_that_is_killed_with_an_order_in_hand_is_replaced_and_that_is_no_try(data, tmp_path, lines):
    heard = Heard()
    with ForkServer() as fork_server, LocalExecutor(data, RUNTIME, replace(RUN, retries=0), heard.listener(),
                                                    fork_server) as made:
        ordered = fork_server.fork_worker

        def order_and_kill():
            pipe = ordered()
            if fork_server.number == 1:  # torch's import takes longer
                os.kill(fork_server._process.pid, signal.SIGKILL)
            return pipe

        fork_server.fork_worker = order_and_kill
        assert [done.fields["state"] for done in made.run([job(tmp_path, name) for name in "ab"])] == ["finished"] * 2
    assert fork_server.number == 2 and heard.retried == [] and "before it began" in lines[0]


def test_a_process_that_dies_while_it_waits_for_work_is_no_try_of_a_candidate(data, fork_server, tmp_path):
    heard = Heard()
    with LocalExecutor(data, RUNTIME, replace(RUN, retries=0, workers=1), heard.listener(), fork_server) as executor:
        list(executor.run([job(tmp_path, "a")]))
        os.kill(int(heard.workers[0].rpartition(":")[2]), signal.SIGKILL)
        wait([worker.pipe for worker in executor._workers])
        [finished] = executor.run([job(tmp_path, "b")])
    assert finished.fields["state"] == "finished" and heard.workers[0] != heard.workers[1]


def test_clips_that_no_pipe_holds_do_not_keep_a_driver_that_is_to_stop(data, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "STOP_S", 0.5)
    large = replace(data, classes=tuple(f"{number:01000}" for number in range(5000)))
    heard = Heard(is_to_stop=lambda: bool(executor._workers))
    with ForkServer() as hung, LocalExecutor(large, RUNTIME, RUN, heard.listener(), hung) as executor:
        os.kill(hung._process.pid, signal.SIGSTOP)  # nothing will ever read what its processes are told
        with pytest.raises(Interrupted):
            list(executor.run([job(tmp_path, "a")]))


def test_the_silence_while_the_driver_stood_still_does_not_count(data, fork_server, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "AWAY_S", 2.0)

    def stand_still(this, pid):
        """As Ctrl-Z does to the driver and its processes."""
        os.kill(pid, signal.SIGSTOP)
        time.sleep(4.0)
        os.kill(pid, signal.SIGCONT)

    heard = Heard(on_begin=stand_still)
    with LocalExecutor(data, RUNTIME, replace(RUN, heartbeat_s=3.0), heard.listener(), fork_server) as executor:
        list(executor.run([job(tmp_path, "a")]))
    assert heard.retried == []


def test_a_second_ctrl_c_does_not_wait_for_checkpoints(data, fork_server, tmp_path):
    def interrupted(this, pid):
        os.kill(pid, signal.SIGSTOP)  # it would not write one in time
        raise KeyboardInterrupt

    began = time.monotonic()
    heard = Heard(on_begin=interrupted)
    with pytest.raises(KeyboardInterrupt), LocalExecutor(data, RUNTIME, RUN, heard.listener(), fork_server) as executor:
        list(executor.run([job(tmp_path, "a", epochs=400)]))
    assert time.monotonic() - began < supervisor.STOP_S / 2


def test_a_callers_script_needs_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from expand.executors.local import LocalExecutor
from expand.executors.fork_server import ForkServer
from tests.executors.conftest import RUN
from tests.executors.suite import Heard, job
from tests.training.small import RUNTIME, clips

heard = Heard()
with ForkServer() as fork_server, LocalExecutor(clips(), RUNTIME, RUN, heard.listener(), fork_server) as executor:
    print(*sorted(done.job.id for done in executor.run([job(Path({str(tmp_path)!r}), name) for name in "ab"])))
""")
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert printed.stdout.splitlines()[-1:] == ["a b"], printed.stderr


def test_a_program_that_cannot_even_begin_is_no_fault_of_the_candidates(data, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    heard = Heard()
    with ForkServer() as fork_server, LocalExecutor(data, RUNTIME, RUN, heard.listener(), fork_server) as executor, \
            pytest.raises(RunError, match="before they begin"):
        list(executor.run([job(tmp_path, "innocent")]))
    assert heard.retried == [] and not (tmp_path / "innocent").exists()
