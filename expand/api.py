"""Every command as a Python function of the same name and meaning, and `load`: `expand.search(...)` and others are
these. The command line calls nothing else.

Values that the command line prints with `--json` are what the functions return (docs/json.md). Nothing heavy is
imported before a function has checked all that can be checked without it. What there is to say meanwhile is logged
(`logging`, logger `expand`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expand import logs
from expand.errors import DataError, UsageError
from expand.rundir.paths import RunPaths

if TYPE_CHECKING:
    from expand.config import Config
    from expand.config.schema import DataConfig
    from expand.model import X3D
    from expand.run.display import Display
    from expand.run.environment import Estimate
    from expand.space.network import Network

Overrides = Sequence[str]
Progress = Callable[[int, int], None]


def _ignore(*_: Any) -> None:
    """Do nothing: the default of callbacks."""


def search(config: str | Path | Config | None = None, *, overrides: Overrides = (),
           values: Mapping[str, Any] | None = None, run_dir: str | Path | None = None, display: Display | None = None,
           confirm: Callable[[Estimate], bool] = lambda estimate: True) -> dict[str, Any]:
    """Search from the basis to the target and train the winner; return the run's `status`.

    `config`: a path, the name of a ready configuration, or a `Config`; `overrides`: texts "section.key=value";
    `values`: options by dotted key, as in `{"search.target_gflops": 6.0, "data.path": "clips"}`. `run_dir`: the run's
    directory, by default `run.runs_dir/run.name`. `confirm` gets the estimate; the search begins only if it returns
    true.

    Raises `ConfigError` and `UsageError` for options that are wrong or contradict each other, `DataError` for the
    clips, `RunError` for the directory, `Interrupted` when stopped; `resume` then goes on.
    """
    from expand.run.start import start_search

    settings = _load_config(config, overrides, values)
    stem = Path(config).stem if isinstance(config, str | Path) else "default"
    return status(start_search(settings, Path(run_dir) if run_dir else None, stem or "default", display, confirm))


def resume(run_dir: str | Path, *, values: Mapping[str, Any] | None = None,
           display: Display | None = None) -> dict[str, Any]:
    """Resume a run after an interruption of any kind; return its `status`. A finished run is left as it is.

    `values`: options by dotted key for this time only, such as `{"run.workers": 4}`. For a training that belongs to no
    search, returns what `train` does. Raises as `search` does; `RunError` where the configuration or the clips were
    changed since the run began, or `values` could alter a result.
    """
    if RunPaths(Path(run_dir)).training.exists():
        from expand.run.start import resume_training

        if any(value is not None for value in (values or {}).values()):
            raise UsageError("a single training has no options to change", where=str(run_dir),
                             fix=f"go on with it as it was begun: x3d-expand resume {run_dir}")
        return resume_training(Path(run_dir), display)
    from expand.run.start import resume_search

    return status(resume_search(Path(run_dir), display, values))


def train(network: str | Path | Network, config: str | Path | Config | None = None, *, init: str | Path | None = None,
          overrides: Overrides = (), values: Mapping[str, Any] | None = None, run_dir: str | Path | None = None,
          display: Display | None = None) -> dict[str, Any]:
    """Train one network by the recipe `final` of `config` and measure it; return the result (docs/json.md).

    `network`: `xs`, `s`, `m`, `l`, `xl`, `x2d`, a network's YAML, a run, for its winner, or a `Network`. `init`: a run,
    or a file of initial weights of this package, SlowFast or PyTorchVideo; a head of other classes is drawn anew. The
    rest is as in `search`; `resume` goes on with it. Under torchrun, every process calls this and takes a share.

    Raises as `search` does.
    """
    from expand.run.start import start_training
    from expand.rundir.contents import network_of
    from expand.space.factors import PUBLISHED_CLASSES

    settings = _load_config(config, overrides, values)
    # the clips say how many classes there are, whatever a network's description says
    return start_training(network_of(network, PUBLISHED_CLASSES), settings, Path(init) if init else None,
                          Path(run_dir) if run_dir else None, display)


def load(path: str | Path, network: str | Path | Network | None = None) -> X3D:
    """Load a trained network onto the CPU, in evaluation mode: logits B x classes from clips B x 3 x T x H x W.

    `path`: a run or a training, a weights file of this package (.pt, .safetensors, .pt2), or a checkpoint of SlowFast
    or PyTorchVideo. `network`: its description, where the file has none: a published network's name, a network's YAML,
    or a `Network`, as `model.network` is one. A warning says what had to be assumed. No code from the file is run.

    Raises `UsageError` for a file that holds no X3D, `RunError` for a run without a trained winner.
    """
    from expand.rundir.contents import weights_at

    weights_at(Path(path))  # before torch is imported
    from expand.model.load import load_model

    assumed: list[str] = []
    with logs.shown_by(assumed.append):
        model = load_model(path, network)
    for text in assumed:
        warnings.warn(text, stacklevel=2)
    return model


def status(run_dir: str | Path) -> dict[str, Any]:
    """Return what a run has done and is doing (docs/json.md). Changes nothing, also while the run goes on."""
    from expand.report.summary import summarize

    return summarize(run_dir)


def plot(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Draw the expansion path of a run; return the file (by default `report/expansion.png` in the run).

    Raises `UsageError` for a file that is neither .png nor .svg.
    """
    summary = status(run_dir)
    from expand.report.plots import plot_expansion

    return plot_expansion(summary, Path(out) if out else RunPaths(Path(run_dir)).plot_png)


def plan(config: str | Path | Config | None = None, *, overrides: Overrides = (),
         values: Mapping[str, Any] | None = None, path: Sequence[str] = (),
         classes: int | None = None) -> dict[str, Any]:
    """Return what a search would try, without training anything (docs/json.md).

    With `path`, axes in order, the networks along it and the contraction; the candidates of the step after it, and the
    number and cost of all to come. `classes`: by default those of the clips that the configuration names; 400, as
    published, where it names none.
    """
    from expand.config.schema import DataConfig
    from expand.expansion.forecast import check_target, follow, forecast
    from expand.expansion.rules import Space

    settings, notes = _load_config(config, overrides, values), list[str]()
    if not classes:
        is_named = config is not None or settings.data != DataConfig()
        classes, notes = _count_classes(settings.data, is_named=is_named)
    space = Space(settings.search, classes)
    check_target(space)
    planned = follow(space, path)
    last = planned.steps[-1] if planned.steps else planned.basis
    proposal = planned.next
    to_come = [] if proposal is None else forecast(space, last if planned.steps else None)
    return {
        "target_gflops": space.target, "classes": space.classes, "basis": planned.basis.as_dict(),
        "steps": [step.as_dict() for step in planned.steps],
        "contraction": planned.contraction and planned.contraction.as_dict(),
        "candidates": [c.as_dict() for c in (proposal.candidates if proposal else ())],
        "excluded": [{"axis": e.axis, "reason": e.reason} for e in (proposal.excluded if proposal else ())],
        "to_come": {"steps": len(to_come), "candidates": sum(map(len, to_come)),
                    "gflops": sum(c.gflops for step in to_come for c in step)},
        "notes": notes}


def _load_config(config: str | Path | Config | None, overrides: Overrides, values: Mapping[str, Any] | None) -> Config:
    from expand.config import Config, load_config

    return config if isinstance(config, Config) else load_config(config, overrides, values)


def _count_classes(data: DataConfig, *, is_named: bool) -> tuple[int, list[str]]:
    """The number of classes of the clips `data`, and remarks on these clips."""
    from expand.data.sources import count_classes, list_clips
    from expand.data.sources.splits import balance, balance_notes
    from expand.space.factors import PUBLISHED_CLASSES

    if data.is_builtin:
        return count_classes(data) if is_named else PUBLISHED_CLASSES, []
    try:
        listed = list_clips(data)
    except DataError as error:
        without = ("the classes of these clips are counted, so that the costs are right; without the clips, say how "
                   "many there are: --classes N")
        raise UsageError(error.what, where=error.where, fix="\n  ".join(filter(None, [error.fix, without]))) from error
    return len(listed.classes), [*listed.notes, *balance_notes(balance(listed))]


def complexity(network: str | Path) -> dict[str, Any]:
    """Return the costs of a published network, of a network's YAML file or of a run's winner (docs/json.md).

    Where the YAML file does not say how many classes there are, 400 are taken, as published; a warning says so.
    Raises `UsageError` where `network` names none of them.
    """
    from expand.rundir.contents import network_of
    from expand.space.complexity import complexity_of
    from expand.space.factors import PUBLISHED_CLASSES

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


def test(source: str | Path, *, views: int = 10, data: str | Path | None = None, data_root: str | Path | None = None,
         overrides: Overrides = (), split: str | None = None, weights: str | Path | None = None,
         out: str | Path | None = None, batch_size: int = 8, device: str = "auto", threads: int | None = None,
         progress: Progress = _ignore) -> dict[str, Any]:
    """Measure a network on labelled clips with 10 or 30 views a video, class probabilities averaged.

    `source`: a run, a training's folder or a file with weights; with `weights`, a published network's name or a
    network's YAML. `data`: labelled clips as in a search, by default those of the run; `data_root`: where relative
    paths in lists start; `overrides`: texts "data.key=value". `split`: by default test where there is one, else val.
    Labels are matched by the classes' names; by their order where the network does not know names. `progress` gets
    the clips done and to do.

    Writes result.json, classes.csv, confusion.csv, confusion.png and scores.csv (a row a video) into `out`, by default
    `test/<split>-<views>views` in a run, else `test-<network>-<split>-<views>views` here. Returns what result.json
    holds (docs/json.md).

    Raises `UsageError` for options that are wrong, `DataError` for the clips, `RunError` for a network that gives no
    scores.
    """
    from expand.inference.options import choose_test_clips

    chosen = choose_test_clips(source, weights, views=views, data=data, data_root=data_root, overrides=overrides,
                               split=split, out=out, batch_size=batch_size)
    from expand.inference.testing import measure

    return measure(source, chosen, views=views, weights=weights, out=Path(out) if out else None, batch_size=batch_size,
                   device=device, threads=threads, progress=progress)


def predict(source: str | Path, videos: Sequence[str | Path], *, top: int = 5, views: int = 10,
            timeline: bool = False, window_s: float | None = None, hop_s: float | None = None,
            weights: str | Path | None = None, device: str = "auto", threads: int | None = None,
            report: Callable[[dict[str, Any]], None] = _ignore, progress: Progress = _ignore) -> dict[str, Any]:
    """Name the `top` classes of each file, from `views` clips uniform in time, centre crop, probabilities averaged.

    `source`: a run, a training's folder or a file with weights; with `weights`, a published network's name or a
    network's YAML. `timeline` adds what a window of `window_s` seconds sees that moves on by `hop_s` (default: the
    clip's span, at least 1 s, and half of the window); a longer window takes more clips. `report` gets each file's
    answer as it is ready, `progress` the clips done and to do in the present file. Returns the answers in the order of
    `videos` (docs/json.md); a file that cannot be read has "error", the reason, and no predictions.

    Raises `UsageError` for options that are wrong, `UsageError` or `RunError` for the network.
    """
    from expand.inference.options import check_predict

    check_predict(source, weights, top=top, views=views, timeline=timeline, window_s=window_s, hop_s=hop_s)
    from expand.inference.predicting import predict_files

    return predict_files(source, videos, top=top, views=views, timeline=timeline, window_s=window_s, hop_s=hop_s,
                         weights=weights, device=device, threads=threads, report=report, progress=progress)


def export(model_or_run: X3D | str | Path, format: str, path: str | Path | None = None, *,
           weights: str | Path | None = None, compared: Callable[[float], None] = _ignore) -> list[Path]:
    """Write a network in one of `expand.exports.FORMATS`; return the files.

    `model_or_run`: an `X3D`; a run, a training or a file with weights; or, with the file `weights`, the name of a
    published network or a network's YAML. `path`: a file, or a folder for `<network's name><suffix>`; by default the
    run's `final/`, else the current folder. `compared` gets the largest difference between the network's logits and
    those of the written graph, where that could be measured.

    Raises `UsageError` for options that are wrong, a package that is missing, and a file that computes something else.
    """
    from expand.exports import hand_over

    done = hand_over(model_or_run, format, path, weights=weights)
    if done.largest_difference is not None:
        compared(done.largest_difference)
    return done.files


def doctor() -> dict[str, Any]:
    """Return what this machine has for a search, what is in use of it, and what to do where that is less than it could
    be (docs/json.md). Changes nothing, raises nothing; problems are returned."""
    from expand.health import examine

    return examine()


def check_clips(data: str | Path | None = None, *, overrides: Overrides = (), values: Mapping[str, Any] | None = None,
                out: str | Path | None = None, workers: int | None = None,
                progress: Progress = _ignore) -> dict[str, Any]:
    """Decode every clip of `data` once and report what is wrong with it (`x3d-expand data check`; docs/json.md).

    `data`: as `data.path`, by default what `overrides` and `values` name, else the built-in clips. Writes
    `data-report.json` and `quarantine.csv` beside the clips, or into `out`. `workers`: processes, by default one a
    core. `progress` gets the clips done and to do. Problems are returned, not raised.

    Raises `DataError` for clips that cannot be listed, `UsageError` where nothing can be written.
    """
    config = _data_config(data, overrides, values)
    from expand.data.check import check_clips as check
    from expand.machine import available_cores

    return check(config, out=Path(out) if out else None,
                 workers=workers or available_cores(), progress=progress)


def cache_clips(data: str | Path | None = None, *, short_side: int, overrides: Overrides = (),
                values: Mapping[str, Any] | None = None, workers: int | None = None,
                progress: Progress = _ignore) -> dict[str, Any]:
    """Decode all clips of `data` ahead of a search, at `short_side` pixels (`x3d-expand data cache`; docs/json.md).

    The rest is as in `check_clips`. Raises `DataError` for mistakes in the clips.
    """
    config = _data_config(data, overrides, values)
    from expand.data.loading.prepared import cache_clips as cache
    from expand.machine import available_cores

    return cache(config, short_side=short_side, workers=workers or available_cores(), progress=progress)


def synthesize(out: str | Path, *, classes: int | None = None, clips: int | None = None, overrides: Overrides = (),
               values: Mapping[str, Any] | None = None, workers: int | None = None,
               progress: Progress = _ignore) -> dict[str, Any]:
    """Make a set of clips whose classes need what `data.builtin.*` says, into the folder `out`
    (`x3d-expand data synth`); {"folder", "classes", "splits"}.

    Raises `UsageError` for a number of classes that the settings cannot give, `DataError` where `out` is in use or
    cannot be written.
    """
    builtin = _data_config(None, overrides, values).builtin
    from expand.data.synthetic.rendering import synthesize as make
    from expand.machine import available_cores

    made = make(Path(out), builtin, classes=classes, clips=clips,
                workers=workers or available_cores(), progress=progress)
    return {"folder": str(made.folder), "classes": list(made.classes), "splits": made.counts}


def _data_config(data: str | Path | None, overrides: Overrides, values: Mapping[str, Any] | None) -> DataConfig:
    for text in overrides:
        if not text.strip().startswith("data."):
            raise UsageError("is no option of the clips", where=f"--set {text}",
                             fix="only data.* is meant here, for instance data.timeout_s=20")
    from expand.config import load_config

    named = {"data.path": str(data)} if data else {}
    return load_config(None, overrides, {**(values or {}), **named}).data
