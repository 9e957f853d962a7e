"""Stage 3: a training on the device is the training on the CPU: losses, pictures, norms, folding, checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from expand import logs
from expand.config.schema import BuiltinConfig, DataConfig, RecipeConfig
from expand.data import PreparedData, prepare
from expand.data.loading.transforms import resample
from expand.data.synthetic import rendering as synthetic
from expand.errors import Interrupted
from expand.model import X3D
from expand.model.convolution import plain_operators
from expand.model.folded_batch_norm import for_inference
from expand.rundir.paths import CandidatePaths
from expand.training.evaluate import probabilities_of
from expand.training.job import Hooks, Job
from expand.training.loop import Training, update_precise_bn
from expand.training.runtime import Runtime
from gpu_bench.running import Check, Note, NotHere, Result, Setting
from gpu_bench.stepping import THREADS, TINY, Stepper, network_of, our_model, triton_switch

EXACT, ROUNDED = 1e-3, 3e-2
"""Largest difference of a loss in fp32, and in tf32 or bf16. A small batch norm makes any difference grow."""
STEPS, BATCH, LAST, RATE = 10, 32, 20, 0.01
"""With these, rounding stays below a tenth of `EXACT`, and a gradient that is wrong by a hundredth shows."""
MEAN, STD = 0.45, 0.225
CLIPS = DataConfig(builtin=BuiltinConfig(size=32, seconds=1.5, fps=12, train_clips=32, val_clips=16, test_clips=16))
RECIPE = RecipeConfig(epochs=6, batch_size=32, lr=0.1, dropout=0.0, eval_clips=1, precise_bn_batches=1)
"""One update an epoch, so that `Hooks.epoch` tells each update's loss."""


def checks(setting: Setting, note: Note) -> dict[str, Check]:
    """Of `Comparison`."""
    it = Comparison(setting)
    losses = {"fp32, native": ("fp32", "off", False), "fp32, Triton": ("fp32", "on", False),
              "fp32, graph, a smaller last batch": ("fp32", "off", True), "tf32": ("tf32", "on", False),
              "bf16": ("bf16", "on", False), "bf16, graph, a smaller last batch": ("bf16", "on", True)}
    return ({f"losses in {name}": partial(it.compare_losses, *options) for name, options in losses.items()}
            | {"resample": it.compare_resample, "precise BN": it.compare_norms,
               "pictures of precise BN under bf16": it.compare_pictures_of_norms,
               "folded": it.compare_folded, "folded after SyncBatchNorm": partial(it.compare_folded, is_synced=True),
               "moving average": it.check_average, "resume of a CPU checkpoint": it.resume_from_cpu,
               "resume on the CPU": it.resume_on_cpu})


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double().cpu() - b.detach().double().cpu()).abs().max())


@dataclass(frozen=True)
class Course:
    """Of a training: the losses, the gradients of the first step, and what its graph's recording said."""

    losses: list[float]
    gradients: Tensor
    said: list[str]


class Comparison:
    """The checks of this stage, and what they share."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._network = network_of(TINY)

    def _runtime(self, precision: str, device: str | None = None, *, is_graphed: bool = False) -> Runtime:
        runtime = Runtime(torch.device(device or self._setting.device), THREADS if self._setting.is_gpu else 1,
                          precision, is_graphed)
        runtime.prepare()
        return runtime

    # --- losses

    def _batches(self, *, is_last_smaller: bool) -> list[tuple[Tensor, Tensor]]:
        """The same batches each time, of noise with a picture for each class. With `is_last_smaller`, every fifth has
        fewer clips, as at an epoch's end."""
        made = torch.Generator().manual_seed(1)
        side, found = self._network.factors.resolution, []
        pictures_KCTHW = torch.randn(self._network.classes, 3, 1, side, side, generator=made)
        for number in range(STEPS):
            clips = LAST if is_last_smaller and number % 5 == 4 else BATCH
            y_B = torch.randint(self._network.classes, (clips,), generator=made)
            noise_BCTHW = torch.randn(clips, 3, self._network.factors.frames, side, side, generator=made)
            found.append((pictures_KCTHW[y_B] + 0.5 * noise_BCTHW, y_B))
        return found

    def _losses(self, runtime: Runtime, *, is_last_smaller: bool, is_graphed: bool = False) -> Course:
        torch.manual_seed(0)
        said: list[str] = []
        model = our_model(self._network, dropout=0.0).to(memory_format=runtime.memory_format)
        stepper = Stepper(model, runtime, RecipeConfig(lr=RATE), is_graphed=is_graphed)
        losses, gradients = [], torch.empty(0)
        for x_BCTHW, y_B in self._batches(is_last_smaller=is_last_smaller):
            x_BCTHW = x_BCTHW.to(runtime.device, memory_format=runtime.memory_format)
            with logs.shown_by(said.append):
                losses.append(stepper.step(x_BCTHW, y_B.to(runtime.device)))
            if len(losses) == 1:
                gradients = torch.cat([parameter.grad.flatten().cpu() for parameter in model.parameters()])
        return Course([float(loss) for loss in losses], gradients, said)

    @cached_property
    def _expected(self) -> dict[bool, Course]:
        """On the CPU in fp32."""
        return {is_smaller: self._losses(self._runtime("fp32", "cpu"), is_last_smaller=is_smaller)
                for is_smaller in (False, True)}

    def compare_losses(self, precision: str, triton: str, is_graphed: bool) -> Result:
        """Compare the first ten losses, and the first gradients, with those of the CPU in fp32. (On a CPU: other forms
        of the same layers.)"""
        if not self._setting.is_gpu and (precision == "tf32" or (triton == "on" and precision == "fp32")):
            raise NotHere("for GPUs alone")
        expected = self._expected[is_graphed]
        form = nullcontext() if self._setting.is_gpu or precision != "fp32" or is_graphed else plain_operators()
        with triton_switch(triton), form:
            found = self._losses(self._runtime(precision, is_graphed=is_graphed), is_last_smaller=is_graphed,
                                 is_graphed=is_graphed)
        apart = max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True))
        error = float((found.gradients - expected.gradients).norm() / expected.gradients.norm())
        limit = EXACT if precision == "fp32" else ROUNDED
        is_right = apart <= limit and not found.said and (precision != "fp32" or error <= EXACT)
        line = f"losses apart by {apart:.1e} of {limit:g} at most, first gradients by {error:.1e} of their length"
        return Result("; ".join([line, *found.said]),
                      {"apart": apart, "gradient_error": error, "losses": found.losses, "expected": expected.losses,
                       "remarks": found.said}, is_right)

    # --- pictures and norms

    def _cuts(self) -> tuple[Tensor, Tensor, Tensor]:
        made = torch.Generator().manual_seed(2)
        cuts = torch.randint(256, (BATCH, self._network.factors.frames, 45, 45, 3), dtype=torch.uint8, generator=made)
        sides = torch.randint(33, 46, (BATCH,), generator=made)
        return cuts, sides, torch.arange(BATCH) % 2 == 0

    def _pictures(self, device: str) -> Tensor:
        return resample(*(part.to(device) for part in self._cuts()), 32, MEAN, STD)

    def compare_resample(self) -> Result:
        """Compare resized pictures with the CPU's, whatever precision the training has."""
        self._runtime("fp32", "cpu")
        expected = self._pictures("cpu")
        apart = {}
        for precision in ("fp32", "tf32", "bf16") if self._setting.is_gpu else ("fp32",):
            self._runtime(precision)
            apart[precision] = _apart(self._pictures(self._setting.device), expected)
        return Result(", ".join(f"{precision}: apart by {each:.1e}" for precision, each in apart.items()),
                      {"apart": apart}, is_right=all(each <= EXACT for each in apart.values()))

    def _model(self, device: str) -> X3D:
        """One whose norms have seen clips, so that their statistics are not what they begin with."""
        torch.manual_seed(0)
        model = our_model(self._network)
        x_BCTHW = 0.5 + 2 * torch.randn(BATCH, 3, self._network.factors.frames, 32, 32)
        with torch.no_grad():
            for _ in range(3):
                model(x_BCTHW)
        return model.to(device, memory_format=torch.channels_last_3d)

    def compare_norms(self) -> Result:
        """Compare the statistics that precise BN measures with the CPU's."""
        clips = [x_BCTHW for x_BCTHW, _ in self._batches(is_last_smaller=True)[:5]]
        found: dict[str, list[Tensor]] = {}
        for name, device in (("expected", "cpu"), ("found", self._setting.device)):
            model = self._model(device)
            update_precise_bn(model, clips, len(clips), self._runtime("fp32", device))
            found[name] = [buffer for key, buffer in model.state_dict().items() if "running_" in key]
        apart = max(_apart(a, b) / max(1.0, float(b.abs().max()))
                    for a, b in zip(found["found"], found["expected"], strict=True))
        return Result(f"statistics apart by {apart:.1e}", {"apart": apart}, is_right=apart <= EXACT)

    def compare_pictures_of_norms(self) -> Result:
        """Check that the pictures which are made while precise BN measures are those that a training sees: autocast is
        for the network alone."""
        runtime, seen = self._runtime("bf16"), []
        expected = self._pictures(self._setting.device)

        def clips() -> Iterator[Tensor]:
            for _ in range(2):
                seen.append(self._pictures(self._setting.device))
                yield seen[-1]

        update_precise_bn(self._model(self._setting.device), clips(), 2, runtime)
        apart = max(_apart(pictures, expected) for pictures in seen)
        return Result(f"apart by {apart:.1e}", {"apart": apart}, is_right=apart <= 1e-6 and len(seen) == 2)

    # --- evaluation

    def compare_folded(self, *, is_synced: bool = False) -> Result:
        """Compare the probabilities of the folded network with those of the network itself, in evaluation."""
        runtime = self._runtime("fp32")
        model = self._model(self._setting.device)
        x_BCTHW = self._batches(is_last_smaller=False)[0][0]
        with torch.inference_mode(), plain_operators():
            expected = probabilities_of(copy.deepcopy(model).eval(), x_BCTHW, runtime)
        if is_synced:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with torch.inference_mode():
            folded = for_inference(model)
            apart = _apart(probabilities_of(folded, x_BCTHW, runtime), expected)
        return Result(f"probabilities apart by {apart:.1e}", {"apart": apart}, is_right=apart <= 1e-4)

    # --- whole trainings

    @cached_property
    def _data(self) -> PreparedData:
        return prepare(CLIPS, short_side=64, workers=1)

    def _job(self, name: str, recipe: RecipeConfig = RECIPE) -> Job:
        factors = self._network.factors
        network = replace(self._network, classes=len(synthetic.CLASSES), class_names=synthetic.CLASSES)
        folder = self._setting.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return Job("s00-basis", network, 0.001 * factors.frames, recipe, CLIPS, 7, CandidatePaths(folder), 1000.0)

    def check_average(self) -> Result:
        """Compare the moving average that a training keeps with one that is taken here from its weights."""
        recipe, weights = replace(RECIPE, ema=0.8), []
        training = Training(self._job("average", recipe), self._data, self._runtime("fp32"),
                            Hooks(epoch=lambda row: weights.append(_copied(training.model.parameters()))))
        training.fit()
        average = weights[0]  # the first update begins it
        for each in weights[1:]:
            average = [recipe.ema * a + (1 - recipe.ema) * b for a, b in zip(average, each, strict=True)]
        apart = max(map(_apart, training.result.parameters(), average))
        moved = max(map(_apart, training.result.parameters(), weights[-1]))
        return Result(f"apart by {apart:.1e} after {len(weights)} updates, which moved the weights by {moved:.1e}",
                      {"apart": apart, "moved": moved, "updates": len(weights)}, is_right=apart <= 1e-5 < moved)

    def resume_from_cpu(self) -> Result:
        """Begin a training on the CPU and go on with it on the device."""
        return self._resume("to-device", "cpu", self._setting.device)

    def resume_on_cpu(self) -> Result:
        """Begin a training on the device and go on with it on the CPU."""
        return self._resume("to-cpu", self._setting.device, "cpu")

    def _resume(self, name: str, first: str, second: str) -> Result:
        recipe, said = replace(RECIPE, ema=0.8), []
        job = self._job(name, recipe)
        rows: list[dict[str, float]] = []
        before = Training(job, self._data, self._runtime("fp32", first),
                          Hooks(epoch=rows.append, stop=lambda: len(rows) >= 3))
        try:
            before.fit()
            raise AssertionError("it was not stopped")
        except Interrupted:
            pass
        with logs.shown_by(said.append):
            after = Training(job, self._data, self._runtime("fp32", second), Hooks(epoch=rows.append))
            updates = after.progress.epoch + after.progress.batch
            states = [[*training.model.state_dict().values(), *training.result.state_dict().values(),
                       *_momenta(training.optimizer)] for training in (before, after)]
            apart = max(map(_apart, *states))
            begun, length = len(rows), len(states[0]) == len(states[1])
            after.fit()
            after.refresh_batch_norm()
            accuracy = after.evaluate("val").accuracy
        is_right = updates >= 3 and apart == 0 and length and not said and begun < len(rows) and all(
            math.isfinite(row["loss"]) for row in rows)
        return Result("; ".join([f"went on after {updates} updates with the same weights and momenta" if apart == 0 else
                                 f"went on with weights apart by {apart:.1e}", f"val accuracy {accuracy:.2f}", *said]),
                      {"updates": updates, "apart": apart, "losses": [row["loss"] for row in rows], "remarks": said},
                      is_right)


def _copied(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _momenta(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [state["momentum_buffer"] for state in optimizer.state.values()]
