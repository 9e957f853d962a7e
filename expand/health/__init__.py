"""The checks of this machine and this installation (`x3d-expand doctor`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expand.errors import ExpandError, first_line
from expand.health import checks
from expand.health.checks import PROBLEM, STATES, Check

CHECKS: dict[str, Callable[[], Check]] = {
    "python": checks.python, "packages": checks.packages, "processor": checks.processor,
    "memory": checks.memory, "gpu": checks.gpu, "kernels": checks.kernels, "compiler": checks.compiler,
    "triton": checks.triton, "cache": checks.cache, "runs": checks.runs}


def examine() -> dict[str, Any]:
    """Return the results of all checks, and the worst of their states (docs/json.md). Raises nothing: a check that
    fails is a problem too."""
    found = []
    for name, check in CHECKS.items():
        try:
            found.append(check())
        except ExpandError as error:
            text = f"{error.where}: {error.what}" if error.where else error.what
            found.append(Check(name, PROBLEM, text, error.fix))
        except Exception as error:  # noqa: BLE001 - whatever is broken here, the user wants to know
            text = f"cannot be examined: {type(error).__name__}: {first_line(error)}"
            found.append(Check(name, PROBLEM, text))
    return {"state": max((check.state for check in found), key=STATES.index),
            "checks": {check.name: check.as_dict() for check in found}}
