"""What somebody may have meant by a key that does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from expand.config.options import options
from expand.errors import did_you_mean


def unknown(name: str, prefix: str, known: Sequence[str], *, noun: str = "key",
            dotted: bool = False) -> tuple[str, str | None]:
    """The sentence and the suggestion for an unknown `name` under `prefix` ("search.", "" at the top).

    The same name in another section comes first, then a close name here, then a close one elsewhere, then the list of
    names. `noun`: what to call it. `dotted`: names of this section are suggested with their section too,
    as `--set` takes them.
    """
    what = f"unknown {noun} '{name if len(name) <= 60 else name[:56] + ' ...'}'"
    close = _closest(name, known)
    far = name if elsewhere(name, prefix) else close or _closest(name, {key.rpartition(".")[2] for key in options()})
    if far is None:
        return what, f"known here: {', '.join(known)}" if known else None
    if far == close:
        return what, f"did you mean '{prefix if dotted else ''}{close}'?"
    return what, f"did you mean {elsewhere(far, prefix)}?"


def _closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `did_you_mean` has in mind: what counts as close is defined there alone."""
    sentence = did_you_mean(word[:60], sorted(known))
    return sentence.split("'")[1] if sentence else None


def elsewhere(name: str, prefix: str) -> str | None:
    """The dotted keys that end in `name`, those below `prefix` alone if there are any: "'a.x' or 'b.x'"."""
    ends = [key for key in options() if key.rpartition(".")[2] == name]
    quoted = [f"'{key}'" for key in [key for key in ends if prefix and key.startswith(prefix)] or ends]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted) or None
