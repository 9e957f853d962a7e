"""Finding the weights of an X3D in other programs' checkpoints: in nested dictionaries, under prefixes, beside
averages.

A checkpoint is searched for every group of entries that have an X3D's names under one prefix. Of several groups the
fullest are taken, of these first the averaged weights, then those under the usual names
(docs/decisions/005-public-weights.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from expand.model import public

Path = tuple[str, ...]

MOST_LEVELS = 4
"""Levels of nested dictionaries that are searched."""
MOST_HELD = 10_000
"""Dictionaries and lists that are searched."""
MOST_PARTS, MOST_LETTERS = 16, 500
"""The most parts between points, and the most letters, in the name of a weight."""
MOST_PREFIXES = 16
"""Prefixes of a dictionary's entries that are searched, those with most weights first."""
SHELLS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")
"""The parts that FSDP, activation checkpoints, torch.compile and Lightning Fabric put into names, at any depth."""
AVERAGES = frozenset({"ema", "swa", "average", "averaged", "averages", "avg", "shadow", "modelema", "emamodel"})
"""Words in the names around averaged weights."""
USUAL = ("model_state", "state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
"""The usual names of dictionaries of weights, in the order of preference; other names come after them."""
NO_WEIGHTS = re.compile(r"optim|grad|momentum|exp_avg|scaler|sched", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """Tensors of one dictionary under one prefix, `count` of them with the names of an X3D's weights in `style`:
    `entries` by name without the prefix, and the names of the `others`, which belong to no network here.

    `path` leads to the dictionary, `holders` are the dictionaries on the way, the outermost first and this one last.
    """

    path: Path
    holders: tuple[Any, ...]
    style: public.Style
    prefix: str
    entries: dict[str, Any]
    count: int
    others: tuple[str, ...]

    @property
    def place(self) -> str:
        """The group's place in words: its path and prefix."""
        return ".".join((*self.path, self.prefix.rstrip("."))).strip(".") or "the file's own entries"

    @property
    def is_average(self) -> bool:
        """True for averaged weights, by the names around them."""
        words = {word for text in (*self.path, self.prefix) for word in re.split(r"[._\s]", text.lower())}
        return bool(words & AVERAGES)


def find_groups(content: Any) -> list[Group]:
    """Return every group in `content`, best first."""
    groups = [group for path, holders in _dictionaries(content) for group in _groups(path, holders)] \
        if _is_holder(content) else []
    if not groups:
        return []
    fullest = max(group.count for group in groups)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    is_mmengine = isinstance(meta, Mapping) and any(str(key).startswith("mmengine") for key in meta)

    def rank(group: Group) -> tuple[bool, bool, int, int, int]:
        # MMEngine keeps the averaged weights under 'state_dict', and those that were averaged under 'ema_state_dict'
        is_average = group.is_average != (is_mmengine and group.path in (("state_dict",), ("ema_state_dict",)))
        last = group.path[-1] if group.path else ""
        usual = USUAL.index(last) if last in USUAL else len(USUAL)
        return group.count < fullest, not is_average, usual, len(group.path), -group.count

    return sorted(groups, key=rank)


def find_tensors(content: Any) -> list[str]:
    """Return the names of the tensors in the dictionary of `content` that holds most of them."""
    held = [[key for key, value in holders[-1].items() if isinstance(key, str) and isinstance(value, Tensor)]
            for _, holders in _dictionaries(content)] if _is_holder(content) else []
    return max(held, key=len, default=[])


def _dictionaries(content: Any) -> Iterator[tuple[Path, tuple[Any, ...]]]:
    """Yield the dictionaries in `content` that hold tensors, with the path there; each once, since objects in a file
    may contain each other."""
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
    """Return a key as text; an integer may have more digits than Python writes."""
    return key[:100] if isinstance(key, str) else str(key) if isinstance(key, int) and abs(key) < 10**9 else "..."


def _is_holder(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, (str, bytes))
                                          and len(value) <= 100)


def _groups(path: Path, holders: tuple[Any, ...]) -> Iterator[Group]:
    held = {key: value for key, value in holders[-1].items() if isinstance(key, str) and isinstance(value, Tensor)}
    plain = {SHELLS.sub("", key): value for key, value in held.items()}
    if len(plain) == len(held):  # else two names have become one
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
        yield Group(path, holders, public.STYLES[style], prefix, entries, count, others)


def _readings(key: str) -> Iterator[tuple[str, str]]:
    """Yield the styles in which the end of a name is a weight's, each with the prefix before it."""
    if len(key) > MOST_LETTERS:
        return
    parts = key.split(".")
    for first in range(min(len(parts), MOST_PARTS)):
        rest = ".".join(parts[first:])
        for style in public.STYLES.values():
            if style.parse(rest) is not None:
                yield style.name, key.removesuffix(rest)
