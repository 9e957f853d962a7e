"""What the search speaks of: candidates and their outcomes. Plain values that read and write as JSON."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from expand.space.factors import Factors

BASIS_AXIS = "basis"
CANDIDATE_ID = re.compile(r"[a-z0-9_-]{1,100}")
"""What a candidate may be called: it names a folder, so it can hold neither a dot nor a separator."""


@dataclass(frozen=True)
class Candidate:
    """A network that a step may train.

    `axis` is the axis that was expanded (`basis` for step 0), `also` the axes that give the very same network;
    `ratio` is its complexity over the current network's; `overshoot` marks a single grid step that exceeds the
    expansion rate; `note` says what held the axis back, if anything; `init` where its first weights come from.
    """

    id: str
    step: int
    axis: str
    factors: Factors
    gflops: float
    params: int
    ratio: float = 1.0
    also: tuple[str, ...] = ()
    overshoot: bool = False
    note: str | None = None
    init: str = "scratch"

    def as_dict(self) -> dict[str, Any]:
        """For the journal and for `--json`: the fields, with the clip's frames, resolution and stride spelt out."""
        factors = self.factors
        return {**asdict(self), "also": list(self.also), "factors": factors.as_dict(), "frames": factors.frames,
                "resolution": factors.resolution, "stride": factors.stride}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Candidate:
        """The inverse of `as_dict`."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        return cls(**{**known, "factors": Factors(**fields["factors"]), "also": tuple(fields.get("also", ()))})


@dataclass(frozen=True)
class Exclusion:
    """An axis that cannot grow at this step, and why."""

    axis: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What training a candidate gave. `accuracy` (J) is top-1 in 0..1, `stderr` its standard error.

    `state` is `finished` or `failed`; a failed one has a `reason` and no figures. `breakdown` holds seconds by phase,
    `notes` what a person should know of the training, such as that batches went in parts for lack of memory.
    """

    id: str
    state: str
    reason: str | None = None
    accuracy: float | None = None
    stderr: float | None = None
    top5: float | None = None
    loss: float | None = None
    wall_s: float | None = None
    peak_memory_mb: float | None = None
    clips_per_s: float | None = None
    breakdown: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the journal and for outcome.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Outcome:
        """The inverse of `as_dict`; keys of other versions are passed over."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})

    @property
    def finished(self) -> bool:
        """Whether there is an accuracy to compare."""
        return self.state == "finished"
