"""The weights in a file of this package, SlowFast, PyTorchVideo or MMAction2, under our names, and in whatever trainers
put around them: nested dictionaries, prefixes, averages (docs/decisions/005-public-weights.md)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expand.errors import SHOWN, UsageError
from expand.model import public
from expand.model.public import State, Style
from expand.model.untrusted_files import NEEDED, read_content, read_torch_export
from expand.space.network import Network

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")
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
class Checkpoint:
    """The content of a file of weights: `state` in our names, the `style` of its own names ('x3d-expand', 'slowfast',
    'pytorchvideo' or 'mmaction2'), `network` if the file describes it.

    `doubt` is the reason why its description cannot be used, `remark` says which of several sets of weights was taken.
    `unknown` are the names of entries that no X3D has: first those in `state`, then those outside of the network."""

    state: State
    style: str
    network: Network | None
    doubt: UsageError | None = None
    remark: str | None = None
    unknown: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights, whatever its name: ours (weights, a training's checkpoint, safetensors, .pt2),
    SlowFast's, PyTorchVideo's or MMAction2's, a bare state dict too, and any of them as trainers wrap them.

    Raises `UsageError` for any other file, and for one that is damaged or would run code.
    """
    path = Path(path)
    if path.suffix.lower() == ".pt2":
        described, weights = read_torch_export(path)
        return Checkpoint(weights, public.OURS.name, described)
    content = read_content(path)
    groups = find_groups(content)
    if not groups:
        raise _no_x3d(content, path)
    group, style = groups[0], groups[0].style
    tensors = group.weights(path)
    state = {public.translate(key, style, public.OURS) or key: tensor for key, tensor in tensors.items()}
    if len(state) != len(tensors):
        raise UsageError("names one weight twice", where=str(path))
    if style is public.MMACTION and "stem.spatial.weight" not in state:  # its other networks have the same names
        raise _no_x3d(content, path)
    # the head's last layers may be 1x1x1 convolutions or linear layers, which compute the same
    features, classifier = state.get("head.features.weight"), state.get(CLASSIFIER[0])
    if features is not None and features.ndim == 2:
        state["head.features.weight"] = features[:, :, None, None, None]
    if classifier is not None and classifier.ndim > 2 and classifier.shape[2:].numel() == 1:
        state[CLASSIFIER[0]] = classifier.flatten(1)
    network: Network | None = None
    doubt: UsageError | None = None
    try:
        network = group.description(path)
    except UsageError as error:
        doubt = error
    is_ours = isinstance(content, Mapping) and content.keys() >= {"version", "network", "model"}
    rivals = [other.place for other in groups[1:] if other.count == group.count]
    remark = f"{path}: of several sets of weights, {group.place} is taken, not {name_some(rivals)}" \
        if rivals and not is_ours else None
    unknown = (*(key for key in tensors if style.parse(key) is None), *group.others)
    return Checkpoint(state, style.name, network, doubt, remark, unknown)


def _no_x3d(content: Any, path: Path) -> UsageError:
    """Return the error for content without weights that have the names of an X3D."""
    held = [[key for key, value in holders[-1].items() if isinstance(key, str) and isinstance(value, Tensor)]
            for _, holders in _dictionaries(content)]
    found = max(held, key=len, default=[])
    if not found and not isinstance(content, Mapping):
        return UsageError(f"holds a {type(content).__name__}, not weights by name", where=str(path), fix=NEEDED)
    if not found and content:
        keys = [key if isinstance(key, str) else type(key).__name__ for key in content]
        return UsageError(f"{len(keys)} of its entries are not weights: {name_some(keys)}", where=str(path), fix=NEEDED)
    return UsageError(f"holds no X3D: its weights are called {name_some(found) or 'nothing at all'}", where=str(path),
                      fix=NEEDED)


# --- groups of weights in a content ---


@dataclass(frozen=True)
class Group:
    """Tensors of one dictionary under one prefix, `count` of them with the names of an X3D's weights in `style`:
    `entries` by name without the prefix, and the names of the `others`, which belong to no network here.

    `path` leads to the dictionary, `holders` are the dictionaries on the way, the outermost first and this one last.
    """

    path: tuple[str, ...]
    holders: tuple[Any, ...]
    style: Style
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

    def weights(self, path: Path) -> State:
        """Return the weights, floats as float32. Counters and single numbers that are not the network's are left out.

        Raises `UsageError` for entries that are no weights, and if they claim more than the file `path` holds: a tensor
        of stride 0 takes four bytes there, and any number here.
        """
        def is_weight(key: str, value: Tensor) -> bool:
            return bool(value.layout is torch.strided and value.numel() and value.device.type == "cpu"
                        and not value.is_quantized
                        and (value.is_floating_point() or key.endswith("num_batches_tracked")))

        known = {key for key in self.entries if self.style.parse(key) is not None}
        unfit = [key for key, value in self.entries.items() if key in known and not is_weight(key, value)]
        if unfit:
            raise UsageError(f"{len(unfit)} of its entries are not weights: {name_some(unfit)}", where=str(path),
                             fix=NEEDED)
        weights = {key: value for key, value in self.entries.items()
                   if key in known or (value.ndim and is_weight(key, value))}
        if sum(value.numel() * value.element_size() for value in weights.values()) > path.stat().st_size:
            raise UsageError("claims more weights than it holds", where=str(path))
        return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}

    def description(self, path: Path) -> Network | None:
        """Return the network that the innermost dictionary around the weights describes, None without a description.
        Raises `UsageError` for a description that cannot be used."""
        for holder in reversed(self.holders):
            if not isinstance(holder, Mapping):
                continue
            described = holder.get("network")
            if described is not None and not any(described is other for other in self.holders) and not isinstance(
                    described, (str, Tensor)):
                return Network.from_dict(described, where=str(path))
            of_slowfast = self.style in (public.SLOWFAST, public.PYTORCHVIDEO) and "model_state" in holder
            if of_slowfast and holder.get("cfg") is not None:
                network = public.network_of_config(holder["cfg"], where=str(path), name=path.stem)
                return replace(network, first_projection_bn=self.style is public.SLOWFAST)
        return None


def find_groups(content: Any) -> list[Group]:
    """Return the groups of entries in `content` that have an X3D's names under one prefix, best first: the fullest, of
    these the averaged weights before others, then those under the usual names."""
    groups = [group for path, holders in _dictionaries(content) for group in _groups(path, holders)]
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


def _dictionaries(content: Any) -> Iterator[tuple[tuple[str, ...], tuple[Any, ...]]]:
    """Yield the dictionaries in `content` that hold tensors, with the path there; each once, since objects in a file
    may contain each other."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], tuple[Any, ...]]] = [((), (content,))] if _is_holder(content) else []
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
    """Return True for a dictionary or a short list, which may hold weights."""
    return isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, (str, bytes))
                                          and len(value) <= 100)


def _groups(path: tuple[str, ...], holders: tuple[Any, ...]) -> Iterator[Group]:
    """Yield the groups in the innermost of the dictionaries `holders`, to which `path` leads."""
    held = {key: value for key, value in holders[-1].items() if isinstance(key, str) and isinstance(value, Tensor)}
    plain = {SHELLS.sub("", key): value for key, value in held.items()}
    if len(plain) == len(held):  # else two names have become one
        held = plain
    counts: Counter[tuple[str, str]] = Counter()
    for key in held:  # any end of a name may be a weight's, after a prefix
        parts = key.split(".") if len(key) <= MOST_LETTERS else []
        for first in range(min(len(parts), MOST_PARTS)):
            rest = ".".join(parts[first:])
            counts.update((style.name, key.removesuffix(rest)) for style in public.STYLES.values() if style.parse(rest))
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


def name_some(keys: Sequence[str]) -> str:
    """Return the first of many names, and the number of the others."""
    rest = len(keys) - SHOWN
    return ", ".join(key[:200] for key in keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
