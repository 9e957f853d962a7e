"""One recording in several qualities: a camera's proxy beside its original, or the same clip at two sizes.

A proxy is left out if its original is in the same class. Clips that only look like the same recording (`a_720p.mp4`
and `a_1080p.mp4`, `a.mp4` and `a.avi`) stay, but become a group that stays in one split.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

from expand.data.file_kinds import PROXY_FOLDERS
from expand.data.sources.clip import Source, SourceClip, quantity, split_of_folder
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
"""Part of every name that may say a quality; most names do not match and need no closer look."""


def recording_name(stem: str) -> str:
    """Return the part of the file name `stem` that all qualities of one recording share."""
    for camera in (GOPRO, SONY_PROXY, INSTA360):
        if match := camera.fullmatch(stem):
            return "\0".join(match.groups()) if camera is not SONY_PROXY else match.group(1)
    return QUALITY.sub("", stem) or stem


def is_proxy(stem: str) -> bool:
    """Return true if a file's name says that it is the small copy of another."""
    return (re.fullmatch(r"GL\d{6}|(PRO_)?LRV_.*", stem, re.IGNORECASE) is not None
            or SONY_PROXY.fullmatch(stem) is not None or PROXY_NAME.search(stem) is not None)


def remove_proxies(clips: Sequence[SourceClip], passed: PassedOver) -> list[SourceClip]:
    """Return `clips` without the proxies whose original is in the same class; `passed` counts these."""
    def is_suspect(key: str) -> bool:
        *folders, name = key.split("/")
        return ((MAYBE_QUALITY.search(name) is not None and is_proxy(_stem(name)))
                or any(folder.lower() in PROXY_FOLDERS for folder in folders[1:]))  # below its class

    suspects = {number for number, clip in enumerate(clips) if is_suspect(clip.key)}
    if not suspects:
        return list(clips)
    classes = {clips[number].label for number in suspects}
    originals = {(clip.label, recording_name(_stem(clip.key))) for number, clip in enumerate(clips)
                 if number not in suspects and clip.label in classes}
    gone = {number for number in suspects
            if (clips[number].label, recording_name(_stem(clips[number].key))) in originals}
    if gone:
        passed.counts["proxies beside their originals"] += len(gone)
    return [clip for number, clip in enumerate(clips) if number not in gone]


def group_qualities(source: Source) -> None:
    """Give clips that are likely one recording in several qualities a group of their own, in place.

    So they stay in one split if splits are made; if the source's own splits separate them, a note says so.
    """
    by_recording: dict[tuple[str, str], list[SourceClip]] = defaultdict(list)
    for clip in source.clips:
        by_recording[clip.label, _recording_key(clip.key)].append(clip)
    separated = []
    for (_, name), clips in by_recording.items():
        if len(clips) < 2:
            continue
        train = [clip for clip in clips if clip.split == "train"]
        if len({clip.key for clip in train}) > 1 and all(clip.group is None for clip in train):
            for clip in train:
                clip.group = f"recording {name}"
        if len({clip.split for clip in clips}) > 1 and len({_without_split(clip.key) for clip in clips}) > 1:
            separated.append(clips)
    if separated:
        first, other = separated[0][0], next(clip for clip in separated[0] if clip.split != separated[0][0].split)
        source.notes.append(f"{quantity(len(separated), 'recording')} in two qualities in two splits, by their names, "
                           f"which makes accuracies too good: such as {first.key} in {first.split} and {other.key} in "
                           f"{other.split}")


def _recording_key(key: str) -> str:
    """`key` without suffix, quality and split."""
    folder, _, name = key.rpartition("/")
    stem = _stem(name)
    return f"{_plain_folder(folder)}/{recording_name(stem) if MAYBE_QUALITY.search(name) else stem}"


@cache
def _plain_folder(folder: str) -> str:
    """`folder` without the parts that name a split or a quality."""
    return "/".join(part for part in _without_split(folder + "/").split("/")
                    if part and not QUALITY_FOLDER.fullmatch(part) and part.lower() not in PROXY_FOLDERS)


def _without_split(key: str) -> str:
    """`key` without suffix, and without the split among its first two folders.

    Equal numbers in two splits, also with other suffixes, are no sign of one recording.
    """
    folder, _, name = key.rpartition("/")
    parts = folder.split("/")
    return "/".join([part for place, part in enumerate(parts) if place > 1 or split_of_folder(part) is None]
                    + ([_stem(name)] if name else []))


def _stem(key: str) -> str:
    name = key.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if re.fullmatch(r"\.\w{1,8}", suffix) and not suffix[1:].isdecimal() else name
