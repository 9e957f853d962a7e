"""What only the executor of this machine does: its processes' numbers, memory, and where they come from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from expand.errors import RunError
from expand.executors import local
from expand.executors.local import LocalExecutor
from expand.executors.nursery import Nursery
from tests.executors.conftest import RUN
from tests.executors.suite import Heard, job, kill
from tests.training.small import RUNTIME

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as started:
        yield started


def test_a_new_process_takes_the_number_and_so_the_gpu_of_the_one_that_died(data, nursery, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(type(RUNTIME), "of_worker",
                        lambda self, number, workers: asked.append((number, workers)) or self)
    heard = Heard()
    heard.on_begin = lambda this, pid: kill(this, pid) if heard.began == ["first"] else None
    with LocalExecutor(data, RUNTIME, RUN, heard.listener(), nursery) as executor:
        list(executor.run([job(tmp_path, "first", epochs=12, gflops=2.0), job(tmp_path, "second", epochs=12)]))
    assert sorted(asked[:2]) == [(0, 2), (1, 2)] and asked[2:] == [(0, 2)]


def test_where_the_system_ended_a_process_for_lack_of_memory_batches_go_in_parts(data, nursery, tmp_path, monkeypatch):
    kills = iter(range(1000))
    monkeypatch.setattr(local, "oom_kills", lambda: next(kills))  # as if each look found one more
    heard = Heard()
    heard.on_begin = lambda this, pid: kill(this, pid) if len(heard.began) == 1 else None
    with LocalExecutor(data, RUNTIME, RUN, heard.listener(), nursery) as executor:
        [finished] = executor.run([job(tmp_path, "large", epochs=12)])
    assert "lack of memory" in heard.retried[0][2]
    assert finished.fields["state"] == "finished" and "2 parts" in " ".join(finished.fields["notes"])


def test_a_nursery_that_was_killed_is_replaced(data, tmp_path):
    heard = Heard()
    with Nursery() as nursery, LocalExecutor(data, RUNTIME, RUN, heard.listener(), nursery) as executor:
        list(executor.run([job(tmp_path, "a")]))
        os.kill(nursery._process.pid, signal.SIGKILL)
        nursery._process.wait()
        list(executor.run([job(tmp_path, "b"), job(tmp_path, "c")]))
    assert sorted(heard.began) == ["a", "b", "c"] and heard.retried == []


def test_a_callers_script_needs_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from expand.executors.local import LocalExecutor
from expand.executors.nursery import Nursery
from tests.executors.conftest import RUN
from tests.executors.suite import Heard, job
from tests.training.small import RUNTIME, clips

heard = Heard()
with Nursery() as nursery, LocalExecutor(clips(), RUNTIME, RUN, heard.listener(), nursery) as executor:
    print(*sorted(done.job.id for done in executor.run([job(Path({str(tmp_path)!r}), name) for name in "ab"])))
""")
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert printed.stdout.splitlines()[-1:] == ["a b"], printed.stderr


def test_a_program_that_cannot_even_begin_is_no_fault_of_the_candidates(data, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    heard = Heard()
    with Nursery() as nursery, LocalExecutor(data, RUNTIME, RUN, heard.listener(), nursery) as executor, \
            pytest.raises(RunError, match="as soon as they begin"):
        list(executor.run([job(tmp_path, "innocent")]))
    assert heard.retried == [] and not (tmp_path / "innocent").exists()
