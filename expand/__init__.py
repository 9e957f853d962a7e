"""Finds the X3D-family network that spends a compute budget best on your clips.

The commands are functions here, of the same names: `search`, `resume`, `status`, `plot`, `plan`, `complexity`, `train`,
`test`, `predict`, `export`, `check_clips`, `cache_clips` and `synthesize` (the group `data`), and `load` for what they
leave; `X3D` is the network, and `doctor` looks the machine over.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from expand.version import __version__

if TYPE_CHECKING:
    from expand.api import (
        cache_clips,
        check_clips,
        complexity,
        doctor,
        load,
        plan,
        plot,
        resume,
        search,
        status,
        synthesize,
        train,
    )
    from expand.exports import export
    from expand.inference.predicting import predict
    from expand.inference.testing import test
    from expand.model import X3D

__all__ = ["X3D", "__version__", "cache_clips", "check_clips", "complexity", "doctor", "export", "load", "plan",
           "plot", "predict", "resume", "search", "status", "synthesize", "test", "train"]

_HOMES = {"X3D": "expand.model", "export": "expand.exports", "predict": "expand.inference.predicting",
          "test": "expand.inference.testing"}


def __getattr__(name: str) -> Any:
    """Loads on first use, so that `import expand` stays light."""
    if name in __all__:
        return pkgutil.resolve_name(f"{_HOMES.get(name, 'expand.api')}:{name}")
    raise AttributeError(f"module 'expand' has no attribute '{name}'")
