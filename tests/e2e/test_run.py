"""The main job, end to end: a search to its end, killed, interrupted, resumed, looked at."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
import yaml

from expand.model import X3D
from expand.space.geometry import Geometry
from expand.space.network import load_network
from tests.e2e.runs import SMALL, call, events, kill, results, search, start, wait_for

KILLS = int(os.environ.get("X3D_EXPAND_KILLS", "2"))
"""Kills of one run; each costs the start of a process."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, own_cache):
    """An undisturbed run in one process."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    return run_dir, search(run_dir)


def test_a_search_ends_with_a_winner_within_its_target(finished):
    run_dir, printed = finished
    status = json.loads(call("status", run_dir, "--json"))
    assert status["state"] == "finished" and status["remaining_s"] == 0
    assert 0 < status["winner"]["gflops"] <= status["target_gflops"] == 0.004
    assert status["winner"]["split"] == "test" and 0 <= status["winner"]["accuracy"] <= 1
    assert status["steps"][0]["axis"] == "basis" and len(status["steps"]) >= 3
    assert all(c["state"] == "finished" for step in status["steps"] for c in step["candidates"])
    assert status["contraction"]["gflops"] == status["winner"]["gflops"]
    assert "test" in printed and "winner" in printed.lower()


def test_a_finished_run_has_every_file_that_is_promised(finished):
    run_dir, _ = finished
    for name in ("config.yaml", "env.json", "journal.jsonl", "log.txt", "final/network.yaml", "final/weights.pt",
                 "final/README.md", "final/latency.json",
                 "report/steps.csv", "report/expansion.png", "report/expansion.svg", "candidates/s00-basis/spec.yaml",
                 "candidates/s00-basis/metrics.csv", "candidates/s00-basis/checkpoint.pt",
                 "candidates/s00-basis/outcome.json"):
        assert (run_dir / name).stat().st_size > 0, name
    assert not list(run_dir.rglob(".tmp-*"))
    assert None not in yaml.safe_load((run_dir / "config.yaml").read_text())["candidate"].values()


def test_the_winner_loads_into_the_network_of_its_yaml(finished):
    run_dir, _ = finished
    network = load_network(run_dir / "final" / "network.yaml")
    weights = torch.load(run_dir / "final" / "weights.pt", weights_only=True)["model"]
    X3D(Geometry.of(network.factors, network.classes)).load_state_dict(weights)
    counted = json.loads(call("complexity", run_dir, "--json"))
    assert counted["gflops"] == json.loads(call("status", run_dir, "--json"))["winner"]["gflops"]
    assert counted["classes"] == 16


def test_a_finished_run_is_left_as_it_is_by_resume(finished):
    run_dir, _ = finished
    before = (run_dir / "journal.jsonl").read_bytes()
    assert "finished" in call("resume", run_dir)
    assert (run_dir / "journal.jsonl").read_bytes() == before


def test_plot_writes_where_it_is_told(finished, tmp_path):
    run_dir, _ = finished
    call("plot", run_dir, "--out", tmp_path / "path.svg")
    assert "X-Spatial" in (tmp_path / "path.svg").read_text()
    assert ".png or .svg" in call("plot", run_dir, "--out", tmp_path / "path.pdf", code=2)


def test_two_workers_give_the_same_decisions_and_accuracies(finished, tmp_path):
    search(tmp_path / "two", "--set", "run.workers=2")
    assert results(tmp_path / "two") == results(finished[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random_moments_changes_nothing(finished, tmp_path, workers):
    chance, run_dir = random.Random(workers), tmp_path / "killed"
    process = start("search", *SMALL, "--run-dir", run_dir, "--set", f"run.workers={workers}")
    for _ in range(KILLS):
        wait_for(run_dir, process, len(events(run_dir)) + chance.randint(1, 4))
        time.sleep(chance.uniform(0, 1))
        kill(process)
        assert json.loads(call("status", run_dir, "--json"))["state"] in ("interrupted", "finished")
        process = start("resume", run_dir)
    out, err = process.communicate()
    assert process.returncode == 0, err + out
    assert results(run_dir) == results(finished[0])
    trained = [event["id"] for event in events(run_dir) if event["event"] == "candidate_finished"]
    assert len(trained) == len(set(trained))


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interruption_writes_a_checkpoint_and_names_the_way_on(finished, tmp_path, number, workers):
    run_dir = tmp_path / "interrupted"
    process = start("search", *SMALL, "--run-dir", run_dir, "--set", f"run.workers={workers}",
                    "--set", "run.checkpoint_every_s=1000")
    wait_for(run_dir, process, 6)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"x3d-expand resume {run_dir}" in err and "Traceback" not in err
    assert events(run_dir)[-1]["event"] == "run_interrupted"
    call("resume", run_dir)
    assert results(run_dir) == results(finished[0])


def test_a_run_in_use_is_refused_to_a_second_process(finished, tmp_path):
    run_dir = tmp_path / "busy"
    process = start("search", *SMALL, "--run-dir", run_dir)
    wait_for(run_dir, process, 2)
    refusal = call("resume", run_dir, code=1)
    assert str(process.pid) in refusal
    assert json.loads(call("status", run_dir, "--json"))["state"] == "running"
    kill(process)


def test_a_changed_configuration_is_refused_with_the_difference(finished, tmp_path):
    run_dir = tmp_path / "changed"
    shutil.copytree(finished[0], run_dir)
    journal = (run_dir / "journal.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "journal.jsonl").write_text("".join(journal[:4]))
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace("expansion_rate: 2.0", "expansion_rate: 3.0"))
    assert "search.expansion_rate: 2.0 -> 3.0" in call("resume", run_dir, code=1)


def test_a_directory_that_holds_a_run_is_not_overwritten(finished):
    assert "x3d-expand resume" in call("search", *SMALL, "--run-dir", finished[0], code=1)


def test_a_candidate_whose_loss_explodes_fails_and_the_search_says_so(tmp_path, own_cache):
    message = call("search", *SMALL, "--run-dir", tmp_path / "nan", "--set", "candidate.lr=1e30", code=1)
    assert "every candidate of step 0 failed" in message and "loss became" in message
    status = json.loads(call("status", tmp_path / "nan", "--json"))
    assert status["state"] == "failed"
    assert status["steps"][0]["candidates"][0]["state"] == "failed"


@pytest.mark.parametrize(("arguments", "words"), [
    (["search"], "--target-gflops"),
    (["search", "--target-gflops", "0.001"], "below the basis"),
    (["search", "--target-gflops", "0.0207"], "already meets the target"),
    (["search", "--target-gflops", "1", "--data", "no/such/folder"], "no/such/folder"),
    (["search", "--target-gflops", "1", "--set", "data.flpi=no"], "did you mean 'data.flip'"),
    (["search", "quikstart"], "quickstart"),
    (["search", "--target-gflop", "1"], "--target-gflops"),
    (["search", "--target-gflops", "1", "--name", "../out"], "run.name"),
])
def test_wrong_input_is_answered_with_what_where_and_the_way_out(arguments, words):
    message = call(*arguments, code=1 if "no/such/folder" in arguments else 2)
    assert words in message
