"""Journals of runs that never were, with figures like those of real ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expand.expansion.events import read_event
from expand.rundir.files import jsonable
from expand.rundir.journal import Journal
from expand.rundir.paths import RunPaths

AXES = ("x_fast", "x_temporal", "x_spatial", "x_depth", "x_width", "x_bottleneck")
PUBLISHED_PATH = ("x_bottleneck", "x_fast", "x_spatial", "x_depth", "x_temporal", "x_fast", "x_temporal", "x_spatial",
                  "x_spatial", "x_depth", "x_width")
PAYS = {"x_fast": 1.1, "x_temporal": 1.25, "x_spatial": 1.15, "x_depth": 1.0, "x_width": 0.75, "x_bottleneck": 1.05}


class FakeSearch:
    """Writes the events of a search, one call a stage; complexities only roughly those of real networks."""

    def __init__(self, root: Path, *, target: float = 0.25, test_clips: int = 480, seed: int = 3) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.paths, self.time, self.random = RunPaths(root), 1.75e9, random.Random(seed)
        self.journal = Journal(self.paths.journal, clock=lambda: self.time)
        self.target, self.test_clips = target, test_clips
        self.now = {"gamma_tau": 28, "gamma_t": 1, "gamma_s": 1.0, "gamma_w": 1.0, "gamma_b": 1.0, "gamma_d": 1.0}
        self.gflops, self.accuracy, self.step = 0.020662304, 0.18, 0

    def event(self, event: str, after_s: float = 0.5, **fields: Any) -> None:
        self.time += after_s
        self.journal.append(read_event(jsonable({"event": event, **fields})))

    def start(self, **fields: Any) -> FakeSearch:
        """`fields`: further ones of `run_started`, or others in place of the usual ones."""
        splits = {"train": 600, "val": 480, "test": self.test_clips}
        usual = {"name": "fake", "version": "0.1.0", "target_gflops": self.target, "criterion": "gain_per_gflop",
                 "classes": [f"class-{number}" for number in range(12)], "splits": splits, "fingerprint": "0" * 64,
                 "config": "{}"}
        self.event("run_started", **{**usual, **fields})
        return self

    def spec(self, axis: str, name: str, factors: dict[str, float], ratio: float | None) -> dict[str, Any]:
        return {"id": f"s{self.step:02d}-{name}", "step": self.step, "axis": axis, "also": [], "ratio": ratio,
                "gflops": self.gflops * (ratio or 1.0), "params": 1_633_560, "overshoot": False, "factors": factors,
                "frames": factors["gamma_t"], "resolution": round(factors["gamma_s"] * 112),
                "stride": factors["gamma_tau"], "init": "scratch"}

    def finish(self, candidate: dict[str, Any], accuracy: float | None, reason: str | None = None) -> None:
        self.event("candidate_started", id=candidate["id"], resumed=False)
        stderr = None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / 480)
        wall_s = 10 + 100 * candidate["gflops"]
        self.event("candidate_finished", after_s=wall_s, id=candidate["id"], state="failed" if reason else "finished",
                   reason=reason, accuracy=accuracy, stderr=stderr, top5=0.9, loss=1.0, wall_s=wall_s,
                   peak_memory_mb=900.0, clips_per_s=120.0)

    def basis(self, finish: bool = True) -> FakeSearch:
        candidate = self.spec("basis", "basis", dict(self.now), None)
        self.event("step_proposed", step=0, candidates=[candidate], excluded=[])
        if finish:
            self.finish(candidate, self.accuracy)
            self.choose(candidate, {candidate["id"]: self.accuracy})
        return self

    def grown(self, axis: str) -> dict[str, float]:
        new = dict(self.now)
        if axis in ("x_fast", "x_temporal"):
            new["gamma_t"] = self.now["gamma_t"] * 2
            new["gamma_tau"] = max(1, self.now["gamma_tau"] // (2 if axis == "x_fast" or new["gamma_t"] == 2 else 1))
        elif axis == "x_spatial":
            new["gamma_s"] = round(self.now["gamma_s"] * 1.4 * 14) / 14
        else:
            key = f"gamma_{axis[2]}"
            rate, grid = {"x_depth": (2.2, 0.1), "x_width": (1.45, 0.05), "x_bottleneck": (2.25, 0.25)}[axis]
            new[key] = round(round(self.now[key] * rate / grid) * grid, 2)
        return new

    def propose(self) -> list[dict[str, Any]]:
        self.step += 1
        candidates = [self.spec(axis, axis, self.grown(axis), self.random.uniform(1.86, 2.0)) for axis in AXES]
        excluded = [{"axis": "x_width", "reason": "limits.width is 1.0"}] if self.step == 2 else []
        if self.now["gamma_t"] == 1:
            del candidates[1]
            candidates[0]["also"] = ["x_temporal"]
        candidates = [candidate for candidate in candidates if [candidate["axis"]] != [x["axis"] for x in excluded]]
        self.event("step_proposed", step=self.step, candidates=candidates, excluded=excluded)
        return candidates

    def steps(self, path: tuple[str, ...], failing: tuple[int, str] | None = (2, "x_depth")) -> FakeSearch:
        for axis in path:
            candidates = self.propose()
            gain = 0.13 * (0.93 - self.accuracy)
            accuracies: dict[str, float | None] = {}
            for candidate in candidates:
                pay = PAYS[candidate["axis"]] if candidate["axis"] != axis else 1.75
                accuracy = min(0.98, self.accuracy + gain * (pay + self.random.gauss(0, 0.2)))
                if failing == (self.step, candidate["axis"]):
                    self.finish(candidate, None, "the loss is not finite at update 412")
                    accuracies[candidate["id"]] = None
                else:
                    self.finish(candidate, accuracy)
                    accuracies[candidate["id"]] = accuracy
            self.choose(next(item for item in candidates if axis in (item["axis"], *item["also"])), accuracies)
        return self

    def choose(self, chosen: dict[str, Any], accuracies: dict[str, float | None]) -> None:
        self.event("step_selected", step=self.step, axis=chosen["axis"], id=chosen["id"], scores=accuracies)
        accuracy = accuracies[chosen["id"]]
        assert accuracy is not None
        self.now, self.gflops, self.accuracy, self.chosen = chosen["factors"], chosen["gflops"], accuracy, chosen

    def contract(self, finish: bool = True) -> FakeSearch:
        self.step += 1
        axis = self.chosen["axis"]
        factors = {**self.now, "gamma_d": 1.7} if axis == "x_depth" else {**self.now, "gamma_w": 1.4}
        candidate = self.spec(axis, "contraction", factors, 0.97 * self.target / self.gflops)
        self.event("contraction_proposed", axis=axis, candidate=candidate,
                   reason="the last expansion is over the target")
        if finish:
            self.accuracy -= 0.012
            self.finish(candidate, self.accuracy)
            self.chosen = candidate
        return self

    def end(self) -> FakeSearch:
        keys = ("id", "gflops", "params", "factors", "frames", "resolution", "stride")
        self.event("winner_chosen", **{key: self.chosen[key] for key in keys}, accuracy=self.accuracy, stderr=0.02,
                   network=self.chosen)
        self.event("final_started")
        split = "test" if self.test_clips else "val"
        self.event("final_finished", after_s=60, accuracy=self.accuracy + 0.03, stderr=0.019, top5=0.97, loss=0.7,
                   split=split, val_accuracy=self.accuracy + 0.045, val_stderr=0.018, wall_s=59.0)
        self.event("run_finished")
        return self


@pytest.fixture
def fake_search(tmp_path: Path) -> Callable[..., FakeSearch]:
    """`fake_search(target=..., name=..., fields=...)` gives a started search under a temporary folder."""

    def make(name: str = "fake", fields: dict[str, Any] | None = None, **values: Any) -> FakeSearch:
        return FakeSearch(tmp_path / name, **values).start(**fields or {})

    return make


@pytest.fixture
def finished(fake_search: Callable[..., FakeSearch]) -> FakeSearch:
    """Basis, four steps with a failed candidate, a contraction, the final training on test."""
    return fake_search().basis().steps(PUBLISHED_PATH[:4]).contract().end()
