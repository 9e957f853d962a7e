"""The model card: of a search whose journal never was, but with real files in `final/`, and of a plain training."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from expand.config import Config, dump_config
from expand.config.schema import DataConfig, RecipeConfig, RunConfig
from expand.exports.card import write_card
from expand.model import X3D
from expand.rundir.files import write_atomic, write_json
from expand.rundir.paths import RunPaths
from expand.space.complexity import complexity
from expand.space.factors import Factors
from expand.space.network import Network, dump_network
from expand.training.checkpoint import save_weights
from tests.report.conftest import FakeSearch

CLASSES = ("wave | left", "*jump*", "``` run", "<b>sit</b>", "[go](http://x.test)")
NETWORK = Network("mine", Factors.of(frames=2, stride=3, resolution=32, width=0.4), len(CLASSES), CLASSES)
CONFIG = Config(data=DataConfig(path="/clips/of | mine"), final=RecipeConfig(epochs=7, batch_size=8, eval_clips=3),
                run=RunConfig(seed=11, device="cpu", threads=1, precision="fp32"))
RESULT = {"split": "test", "accuracy": 0.75, "stderr": 0.0685, "top5": 1.0, "loss": 0.7, "val_accuracy": 0.8,
          "val_stderr": 0.06, "wall_s": 59.0}


def write_final(paths: RunPaths, result: dict, config: Config = CONFIG) -> RunPaths:
    """What a final training leaves: 40 videos a split."""
    torch.manual_seed(0)
    write_atomic(paths.config, dump_config(config))
    write_json(paths.env, {"x3d_expand": "0.1.0", "git": None, "packages": {"torch": "2.14.1"}, "device": "x86|64"})
    write_atomic(paths.network, dump_network(NETWORK))
    save_weights(paths.weights, X3D.of(NETWORK))
    confusion = [[8 if row == column else 0 for column in range(5)] for row in range(5)]
    write_json(paths.final_candidate.outcome, {"identity": "it", "result": result, "classes": CLASSES,
                                               "confusion": {"val": confusion, "test": confusion}})
    return paths


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> RunPaths:
    """A search at the end of its final training, in a folder with a name that could break code or Markdown."""
    fake = FakeSearch(tmp_path_factory.mktemp("runs") / "it's \"mine\" `now`\\n", target=0.25)
    fake.start(name="mine", classes=list(CLASSES), fingerprint="f00d", splits={"train": 600, "val": 40, "test": 40})
    fake.basis().steps(("x_bottleneck", "x_fast", "x_spatial")).contract()
    write_card(write_final(fake.paths, RESULT))
    return fake.paths


def card(paths: RunPaths) -> str:
    return paths.card.read_text(encoding="utf-8")


def rows(paths: RunPaths) -> dict[str, str]:
    """The tables' rows; each must have two cells."""
    lines = [line for line in card(paths).splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert all(len(row) == 2 for row in cells)
    return {name.strip(): value.strip() for name, value in cells}


def test_the_card_says_what_the_network_is_and_what_it_costs(searched):
    found, cost = rows(searched), complexity(NETWORK.geometry)
    assert found["clip"] == "2 frames × stride 3 at 30 frames a second; 32 px in training, 36 px in evaluation"
    assert found["factors"].startswith("γτ 3, γt 2, γs 0.28571, γw 0.4")
    assert found["parameters"] == f"{cost.params:,}" and found["activations"] == f"{cost.activations:,}"
    published, fvcore = (float(text.split()[0]) for text in found["multiply-adds of a clip"].split("; "))
    assert published == pytest.approx(cost.gflops, rel=1e-3) and fvcore == pytest.approx(cost.gflops_fvcore, rel=1e-3)
    share = float(found["share of the target"].split()[0])
    assert share == pytest.approx(100 * cost.gflops / 0.25, abs=0.05)


def test_the_card_says_how_sure_the_accuracy_is_and_on_which_clips(searched):
    found = rows(searched)
    assert found["measured"] == "on test, which played no part in the selection"
    assert found["top-1"] == "75.0 % (95 % interval 59.8 to 85.8)"  # Wilson, 30 of 40
    assert found["top-5"] == "100.0 %" and found["top-1 on val"] == "80.0 ± 6.0 %"
    assert found["videos"].startswith("40, each by 3 clips")


def test_the_card_says_data_recipe_versions_and_path(searched):
    found, text = rows(searched), card(searched)
    assert found["clips"] == "600 train, 40 val, 40 test" and found["fingerprint"] == "f00d"
    assert found["clips from"] == r"/clips/of \| mine"
    assert found["epochs"] == "7" and found["weight\\_decay"] == "0.00005" and found["seed of the run"] == "11"
    assert found["packages"] == "torch 2.14.1" and found["device"] == r"x86\|64" and "git" not in found
    steps = re.findall(r"^\d+\. .*$", text, flags=re.MULTILINE)
    assert [step.split(":")[0] for step in steps] == [
        "0. basis", "1. X-Bottleneck", "2. X-Fast = X-Temporal", "3. X-Spatial", "4. contraction of X-Spatial"]
    assert all("GFLOPs, top-1 " in step for step in steps)


def test_class_names_stay_text_in_the_table(searched):
    assert rows(searched)["5 classes"] == (
        r"wave \| left, \*jump\*, \`\`\` run, \<b\>sit\</b\>, \[go\](http://x.test)")


def test_the_latency_is_measured_once_and_kept(searched):
    measured = json.loads(searched.latency.read_text())
    assert 0 < measured["latency_ms"] < 1000 and measured["passes"] >= 3
    assert (measured["crop"], measured["threads"], measured["precision"]) == (36, 1, "fp32")
    before = card(searched)
    searched.card.unlink()
    write_card(searched)
    assert card(searched) == before and "36 px, CPU with 1 thread, fp32" in before


def test_the_code_on_the_card_runs_as_it_stands_from_any_folder(searched, tmp_path):
    code = re.search(r"^```python\n(.*?)^```$", card(searched), flags=re.MULTILINE | re.DOTALL)[1]
    assert len(code.splitlines()) <= 5
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in CLASSES


def write_training(paths: RunPaths, result: dict, config: Config = CONFIG) -> RunPaths:
    """What a training leaves that belongs to no search."""
    write_atomic(paths.training, yaml.safe_dump({
        "network": NETWORK.as_dict(), "init": "weights_of | another.pyth",
        "config": dump_config(config), "fingerprint": "beef",
        "splits": {"train": 300, "val": 40, "test": 0}}))
    return write_final(paths, result, config)


def test_a_training_without_a_search_has_a_card_without_what_only_a_search_knows(tmp_path):
    paths = write_training(RunPaths(tmp_path / "trained"), {**RESULT, "split": "val"})
    write_card(paths)
    found, text = rows(paths), card(paths)
    assert found["measured"] == "on val" and found["clips"] == "300 train, 40 val" and found["fingerprint"] == "beef"
    assert "Expansion path" not in text and "share of the target" not in found
    assert r"It began with the weights of weights\_of \| another.pyth." in text


def test_a_card_written_on_a_machine_without_the_device_leaves_the_latency_open(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    config = replace(CONFIG, run=replace(CONFIG.run, device="cuda"))
    paths = write_training(RunPaths(tmp_path / "moved"), RESULT, config)
    write_card(paths)
    assert rows(paths)["latency"].startswith("not measured") and not paths.latency.exists()
