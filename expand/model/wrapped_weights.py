"""The weights of an X3D in what others put around them: nested dictionaries, prefixes of names, averages beside them.

A checkpoint is searched for every group of entries that are called like an X3D's under one prefix. Of several groups
the fullest are taken, of these first the averaged weights, then those under the usual names
(docs/decisions/005-public-weights.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from expand.model import names

Path = tuple[str, ...]

MOST_LEVELS = 4
"""Dictionaries in dictionaries that are looked into."""
MOST_HELD = 10_000
"""Dictionaries and lists that are looked into."""
MOST_PARTS, MOST_LETTERS = 16, 500
"""Of a name of a weight: parts between points, and letters."""
MOST_PREFIXES = 16
"""Of a dictionary's entries: those with most weights are looked at."""
SHELLS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")
"""What FSDP, activation checkpoints, torch.compile and Lightning Fabric put into names, at any depth."""
AVERAGES = frozenset({"ema", "swa", "average", "averaged", "averages", "avg", "shadow", "modelema", "emamodel"})
"""Words in the names around averaged weights."""
USUAL = ("model_state", "state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
"""Where weights usually lie, in the order in which they are taken; any other name comes after them."""
NO_WEIGHTS = re.compile(r"optim|grad|momentum|exp_avg|scaler|sched", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """Tensors of one dictionary under one prefix, `count` of them called like an X3D's weights in `style`: `entries` by
    name without the prefix, and the names of the `others`, which belong to no network here.

    `path` leads to the dictionary, `holders` are those on the way, the outermost first and this one last.
    """

    path: Path
    holders: tuple[Any, ...]
    style: names.Style
    prefix: str
    entries: dict[str, Any]
    count: int
    others: tuple[str, ...]

    @property
    def place(self) -> str:
        """The group in words: where it lies, and under which prefix."""
        return ".".join((*self.path, self.prefix.rstrip("."))).strip(".") or "the file's own entries"

    @property
    def is_average(self) -> bool:
        """Whether these are averaged weights, by the names around them."""
        words = {word for text in (*self.path, self.prefix) for word in re.split(r"[._\s]", text.lower())}
        return bool(words & AVERAGES)


def find_groups(content: Any) -> list[Group]:
    """Every group in `content`, best first."""
    groups = [group for path, holders in _held(content) for group in _groups(path, holders)] \
        if _is_holder(content) else []
    if not groups:
        return []
    fullest = max(group.count for group in groups)
    has_swapped = _is_of_mmengine(content)

    def rank(group: Group) -> tuple[bool, bool, int, int, int]:
        # MMEngine keeps the averaged weights under 'state_dict', and those that were averaged under 'ema_state_dict'
        is_average = group.is_average != (has_swapped and group.path in (("state_dict",), ("ema_state_dict",)))
        last = group.path[-1] if group.path else ""
        usual = USUAL.index(last) if last in USUAL else len(USUAL)
        return group.count < fullest, not is_average, usual, len(group.path), -group.count

    return sorted(groups, key=rank)


def find_tensors(content: Any) -> list[str]:
    """The names of the tensors in the dictionary of `content` that holds most of them."""
    held = [[key for key, value in holders[-1].items() if isinstance(key, str) and isinstance(value, Tensor)]
            for _, holders in _held(content)] if _is_holder(content) else []
    return max(held, key=len, default=[])


def _is_of_mmengine(content: Any) -> bool:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return isinstance(meta, Mapping) and any(str(key).startswith("mmengine") for key in meta)


def _held(content: Any) -> Iterator[tuple[Path, tuple[Any, ...]]]:
    """The dictionaries in `content` that hold tensors, with the way there; each once, since a file may be tied in
    knots."""
    seen: set[int] = set()
    waiting: list[tuple[Path, tuple[Any, ...]]] = [((), (content,))]
    while waiting and len(seen) < MOST_HELD:
        path, holders = waiting.pop(0)
        held = holders[-1]
        if id(held) in seen:
            continue
        seen.add(id(held))
        items = held.items() if isinstance(held, Mapping) else enumerate(held)
        if isinstance(held, Mapping) and any(isinstance(value, Tensor) for value in held.values()):
            yield path, holders
        if len(path) < MOST_LEVELS:
            waiting += [((*path, _name(key)), (*holders, value)) for key, value in items
                        if _is_holder(value) and not NO_WEIGHTS.search(_name(key))]


def _name(key: Any) -> str:
    """A key as text; an integer may have more digits than Python writes."""
    return key[:100] if isinstance(key, str) else str(key) if isinstance(key, int) and abs(key) < 10**9 else "..."


def _is_holder(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, (str, bytes))
                                          and len(value) <= 100)


def _groups(path: Path, holders: tuple[Any, ...]) -> Iterator[Group]:
    held = {key: value for key, value in holders[-1].items() if isinstance(key, str) and isinstance(value, Tensor)}
    plain = {SHELLS.sub("", key): value for key, value in held.items()}
    if len(plain) == len(held):  # else two names would become one
        held = plain
    counts: Counter[tuple[str, str]] = Counter()
    for key in held:
        counts.update(_readings(key))
    best: dict[str, tuple[int, str]] = {}
    for (style, prefix), count in counts.most_common(MOST_PREFIXES):
        best.setdefault(prefix, (count, style))
    for prefix, (count, style) in best.items():
        # a network in a network's entries is another one, unless it is a few names that look like one by chance
        deeper = tuple(other for other, (number, _) in best.items()
                       if other != prefix and other.startswith(prefix) and 2 * number >= count)
        entries = {key.removeprefix(prefix): value for key, value in held.items()
                   if key.startswith(prefix) and not (deeper and key.startswith(deeper))}
        others = tuple(key for key in held if not key.startswith(tuple(best)))
        yield Group(path, holders, names.STYLES[style], prefix, entries, count, others)


def _readings(key: str) -> Iterator[tuple[str, str]]:
    """The styles in which the end of a name is a weight's, each with what comes before."""
    if len(key) > MOST_LETTERS:
        return
    parts = key.split(".")
    for first in range(min(len(parts), MOST_PARTS)):
        rest = ".".join(parts[first:])
        for style in names.STYLES.values():
            if style.parse(rest) is not None:
                yield style.name, key.removesuffix(rest)
