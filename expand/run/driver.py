"""The one loop with side effects: propose, train, journal, select, until the target; then contract and finish.

Every decision is `expand.expansion.decide.decide`'s; this module carries it out and writes the event down. An event is
written after what it speaks of is on disk, so that a kill at any instant loses no more than the training since the
last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from expand.config import Config
from expand.data import PreparedData
from expand.errors import CandidateFailed, ExpandError, Interrupted, RunError
from expand.executors import make_executor
from expand.executors.fork_server import ForkServer
from expand.executors.supervisor import Executor, Listener
from expand.expansion.decide import Action, Done, Stuck, Train, TrainFinal, decide
from expand.expansion.events import (
    FINAL,
    CandidateFinished,
    CandidateRetried,
    CandidateStarted,
    Event,
    FinalFinished,
    FinalStarted,
    RunFailed,
    RunInterrupted,
    StepRetried,
    WinnerChosen,
)
from expand.expansion.rules import Space
from expand.expansion.state import Candidate, Outcome, SearchState
from expand.exports.card import write_card
from expand.run.display import Display, show_event
from expand.rundir.files import cannot_write, write_atomic
from expand.rundir.journal import Journal
from expand.rundir.paths import RunPaths
from expand.space.network import Network, dump_network, load_network
from expand.training.job import Job, Kind, candidate_seed
from expand.training.runtime import Runtime

logger = logging.getLogger(__name__)


@dataclass
class Driver:
    """Carries a run on from its journal to its end. `stop()` is asked at every update whether to end earlier."""

    config: Config
    space: Space
    paths: RunPaths
    data: PreparedData
    runtime: Runtime
    journal: Journal
    state: SearchState
    display: Display
    stop: Callable[[], bool] = lambda: False
    fork_server: ForkServer | None = None
    """Of `executors.early_start`."""
    check: Callable[[], None] = lambda: None
    """Raises where the run's directory is no longer there (`RunLock.check`): asked at every update and before an event
    is written."""

    def run(self) -> None:
        """Work until the search is done.

        Raises `Interrupted` when asked to stop, `RunError` where the search cannot go on; either is in the journal.
        """

        def begin(job: Job, worker: str) -> None:
            resumed = job.paths.checkpoint.exists()
            self.record(FinalStarted(resumed=resumed, worker=worker) if job.kind is Kind.FINAL else
                        CandidateStarted(id=job.id, resumed=resumed, worker=worker))

        def retry(job: Job, attempt: int, reason: str) -> None:
            self.record(CandidateRetried(id=job.id, attempt=attempt, reason=reason))

        def stop() -> bool:
            self.check()
            return self.stop()

        listener = Listener(begin, retry, self.display.tick, stop)
        try:
            with make_executor(self.config.run, self.data, self.runtime, self.paths, listener,
                               self.fork_server) as executor:
                while not isinstance(action := decide(self.state, self.space), Done):
                    self._carry_out(action, executor)
        except Interrupted as interruption:
            self._record_end(RunInterrupted(reason=interruption.what))
            raise Interrupted("stopped; all work so far is kept", where=str(self.paths.root),
                              fix=f"go on with: x3d-expand resume {self.paths.root}") from None
        except ExpandError as error:
            self.check()  # where the whole directory is gone, a training may have met that first, at a file of its own
            self._record_end(RunFailed(reason=str(error)))
            raise

    def _record_end(self, event: Event) -> None:
        """Write down why work ends, where that is possible: on a full disk it may not be, and no decision depends on
        it."""
        with suppress(ExpandError):
            self.record(event)

    def record(self, event: Event) -> None:
        """Write an event down and fold it into the state."""
        self.check()
        written = self.journal.append(event)
        self.state = written.apply(self.state)
        show_event(self.display, written, self.state)

    def retry_failed(self) -> None:
        """Take back the failed candidates of a step in which all failed, so that they are trained again."""
        action = decide(self.state, self.space)
        if isinstance(action, Stuck):
            for candidate in action.step.candidates:
                paths = self.paths.candidate(candidate.id)
                rungs = map(paths.outcome_at, self.config.search.rungs)
                for file in (paths.outcome, paths.checkpoint, paths.checkpoint_before, *rungs):
                    try:
                        file.unlink(missing_ok=True)
                    except OSError as error:
                        raise cannot_write(file, error) from error
            self.record(StepRetried(step=action.step.number, ids=tuple(c.id for c in action.step.candidates)))

    def _carry_out(self, action: Action, executor: Executor) -> None:
        """Do what `decide` says, and write the event down. Raises `Interrupted` when asked to stop."""
        if self.stop():
            raise Interrupted("stopped")
        if isinstance(action, Event):
            if isinstance(action, WinnerChosen):
                network = self._network(self.paths.root.resolve().name, action.network)
                write_atomic(self.paths.network, dump_network(network))
            self.record(action)
        elif isinstance(action, Train):
            for finished in executor.run([self._job(candidate, action.until) for candidate in action.candidates]):
                self.record(CandidateFinished(outcome=Outcome(**finished.fields)))
        elif isinstance(action, TrainFinal):
            self._train_final(action.winner, executor)
        elif isinstance(action, Stuck):
            raise RunError(action.reason, where=str(self.paths.root),
                           fix=f"x3d-expand resume {self.paths.root} trains them again; look at the recipe "
                               "(candidate.lr, candidate.batch_size) first, in a new run")

    def _network(self, name: str, candidate: Candidate) -> Network:
        data = self.config.data
        return Network(name, candidate.factors, self.space.classes, self.data.classes, data.mean, data.std)

    def _job(self, candidate: Candidate, until: float = 1.0) -> Job:
        paths, network = self.paths.candidate(candidate.id), self._network(candidate.id, candidate)
        return Job(candidate.id, network, candidate.gflops, self.config.candidate, self.config.data,
                   candidate_seed(self.config.run.seed, candidate.id), paths, self.config.run.checkpoint_every_s,
                   until=until)

    def _train_final(self, winner: Candidate, executor: Executor) -> None:
        """Train the winner by the final recipe, beside the weights of its best training as a candidate."""
        outcomes = [outcome for outcome in self.state.outcomes_of(winner) if outcome.is_finished]
        best = max(outcomes, key=lambda outcome: outcome.accuracy or 0.0)
        checkpoint = self.paths.candidate(best.id).checkpoint
        trained = checkpoint if checkpoint.exists() else None
        if trained is None:
            logger.warning("the winner's weights as a candidate are gone: the final training starts from new ones, and "
                           "nothing is compared with it")
        job = replace(self._job(winner), id=FINAL, network=load_network(self.paths.network), recipe=self.config.final,
                      paths=self.paths.final_candidate, seed=candidate_seed(self.config.run.seed, FINAL),
                      first_weights=trained if self.config.search.final_start == "candidate" else None,
                      candidate_weights=trained, weights=self.paths.weights, kind=Kind.FINAL)
        try:
            [finished] = executor.run([job])
        except CandidateFailed as error:
            raise RunError(f"the winner's final training failed: {error.what}", where=str(self.paths.root),
                           fix="its network is in final/network.yaml; change the final recipe in a new run") from error
        write_card(self.paths)
        self.record(FinalFinished.of(finished.fields))
