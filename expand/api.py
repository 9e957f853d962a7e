"""Commands as Python functions of the same names and meanings, and `load`: `expand.search(...)` and others are these.
`expand.test`, `predict` and `export` are in rooms of their own (`expand.inference`, `expand.exports`).

Values that the command line prints with `--json` are what the functions return (docs/json.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expand.config import Config, load_config
from expand.config.schema import DataConfig
from expand.errors import DataError, UsageError
from expand.expansion.forecast import check_target, follow, forecast
from expand.expansion.rules import Space
from expand.machine import available_cores
from expand.rundir.named_network import network_of
from expand.rundir.paths import RunPaths
from expand.space.complexity import complexity_of
from expand.space.factors import PUBLISHED_CLASSES

if TYPE_CHECKING:
    from expand.model import X3D
    from expand.run.driver import Display
    from expand.run.search_run import Estimate
    from expand.space.network import Network

Overrides = Sequence[str]
Report = Callable[[str], None]
Progress = Callable[[int, int], None]


def _ignore(*_: Any) -> None:
    """Nobody is told."""


def search(config: str | Path | Config | None = None, *, overrides: Overrides = (),
           values: Mapping[str, Any] | None = None, run_dir: str | Path | None = None, display: Display | None = None,
           confirm: Callable[[Estimate], bool] = lambda estimate: True) -> dict[str, Any]:
    """Searches from the basis to the target and trains the winner; returns the run's `status`.

    `config`: a path, the name of a ready configuration, or a `Config`; `overrides`: texts "section.key=value";
    `values`: options by dotted key, as in `{"search.target_gflops": 6.0, "data.path": "clips"}`. `run_dir`: where the
    run is kept, by default `run.runs_dir/run.name`. `confirm` sees the estimate and may decline.

    Raises `ConfigError` and `UsageError` for a search that cannot be meant, `DataError` for its clips, `RunError` for
    its directory, `Interrupted` when stopped; `resume` then goes on.
    """
    from expand.run.search_run import begin

    settings = _settings(config, overrides, values)
    name = None if isinstance(config, Config) or config is None else Path(config).stem
    return status(begin(settings, Path(run_dir) if run_dir else None, name or "default", display, confirm))


def resume(run_dir: str | Path, *, values: Mapping[str, Any] | None = None,
           display: Display | None = None) -> dict[str, Any]:
    """Goes on with a run after an interruption of any kind; returns its `status`. A finished run is left as it is.

    `values`: options by dotted key for this time only, such as `{"run.workers": 4}`. For a training that belongs to no
    search, returns what `train` does. Raises as `search` does; `RunError` where the configuration or the clips were
    changed since the run began, or `values` could alter a result.
    """
    if RunPaths(Path(run_dir)).training.exists():
        from expand.run import training_run as train_session

        if any(value is not None for value in (values or {}).values()):
            raise UsageError("a single training has no options to change", where=str(run_dir),
                             fix=f"go on with it as it was begun: x3d-expand resume {run_dir}")
        return train_session.go_on(Path(run_dir), display)
    from expand.run.search_run import go_on

    return status(go_on(Path(run_dir), display, values))


def train(network: str | Path | Network, config: str | Path | Config | None = None, *, init: str | Path | None = None,
          overrides: Overrides = (), values: Mapping[str, Any] | None = None, run_dir: str | Path | None = None,
          display: Display | None = None) -> dict[str, Any]:
    """Trains one network by the recipe `final` of `config` and measures it; returns the result (docs/json.md).

    `network`: `xs`, `s`, `m`, `l`, `xl`, `x2d`, a network's YAML, a run, for its winner, or a `Network`. `init`: a run,
    or a file with weights to begin with, ours or those of SlowFast or PyTorchVideo; a head of other classes begins
    anew. The rest is as in `search`; `resume` goes on with it. Under torchrun, every process calls this and takes a
    share.

    Raises as `search` does.
    """
    from expand.run import training_run as train_session

    settings = _settings(config, overrides, values)
    # the clips say how many classes there are, whatever a network's description says
    return train_session.begin(network_of(network, PUBLISHED_CLASSES), settings, Path(init) if init else None,
                               Path(run_dir) if run_dir else None, display)


def load(path: str | Path, network: str | Path | Network | None = None) -> X3D:
    """A trained network, on the CPU and in evaluation mode: logits B x classes from clips B x 3 x T x H x W.

    `path`: a run or a training, a weights file of ours (.pt, .safetensors, .pt2), or a checkpoint of SlowFast or
    PyTorchVideo. `network`: what it is, where the file does not say: a published network's name, a network's YAML, or
    a `Network`, as `model.network` is one. A warning says what had to be taken for granted. No code from the file is
    run.

    Raises `UsageError` for a file that holds no X3D, `RunError` for a run without a trained winner.
    """
    from expand.model.load import load_model

    assumed: list[str] = []
    model = load_model(path, network, log=assumed.append)
    for text in assumed:
        warnings.warn(text, stacklevel=2)
    return model


def status(run_dir: str | Path) -> dict[str, Any]:
    """What a run has done and is doing (docs/json.md); changes nothing, also while the run goes on."""
    from expand.report.summary import summarize

    return summarize(run_dir)


def plot(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Draws the expansion path of a run; returns the file (by default `report/expansion.png` in the run).

    Raises `UsageError` for a file that is neither .png nor .svg.
    """
    from expand.report.plots import plot_expansion

    target = Path(out) if out else RunPaths(Path(run_dir)).plot_png
    plot_expansion(status(run_dir), target)
    return target


def plan(config: str | Path | Config | None = None, *, overrides: Overrides = (),
         values: Mapping[str, Any] | None = None, path: Sequence[str] = (),
         classes: int | None = None) -> dict[str, Any]:
    """What a search would try, without training anything (docs/json.md).

    With `path`, axes in order, the networks along it and the contraction; the candidates of the step after it, and the
    number and cost of all to come. `classes`: by default those of the clips that the configuration names; 400, as
    published, where it names none.
    """
    settings = _settings(config, overrides, values)
    named = config is not None or settings.data != DataConfig()
    counted, notes = (classes, []) if classes else _classes(settings, named)
    space = Space(settings.search, counted)
    check_target(space)
    planned = follow(space, path)
    last = planned.steps[-1] if planned.steps else planned.basis
    is_done = planned.next is None
    to_come = [] if is_done else forecast(space, last if planned.steps else None)
    return {
        "target_gflops": space.target, "classes": space.classes, "basis": planned.basis.as_dict(),
        "steps": [step.as_dict() for step in planned.steps],
        "contraction": planned.contraction and planned.contraction.as_dict(),
        "candidates": [] if is_done else [c.as_dict() for c in planned.next.candidates],
        "excluded": [] if is_done else [{"axis": e.axis, "reason": e.reason} for e in planned.next.excluded],
        "to_come": {"steps": len(to_come), "candidates": sum(map(len, to_come)),
                    "gflops": sum(c.gflops for step in to_come for c in step)},
        "notes": notes}


def _settings(config: str | Path | Config | None, overrides: Overrides, values: Mapping[str, Any] | None) -> Config:
    return config if isinstance(config, Config) else load_config(config, overrides, values)


def _classes(config: Config, named: bool) -> tuple[int, list[str]]:
    """The number of classes of the clips that `config` names, and what is to be said of these clips."""
    if not named and config.data.is_builtin:
        return PUBLISHED_CLASSES, []
    from expand.data.sources import count_classes, list_clips
    from expand.data.sources.balance import balance, balance_notes

    try:
        if config.data.is_builtin:
            return count_classes(config.data), []
        listed = list_clips(config.data)
        return len(listed.classes), [*listed.notes, *balance_notes(balance(listed))]
    except DataError as error:
        without = ("the classes of these clips are counted, so that the costs are right; without the clips, say how "
                   "many there are: --classes N")
        raise UsageError(error.what, where=error.where, fix="\n  ".join(filter(None, [error.fix, without]))) from error


def complexity(network: str | Path) -> dict[str, Any]:
    """The costs of a published network, of a network's YAML file or of a run's winner (docs/json.md).

    Where the YAML file does not say how many classes there are, 400 are counted with, as published; a warning says so.
    Raises `UsageError` where `network` names none of them.
    """
    try:
        found = network_of(network)
    except UsageError:
        found = network_of(network, PUBLISHED_CLASSES)  # raises again for all else that is wrong with it
        warnings.warn(f"{network} does not say how many classes there are; counted with {found.classes}, as published. "
                      "Add a line `classes: N` for another number", stacklevel=2)
    cost = complexity_of(found.factors, found.classes)
    return {"network": found.name, "gflops": cost.gflops, "params": cost.params, "gflops_fvcore": cost.gflops_fvcore,
            "activations": cost.activations, "factors": found.factors.as_dict(), "frames": found.factors.frames,
            "resolution": found.factors.resolution, "stride": found.factors.stride, "classes": found.classes}


def doctor() -> dict[str, Any]:
    """What this machine has for a search, what is in use of it, and what to do where that is less than it could be
    (docs/json.md). Changes nothing, raises nothing; problems are returned."""
    from expand.health import examine

    return examine()


def check_clips(data: str | Path | None = None, *, overrides: Overrides = (), values: Mapping[str, Any] | None = None,
                out: str | Path | None = None, workers: int | None = None, report: Report = _ignore,
                progress: Progress = _ignore) -> dict[str, Any]:
    """Decodes every clip of `data` once and says what is wrong with it (`x3d-expand data check`; docs/json.md).

    `data`: as `data.path`, by default what `overrides` and `values` name, else the built-in clips. Writes
    `data-report.json` and `quarantine.csv` beside the clips, or into `out`. `workers`: processes, by default one a
    core. `report` gets lines for people, `progress` the clips done and to do. Problems are returned, not raised.

    Raises `DataError` for clips that cannot be listed, `UsageError` where nothing can be written.
    """
    from expand.data.check import check_clips as check

    return check(_clips(data, overrides, values), out=Path(out) if out else None, workers=workers or available_cores(),
                 report=report, progress=progress)


def cache_clips(data: str | Path | None = None, *, short_side: int, overrides: Overrides = (),
                values: Mapping[str, Any] | None = None, workers: int | None = None, report: Report = _ignore,
                progress: Progress = _ignore) -> dict[str, Any]:
    """Decodes all clips of `data` ahead of a search, at `short_side` pixels (`x3d-expand data cache`; docs/json.md).

    The rest is as in `check_clips`. Raises `DataError` for whatever is wrong with the clips.
    """
    from expand.data.loading.prepared import cache_clips as cache

    return cache(_clips(data, overrides, values), short_side=short_side, workers=workers or available_cores(),
                 report=report, progress=progress)


def synthesize(out: str | Path, *, classes: int | None = None, clips: int | None = None, overrides: Overrides = (),
               values: Mapping[str, Any] | None = None, workers: int | None = None, report: Report = _ignore,
               progress: Progress = _ignore) -> dict[str, Any]:
    """Makes a set of clips whose classes need what `data.builtin.*` says, into the folder `out`
    (`x3d-expand data synth`); {"folder", "classes", "splits"}.

    Raises `UsageError` for a number of classes that the settings cannot give, `DataError` where `out` is in use or
    cannot be written.
    """
    from expand.data.synthetic.rendering import synthesize as make

    made = make(Path(out), _clips(None, overrides, values).builtin, classes=classes, clips=clips,
                workers=workers or available_cores(), report=report, progress=progress)
    return {"folder": str(made.folder), "classes": list(made.classes), "splits": made.counts}


def _clips(data: str | Path | None, overrides: Overrides, values: Mapping[str, Any] | None) -> DataConfig:
    for text in overrides:
        if not text.strip().startswith("data."):
            raise UsageError("is no option of the clips", where=f"--set {text}",
                             fix="only data.* is meant here, for instance data.timeout_s=20")
    named = {"data.path": str(data)} if data else {}
    return load_config(None, overrides, {**(values or {}), **named}).data
