"""A training step as a CUDA graph: recorded once, then replayed without Python and without a launch for each kernel.

For small networks, the GPU waits longer for launches than it computes (docs/decisions/014-gpu.md).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expand.errors import first_line, lacks_memory

logger = logging.getLogger(__name__)

WARM_UP = 3
"""Steps before the recording, in which libraries measure and allocate; in a recording they may not."""
Gradients = Callable[[Tensor, Tensor, int], Tensor | None]
"""A function of clips, labels and the number of clips: leaves fresh gradients in the parameters and returns sums, or
None if memory ran out."""


class Recorder(Protocol):
    """Records and replays the work on a device; tests have one of their own."""

    def beside(self, work: Callable[[], Any]) -> Any:
        """Run `work` so that a recording may follow, and return its result."""

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record `work` without running it. Returns a function that replays it, and its result, which replays fill."""


class CudaRecorder:
    """The recorder of CUDA graphs."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def beside(self, work: Callable[[], Any]) -> Any:
        """Run `work` on a stream of its own: what autograd keeps of it must not belong to the default stream."""
        self._stream = self._stream or torch.cuda.Stream()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record `work`; `thread_local`, because the thread that pins the next batches calls CUDA meanwhile."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            # `torch.cuda.graph` raises when it ends a failed recording, and its own stream stays the current one, on
            # which no batch of another stream is ever freed
            torch.cuda.set_stream(current)
            with suppress(RuntimeError, AttributeError):  # torch may have ended it already
                torch._C._cuda_endAllocateToPool(current.device_index, graph.pool())
            with suppress(RuntimeError, AttributeError, IndexError):  # a copy is in no recording: dropout works again
                generator = torch.cuda.default_generators[current.device_index]
                generator.graphsafe_set_state(generator.clone_state())
            raise
        return graph.replay, result


class GraphedStep:
    """Records `gradients` for the first shape that comes often enough, and replays it for that shape. Other shapes,
    such as a last and smaller batch, run normally. The results are the same, dropout included.

    If a recording fails, the log says so, and every step runs normally from then on. `job_id` names the training there.
    """

    def __init__(self, gradients: Gradients, parameters: Sequence[nn.Parameter], job_id: str,
                 recorder: Recorder | None = None) -> None:
        self._gradients, self._parameters, self._job_id = gradients, list(parameters), job_id
        self._recorder = recorder or CudaRecorder()
        self._is_off = False
        self.forget()

    def forget(self) -> None:
        """Drop the recording and its memory: the step changes, for instance to more micro-batches."""
        self._seen: Counter[tuple] = Counter()
        self._shape: tuple | None = None
        self._replay: Callable[[], None] | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | None = None
        self._grads: list[Tensor | None] = []

    def __call__(self, x_BCTHW: Tensor, y_B: Tensor, clips: int) -> Tensor | None:
        """Return what `gradients` returns; the caller may keep the sums."""
        shape = (tuple(x_BCTHW.shape), x_BCTHW.dtype, clips)
        if self._is_off or (self._shape is not None and self._shape != shape):
            return self._gradients(x_BCTHW, y_B, clips)
        if self._shape is None and self._seen[shape] < WARM_UP:
            sums = self._recorder.beside(lambda: self._gradients(x_BCTHW, y_B, clips))
            self._seen[shape] += sums is not None
            return sums
        if self._shape is None and not self._record(x_BCTHW, y_B, clips, shape):
            return self._gradients(x_BCTHW, y_B, clips)
        assert self._inputs is not None and self._replay is not None and self._sums is not None
        for own, given in zip(self._inputs, (x_BCTHW, y_B), strict=True):
            own.copy_(given, non_blocking=True)
        self._replay()
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad  # a step of another shape has put its own there
        return self._sums.clone()

    def _record(self, x_BCTHW: Tensor, y_B: Tensor, clips: int, shape: tuple) -> bool:
        """Record the step. Returns False if that failed."""
        inputs = (x_BCTHW.clone(), y_B.clone())
        try:
            replay, sums = self._recorder.record(lambda: self._gradients(*inputs, clips))
        except (MemoryError, RuntimeError) as error:
            for parameter in self._parameters:  # these gradients hold the recording's memory; nothing is in them
                parameter.grad = None
            return self._fail(error)
        if sums is None:
            return self._fail(None)
        self._shape, self._inputs, self._replay, self._sums = shape, inputs, replay, sums
        self._grads = [parameter.grad for parameter in self._parameters]
        return True

    def _fail(self, error: Exception | None) -> bool:
        self._is_off = True
        reason = "out of memory" if error is None or lacks_memory(error) else first_line(error)
        logger.warning(f"{self._job_id}: the training step could not be recorded as a CUDA graph ({reason}); it runs "
                       "without")
        return False
