"""Find the X3D-family network that spends a compute budget best on your clips.

The commands are functions here, of the same names: `search`, `resume`, `status`, `plot`, `plan`, `complexity`, `train`,
`test`, `predict`, `export`, `doctor`, and `check_clips`, `cache_clips`, `synthesize` (the group `data`). `load` returns
a trained network, an `X3D`.
"""

from __future__ import annotations

import logging
import pkgutil
from typing import TYPE_CHECKING, Any

from expand.version import __version__

if TYPE_CHECKING:
    from expand.api import (
        cache_clips,
        check_clips,
        complexity,
        doctor,
        export,
        load,
        plan,
        plot,
        predict,
        resume,
        search,
        status,
        synthesize,
        test,
        train,
    )
    from expand.model import X3D

__all__ = ["X3D", "__version__", "cache_clips", "check_clips", "complexity", "doctor", "export", "load", "plan",
           "plot", "predict", "resume", "search", "status", "synthesize", "test", "train"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless a program wants to hear it


def __getattr__(name: str) -> Any:
    """Load on first use, so that `import expand` stays light."""
    if name in __all__:
        return pkgutil.resolve_name(f"{'expand.model' if name == 'X3D' else 'expand.api'}:{name}")
    raise AttributeError(f"module 'expand' has no attribute '{name}'")
