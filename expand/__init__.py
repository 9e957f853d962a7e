"""Finds the X3D-family network that spends a compute budget best on your clips.

The commands are functions here, of the same names: `search`, `resume`, `status`, `plot`, `plan`, `complexity`
(`expand.api`); `X3D` is the network.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_COMMANDS = ("search", "resume", "status", "plot", "plan", "complexity")
__all__ = ["X3D", "__version__", "complexity", "plan", "plot", "resume", "search", "status"]


def __getattr__(name: str) -> Any:
    """Loads on first use, so that `import expand` stays light."""
    if name in _COMMANDS:
        from expand import api

        return getattr(api, name)
    if name == "X3D":
        from expand.model import X3D

        return X3D
    raise AttributeError(f"module 'expand' has no attribute '{name}'")
