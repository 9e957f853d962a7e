"""Which of several implementations is used: measured once for each shape on the GPU at hand, and kept.

Rivals must agree before speed counts. What was measured lies in the cache folder, so that the next process and the next
run take the same implementation: a choice made anew by the clock could change the last bits of a result.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from expand.device_faults import is_device_fault
from expand.errors import ExpandError
from expand.home import user_cache
from expand.rundir.files import write_json

Rival = Callable[[], Sequence[Tensor]]
"""Does the whole work once and returns its results."""
ROUNDS, REPEATS, WARM_UP = 5, 4, 3
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 6e-2}
"""Largest difference of two results, as a share of the largest value, by the coarsest type among them: the standard may
round to TF32 or bfloat16 where a rival sums in float32. A wrong kernel is off by a whole."""


def seconds_on_gpu(work: Rival) -> float:
    """GPU seconds of one `work`, of a few in a row."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(REPEATS):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / REPEATS


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be measured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@dataclass
class Choices:
    """What was chosen for each key, in `path` and in this process. `seconds` measures a rival.

    Only what was measured is written down: a compiler or a header that is missing today may be there tomorrow. And
    that a rival ended the process's use of the GPU, so that no other process tries it.
    """

    path: Path | None
    seconds: Callable[[Rival], float] = seconds_on_gpu
    known: dict[str, str] = field(default_factory=dict)
    unrivalled: set[str] = field(default_factory=set)
    """Keys for which no rival of the standard was fit, as far as this process has seen."""

    def __post_init__(self) -> None:
        self.known = {**self._stored(), **self.known}

    def pick(self, key: str, rivals: Mapping[str, Rival]) -> str:
        """The name of the fastest of `rivals`, the first of which is the standard: another one that fails, or whose
        results differ from the standard's, is left out with a warning.

        Where memory does not suffice, the standard's results are not finite, or a CUDA graph is being captured, the
        answer is the standard for now and nothing is remembered.
        """
        standard = next(iter(rivals))
        if (known := self.known.get(key)) in rivals:
            return known
        if key in self.unrivalled or is_capturing():
            return standard
        try:
            expected = rivals[standard]()
            if not all(bool(result.isfinite().all()) for result in expected):
                return standard
            fit = {standard: rivals[standard], **self._agreeing(key, expected, rivals)}
            if len(fit) == 1:
                self.unrivalled.add(key)
                return standard
            chosen = self._fastest(fit)
        except torch.OutOfMemoryError:
            return standard
        return self._keep(key, chosen, rivals)

    def _agreeing(self, key: str, expected: Sequence[Tensor], rivals: Mapping[str, Rival]) -> dict[str, Rival]:
        """The rivals but for the first whose results are `expected`."""
        fit = {}
        for name, rival in list(rivals.items())[1:]:
            try:
                wrong = disagreement(expected, rival())
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if is_device_fault(error):  # nothing works in this process any more, and the next one must not try it
                    self._keep(key, next(iter(rivals)), rivals)
                    raise
                wrong = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
            if wrong:
                warnings.warn(f"the {name} kernel for {key} is not used: {wrong}", RuntimeWarning, stacklevel=2)
            else:
                fit[name] = rival
        return fit

    def _fastest(self, rivals: Mapping[str, Rival]) -> str:
        """By the best of several rounds in turn."""
        for rival in rivals.values():
            for _ in range(WARM_UP):
                rival()
        best = dict.fromkeys(rivals, float("inf"))
        for _ in range(ROUNDS):
            for name, rival in rivals.items():
                best[name] = min(best[name], self.seconds(rival))
        return min(best, key=best.__getitem__)

    def _keep(self, key: str, chosen: str, rivals: Mapping[str, Rival]) -> str:
        """Remembers `chosen`; but what another process has chosen in the meantime counts, for all to do the same."""
        stored = self._stored()
        chosen = stored[key] if stored.get(key) in rivals else chosen
        self.known = {**self.known, **stored, key: chosen}
        if self.path is not None:
            try:
                write_json(self.path, self.known)
            except (ExpandError, OSError):
                self.path = None  # a disk that refuses costs a measurement in the next process
        return chosen

    def _stored(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
        except (OSError, ValueError):
            return {}
        return {key: name for key, name in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def disagreement(expected: Sequence[Tensor], got: Sequence[Tensor]) -> str | None:
    """What is wrong with the results `got`; None where they equal `expected` but for rounding."""
    if len(expected) != len(got):
        return f"it has {len(got)} results of {len(expected)}"
    tolerance = max(TOLERANCE[result.dtype] for result in expected)
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {number} is {b.dtype} of shape {tuple(b.shape)}"
        most = a.float().abs().max().clamp_min(1e-30)
        apart = float((a.float() - b.float()).abs().max() / most)
        if not apart <= tolerance:  # nor where it is not a number
            return f"result {number} is off by {apart:.2g} of the largest value"
    return None


def kept_choices(device: int, compiler: str, source: Path) -> Choices:
    """Those of a GPU, kept in the user's cache folder; a new driver, torch, compiler or source begins anew."""
    about = [torch.cuda.get_device_name(device), torch.__version__, torch.version.cuda, torch.backends.cudnn.version(),
             compiler, hashlib.sha256(source.read_bytes()).hexdigest()]
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return Choices(user_cache() / "kernels" / f"{name}.json")
