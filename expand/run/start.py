"""Searches and single trainings, started and resumed, from their first check to their report.

All mistakes that show without torch are reported before it is imported, so this module imports nothing heavy when it is
loaded. `expand.run.driver` does the work of a search, `expand.run.single_training` that of a training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from expand import logs
from expand.config import Config, dump_config
from expand.config.schema import DataConfig
from expand.data import list_clips
from expand.data.sources.run_list import write_run_list
from expand.errors import UsageError
from expand.executors import early_start
from expand.expansion.events import RunResumed, RunStarted
from expand.expansion.forecast import check_target, largest_resolution
from expand.expansion.rules import Space
from expand.expansion.state import SearchState
from expand.expansion.text import duration
from expand.machine import stop_signals
from expand.run.display import Display, LogFile, show_event, show_log_on
from expand.run.resolve import (
    ANY_NUMBER,
    check_free,
    check_recipes,
    check_unchanged,
    choose_dir,
    current_config,
    list_again,
    prepare_again,
    prepare_clips,
    resolve_config,
    stored_config,
)
from expand.rundir.contents import read_training, weights_at
from expand.rundir.files import make_dir, write_atomic, write_json
from expand.rundir.journal import Journal, read_events
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths
from expand.space.network import Network
from expand.training.job import check_batches, resolve_recipe
from expand.version import __version__

if TYPE_CHECKING:
    from expand.data import PreparedData
    from expand.executors.fork_server import ForkServer
    from expand.run.environment import Estimate
    from expand.training.runtime import Runtime


logger = logging.getLogger(__name__)


def start_search(config: Config, run_dir: Path | None, stem: str, display: Display | None,
                 confirm: Callable[[Estimate], bool]) -> Path:
    """Start a search and work on it to its end; return its directory. An unnamed run is named by `stem`."""
    listed = list_clips(config.data)
    space = Space(config.search, len(listed.classes))
    check_target(space)
    check_recipes(config, space)
    paths = RunPaths(run_dir or choose_dir(config, stem))
    check_free(paths)
    # the fork server imports torch in its own process while this one does
    with show_log_on(display) as display, early_start(config.run) as fork_server:
        from expand.kernels import library
        from expand.run.environment import describe_environment, estimate_search, look_at_gpus
        from expand.training.runtime import Runtime, complaints, resolve_run

        library.load()  # kernels or a device that are not there are said before the clips are decoded
        gpus = look_at_gpus(config.run, fork_server)
        config = replace(config, run=resolve_run(config.run, gpus))
        runtime = Runtime.of(config.run, gpus)
        for complaint in complaints(gpus):
            logger.warning(complaint)
        data = prepare_clips(config.data, listed, largest_resolution(space), begins=True)
        config = resolve_config(config, data, paths.root.resolve().name)
        space = replace(space, config=config.search)  # with the limits that follow from the clips
        check_recipes(config, space, len(data.train))
        estimate = estimate_search(config, space, data, runtime, fork_server)
        time = ""
        if estimate.seconds is not None:
            unit = 60 if estimate.seconds > 90 else 5
            time = f"; roughly {duration(max(unit, round(estimate.seconds / unit) * unit))}"
        logger.info(f"{estimate.candidates} candidates in {estimate.steps} steps, {estimate.gflops:.3g} GFLOPs a clip "
                    f"in all{time}")
        if not confirm(estimate):
            raise UsageError("the search was not started", fix="a smaller --target-gflops, or fewer epochs "
                             "(--set candidate.epochs=N), makes it shorter")
        make_dir(paths.root)
        with RunLock(paths) as lock:
            check_free(paths)
            gpu = gpus[runtime.device.index].name if runtime.gpus else None
            write_json(paths.env, describe_environment(config, gpu))
            write_run_list(paths.clips, config.data, data.listed)
            write_atomic(paths.config, dump_config(config))
            _drive(config, space, paths, data, runtime, display, fork_server, lock)
    return paths.root


def resume_search(run_dir: Path, display: Display | None, values: Mapping[str, Any] | None = None) -> Path:
    """Work on an existing search to its end; return its directory. `values`: options by dotted key for this time only,
    of those that cannot alter a result."""
    paths = RunPaths(run_dir)
    stored_config(paths)  # before the lock, which is a file: there is none in what is no run
    with RunLock(paths) as lock, show_log_on(display) as display:
        config = stored_config(paths, values)
        events = read_events(paths.journal)
        state = SearchState.from_events(events)
        if state.finished:
            if not paths.card.exists():  # it was deleted, or an older version ran
                from expand.exports.card import write_card

                write_card(paths)
            logger.info(f"{run_dir} is finished")
            return paths.root
        started = state.started
        if started:
            check_unchanged(started.config, config, str(paths.config))
        listed = list_again(paths.clips, config.data, started.classes if started else None)
        space = Space(config.search, len(listed.classes))
        with early_start(config.run) as fork_server:  # it imports torch in its own process while this one does
            from expand.run.environment import look_at_gpus
            from expand.training.runtime import Runtime

            runtime = Runtime.of(config.run, look_at_gpus(config.run, fork_server))
            data = prepare_again(listed, paths.clips, config.data, started.own_fields() if started else None,
                                 largest_resolution(space))
            _drive(config, space, paths, data, runtime, display, fork_server, lock)
    return paths.root


def _drive(config: Config, space: Space, paths: RunPaths, data: PreparedData, runtime: Runtime, display: Display,
           fork_server: ForkServer | None, lock: RunLock) -> None:
    """Drive the run from where its journal ends, and write its report however that ended."""
    from expand.run.driver import Driver

    journal, events = Journal(paths.journal), read_events(paths.journal)
    display.opened(paths)
    with logs.received_by(LogFile(paths).write):
        state, search = SearchState.from_events(events), config.search
        written = journal.append(RunResumed() if state.started else RunStarted(
            name=paths.root.resolve().name, version=__version__, target_gflops=space.target, criterion=search.criterion,
            tolerance=search.tolerance, workers=config.run.workers, seed_sd=search.seed_sd,
            final_weight=cast(int, config.final.epochs) / cast(int, config.candidate.epochs),
            classes=tuple(data.classes), splits=data.counts, fingerprint=data.fingerprint, config=dump_config(config)))
        state = written.apply(state)
        make_dir(paths.candidates)  # trainings make their own folders in it, and nothing above
        show_event(display, written, state)
        for remark in runtime.remarks(config.run.workers):
            logger.info(remark)
        with stop_signals() as stop:
            driver = Driver(config, space, paths, data, runtime, journal, state, display,
                            stop.is_set, fork_server, lock.check)
            try:
                driver.retry_failed()
                driver.run()
            finally:
                renew_report(paths)


def renew_report(paths: RunPaths) -> None:
    """Write the report at the end of work, however that ended. An error is logged and no more: the report can be had
    again at any time, and an error that ended the work must stay the one that the user sees."""
    try:
        write_report(paths)
    except Exception as error:  # noqa: BLE001 - nothing that a drawing meets may take the place of what ended the work
        logger.warning(f"the report was not written ({str(error).partition(chr(10))[0]}); "
                       f"x3d-expand plot {paths.root} draws it again")


def write_report(paths: RunPaths) -> None:
    """Write `report/` anew from the journal. Raises `RunError` where that is impossible."""
    from expand.report.plots import plot_expansion  # matplotlib, which a search needs only here
    from expand.report.summary import summarize
    from expand.report.tables import steps_frame

    summary = summarize(paths.root)
    write_atomic(paths.steps_csv, steps_frame(summary).to_csv(index=False))
    for out in (paths.plot_png, paths.plot_svg):
        plot_expansion(summary, out)


def start_training(network: Network, config: Config, init: Path | None, run_dir: Path | None,
                   display: Display | None) -> dict[str, Any]:
    """Train `network` to the end of `config.final`, from the weights of `init` where that is given; return what
    `api.train` promises."""
    paths = RunPaths(run_dir or choose_dir(config, network.name))
    check_free(paths)
    weights = None if init is None else weights_at(init)
    check_batches(resolve_recipe(config.final, ANY_NUMBER), ANY_NUMBER, network.geometry)
    default = DataConfig()  # the network's own mean and std are taken where the configuration leaves the defaults
    own = {name: getattr(network, name) for name in ("mean", "std")
           if getattr(config.data, name) == getattr(default, name)}
    config = replace(config, data=replace(config.data, **own))
    listed = list_clips(config.data)
    from expand.run.single_training import create_and_train

    return create_and_train(paths, network, config, listed, init, weights, display)


def resume_training(run_dir: Path, display: Display | None) -> dict[str, Any]:
    """Train on from the last checkpoint; leave a finished training as it is. Returns what `start_training` does."""
    paths = RunPaths(run_dir)
    spec = read_training(paths)
    config = current_config(paths, spec)
    check_unchanged(spec["config"], config, str(paths.config))
    from expand.run.single_training import train_on

    return train_on(paths, config, display)
