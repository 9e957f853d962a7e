"""The main job, end to end: a search to its end, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from expand.model import X3D
from expand.space.geometry import Geometry
from expand.space.network import load_network
from tests.e2e.runs import TINY, call, kill, start, wait_for


def test_a_search_ends_with_a_winner_within_its_target(undisturbed):
    run_dir, printed = undisturbed, undisturbed.with_name("printed.txt").read_text()
    status = json.loads(call("status", run_dir, "--json"))
    assert status["state"] == "finished" and status["remaining_s"] == 0
    assert 0 < status["winner"]["gflops"] <= status["target_gflops"] == 0.00258
    assert status["winner"]["split"] == "test" and 0 <= status["winner"]["accuracy"] <= 1
    assert status["steps"][0]["axis"] == "basis" and len(status["steps"]) >= 2
    assert all(c["state"] in ("finished", "stopped") for step in status["steps"] for c in step["candidates"])
    assert status["contraction"]["gflops"] == status["winner"]["gflops"]
    assert "test" in printed and "winner" in printed.lower()


def test_a_finished_run_has_every_file_that_is_promised(undisturbed):
    for name in ("config.yaml", "env.json", "journal.jsonl", "log.txt", "final/network.yaml", "final/weights.pt",
                 "final/README.md", "final/latency.json",
                 "report/steps.csv", "report/expansion.png", "report/expansion.svg", "candidates/s00-basis/spec.yaml",
                 "candidates/s00-basis/metrics.csv", "candidates/s00-basis/checkpoint.pt",
                 "candidates/s00-basis/outcome.json"):
        assert (undisturbed / name).stat().st_size > 0, name
    assert not list(undisturbed.rglob(".tmp-*"))
    assert None not in yaml.safe_load((undisturbed / "config.yaml").read_text())["candidate"].values()


def test_the_winner_loads_into_the_network_of_its_yaml(undisturbed):
    network = load_network(undisturbed / "final" / "network.yaml")
    weights = torch.load(undisturbed / "final" / "weights.pt", weights_only=True)["model"]
    X3D(Geometry.of(network.factors, network.classes)).load_state_dict(weights)
    counted = json.loads(call("complexity", undisturbed, "--json"))
    assert counted["gflops"] == json.loads(call("status", undisturbed, "--json"))["winner"]["gflops"]
    assert counted["classes"] == 16


def test_a_finished_run_is_left_as_it_is_by_resume(undisturbed):
    before = (undisturbed / "journal.jsonl").read_bytes()
    assert "finished" in call("resume", undisturbed)
    assert (undisturbed / "journal.jsonl").read_bytes() == before


def test_plot_writes_where_it_is_told(undisturbed, tmp_path):
    call("plot", undisturbed, "--out", tmp_path / "path.svg")
    assert "X-Spatial" in (tmp_path / "path.svg").read_text()
    assert ".png or .svg" in call("plot", undisturbed, "--out", tmp_path / "path.pdf", code=2)


def test_a_run_in_use_is_refused_to_a_second_process(undisturbed, tmp_path):
    run_dir = tmp_path / "busy"
    process = start("search", *TINY, "--run-dir", run_dir)
    wait_for(run_dir, process, 2)
    refusal = call("resume", run_dir, code=1)
    assert str(process.pid) in refusal
    assert json.loads(call("status", run_dir, "--json"))["state"] == "running"
    kill(process)


def test_a_changed_configuration_is_refused_with_the_difference(undisturbed, tmp_path):
    run_dir = tmp_path / "changed"
    shutil.copytree(undisturbed, run_dir)
    journal = (run_dir / "journal.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "journal.jsonl").write_text("".join(journal[:4]))
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace("expansion_rate: 2.0", "expansion_rate: 3.0"))
    assert "search.expansion_rate: 2.0 -> 3.0" in call("resume", run_dir, code=1)


def test_a_directory_that_holds_a_run_is_not_overwritten(undisturbed):
    assert "x3d-expand resume" in call("search", *TINY, "--run-dir", undisturbed, code=1)


def test_a_candidate_whose_loss_explodes_fails_and_the_search_says_so(tmp_path, own_cache):
    message = call("search", *TINY, "--run-dir", tmp_path / "nan", "--set", "candidate.lr=1e30", code=1)
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
