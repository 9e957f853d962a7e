"""What the benchmarks of choices share: networks by the axes that lead to them, and their trainings with seeds, whose
lines of JSON are kept in a file, so that what is there already is not trained again. Import `benchmarking` first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from benchmarking import BenchmarkFailed, say

from expand.config import load_config
from expand.data import prepare
from expand.expansion.confidence import encode_right
from expand.expansion.rules import Space, contract, propose
from expand.expansion.state import Candidate
from expand.kernels import library
from expand.rundir.paths import CandidatePaths
from expand.space.factors import Factors
from expand.space.network import Network
from expand.training.job import Hooks, Job, candidate_seed, resolve_recipe
from expand.training.loop import Training
from expand.training.runtime import Runtime

LETTERS = {"f": "x_fast", "t": "x_temporal", "s": "x_spatial", "d": "x_depth", "w": "x_width", "b": "x_bottleneck"}


def network_of(space: Space, path: str) -> Candidate:
    """Return the network that `path` leads to from the basis (`basis`), a letter of `LETTERS` a step; a `*` at the end
    contracts it to the target. Raises `BenchmarkFailed` where it leads nowhere."""
    before = current = space.basis()
    for step, letter in enumerate("" if path == "basis" else path.rstrip("*"), start=1):
        wanted = LETTERS.get(letter)
        found = [c for c in propose(space, current.factors, step).candidates if wanted in (c.axis, *c.also)]
        if not found:
            raise BenchmarkFailed(f"'{path}' leads nowhere at its step {step}: letters are {', '.join(LETTERS)}")
        before, current = current, found[0]
    if path.endswith("*"):
        contracted = contract(space, before.factors, current)
        if contracted is None:
            raise BenchmarkFailed(f"'{path}' cannot be contracted to the target")
        return contracted
    return current


def candidates_after(space: Space, path: str) -> dict[str, Candidate]:
    """Return the candidates of the step after the network of `path`, by their paths."""
    letters = {axis: letter for letter, axis in LETTERS.items()}
    before = "" if path == "basis" else path
    proposal = propose(space, network_of(space, path).factors, len(before) + 1)
    return {before + letters[candidate.axis]: candidate for candidate in proposal.candidates}


@dataclass(frozen=True)
class Task:
    """A training: a network and its name, the recipe of a section of the configuration, and a seed. It is measured on
    val at `points` points."""

    config: str
    options: tuple[str, ...]
    network: str
    factors: Factors
    gflops: float
    recipe: str
    seed: int
    points: int = 1
    section: Literal["candidate", "final"] = "candidate"

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the other trainings of a table."""
        return self.network, self.recipe, self.seed


def train(task: Task) -> dict[str, Any]:
    """Train and measure one network on one thread; return its line of the table, with its curve if there are several
    points, and the accuracy on test of a `final` training where there is such a split."""
    torch.set_num_threads(1)
    library.load()
    config = load_config(task.config, task.options)
    data = prepare(config.data, short_side=2 * task.factors.resolution, workers=1)
    recipe = resolve_recipe(getattr(config, task.section), len(data.train))
    with tempfile.TemporaryDirectory() as folder:
        job = Job("candidate", Network("candidate", task.factors, len(data.classes), data.classes), task.gflops, recipe,
                  config.data, candidate_seed(task.seed, task.network), CandidatePaths(Path(folder)), 1e9)
        curve: list[dict[str, Any]] = []
        training = Training(job, data, Runtime(torch.device("cpu"), 1, "fp32"), Hooks())
        for point in range(1, task.points + 1):
            training.fit(until=point / task.points)
            training.refresh_batch_norm()
            result = training.evaluate("val")
            curve.append({"share": round(training.share, 4), "loss": round(training.mean_loss(), 4),
                          "right": encode_right(result.right)})
        line = {"config": task.config, "options": list(task.options), "classes": len(data.classes),
                "train_clips": len(data.train), "network": task.network, "recipe": task.recipe, "seed": task.seed,
                "gflops": task.gflops, "accuracy": result.accuracy, "loss": result.loss, "clips": len(result.right),
                "right": encode_right(result.right), "wall_s": round(sum(training.seconds().values()), 2)}
        if task.points > 1:
            line["curve"] = curve
        if task.section == "final" and data.test:
            tested = training.evaluate("test")
            line |= {"test_accuracy": tested.accuracy, "test_right": encode_right(tested.right)}
        return line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table that may not be there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train_missing(tasks: Sequence[Task], path: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of `tasks`: those in the file at once, and the others, added to it, as they are trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {task.key for task in tasks}
    known = {(line["network"], line["recipe"], line["seed"]): line for line in read_lines(path)}
    yield from (line for key, line in known.items() if key in keys)
    with ProcessPoolExecutor(processes) as pool, path.open("a") as out:
        for line in pool.map(train, [task for task in tasks if task.key not in known]):
            out.write(json.dumps(line) + "\n")
            out.flush()
            say(f"{line['recipe']} {line['network']} seed {line['seed']}: "
                f"{100 * line.get('test_accuracy', line['accuracy']):.1f} %")
            yield line
