"""Stage 6: how fast each convolution is, against copying as many bytes, and where the time of a step goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmarking import in_turn, median_ratio, rate
from torch import Tensor

from expand.config.schema import RecipeConfig
from expand.kernels import triton_depthwise
from expand.training.runtime import Runtime
from gpu_bench.running import Check, Note, Result, Setting
from gpu_bench.stepping import (
    BATCHES,
    THREADS,
    Shape,
    Stepper,
    convolutions,
    copy_bandwidth,
    network_of,
    our_model,
)

CHANNELS_LAST = torch.channels_last_3d
TOP = 15


def checks(setting: Setting, note: Note) -> dict[str, Check]:
    """Copying, convolutions, and a profile."""
    return Bandwidth(setting, note).checks()


class Bandwidth:
    """The checks of stage 6."""

    def __init__(self, setting: Setting, note: Note) -> None:
        self._setting, self._note = setting, note
        self._dtype = torch.bfloat16 if setting.is_gpu else torch.float32
        self._copying: float | None = None
        self._runtime = Runtime(torch.device(setting.device), THREADS if setting.is_gpu else 1, "bf16")

    def checks(self) -> dict[str, Check]:
        """Copying, the depthwise convolutions, the 1x1x1 convolutions, and the profile of the last network."""
        names = self._setting.networks
        found: dict[str, Check] = {"copying": self.measure_copying}
        found |= {f"depthwise of {name}": partial(self.compare_depthwise, name) for name in names}
        found |= {f"1x1x1 of {name}": partial(self.compare_linear, name) for name in names[::-1]}
        return found | {f"profile of {names[-1]}": partial(self.profile, names[-1])}

    @property
    def copying(self) -> float:
        """10^9 bytes a second."""
        if self._copying is None:
            self._copying = copy_bandwidth(self._setting)
        return self._copying

    def measure_copying(self) -> Result:
        """Measure copies of 2 GB on the device."""
        self._runtime.prepare()
        return Result(f"{self.copying:,.0f} GB/s read and written", {"copy_gb_per_s": self.copying})

    def compare_depthwise(self, name: str) -> Result:
        """Measure output and both gradients of each depthwise convolution: PyTorch's, and the Triton kernels."""
        ways = {"PyTorch": with_gradients(_native), "Triton": with_gradients(triton_depthwise.triton_depthwise)}
        if not self._setting.is_gpu:
            ways.pop("Triton")
        return self._compare(name, ways, depthwise=True)

    def compare_linear(self, name: str) -> Result:
        """Measure output and both gradients of each 1x1x1 convolution: as a convolution, and as a matrix product."""
        return self._compare(name, {"conv3d": with_gradients(_pointwise), "linear": with_gradients(_linear)},
                             depthwise=False)

    def _compare(self, name: str, ways: dict[str, Callable[..., list[Tensor]]], *, depthwise: bool) -> Result:
        """The largest shapes come first: they matter most, should time run out."""
        self._runtime.prepare()
        figures: dict[str, Any] = {}
        shapes = sorted(convolutions(network_of(name), depthwise=depthwise),
                        key=lambda s: -s.channels * s.frames * s.height * s.width)
        for shape in shapes if self._setting.is_full else shapes[:2 if self._setting.is_tiny else 6]:
            figures[str(shape)] = self._measure(shape, BATCHES[name], ways)
            self._note({"shapes": figures})
        second = list(ways)[-1]
        share = [each["copy_share"][second] for each in figures.values()]
        line = f"{second}: {min(share):.0%} to {max(share):.0%} of copy bandwidth"
        if len(ways) > 1:
            gain = [each["gain"] for each in figures.values()]
            line += f"; {min(gain):.2f} to {max(gain):.2f} times as fast as {next(iter(ways))}"
        return Result(f"{line}, in {len(figures)} of {len(shapes)} shapes", {"shapes": figures})

    def _measure(self, shape: Shape, clips: int, ways: dict[str, Callable[..., list[Tensor]]]) -> dict[str, Any]:
        device = self._setting.device
        x = torch.randn(clips, shape.channels, shape.frames, shape.height, shape.width, device=device,
                        dtype=self._dtype).to(memory_format=CHANNELS_LAST)
        weight = torch.randn(shape.channels_out, shape.channels // shape.groups, *shape.kernel, device=device)
        work = {way: partial(do, x, weight, shape.stride) for way, do in ways.items()}
        for once in work.values():
            once()
        y = next(iter(work.values()))()[0]
        # read and written: input and output, the output's gradient twice, the input again, and its gradient
        least_s = x.element_size() * (3 * x.numel() + 3 * y.numel()) / self.copying / 1e9
        seconds = in_turn({way: partial(self._seconds_of, once) for way, once in work.items()}, self._setting.rounds,
                          report=lambda line: None)
        first, *_, second = ways if len(ways) > 1 else [*ways, *ways]
        return {"clips": clips, "seconds": seconds, "least_s": least_s,
                "copy_share": {way: least_s / statistics.median(each) for way, each in seconds.items()},
                "gain": median_ratio(seconds[first], seconds[second])}

    def _seconds_of(self, once: Callable[[], Any]) -> float:
        count = 1 if self._setting.is_tiny else 20

        def several() -> int:
            for _ in range(count):
                once()
            return count

        return 1 / rate(several, self._setting.seconds / 10, wait=self._setting.wait)

    def profile(self, name: str) -> Result:
        """Return the operations that take most of the device's time in three steps."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiled

        self._runtime.prepare()
        network, side = network_of(name), network_of(name).factors.resolution
        stepper = Stepper(our_model(network).to(memory_format=CHANNELS_LAST), self._runtime, RecipeConfig(lr=0.01))
        x_BCTHW = torch.randn(BATCHES[name], 3, network.factors.frames, side, side, device=self._setting.device)
        x_BCTHW, y_B = x_BCTHW.to(memory_format=CHANNELS_LAST), torch.arange(len(x_BCTHW), device=self._setting.device)
        for _ in range(1 if self._setting.is_tiny else 5):
            stepper.step(x_BCTHW, y_B)
        self._setting.wait()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._setting.is_gpu else [])]
        with profiled(activities=activities) as found:
            for _ in range(3):
                stepper.step(x_BCTHW, y_B)
            self._setting.wait()
        place = "self_device_time_total" if self._setting.is_gpu else "self_cpu_time_total"
        took = {each.key: (getattr(each, place), each.count) for each in found.key_averages()}
        whole = sum(us for us, _ in took.values()) or 1.0
        top = sorted(took.items(), key=lambda each: -each[1][0])[:TOP]
        return Result("; ".join(f"{key} {us / whole:.0%}" for key, (us, _) in top[:3]),
                      {"top": [{"name": key, "us_a_step": us / 3, "calls_a_step": count / 3, "share": us / whole}
                               for key, (us, count) in top]})


def with_gradients(convolve: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, int], list[Tensor]]:
    """What does a convolution once with both gradients; the output serves as its own gradient."""
    def once(x_BCTHW: Tensor, weight: Tensor, stride: int) -> list[Tensor]:
        x, w = x_BCTHW.detach().requires_grad_(), weight.detach().requires_grad_()
        y = convolve(x, w, stride)
        return [y.detach(), *torch.autograd.grad(y, (x, w), y.detach())]

    return once


def _native(x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    padding = [side // 2 for side in weight.shape[2:]]
    return F.conv3d(x_BCTHW, weight.to(x_BCTHW.dtype), None, (1, stride, stride), padding, 1, weight.shape[0])


def _pointwise(x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv3d(x_BCTHW, weight.to(x_BCTHW.dtype), None, (1, stride, stride))


def _linear(x_BCTHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    x_BTHWC = x_BCTHW[..., ::stride, ::stride].permute(0, 2, 3, 4, 1)
    return F.linear(x_BTHWC, weight.flatten(1).to(x_BCTHW.dtype)).permute(0, 4, 1, 2, 3)
