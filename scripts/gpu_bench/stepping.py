"""Training steps of a network in the ways that are compared, and the convolutions that it is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from benchmarking import BenchmarkFailed, rate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from expand import logs
from expand.config.schema import RecipeConfig
from expand.kernels import triton_depthwise
from expand.model import X3D
from expand.space.factors import Factors
from expand.space.geometry import halve
from expand.space.network import Network, preset
from expand.training.cuda_graphs import GraphedStep
from expand.training.loop import make_optimizer
from expand.training.runtime import Runtime
from gpu_bench.running import Setting

TINY = "tiny"
BATCHES = {TINY: 2, "x2d": 128, "xs": 64, "s": 32, "m": 16, "l": 8, "xl": 4}
"""Clips of a step: what the recipe takes for sets of a thousand clips, or what fits a small GPU."""
MOVES, VALUE_BYTES = 5, 2
"""Times that a convolution's result or its gradient goes through memory at the least (the result is written once and
read twice, its gradient written and read once), and the bytes of a value in bfloat16."""
THREADS = 4


def network_of(name: str, frames: int = 4) -> Network:
    """A published network, or the tiny one, of `frames` frames of 32 pixels, on which a CPU lasts milliseconds."""
    if name != TINY:
        return preset(name)
    return Network(TINY, Factors.of(frames=frames, stride=28 // frames, resolution=32, width=0.5, depth=0.4), 16)


def enlivened(model: nn.Module) -> nn.Module:
    """Set each norm's weight to one: a block's last begins at zero, so that its inner gradients would be zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
    return model


def plain_model(network: Network) -> nn.Module:
    """PyTorchVideo's network of the same factors, which gives logits as ours does, in training."""
    try:
        from pytorchvideo.models.x3d import create_x3d
    except ModuleNotFoundError as error:
        raise BenchmarkFailed(f"PyTorchVideo cannot be imported: {error.name} is missing") from None
    factors = network.factors
    return enlivened(create_x3d(
        input_clip_length=factors.frames, input_crop_size=factors.resolution, model_num_class=network.classes,
        width_factor=2 * factors.gamma_w, depth_factor=factors.gamma_d, bottleneck_factor=factors.gamma_b,
        head_activation=None).train())


def our_model(network: Network, dropout: float = 0.5) -> X3D:
    """Ours, in training."""
    return enlivened(X3D.of(network, dropout=dropout).train())


@contextmanager
def triton_switch(mode: str) -> Iterator[None]:
    """Inside, the depthwise convolution is as X3D_EXPAND_TRITON asks for: `auto`, `on` or `off`."""
    before = os.environ.get(triton_depthwise.SWITCH)
    os.environ[triton_depthwise.SWITCH] = mode
    triton_depthwise.mode.cache_clear()
    try:
        yield
    finally:
        os.environ.pop(triton_depthwise.SWITCH)
        if before is not None:
            os.environ[triton_depthwise.SWITCH] = before
        triton_depthwise.mode.cache_clear()


class Replayer:
    """Stands in for the recorder of CUDA graphs where there is no GPU, for a `model`: a recording has no effect, and a
    replay does the work anew, into the tensors of the recording. `is_failing`: a recording fails as CUDA's does."""

    def __init__(self, model: nn.Module, *, is_failing: bool = False) -> None:
        self._model, self._is_failing = model, is_failing

    def beside(self, work: Callable[[], Any]) -> Any:
        """Run `work`."""
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Return what does `work` again, and its result, which is filled then."""
        if self._is_failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        before = {name: value.clone() for name, value in self._model.state_dict().items()}
        result, parameters = work(), list(self._model.parameters())
        self._model.load_state_dict(before)
        grads = [parameter.grad for parameter in parameters]

        def replay() -> None:
            result.copy_(work())
            for parameter, grad in zip(parameters, grads, strict=True):
                grad.copy_(parameter.grad)

        return replay, result


class Stepper:
    """A network in training on batches that are given: forward, cross-entropy, backward, SGD. `is_graphed`: by a CUDA
    graph (with a `Replayer` on a CPU); `is_failing`: whose recording fails, since a step waits for the device in it."""

    def __init__(self, model: nn.Module, runtime: Runtime, recipe: RecipeConfig, *, is_graphed: bool = False,
                 is_failing: bool = False) -> None:
        self.runtime = runtime
        self.model = model.to(runtime.device)
        self.optimizer = make_optimizer(self.model, recipe)
        self._is_failing = is_failing and runtime.device.type == "cuda"
        recorder = None if runtime.device.type == "cuda" else Replayer(self.model, is_failing=is_failing)
        self._called = GraphedStep(self.take_gradients, list(self.model.parameters()), "step", recorder) \
            if is_graphed else self.take_gradients

    def take_gradients(self, x_BCTHW: Tensor, y_B: Tensor, clips: int) -> Tensor:
        """Leave the gradients of the mean loss in the parameters; return the summed loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.runtime.autocast():
            loss = cross_entropy(self.model(x_BCTHW), y_B, reduction="sum")
        (loss / clips).backward()
        if self._is_failing and torch.cuda.is_current_stream_capturing():
            loss.item()
        return loss.detach()

    def step(self, x_BCTHW: Tensor, y_B: Tensor) -> Tensor:
        """Make one update; return the mean loss, still on the device."""
        loss_sum = self._called(x_BCTHW, y_B, len(y_B))
        self.optimizer.step()
        return loss_sum / len(y_B)


@dataclass(frozen=True)
class Variant:
    """A way to train. `triton`: X3D_EXPAND_TRITON; `measures`: `cudnn.benchmark`; `sharers`: processes on the GPU."""

    is_plain: bool = False
    is_channels_last: bool = True
    triton: str = "auto"
    is_graphed: bool = False
    measures: bool = True
    sharers: int = 1


class Steps:
    """Steps of a `Variant` on one batch of random clips, for a `Worker`."""

    def __init__(self, setting: Setting, name: str, variant: Variant, batch: int) -> None:
        os.environ[triton_depthwise.SWITCH] = variant.triton
        self._setting = setting
        precision, threads = ("bf16", THREADS) if setting.is_gpu else ("fp32", 1)
        self.runtime = Runtime(torch.device(setting.device), threads, precision, variant.is_graphed and setting.is_gpu,
                               variant.sharers)
        self.runtime.prepare()
        torch.backends.cudnn.benchmark = variant.measures
        torch.manual_seed(0)
        network, side = network_of(name), network_of(name).factors.resolution
        model = plain_model(network) if variant.is_plain else our_model(network)
        self._x_BCTHW = torch.randn(batch, 3, network.factors.frames, side, side, device=setting.device)
        self._y_B = torch.arange(batch, device=setting.device) % network.classes
        if variant.is_channels_last:
            model, self._x_BCTHW = (each.to(memory_format=torch.channels_last_3d) for each in (model, self._x_BCTHW))
        self.said: list[str] = []
        self._stepper = Stepper(model, self.runtime, RecipeConfig(lr=0.01), is_graphed=variant.is_graphed)

    def start(self) -> bool:
        """Make a step of two clips, so that what is built for the first step is there, by several processes at once."""
        with logs.shown_by(self.said.append):
            self._stepper.step(self._x_BCTHW[:2], self._y_B[:2])
        self._setting.wait()
        return True

    def rate(self, seconds: float) -> float:
        """Clips a second. Nothing waits for the device within ten steps."""
        def ten() -> int:
            for _ in range(10 if self._setting.is_gpu else 1):
                self._stepper.step(self._x_BCTHW, self._y_B)
            return len(self._y_B) * (10 if self._setting.is_gpu else 1)

        with logs.shown_by(self.said.append):
            return rate(ten, seconds, wait=self._setting.wait)

    def peak_mb(self) -> float:
        """Most memory of the device's tensors."""
        return self.runtime.peak_memory_mb()

    def remarks(self) -> list[str]:
        """What the graph's recording said."""
        return self.said

    def copy_gb_per_s(self) -> float:
        """The device's copy bandwidth."""
        return copy_bandwidth(self._setting)


def copy_bandwidth(setting: Setting) -> float:
    """10^9 bytes a second, read and written together, of copying 2 GB; on a CPU, less."""
    from benchmarking import copy_gb_per_s
    return copy_gb_per_s(megabytes=8 if setting.is_tiny else 2000, seconds=0.02 if setting.is_tiny else 0.5,
                         device=setting.device)


@dataclass(frozen=True)
class Shape:
    """A convolution as a network has it: channels, frames and sides of its input, the kernel, the spatial stride."""

    channels: int
    frames: int
    height: int
    width: int
    channels_out: int
    kernel: tuple[int, int, int]
    stride: int
    groups: int

    def __str__(self) -> str:
        kind = "" if self.groups > 1 else f" to {self.channels_out}"
        return (f"{self.channels}{kind} x {self.frames} x {self.height} x {self.width}, "
                f"{'x'.join(map(str, self.kernel))}, stride {self.stride}")


def convolutions(network: Network, *, depthwise: bool) -> list[Shape]:
    """The different depthwise convolutions of a network, or the different 1x1x1 ones of its blocks, in their order."""
    geometry = network.geometry
    side, found = halve(geometry.resolution), []

    def add(channels: int, out: int, kernel: tuple[int, int, int] = (1, 1, 1), stride: int = 1) -> None:
        is_depthwise = kernel != (1, 1, 1)
        if is_depthwise == depthwise:
            found.append(Shape(channels, geometry.frames, side, side, out, kernel, stride, out if is_depthwise else 1))

    add(geometry.stem, geometry.stem, (5, 1, 1))
    for block in (block for stage in geometry.stages for block in stage):
        add(block.outer_in, block.inner)
        add(block.inner, block.inner, (3, 3, 3), block.stride)
        if block.projection:
            add(block.outer_in, block.outer, stride=block.stride)
        side = halve(side) if block.stride == 2 else side
        add(block.inner, block.outer)
    return list(dict.fromkeys(found))
