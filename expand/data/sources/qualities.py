"""One recording in several qualities: a camera's proxy beside its original, or the same clip at two sizes.

A proxy whose original is in the same class is passed over. What only looks like the same recording (`a_720p.mp4` and
`a_1080p.mp4`, `a.mp4` and `a.avi`) stays, but no made split parts it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

from expand.data.file_kinds import PROXY_FOLDERS
from expand.data.sources.clip import Entry, Found, counted, split_named
from expand.data.sources.walk import PassedOver

_PROXY_WORD = r"(?:proxy|proxies|low-?_?res|lo-?_?res|lrv|preview|thm)"
_QUALITY_WORD = (rf"(?:{_PROXY_WORD}|(?:144|240|270|288|360|480|540|576|720|1080|1440|2160|4320)[pi](?:\d\d)?|[248]k"
                 r"|u?hd|fhd|sd|hq|lq|hi-?_?res|high-?_?res|full-?_?res|orig|original|source|raw|transcoded|compressed"
                 r"|x26[45]|h\.?26[45]|hevc|avc|av1|vp9|\d{3,4}x\d{3,4}|frames|rawframes)")
PROXY_NAME = re.compile(rf"[ ._-]{_PROXY_WORD}$", re.IGNORECASE)
QUALITY = re.compile(rf"(?<=.)[ ._-]{_QUALITY_WORD}(?=$|[ ._-])|(?<=.)\.f\d{{2,3}}$", re.IGNORECASE)
QUALITY_FOLDER = re.compile(rf"{_QUALITY_WORD}", re.IGNORECASE)
GOPRO = re.compile(r"G[XHSL](\d{6})", re.IGNORECASE)
SONY_PROXY = re.compile(r"(.*C\d{4})S03", re.IGNORECASE)
INSTA360 = re.compile(r"(?:PRO_)?(?:VID|LRV)_(\d{8}_\d{6})_\d\d_(\d{3,})", re.IGNORECASE)
MAYBE_QUALITY = re.compile(r"prox|res|lrv|preview|thm|\d[pi]|\dk|hd|sd|[hl]q|orig|source|raw|code|compress|26[45]|avc"
                           r"|av1|vp9|\dx\d|frames|\.f\d|g[xhsl]\d{6}|s03|vid_|hevc", re.IGNORECASE)
"""What a name has in it that may say a quality; others, most of all, need no closer look."""


def recording(stem: str) -> str:
    """What the file names `stem` of one recording in several qualities have in common."""
    for camera in (GOPRO, SONY_PROXY, INSTA360):
        if match := camera.fullmatch(stem):
            return "\0".join(match.groups()) if camera is not SONY_PROXY else match.group(1)
    return QUALITY.sub("", stem) or stem


def is_proxy(stem: str) -> bool:
    """Whether a file calls itself the small copy of another."""
    return (re.fullmatch(r"GL\d{6}|(PRO_)?LRV_.*", stem, re.IGNORECASE) is not None
            or SONY_PROXY.fullmatch(stem) is not None or PROXY_NAME.search(stem) is not None)


def without_proxies(entries: Sequence[Entry], passed: PassedOver) -> list[Entry]:
    """`entries` but for the proxies whose original is in the same class, which are counted in `passed`."""
    suspects = {number for number, entry in enumerate(entries) if _says_proxy(entry.key)}
    if not suspects:
        return list(entries)
    classes = {entries[number].label for number in suspects}
    originals = {(entry.label, recording(_stem(entry.key))) for number, entry in enumerate(entries)
                 if number not in suspects and entry.label in classes}
    gone = {number for number in suspects
            if (entries[number].label, recording(_stem(entries[number].key))) in originals}
    if gone:
        passed.counts["proxies beside their originals"] += len(gone)
    return [entry for number, entry in enumerate(entries) if number not in gone]


def _says_proxy(key: str) -> bool:
    """Whether the clip's name, or a folder below its class, calls it a proxy."""
    *folders, name = key.split("/")
    return ((MAYBE_QUALITY.search(name) is not None and is_proxy(_stem(name)))
            or any(folder.lower() in PROXY_FOLDERS for folder in folders[1:]))


def keep_together(found: Found) -> None:
    """Gives clips that are likely one recording in several qualities a group of their own, in place, so that no made
    split parts them; where given splits do, a note says so."""
    by_recording: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in found.entries:
        by_recording[entry.label, _in_common(entry.key)].append(entry)
    parted = []
    for (_, name), entries in by_recording.items():
        if len(entries) < 2:
            continue
        train = [entry for entry in entries if entry.split == "train"]
        if len({entry.key for entry in train}) > 1 and all(entry.group is None for entry in train):
            for entry in train:
                entry.group = f"recording {name}"
        if len({entry.split for entry in entries}) > 1 and len({_without_split(entry.key) for entry in entries}) > 1:
            parted.append(entries)
    if parted:
        first, other = parted[0][0], next(entry for entry in parted[0] if entry.split != parted[0][0].split)
        found.notes.append(f"{counted(len(parted), 'recording')} in two qualities in two splits, by their names, which "
                           f"makes accuracies too good: such as {first.key} in {first.split} and {other.key} in "
                           f"{other.split}")


def _in_common(key: str) -> str:
    """`key` without suffix, quality and split."""
    folder, _, name = key.rpartition("/")
    stem = _stem(name)
    return f"{_plain_folder(folder)}/{recording(stem) if MAYBE_QUALITY.search(name) else stem}"


@cache
def _plain_folder(folder: str) -> str:
    """`folder` without the parts that name a split or a quality."""
    return "/".join(part for part in _without_split(folder + "/").split("/")
                    if part and not QUALITY_FOLDER.fullmatch(part) and part.lower() not in PROXY_FOLDERS)


def _without_split(key: str) -> str:
    """`key` without suffix, and without the split among its first two folders: equal numbers in two splits, also with
    other suffixes, say nothing."""
    folder, _, name = key.rpartition("/")
    parts = folder.split("/")
    return "/".join([part for place, part in enumerate(parts) if place > 1 or split_named(part) is None]
                    + ([_stem(name)] if name else []))


def _stem(key: str) -> str:
    name = key.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if re.fullmatch(r"\.\w{1,8}", suffix) and not suffix[1:].isdecimal() else name
