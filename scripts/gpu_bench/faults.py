"""Stage 4: forced faults: too little memory, a recording that fails, an error of the GPU itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from expand import logs
from expand.config.schema import RecipeConfig
from expand.data import PreparedData, prepare
from expand.data.synthetic import rendering as synthetic
from expand.rundir.paths import CandidatePaths
from expand.space.factors import Factors
from expand.space.network import Network
from expand.training.candidate import train_candidate
from expand.training.job import Hooks, Job, Tick
from expand.training.runtime import Runtime
from gpu_bench.running import Check, Note, NotHere, Result, Setting, Worker
from gpu_bench.stepping import THREADS, TINY, Stepper, network_of, our_model
from gpu_bench.training import CLIPS

STEPS, SETTLED = 50, 10
"""Steps after a failing recording, and the one after which memory may not grow any more."""
RECIPE = RecipeConfig(epochs=1, batch_size=32, eval_clips=1, precise_bn_batches=1)


def checks(setting: Setting, note: Note) -> dict[str, Check]:
    """The faults; the first needs a process that has not used the GPU yet."""
    return {"an error of the GPU is no outcome": partial(break_gpu, setting),
            "too little memory": partial(restrict_memory, setting, note),
            "a recording that fails": partial(fail_recording, setting)}


def _job(setting: Setting, name: str, recipe: RecipeConfig = RECIPE) -> Job:
    """A training that takes some hundred megabytes."""
    factors = Factors.of(frames=16, stride=1, resolution=64, width=1.0, bottleneck=2.0, depth=0.4)
    folder = setting.scratch / "faults" / name
    folder.mkdir(parents=True)
    return Job("s00-basis", Network("large", factors, len(synthetic.CLASSES), synthetic.CLASSES), 0.1, recipe, CLIPS, 7,
               CandidatePaths(folder), 1000.0)


def _clips() -> PreparedData:
    return prepare(CLIPS, short_side=64, workers=1)


def restrict_memory(setting: Setting, note: Note) -> Result:
    """Train with ever smaller shares of the GPU's memory, until batches go through the network in parts."""
    if not setting.is_gpu:
        raise NotHere("a share of the memory is a GPU's")
    data, tried = _clips(), []
    whole = torch.cuda.get_device_properties(setting.device).total_memory
    sharers = 1
    for number in range(8):
        runtime = Runtime(torch.device(setting.device), THREADS, "fp32", sharers=sharers)
        lines: list[str] = []
        with logs.shown_by(lines.append):
            outcome = train_candidate(_job(setting, f"memory-{number}"), data, runtime, Hooks())
        tried.append({"sharers": sharers, "state": outcome.state, "reason": outcome.reason, "notes": outcome.notes,
                      "peak_mb": outcome.peak_memory_mb, "lines": lines})
        note({"tried": tried})
        if outcome.state != "finished" or outcome.notes:
            break
        # as if so many processes shared the GPU that each has a third of what was taken, and then half of that
        sharers = max(2 * sharers, int(1.5 * whole / (outcome.peak_memory_mb * 1e6)))
        runtime.release_memory()
    last = tried[-1]
    is_right = last["state"] == "finished" and bool(last["notes"])
    return Result(f"with {last['sharers']} sharers: {last['state']}; {'; '.join(last['notes']) or last['reason']}",
                  {"tried": tried}, is_right)


def fail_recording(setting: Setting) -> Result:
    """Have a recording fail, then make 50 steps as a training does, with clips that come from another stream: they must
    go on, and the memory must not grow."""
    runtime = Runtime(torch.device(setting.device), THREADS if setting.is_gpu else 1, "fp32", setting.is_gpu)
    runtime.prepare()
    said: list[str] = []
    network, batch = network_of(TINY), 4 if setting.is_tiny else 64
    stepper = Stepper(our_model(network).to(memory_format=runtime.memory_format), runtime, RecipeConfig(lr=0.01),
                      is_graphed=True, is_failing=True)
    side, taken, losses = network.factors.resolution, [], []
    y_B = torch.arange(batch, device=setting.device) % network.classes
    stream = torch.cuda.Stream() if setting.is_gpu else None
    for _ in range(STEPS):
        shape = (batch, 3, network.factors.frames, side, side)
        if stream is None:
            x_BCTHW = torch.randn(shape).to(memory_format=runtime.memory_format)
        else:
            with torch.cuda.stream(stream):
                x_BCTHW = torch.randn(shape, device=setting.device).to(memory_format=runtime.memory_format)
            torch.cuda.current_stream().wait_stream(stream)
            x_BCTHW.record_stream(torch.cuda.current_stream())
        with logs.shown_by(said.append):
            losses.append(stepper.step(x_BCTHW, y_B))
        setting.wait()
        taken.append(torch.cuda.memory_allocated() / 1e6 if setting.is_gpu else 0.0)
    grown, is_default = taken[-1] - taken[SETTLED], True
    if setting.is_gpu:
        is_default = torch.cuda.current_stream() == torch.cuda.default_stream()
    is_finite = all(bool(loss.isfinite()) for loss in losses)
    batch_mb = 4 * x_BCTHW.numel() / 1e6
    line = f"{STEPS} steps; memory grew by {grown:.1f} MB, a batch has {batch_mb:.1f} MB"
    return Result("; ".join([line, *said, *([] if is_default else ["another stream than before is current"])]),
                  {"memory_mb": taken, "said": said, "is_default_stream": is_default},
                  is_right=bool(said) and is_finite and is_default and grown < 2 * batch_mb)


class _BrokenTraining:
    """For a process of its own, whose GPU context an error of the GPU leaves unusable."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._job = setting, _job(setting, "fault", replace(RECIPE, batch_size=16))

    def train(self) -> str:
        """Train until an index that is out of bounds on the GPU; return what came of it."""
        def tick(_: Tick) -> None:
            torch.zeros(4, device=self._setting.device)[torch.tensor([7], device=self._setting.device)].cpu()

        runtime = Runtime(torch.device(self._setting.device), THREADS, "fp32")
        return train_candidate(self._job, _clips(), runtime, Hooks(tick=tick)).state

    def outcome(self) -> str:
        """The path of the training's outcome."""
        return str(self._job.paths.outcome)


def break_gpu(setting: Setting) -> Result:
    """Raise an error of the GPU in a training: it says nothing about the candidate, which must not get an outcome."""
    if not setting.is_gpu:
        raise NotHere("only a GPU has such errors")
    with Worker(_BrokenTraining, setting) as worker:
        path = Path(worker.ask("outcome"))
        try:
            ended = f"the training returned: {worker.ask('train')}"
        except Exception as error:  # noqa: BLE001 - any end but an outcome is right
            ended = str(error)
    has_outcome = path.exists()
    return Result(f"{'an outcome was written' if has_outcome else 'no outcome was written'}; {ended}",
                  {"has_outcome": has_outcome, "ended": ended}, is_right=not has_outcome)
