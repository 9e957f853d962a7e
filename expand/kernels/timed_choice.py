"""The choice of the fastest of several implementations, measured once for each shape on the present GPU, and kept.

Results must agree before speed counts. The choices are kept in the cache folder, so that the next process and the next
run use the same implementation: a new measurement could choose another one, and change the last bits of a result.
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

from expand.errors import ExpandError, is_device_fault
from expand.home import user_cache
from expand.rundir.files import write_json

Rival = Callable[[], Sequence[Tensor]]
"""A function that does the whole work once and returns its results."""
ROUNDS, REPEATS, WARM_UP = 5, 4, 3
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 6e-2}
"""The largest difference of two results, as a share of the largest value, by the coarsest type among them: the standard
may round to TF32 or bfloat16 while a rival sums in float32. A wrong kernel is off by about 1."""


def seconds_on_gpu(work: Rival) -> float:
    """Return the GPU seconds of one `work`, the mean of a few in a row."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(REPEATS):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / REPEATS


def is_capturing() -> bool:
    """Return True while a CUDA graph is captured, when nothing can be measured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@dataclass
class Choices:
    """The implementation chosen for each key, in the file `path` and in this process. `seconds` measures a rival.

    The file holds measured choices only: a compiler or a header that is missing today may be there tomorrow. It also
    holds the keys for which a rival broke the GPU for its process, so that no other process tries it.
    """

    path: Path | None
    seconds: Callable[[Rival], float] = seconds_on_gpu
    known: dict[str, str] = field(default_factory=dict)
    unrivalled: set[str] = field(default_factory=set)
    """Keys for which this process found no usable rival of the standard."""

    def __post_init__(self) -> None:
        self.known = {**self._read_stored(), **self.known}

    def pick(self, key: str, rivals: Mapping[str, Rival]) -> str:
        """Return the name of the fastest of `rivals`, the first of which is the standard. Another one that fails, or
        whose results differ from the standard's, is left out with a warning.

        If memory runs out, the standard's results are not finite, or a CUDA graph is captured, the standard is returned
        and nothing is remembered.
        """
        standard = next(iter(rivals))
        if (known := self.known.get(key)) is not None and known in rivals:
            return known
        if key in self.unrivalled or is_capturing():
            return standard
        fit = {standard: rivals[standard]}
        best = dict.fromkeys(rivals, float("inf"))
        try:
            expected = rivals[standard]()
            if not all(bool(result.isfinite().all()) for result in expected):
                return standard
            for name, rival in list(rivals.items())[1:]:
                try:
                    wrong = disagreement(expected, rival())
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if is_device_fault(error):  # this process can do no more work, and the next one must not try it
                        self._keep(key, standard, rivals)
                        raise
                    wrong = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
                if wrong:
                    warnings.warn(f"the {name} kernel for {key} is not used: {wrong}", RuntimeWarning, stacklevel=2)
                else:
                    fit[name] = rival
            if len(fit) == 1:
                self.unrivalled.add(key)
                return standard
            for rival in fit.values():
                for _ in range(WARM_UP):
                    rival()
            for _ in range(ROUNDS):  # in each of which all take their turn
                for name, rival in fit.items():
                    best[name] = min(best[name], self.seconds(rival))
        except torch.OutOfMemoryError:
            return standard
        return self._keep(key, min(fit, key=best.__getitem__), rivals)

    def _keep(self, key: str, chosen: str, rivals: Mapping[str, Rival]) -> str:
        """Remember and return `chosen`, or the choice that another process has made meanwhile, so that all agree."""
        stored = self._read_stored()
        chosen = stored[key] if stored.get(key) in rivals else chosen
        self.known = {**self.known, **stored, key: chosen}
        if self.path is not None:
            try:
                write_json(self.path, self.known)
            except (ExpandError, OSError):
                self.path = None  # a disk that refuses costs a measurement in the next process
        return chosen

    def _read_stored(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
        except (OSError, ValueError):
            return {}
        return {key: name for key, name in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def disagreement(expected: Sequence[Tensor], got: Sequence[Tensor]) -> str | None:
    """Return the complaint about the results `got`, None if they equal `expected` up to rounding."""
    if len(expected) != len(got):
        return f"it has {len(got)} results of {len(expected)}"
    tolerance = max(TOLERANCE[result.dtype] for result in expected)
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {number} is {b.dtype} of shape {tuple(b.shape)}"
        most = a.float().abs().max().clamp_min(1e-30)
        apart = float((a.float() - b.float()).abs().max() / most)
        if not apart <= tolerance:  # also true for a NaN
            return f"result {number} is off by {apart:.2g} of the largest value"
    return None


def kept_choices(device: int, compiler: str, source: Path) -> Choices:
    """Return the choices of a GPU from the user's cache folder; a new torch, CUDA, compiler or source begins anew."""
    about = [torch.cuda.get_device_name(device), torch.__version__, torch.version.cuda, torch.backends.cudnn.version(),
             compiler, hashlib.sha256(source.read_bytes()).hexdigest()]
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return Choices(user_cache() / "kernels" / f"{name}.json")
