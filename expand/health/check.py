"""The result of one check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK, NOTE, PROBLEM = "ok", "note", "problem"
STATES = (OK, NOTE, PROBLEM)
"""From best to worst: all is well; it works, but slower or with less than it could; something will fail."""


@dataclass(frozen=True)
class Check:
    """The result of the check `name`: `text` is a line for people, `facts` are for scripts (docs/json.md), and `fix` is
    the way out where `state` is not `ok`, if there is one."""

    name: str
    state: str
    text: str
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {"state": self.state, "text": self.text, "fix": self.fix, **self.facts}


def in_one_line(error: object) -> str:
    """Return the first line of an exception or warning of another package."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
