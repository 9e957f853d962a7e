"""The model card of a finished run or training: `final/README.md`, written from the files of the run alone.

Class names and other texts read from a file are untrusted: they are escaped, so that they stay text.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expand.config import Config, parse_config, yaml_document
from expand.config.schema import RunConfig
from expand.errors import ExpandError, RunError, UsageError, quantity
from expand.executors.fork_server import call_in_process
from expand.expansion.events import RunStarted
from expand.expansion.text import axis_name, number, one_line, percent, split_note, value_text
from expand.model import X3D
from expand.model.folded_batch_norm import for_inference
from expand.model.load import load_model
from expand.report.summary import summarize
from expand.rundir.contents import check_outcome, read_training
from expand.rundir.files import read_json, write_atomic, write_json
from expand.rundir.journal import last_of, read_events
from expand.rundir.paths import RunPaths
from expand.space.complexity import complexity
from expand.space.factors import REFERENCE_FPS
from expand.space.geometry import evaluation_crop
from expand.space.network import Network, load_network
from expand.training.evaluate import probabilities_of, wilson_interval
from expand.training.runtime import Runtime
from expand.untrusted_input import mapping_of, or_null, record, text, whole
from expand.untrusted_input import number as number_from

MOST_NAMES = 100
"""Class names that are written out; network.yaml has them all."""

WARM_UP = 2
PASSES = (3, 30)
"""The least and the most passes of which a latency is the median."""
ENOUGH_S = 0.5
"""Time after which no further pass begins."""

_count = whole(0, 10**12)
LATENCY = record({"latency_ms": number_from(0, 1e12), "passes": _count, "batch": _count, "crop": _count,
                  "device": text(1000), "threads": _count, "precision": text(100)})


def _version(value: Any, name: str) -> None:
    (or_null(text(1000)) if not isinstance(value, (int, float)) else number_from(-1e300, 1e300))(value, name)


def _versions(value: Any, name: str) -> None:
    (mapping_of(text(100), _version, 1000) if isinstance(value, Mapping) else _version)(value, name)


ENV = mapping_of(text(100), _versions, 1000)
"""env.json: texts and numbers by name, or such mappings (the packages)."""

Rows = Iterator[tuple[str, str]]


def write_card(paths: RunPaths) -> None:
    """Write the card of the run or training in `paths`, whose final training has its outcome.

    The latency is measured once and kept in `final/latency.json`. Raises `RunError` if a file of the run is damaged.
    """
    write_atomic(paths.card, "\n\n".join(_sections(_Facts.of(paths))) + "\n")


@dataclass(frozen=True)
class _Facts:
    """All that a card says. `started`: how the search or training began; `summary`: of a search only; `latency`: None
    if the run's device is not here."""

    paths: RunPaths
    network: Network
    config: Config
    env: Mapping[str, Any]
    result: Mapping[str, Any]
    videos: Mapping[str, int]
    latency: Mapping[str, Any] | None
    started: Mapping[str, Any]
    summary: Mapping[str, Any] | None

    @classmethod
    def of(cls, paths: RunPaths) -> _Facts:
        try:
            config = parse_config(yaml_document.read_regular_file(paths.config), str(paths.config))
        except yaml_document.NotYaml as error:
            raise RunError(error.what, where=str(paths.config), fix="take it back from a copy") from error
        outcome = read_json(paths.final_candidate.outcome, check_outcome)
        is_search = paths.journal.exists()
        begun = last_of(read_events(paths.journal), RunStarted) if is_search else None
        started = begun.own_fields() if begun else {} if is_search else read_training(paths)
        if not started:
            raise RunError("has no beginning, so that it is unknown what was searched", where=str(paths.journal),
                           fix="take it back from a copy")
        return cls(paths, load_network(paths.network), config, read_json(paths.env, ENV), outcome["result"],
                   {split: sum(map(sum, rows)) for split, rows in outcome["confusion"].items()},
                   _latency(paths, config), started, summarize(paths.root) if is_search else None)


# --- the latency ---


def _latency(paths: RunPaths, config: Config) -> dict[str, Any] | None:
    """Return the latency that the run keeps, or measure it on the run's device; None if that is not to be had."""
    if paths.latency.exists():
        return read_json(paths.latency, LATENCY)
    on_gpu = config.run.device == "cuda"
    if on_gpu and not torch.cuda.is_available():  # it was trained on another machine, or on a cluster's
        return None
    model = load_model(paths.root)  # damaged weights are an error, whatever the device
    try:
        if on_gpu:  # in a process of its own: the driver of a search has no GPU
            measured = call_in_process(partial(_measure_on_gpu, paths.root, config.run))
        else:
            measured = measure_latency(model, Runtime.of(config.run))
    except UsageError:  # the run is looked at on another machine
        return None
    except ExpandError:  # a GPU that is full, reserved or failed; the card is worth more than this figure
        if not on_gpu:
            raise
        return None
    write_json(paths.latency, measured)
    return measured


def _measure_on_gpu(root: Path, run: RunConfig) -> dict[str, Any]:
    """Return the latency of the network of the run at `root`, on a GPU of this machine."""
    return measure_latency(load_model(root), Runtime.of(replace(run, executor="local")))


def measure_latency(model: X3D, runtime: Runtime) -> dict[str, Any]:
    """Return the median time to a clip's class probabilities in `runtime`: batch 1, at the evaluation crop, the clip's
    way to the device included. `model` is moved there. Raises `UsageError` for one without a description."""
    network = model.description
    crop = evaluation_crop(network.factors.resolution)
    x_BCTHW = torch.zeros(1, 3, network.factors.frames, crop, crop)
    model = model.to(runtime.device).to(memory_format=runtime.memory_format)
    answering = for_inference(model, runtime.autocast_dtype)
    threads = torch.get_num_threads()
    times_s: list[float] = []
    runtime.prepare()
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP):
                probabilities_of(answering, x_BCTHW, runtime)
            while len(times_s) < PASSES[0] or len(times_s) < PASSES[1] and sum(times_s) < ENOUGH_S:
                began = time.perf_counter()
                probabilities_of(answering, x_BCTHW, runtime)
                times_s.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    is_gpu = runtime.device.type == "cuda"
    return {"latency_ms": 1000 * statistics.median(times_s), "passes": len(times_s), "batch": 1, "crop": crop,
            "device": torch.cuda.get_device_name(runtime.device) if is_gpu else "CPU", "threads": runtime.threads,
            "precision": runtime.precision}


# --- the text ---


def _sections(facts: _Facts) -> Iterator[str]:
    network, crop = facts.network, evaluation_crop(facts.network.factors.resolution)
    origin = "found by a search and trained" if facts.summary else "trained"
    yield f"# {_plain(network.name)}"
    yield (f"A video network of the X3D family for {network.classes} classes, {origin} with x3d-expand "
           f"{_plain(facts.env.get('x3d_expand'))}.")
    yield _table(_network_rows(facts, crop))
    # the code runs as it stands from any folder; of the run it holds numbers, and the path as a literal
    noise = f"torch.rand(1, 3, {network.factors.frames}, {crop}, {crop})"
    code = "\n".join([
        "import torch, expand",
        f"model = expand.load({str(facts.paths.root.resolve())!r})",
        f"clip = ({noise} - {network.mean}) / {network.std}  # your clip's RGB in [0, 1], normalised",
        "best = int(model.probabilities(clip)[0].argmax())",
        f"print({'best' if network.class_names is None else 'model.network.class_names[best]'})"])
    yield f"## Use\n\n```python\n{code}\n```\n\nThe path is the one at the time of writing."
    yield f"## Accuracy\n\n{_table(_accuracy_rows(facts))}"
    if facts.summary:
        steps, contraction = facts.summary["steps"], facts.summary["contraction"]
        lines = [f"{step['step']}. {_step_text(axis_name(step), step)}" for step in steps if step["axis"] is not None]
        if contraction:
            name = f"contraction of {axis_name(contraction)}"
            lines.append(f"{len(steps)}. " + (_step_text(name, contraction) if contraction["id"]
                                              else f"{name}: {_plain(contraction['why'])}"))
        yield "## Expansion path\n\n" + "\n".join(lines)
    data, names = facts.config.data, network.class_names or ()
    more = f" and {len(names) - MOST_NAMES} more, in network.yaml" if len(names) > MOST_NAMES else ""
    clips = [("clips from", _plain(data.path or data.train or "the built-in set")),
             ("clips", ", ".join(f"{count} {split}" for split, count in facts.started["splits"].items() if count)),
             ("fingerprint", _plain(facts.started["fingerprint"])),
             (f"{network.classes} classes", ", ".join(map(_plain, names[:MOST_NAMES])) + more)]
    yield f"## Data\n\n{_table(clips)}"
    if facts.started.get("init"):
        yield f"It began with the weights of {_plain(facts.started['init'])}."
    recipe = [("seed of the run", str(facts.config.run.seed))] + [
        (key, number(value, 6) if isinstance(value, float) else _plain(value))
        for key, value in asdict(facts.config.final).items()]
    yield f"## Recipe of the final training\n\n{_table(recipe)}"
    versions = [(key, ", ".join(f"{_plain(name)} {_plain(item)}" for name, item in value.items())
                 if isinstance(value, Mapping) else _plain(value)) for key, value in facts.env.items()
                if value is not None]
    yield f"## Versions\n\n{_table(versions)}"


def _network_rows(facts: _Facts, crop: int) -> Rows:
    factors, cost, latency = facts.network.factors, complexity(facts.network.geometry), facts.latency
    frames = "1 frame" if factors.frames == 1 else (
        f"{factors.frames} frames × stride {factors.stride} at {REFERENCE_FPS} frames a second")
    yield "clip", f"{frames}; {factors.resolution} px in training, {crop} px in evaluation"
    yield "factors", ", ".join(f"γ{name.removeprefix('gamma_').replace('tau', 'τ')} {number(value, 5)}"
                               for name, value in factors.as_dict().items())
    yield "multiply-adds of a clip", (f"{number(cost.gflops, 4)} × 10⁹ as published; "
                                      f"{number(cost.gflops_fvcore, 4)} × 10⁹ as fvcore counts")
    if facts.summary:
        target = facts.summary["target_gflops"]
        yield "share of the target", f"{percent(cost.gflops / target)} % of {number(target, 6)} × 10⁹ multiply-adds"
    yield "parameters", f"{cost.params:,}"
    yield "activations", f"{cost.activations:,}"
    if latency is None:
        yield "latency", "not measured: the run's device is not in this machine, or was not to be had"
    else:
        yield "latency", (f"{number(latency['latency_ms'])} ms a clip: median of {latency['passes']} passes, batch "
                          f"{latency['batch']}, {latency['crop']} px, {_plain(latency['device'])} with "
                          f"{quantity(latency['threads'], 'thread')}, {_plain(latency['precision'])}")


def _accuracy_rows(facts: _Facts) -> Rows:
    result, views = facts.result, facts.config.final.eval_clips
    split = result["split"]
    low, high = wilson_interval(result["accuracy"], facts.videos[split])
    yield "measured", split_note(split, selected_on_val=True) if facts.summary else f"on {split}"
    yield "top-1", f"{percent(result['accuracy'])} % (95 % interval {percent(low)} to {percent(high)})"
    yield "top-5", f"{percent(result['top5'])} %"
    yield "videos", f"{facts.videos[split]}, each by {views} clips, centre crop, class scores averaged"
    if split != "val":
        yield "top-1 on val", f"{percent(result['val_accuracy'], result['val_stderr'])} %"


def _step_text(name: str, candidate: Mapping[str, Any]) -> str:
    return _plain(f"{name}: {value_text(candidate)}, {number(candidate['gflops'], 4)} GFLOPs, top-1 "
                  f"{percent(candidate['accuracy'], candidate['stderr'])} % on val")


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_plain(name)} | {text} |" for name, text in rows)])


def _plain(text: object) -> str:
    """Return a text in one line, escaped so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|&~#$!])", r"\\\1", one_line(text))
