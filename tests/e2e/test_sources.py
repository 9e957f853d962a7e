"""Real clips through every source: what a network sees, and becomes, does not depend on how the clips were named."""

from __future__ import annotations

import csv
import shutil
import time

import pytest
import torch

from expand.config.schema import DataConfig
from expand.data import prepare
from expand.data.loading.loader import eval_loader
from expand.data.sources.run_list import read_clips
from expand.space.factors import Factors
from expand.space.network import Network, dump_network
from tests.data.clips import write_pictures
from tests.e2e.runs import ROOT, call, kill, start

REAL = ROOT.parent / "shared" / "data" / "weizmann5_motion"
CLASSES = ("bend_down", "bend_up", "wave1")
CLIPS = {"train": 6, "val": 3}
"""Clips of a class and split that are used."""
SHORT = ["--epochs", "1", "--batch-size", "6", "--threads", "1", "--seed", "3", "--set", "final.eval_clips=2",
         "--set", "final.precise_bn_batches=2"]

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not beside the checkout")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The same clips as a folder, as lists, as one list with splits, and as folders of PNG frames: options of each."""
    root = tmp_path_factory.mktemp("sources")
    rows = []
    for split, count in CLIPS.items():
        for name in CLASSES:
            for file in sorted((REAL / split / name).iterdir())[:count]:
                copy = root / "folder" / split / name / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
                write_pictures(root / "frames" / split / name / file.stem, file)
                rows.append({"path": copy.relative_to(root / "folder"), "label": name, "split": split})
    for split in CLIPS:
        lines = [f"{row['path']} {row['label']}" for row in rows if row["split"] == split]
        (root / f"{split}.txt").write_text("\n".join(lines))
    with open(root / "all.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return {"folder": [f"data.path={root}/folder"],
            "lists": [f"data.train={root}/train.txt", f"data.val={root}/val.txt", f"data.root={root}/folder"],
            "csv": [f"data.path={root}/all.csv", f"data.root={root}/folder"],
            "frames": [f"data.path={root}/frames", "data.frame_rate=25"]}


def test_every_source_gives_the_same_tensors(sources, tmp_path):
    """Times, frames, crops and labels of whole evaluation batches."""
    seen = {}
    for name, options in sources.items():
        values = dict(option.removeprefix("data.").split("=") for option in options)
        if "frame_rate" in values:
            values["frame_rate"] = float(values["frame_rate"])
        config = DataConfig(**values, cache_dir=str(tmp_path / name))
        data = prepare(config, short_side=81, workers=2)
        batches = eval_loader(data.val, frames=4, stride=7, resolution=56, views=3, batch_size=8, config=config)
        x_NCTHW, labels_N, _ = (torch.cat(parts) for parts in zip(*batches))
        assert len(x_NCTHW) == 3 * len(CLASSES) * CLIPS["val"]
        seen[name] = (x_NCTHW, labels_N, data)
    x_NCTHW, labels_N, data = seen["folder"]
    for name, (other_NCTHW, other_N, other) in seen.items():
        assert torch.equal(x_NCTHW, other_NCTHW) and torch.equal(labels_N, other_N), name
        assert other.classes == data.classes and other.median_s == data.median_s, name
    assert x_NCTHW.std() > 0.1  # pictures, not a plain grey


@pytest.fixture
def network(tmp_path) -> str:
    """A small network's YAML."""
    path = tmp_path / "net.yaml"
    factors = Factors.of(frames=4, stride=7, resolution=56, width=0.6, depth=0.4)
    path.write_text(dump_network(Network("net", factors, len(CLASSES))))
    return str(path)


def test_every_source_trains_the_same_network(sources, network, tmp_path):
    """The whole way through the command line; on the CPU equal to the bit."""
    weights = {}
    for name in ("folder", "csv", "frames"):
        run = tmp_path / name
        call("train", network, "--run-dir", run, *SHORT, "--set", f"data.cache_dir={tmp_path}/cache-{name}",
             *(part for option in sources[name] for part in ("--set", option)))
        weights[name] = torch.load(run / "final" / "weights.pt", weights_only=True)["model"]
    assert weights["folder"].keys() == weights["csv"].keys() == weights["frames"].keys()
    for key, tensor in weights["folder"].items():
        assert torch.equal(tensor, weights["csv"][key]) and torch.equal(tensor, weights["frames"][key]), key


def test_a_run_goes_on_with_the_clips_that_it_began_with(sources, network, tmp_path):
    """Also with the val split that was made for it, when clips come and go beside them meanwhile."""
    folder, run = tmp_path / "clips", tmp_path / "run"
    for name in CLASSES:
        shutil.copytree(sources["folder"][0].removeprefix("data.path=") + f"/train/{name}", folder / name)
    process = start("train", network, "--run-dir", run, *SHORT, "--epochs", "30", "--data", folder,
                    "--set", f"data.cache_dir={tmp_path}/cache", "--set", "run.checkpoint_every_s=0")
    while not (run / "final" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    kill(process)
    listed = read_clips(run / "clips.csv")
    assert {clip.split for clip in listed.clips} == {"train", "val"} and len(listed.clips) == 18
    shutil.copy(next((folder / "wave1").iterdir()), folder / "wave1" / "another.mp4")
    (folder / "quarantine.csv").write_text(f"path,kind,reason\n{listed.clips[0].path},by hand,seen too late\n")
    call("resume", run)
    assert read_clips(run / "clips.csv") == listed
    shown = call("test", run, "--split", "val", "--out", tmp_path / "test")
    assert f"{sum(clip.split == 'val' for clip in listed.clips)} videos of val" in shown
