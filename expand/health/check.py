"""One thing that was looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK, NOTE, PROBLEM = "ok", "note", "problem"
STATES = (OK, NOTE, PROBLEM)
"""All well; it works, but slower or with less than it could; something will fail. The worst last."""


@dataclass(frozen=True)
class Check:
    """What was found of `name`: `text` in a line for people, `facts` for scripts (docs/json.md), and where `state` is
    not `ok` the `fix`, if there is one."""

    name: str
    state: str
    text: str
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"state": self.state, "text": self.text, "fix": self.fix, **self.facts}


def in_one_line(error: BaseException) -> str:
    """An exception that is not ours, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
