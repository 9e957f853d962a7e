"""The checks of this machine and this installation (`x3d-expand doctor`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expand.errors import ExpandError
from expand.health import folders, hardware, software
from expand.health.check import PROBLEM, STATES, Check, in_one_line

CHECKS: dict[str, Callable[[], Check]] = {
    "python": software.python, "packages": software.packages, "processor": hardware.processor,
    "memory": hardware.memory, "gpu": hardware.gpu, "kernels": software.kernels, "compiler": software.compiler,
    "triton": software.triton, "cache": folders.cache, "runs": folders.runs}


def examine() -> dict[str, Any]:
    """Return the results of all checks, and the worst of their states (docs/json.md). Raises nothing: a check that
    fails is a problem too."""
    found = [_run_check(name, check) for name, check in CHECKS.items()]
    return {"state": max((check.state for check in found), key=STATES.index),
            "checks": {check.name: check.as_dict() for check in found}}


def _run_check(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except ExpandError as error:
        return Check(name, PROBLEM, f"{error.where}: {error.what}" if error.where else error.what, error.fix)
    except Exception as error:  # noqa: BLE001 - whatever is broken here, the user wants to know
        return Check(name, PROBLEM, f"cannot be examined: {type(error).__name__}: {in_one_line(error)}")
