"""What every executor promises, on real trainings in real processes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from expand.errors import CandidateFailed, Interrupted, RunError
from expand.executors.worker import run_job
from expand.training.job import Hooks, Kind
from tests.executors.suite import Heard, figures, freeze, hold_until_two_have_begun, job, kill
from tests.training.small import RUNTIME


def has_ended(worker: str) -> bool:
    """Whether the process of `host:pid` is gone, or at most a zombie."""
    try:
        return Path(f"/proc/{worker.rpartition(':')[2]}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for_end(workers: list[str]) -> None:
    end = time.monotonic() + 60
    while not all(map(has_ended, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """A job's figures when trained in this process, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")

    def measured(**options):
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        this = job(place, **options)
        fields = run_job(this, data, RUNTIME, Hooks())
        return {key: fields.get(key) for key in ("state", "accuracy", "loss", "top5", "stderr")}

    return measured


def test_results_are_those_of_one_process_to_the_bit_and_the_costliest_begin_first(lasting, alone, tmp_path):
    jobs = [job(tmp_path, "small"), job(tmp_path, "larger", frames=4, gflops=3.0), job(tmp_path, "middle", gflops=2.0)]
    heard = Heard(on_begin=hold_until_two_have_begun())
    assert figures(lasting(heard).run(jobs)) == {
        "small": alone(name="small"), "larger": alone(name="larger", frames=4), "middle": alone(name="middle")}
    assert heard.began[-1] == "small" and set(heard.began[:2]) == {"larger", "middle"}
    pids = {int(worker.rpartition(":")[2]) for worker in heard.workers}
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_stop_writes_checkpoints_and_another_executor_goes_on_from_them(executor, lasting, alone, tmp_path):
    heard = Heard()
    heard.is_to_stop = lambda: all((tmp_path / name / "checkpoint.pt").exists() for name in "ab")
    jobs = [job(tmp_path, "a", epochs=30), job(tmp_path, "b", epochs=30), job(tmp_path, "c", epochs=30, gflops=0.1)]
    with pytest.raises(Interrupted):
        list(executor(heard).run(jobs))
    assert not (tmp_path / "c").exists() and not (tmp_path / "a" / "outcome.json").exists()
    assert figures(lasting(Heard()).run(jobs[:1])) == {"a": alone(name="a", epochs=30)}


def test_a_stop_while_other_processes_have_no_work_writes_the_checkpoint_of_the_one_that_has(executor, tmp_path):
    heard = Heard()
    long = replace(job(tmp_path, "long", epochs=400, gflops=2.0), checkpoint_every_s=1e9)
    with pytest.raises(Interrupted):
        for finished in executor(heard, workers=3).run([long, job(tmp_path, "b"), job(tmp_path, "c")]):
            has_ended = {finished.job.id, *(name for name in "bc" if (tmp_path / name / "outcome.json").exists())}
            heard.is_to_stop = lambda has_ended=has_ended: has_ended == {"b", "c"}
    assert (tmp_path / "long" / "checkpoint.pt").exists() and not (tmp_path / "long" / "outcome.json").exists()


def test_a_killed_process_costs_nothing_but_time(lasting, alone, tmp_path):
    heard = Heard()
    jobs = [job(tmp_path, "victim", epochs=12, gflops=2.0), job(tmp_path, "other")]
    heard.on_begin = lambda this, pid: kill(this, pid) if this.id == "victim" and not heard.retried else None
    assert figures(lasting(heard).run(jobs)) == {
        "victim": alone(name="victim", epochs=12), "other": alone(name="other")}
    assert [(name, attempt) for name, attempt, _ in heard.retried] == [("victim", 1)]
    assert "died" in heard.retried[0][2] and heard.began.count("victim") == 2


def test_a_process_without_a_heartbeat_is_killed_and_its_job_resumes_in_another(lasting, alone, tmp_path):
    heard = Heard()
    executor = lasting(heard)

    def freeze_first(job, pid):
        """Only the frozen process has a limit that a slow moment of the machine could exceed."""
        is_first = len(heard.began) == 1
        executor.config = replace(executor.config, heartbeat_s=1.0 if is_first else 600.0)
        if is_first:
            freeze(job, pid)

    heard.on_begin = freeze_first
    heard.on_retry = lambda job: setattr(executor, "config", replace(executor.config, heartbeat_s=600.0))
    assert figures(executor.run([job(tmp_path, "frozen", epochs=12)])) == {"frozen": alone(name="frozen", epochs=12)}
    [(name, attempt, reason)] = heard.retried
    assert (name, attempt) == ("frozen", 1) and "no heartbeat for 1 s" in reason
    wait_for_end(heard.workers[:1])  # Ray ends a stopped process after some seconds


def test_a_job_whose_process_dies_each_time_has_failed_and_the_others_go_on(lasting, tmp_path):
    heard = Heard()
    heard.on_begin = lambda job, pid: kill(job, pid) if job.id == "doomed" else None
    jobs = [job(tmp_path, "doomed", epochs=30, gflops=2.0), job(tmp_path, "other")]
    ended = {finished.job.id: finished.fields for finished in lasting(heard, retries=1).run(jobs)}
    assert ended["doomed"]["state"] == "failed" and "died" in ended["doomed"]["reason"]
    assert "2 times" in ended["doomed"]["reason"] and heard.began.count("doomed") == 2
    assert ended["other"]["state"] == "finished"


def test_a_loss_that_explodes_is_an_outcome(lasting, tmp_path):
    [finished] = lasting(Heard()).run([job(tmp_path, "nan", lr=1e30)])
    assert finished.fields["state"] == "failed" and "loss became" in finished.fields["reason"]


def test_a_final_training_gives_the_fields_of_its_event_and_raises_where_it_fails(executor, lasting, tmp_path):
    heard = Heard()
    final = replace(job(tmp_path, "final"), weights=tmp_path / "weights.pt", kind=Kind.FINAL)
    [finished] = lasting(heard).run([final])
    assert finished.fields["split"] == "test" and (tmp_path / "weights.pt").exists()
    with pytest.raises(CandidateFailed, match="loss became"):
        list(executor(heard).run([replace(job(tmp_path, "nan", lr=1e30), kind=Kind.FINAL,
                                          weights=tmp_path / "weights.pt")]))


def test_a_disk_that_refuses_ends_the_run_once_the_other_trainings_have_their_checkpoints(executor, tmp_path):
    (tmp_path / "refused").write_text("a file where a folder is to be")
    jobs = [job(tmp_path, "refused", gflops=2.0), job(tmp_path, "other", epochs=400)]
    with pytest.raises(RunError, match="cannot be written") as caught:
        list(executor(Heard()).run(jobs))
    assert "refused" in caught.value.where
    assert not (tmp_path / "other" / "outcome.json").exists()


def test_a_mistake_of_the_program_is_told_as_one_with_its_traceback_in_the_log(executor, tmp_path, lines):
    heard = Heard()
    with pytest.raises(RunError, match="unexpected error in the training of odd: AttributeError"):
        list(executor(heard).run([replace(job(tmp_path, "odd"), recipe="no recipe")]))
    assert any("Traceback" in text for text in lines)


def test_leaving_amid_a_training_ends_its_process_soon(executor, tmp_path):
    heard = Heard()
    with executor(heard) as left:
        running = left.run([job(tmp_path, "a", epochs=400), job(tmp_path, "b")])
        assert next(running).job.id == "b"
        running.close()
    wait_for_end(heard.workers)
