"""The model card of a finished run or training: `final/README.md`, written from the files of the run alone.

Class names and other texts read from a file are untrusted: they are escaped, so that they stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expand.config import Config, parse_config, yaml_document
from expand.config.schema import RunConfig
from expand.errors import ExpandError, RunError, UsageError
from expand.executors.fork_server import call_in_process
from expand.expansion.events import RunStarted
from expand.expansion.text import axis_name, number, one_line, percent, split_note, value_text
from expand.exports.latency import measure_latency
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
from expand.training.evaluate import wilson_interval
from expand.training.runtime import Runtime
from expand.untrusted_input import mapping_of, or_null, record, text, whole
from expand.untrusted_input import number as number_from

MOST_NAMES = 100
"""Class names that are written out; network.yaml has them all."""

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
    """Writes the card of the run or training in `paths`, whose final training has its outcome.

    The latency is measured once and kept in `final/latency.json`. Raises `RunError` where a file of the run is damaged.
    """
    write_atomic(paths.card, _text(_Facts.of(paths)))


@dataclass(frozen=True)
class _Facts:
    """All that a card says. `started` is what the search or training was begun with; `summary` a search's only;
    `latency` is None where the run's device is not here."""

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
        config = _config(paths)
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


def _config(paths: RunPaths) -> Config:
    try:
        return parse_config(yaml_document.read_regular_file(paths.config), str(paths.config))
    except yaml_document.NotYaml as error:
        raise RunError(error.what, where=str(paths.config), fix="take it back from a copy") from error


def _latency(paths: RunPaths, config: Config) -> dict[str, Any] | None:
    if paths.latency.exists():
        return read_json(paths.latency, LATENCY)
    on_gpu = config.run.device == "cuda"
    if on_gpu and not torch.cuda.is_available():  # it was trained on another machine, or on a cluster's
        return None
    model = load_model(paths.root)
    try:
        if on_gpu:  # in a process of its own: the driver of a search has no GPU
            measured = call_in_process(partial(_measured_at, paths.root, config.run))
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


def _measured_at(root: Path, run: RunConfig) -> dict[str, Any]:
    """The latency of the network of the run at `root`, on a GPU of this machine."""
    return measure_latency(load_model(root), Runtime.of(replace(run, executor="local")))


def _text(facts: _Facts) -> str:
    return "\n\n".join(_parts(facts)) + "\n"


def _parts(facts: _Facts) -> Iterator[str]:
    origin = "found by a search and trained" if facts.summary else "trained"
    yield f"# {_plain(facts.network.name)}"
    yield (f"A video network of the X3D family for {facts.network.classes} classes, {origin} with x3d-expand "
           f"{_plain(facts.env.get('x3d_expand'))}.")
    yield _table(_network_rows(facts))
    yield f"## Use\n\n```python\n{_code(facts)}\n```\n\nThe path is the one at the time of writing."
    yield f"## Accuracy\n\n{_table(_accuracy_rows(facts))}"
    if facts.summary:
        yield "## Expansion path\n\n" + "\n".join(_path_lines(facts.summary))
    yield f"## Data\n\n{_table(_data_rows(facts))}"
    if facts.started.get("init"):
        yield f"It began with the weights of {_plain(facts.started['init'])}."
    yield f"## Recipe of the final training\n\n{_table(_recipe_rows(facts.config))}"
    yield f"## Versions\n\n{_table((key, _listed(value)) for key, value in facts.env.items() if value is not None)}"


def _network_rows(facts: _Facts) -> Rows:
    factors, cost = facts.network.factors, complexity(facts.network.geometry)
    crop = evaluation_crop(factors.resolution)
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
    yield "latency", _latency_text(facts.latency)


def _latency_text(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return "not measured: the run's device is not in this machine, or was not to be had"
    threads = f" with {latency['threads']} thread{'s' if latency['threads'] != 1 else ''}"
    return (f"{number(latency['latency_ms'])} ms a clip: median of {latency['passes']} passes, "
            f"batch {latency['batch']}, {latency['crop']} px, {_plain(latency['device'])}{threads}, "
            f"{_plain(latency['precision'])}")


def _code(facts: _Facts) -> str:
    """Runs as it stands from any folder. Of the run it holds numbers, and the path as a literal."""
    network = facts.network
    crop = evaluation_crop(network.factors.resolution)
    noise = f"torch.rand(1, 3, {network.factors.frames}, {crop}, {crop})"
    best = "best" if network.class_names is None else "model.network.class_names[best]"
    return "\n".join([
        "import torch, expand",
        f"model = expand.load({str(facts.paths.root.resolve())!r})",
        f"clip = ({noise} - {network.mean}) / {network.std}  # your clip's RGB in [0, 1], normalised",
        "best = int(model.probabilities(clip)[0].argmax())",
        f"print({best})"])


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


def _path_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    for step in summary["steps"]:
        if step["axis"] is not None:
            yield f"{step['step']}. {_step_text(axis_name(step), step)}"
    contraction = summary["contraction"]
    if contraction and contraction["id"]:
        yield f"{len(summary['steps'])}. {_step_text(f'contraction of {axis_name(contraction)}', contraction)}"
    elif contraction:
        yield f"{len(summary['steps'])}. contraction of {axis_name(contraction)}: {_plain(contraction['why'])}"


def _step_text(name: str, candidate: Mapping[str, Any]) -> str:
    return _plain(f"{name}: {value_text(candidate)}, {number(candidate['gflops'], 4)} GFLOPs, top-1 "
                  f"{percent(candidate['accuracy'], candidate['stderr'])} % on val")


def _data_rows(facts: _Facts) -> Rows:
    data, names = facts.config.data, facts.network.class_names or ()
    clips = facts.started["splits"]
    yield "clips from", _plain(data.path or data.train or "the built-in set")
    yield "clips", ", ".join(f"{count} {split}" for split, count in clips.items() if count)
    yield "fingerprint", _plain(facts.started["fingerprint"])
    more = f" and {len(names) - MOST_NAMES} more, in network.yaml" if len(names) > MOST_NAMES else ""
    yield f"{facts.network.classes} classes", ", ".join(map(_plain, names[:MOST_NAMES])) + more


def _recipe_rows(config: Config) -> Rows:
    yield "seed of the run", str(config.run.seed)
    for key, value in asdict(config.final).items():
        yield key, number(value, 6) if isinstance(value, float) else _plain(value)


def _listed(value: Any) -> str:
    """A value of env.json."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(key)} {_plain(item)}" for key, item in value.items())
    return _plain(value)


def _table(rows: Rows) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_plain(name)} | {text} |" for name, text in rows)])


def _plain(text: object) -> str:
    """Text as Markdown shows it as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|&~#$!])", r"\\\1", one_line(text))
