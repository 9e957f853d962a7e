"""The kinds of unreadable clips, and the sentences that say why."""

from __future__ import annotations

from expand.errors import DataError

KINDS = ("missing", "empty", "no-video", "corrupt", "tiny", "huge", "crash", "hang")
"""In this order: not there, or cannot be opened; no bytes, or a folder without frames; no pictures in it; nothing
decodes; frames smaller than `MIN_SIDE`; frames larger than `MAX_PIXELS`; the decoder crashes; the decoder hangs."""
MIN_SIDE = 8
"""Frames with a shorter side than this, pixels, are refused: they hold no picture worth training on."""
MAX_PIXELS = 2 ** 26
"""Frames with more pixels (8192 x 8192; 8K video has half of it) are a mistake or an attack: few bytes of a file could
ask for gigabytes."""


class UnreadableClip(DataError):
    """A clip that gives no frame; `what` is the reason, `kind` one of `KINDS`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, kind: str = "corrupt") -> None:
        super().__init__(what, where=where, fix=fix)
        self.kind = kind


def check_size(height: int, width: int, where: str) -> None:
    """Raise `UnreadableClip` for frames that are too small to hold a picture, or so large that they must be wrong."""
    if height * width > MAX_PIXELS:
        raise UnreadableClip(f"its frames would be {width} x {height} pixels", where=where, kind="huge")
    if min(height, width) < MIN_SIDE:
        raise UnreadableClip(f"its frames are only {width} x {height} pixels", where=where, kind="tiny")


def pointer_reason(head: bytes) -> str | None:
    """Return why a file that begins with `head` is no clip if it is a pointer of Git LFS or git-annex; else None."""
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the clip itself: `git lfs pull` fetches it"
    if head.startswith((b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")):
        return "is a pointer of git-annex and not the clip itself: `git annex get` fetches it"
    return None


def system_reason(error: Exception) -> str:
    """Return the system's or FFmpeg's own message, without the error number and the path."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
