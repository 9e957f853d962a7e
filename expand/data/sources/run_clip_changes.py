"""The clips that a run began with, and what was done to its list since.

Beside `clips.csv`, which people edit, a run keeps the list as it was: its order, from which the run's fingerprint
follows, and what the clips' bytes were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from expand.data.sources.clip import SPLITS, Clip, ClipList, counted, shown
from expand.data.sources.run_clips import Rows, read_rows, write_clips
from expand.data.sources.walk import stem_of
from expand.errors import RunError

NEAR = 2
"""Folders right above a clip that must be called the same for a list that was moved as a whole."""


def begun_file(path: Path) -> Path:
    """Where the list is kept as it was, for the list `path` that may be edited."""
    return Path(path).with_name(f"{Path(path).stem}-begun.csv")


def write_kept(path: Path, listed: ClipList) -> None:
    """Writes `listed` as the run's list `path`, and beside it as it is now. Raises as `write_clips`."""
    write_clips(begun_file(path), listed, contents=True)
    write_clips(path, listed)


def read_begun(path: Path) -> ClipList | None:
    """The list as the run of the list `path` began with it; None for runs that did not keep it. Raises `DataError`
    where it cannot be read."""
    file = begun_file(path)
    if not file.exists():
        return None
    names, rows = read_rows(file, contents=True, fix=f"remove it: the run then goes on with {Path(path).name} as it "
                            "is, but clips that were changed since it began are not noticed")
    return ClipList(names, tuple(clip for _, clip in rows))


def restored(begun: ClipList, rows: Rows, path: Path) -> ClipList:
    """The clips of the list `path`, `rows`, in the order of `begun`, with what is known of their content.

    Lines may be in any order, and clips anywhere under their old names. Raises `RunError` with each line that is
    missing, new, or has another class or split.
    """
    clips = [clip for _, clip in rows]
    old = _partners(begun.clips, clips)
    found: dict[int, Clip] = {}
    changes: list[tuple[int, str]] = []
    for (line, clip), number in zip(rows, old):
        if number is None:
            changes.append((line, f"{path}:{line}: {clip.path} is no clip of this run, or is named twice"))
            continue
        was = begun.clips[number]
        found[number] = replace(clip, group=was.group, content=was.content)
        for what, then, now in (("class", begun.classes[was.label], begun.classes[clip.label]),
                                ("split", was.split, clip.split)):
            if then != now:
                text = f"{path}:{line}: {clip.path} has the {what} {now!r}; it was {then!r} when the run began"
                changes.append((line, text))
    lines = [text for _, text in sorted(changes)]
    lines += [f"a line is missing: {clip.path},{begun.classes[clip.label]},{clip.split}"
              for number, clip in enumerate(begun.clips) if number not in found]
    if lines:
        raise RunError(f"{counted(len(lines), 'difference')} from the clips that the run began with:\n{shown(lines)}",
                       where=str(path), fix=f"mend these lines, or delete {Path(path).name}: `x3d-expand resume` "
                       "writes it anew as it was; other clips need a new run")
    return ClipList(begun.classes, tuple(found[number] for number in range(len(begun.clips))))


def _partners(begun: Sequence[Clip], clips: Sequence[Clip]) -> list[int | None]:
    """For each of `clips`, which one of `begun` it is: the one of its path; else, where clips were moved, the one that
    has most of the way to it, from its name upwards, in common, and if possible the class and split."""
    if len(begun) == len(clips) and all(_is_moved(was, clip) for was, clip in zip(begun, clips)):
        return list(range(len(clips)))
    partners: list[int | None] = [None] * len(clips)
    left, free = set(range(len(clips))), set(range(len(begun)))

    def pair(keys_begun: dict[int, object], keys: dict[int, object]) -> None:
        waiting = defaultdict(list)
        for number in sorted(free, reverse=True):
            waiting[keys_begun[number]].append(number)
        for place in sorted(left):
            if candidates := waiting.get(keys[place]):
                partners[place] = candidates.pop()
                left.discard(place)
                free.discard(partners[place])

    def keys_of(some: Sequence[Clip], places: set[int], depth: int, with_class: bool) -> dict[int, object]:
        return {place: (_way(some[place])[-depth:], with_class and (some[place].label, some[place].split))
                for place in places}

    pair({number: (clip.path, clip.label, clip.split) for number, clip in enumerate(begun)},
         {place: (clip.path, clip.label, clip.split) for place, clip in enumerate(clips)})
    pair(dict(enumerate(clip.path for clip in begun)), dict(enumerate(clip.path for clip in clips)))
    for with_class in (True, False):
        deepest = max((len(_way(begun[number])) for number in free), default=0) if left else 0
        for depth in range(deepest, 0, -1):
            if left and free:
                pair(keys_of(begun, free, depth, with_class), keys_of(clips, left, depth, with_class))
    return partners


def _is_moved(was: Clip, clip: Clip) -> bool:
    return (was.label, was.split) == (clip.label, clip.split) and (
        was.path == clip.path or _way(was)[-1 - NEAR:] == _way(clip)[-1 - NEAR:])


def _way(clip: Clip) -> tuple[str, ...]:
    """The folders' names on the way to a clip and its own, without the suffix, which a conversion changes."""
    *folders, name = clip.path.parts
    return (*folders, stem_of(name))


def other_orders(listed: ClipList, source: ClipList | None) -> Iterator[ClipList]:
    """`listed` in the orders that a run may have begun with, if its lines were sorted since: that of folders, and that
    of `source`, the clips that the run's configuration names now."""
    ranked = sorted(listed.clips, key=lambda clip: (SPLITS.index(clip.split), clip.path.parts))
    yield replace(listed, clips=tuple(ranked))
    if source is not None:
        places = {clip.path: place for place, clip in enumerate(source.clips)}
        if all(clip.path in places for clip in listed.clips):
            ranked = sorted(listed.clips, key=lambda clip: (SPLITS.index(clip.split), places[clip.path]))
            yield replace(listed, clips=tuple(ranked))


def refuse_changed(listed: ClipList, now: ClipList, path: Path) -> None:
    """Raises `RunError` where clips of `listed`, which a run began with, have other bytes `now`."""
    changed = [str(clip.path) for clip, other in zip(listed.clips, now.clips)
               if clip.content and other.content and clip.content != other.content]
    if changed:
        raise RunError(f"{len(changed)} of the {counted(len(listed.clips), 'clip')} of this run have another content "
                       f"than when it began, so that its results would mix:\n{shown(changed)}", where=str(path),
                       fix="put the old files back, the very same bytes, or start a new run with the new ones")
