"""A training step as a CUDA graph: recorded once, then replayed without Python and without a launch for each kernel,
for which the GPU waits longer than it computes where a network is small (docs/decisions/014-gpu.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expand.device_faults import first_line, lacks_memory

WARM_UP = 3
"""Steps before the recording: libraries measure and allocate in them what they may not in a recording."""
Gradients = Callable[[Tensor, Tensor, int], Tensor | None]
"""Of clips, labels and the number of clips: leaves fresh gradients in the parameters and returns sums, or None where
the memory did not suffice."""


class Recorder(Protocol):
    """Records and replays what runs on a device; tests have one of their own."""

    def beside(self, work: Callable[[], Any]) -> Any:
        """Runs `work` so that a recording may follow it, and returns its result."""

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Records `work` without effect. Returns what replays it, and its result, which a replay fills."""


class CudaRecorder:
    """CUDA's."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def beside(self, work: Callable[[], Any]) -> Any:
        """On a stream of its own: what autograd keeps of a step must not belong to the default stream."""
        self._stream = self._stream or torch.cuda.Stream()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """`thread_local`: the thread that pins the next batches calls CUDA meanwhile."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            self._leave(graph, current)
            raise
        return graph.replay, result

    def _leave(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        """Goes back to `stream` from a recording that failed. `torch.cuda.graph` raises where it ends one, and its own
        stream stays the current one, on which no batch of another stream is ever freed."""
        torch.cuda.set_stream(stream)
        with suppress(RuntimeError, AttributeError):  # where torch has ended it, that is an error
            torch._C._cuda_endAllocateToPool(stream.device_index, graph.pool())
        with suppress(RuntimeError, AttributeError, IndexError):  # a copy is in no recording: dropout draws as before
            generator = torch.cuda.default_generators[stream.device_index]
            generator.graphsafe_set_state(generator.clone_state())


class GraphedStep:
    """`gradients`, recorded for the first shape that comes often enough, and replayed for that one; other shapes, such
    as a last and smaller batch, run as ever. The same results, dropout included; `recorder` is CUDA's.

    A recording that fails is told to `log`, and everything runs as ever from then on.
    """

    def __init__(self, gradients: Gradients, parameters: Sequence[nn.Parameter], log: Callable[[str], None],
                 recorder: Recorder | None = None) -> None:
        self._gradients, self._parameters, self._log = gradients, list(parameters), log
        self._recorder = recorder or CudaRecorder()
        self._is_off = False
        self.forget()

    def forget(self) -> None:
        """Drops the recording and its memory: the step is another one from now on, in more parts for instance."""
        self._seen: Counter[tuple] = Counter()
        self._shape: tuple | None = None
        self._replay: Callable[[], None] | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | None = None
        self._grads: list[Tensor | None] = []

    def __call__(self, x_BCTHW: Tensor, y_B: Tensor, clips: int) -> Tensor | None:
        """As `gradients`; the sums are the caller's to keep."""
        shape = (tuple(x_BCTHW.shape), x_BCTHW.dtype, clips)
        if self._is_off or (self._shape is not None and self._shape != shape):
            return self._gradients(x_BCTHW, y_B, clips)
        if self._shape is None and self._seen[shape] < WARM_UP:
            sums = self._recorder.beside(lambda: self._gradients(x_BCTHW, y_B, clips))
            self._seen[shape] += sums is not None
            return sums
        if self._shape is None and not self._record(x_BCTHW, y_B, clips, shape):
            return self._gradients(x_BCTHW, y_B, clips)
        return self._replayed(x_BCTHW, y_B)

    def _record(self, x_BCTHW: Tensor, y_B: Tensor, clips: int, shape: tuple) -> bool:
        """Records the step; whether that went well."""
        inputs = (x_BCTHW.clone(), y_B.clone())
        try:
            replay, sums = self._recorder.record(lambda: self._gradients(*inputs, clips))
        except (MemoryError, RuntimeError) as error:
            self._drop_gradients()
            return self._fail(error)
        if sums is None:
            return self._fail(None)
        self._shape, self._inputs, self._replay, self._sums = shape, inputs, replay, sums
        self._grads = [parameter.grad for parameter in self._parameters]
        return True

    def _drop_gradients(self) -> None:
        """Those of a recording that failed hold its memory, and nothing was computed into them."""
        for parameter in self._parameters:
            parameter.grad = None

    def _fail(self, error: Exception | None) -> bool:
        self._is_off = True
        is_memory = error is None or lacks_memory(error)
        reason = "the memory did not suffice" if is_memory else first_line(error)
        self._log(f"the training step could not be recorded as a CUDA graph ({reason}); it runs without")
        return False

    def _replayed(self, x_BCTHW: Tensor, y_B: Tensor) -> Tensor:
        for own, given in zip(self._inputs, (x_BCTHW, y_B), strict=True):
            own.copy_(given, non_blocking=True)
        self._replay()
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad  # a step of another shape put its own there
        return self._sums.clone()
