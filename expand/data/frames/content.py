"""The identity of a clip: a hash of its bytes, whatever its name, and a memo so that no file is hashed twice.

The memo is a text file to which any number of processes append: one line for each hashed clip, written in one call. A
line that is torn, foreign or half overwritten fails its check sum and is skipped; a lost line costs one more hash.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from expand.data.frames.clip_files import UnreadableClip, frame_files
from expand.processes import heartbeat

CHUNK = 1 << 20
SETTLED_NS = 2_000_000_000
"""A file that was changed more recently than this, nanoseconds, is hashed but not remembered: the clocks of some file
systems are this coarse, so that a further change might leave no trace in its time."""
SPARE_LINES = 1000
"""Superseded lines that a memo may hold beyond as many as it needs."""
_PATH, _STATE, _CONTENT, _CHECK = 32, 16, 64, 8


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of those of a folder's frames in their order: 64 hexadecimal digits.

    The names of the clip and of its frames do not change it. Raises `OSError`, also for what is no regular file, and
    `UnreadableClip` for a folder without frames.
    """
    if not path.is_dir():
        return _file_hash(path)
    digest = hashlib.sha256(b"frames")
    for file in frame_files(path):
        digest.update(bytes.fromhex(_file_hash(file)))
    return digest.hexdigest()


def file_state(path: Path) -> str:
    """Return a digest that changes when the clip is written to: 16 hexadecimal digits.

    It is made of size, times of modification and of change, and inode, of a folder those of all frames. Raises as
    `content_hash`.
    """
    return _state(path)[0]


def _state(path: Path) -> tuple[str, int]:
    """Return the state of a clip, and the latest modification time in it, nanoseconds."""
    digest, latest_ns = hashlib.sha256(), 0
    for file in frame_files(path) if path.is_dir() else [path]:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would block
            raise OSError(errno.EINVAL, "is not a regular file")
        latest_ns = max(latest_ns, about.st_mtime_ns)
        name = os.fsencode(file.name) if file != path else b""
        # the time of change too: programs that copy or restore a file can set its time of modification
        digest.update(b"%d %d %d %d %s\0" % (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, name))
    return digest.hexdigest()[:_STATE], latest_ns


def _file_hash(path: Path) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
            heartbeat()
    return digest.hexdigest()


class ContentMemo:
    """A memo in `file` of the content of clips, by their absolute path and state. Can be in a `process_map`'s state."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[bytes, bytes] = {}  # 16 bytes for a path: 40 for its state and content
        self._lines = 0
        with suppress(OSError):
            for line in file.read_bytes().splitlines():  # the last valid line of a path counts
                self._lines += 1
                words = line.split(b" ")
                if len(line) == _PATH + _STATE + _CONTENT + _CHECK + 3 and len(words) == 4:
                    with suppress(ValueError, UnicodeDecodeError):
                        name, state, content = (word.decode() for word in words[:3])
                        if _line(name, state + content)[:-1] == line:
                            self._known[bytes.fromhex(name)] = bytes.fromhex(state + content)

    def known_content(self, path: Path) -> str | None:
        """Return the content of `path` if it was hashed in its present state; this does not read the clip."""
        try:
            return self._look_up(path, file_state(path))
        except (OSError, UnreadableClip):  # the reader says what is wrong with it
            return None

    def content(self, path: Path) -> tuple[str, str]:
        """Return (content, state) of `path`; hash it now unless it is known. Raises as `content_hash`."""
        state, latest_ns = _state(path)
        content = self._look_up(path, state)
        if content is None:
            content = content_hash(path)
            if latest_ns < time.time_ns() - SETTLED_NS and _state(path)[0] == state:
                name = _path_digest(path)
                self._known[bytes.fromhex(name)] = bytes.fromhex(state + content)
                with suppress(OSError):  # a full disk or the folder of another user: it is hashed again next time
                    file = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                    try:
                        os.write(file, _line(name, state + content))
                    finally:
                        os.close(file)
        return content, state

    def compact(self) -> None:
        """Write the file anew if most of its lines are superseded.

        The caller holds a lock, so that only one process does this. A line that is appended meanwhile may be lost.
        """
        if self._lines <= 2 * len(self._known) + SPARE_LINES:
            return
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            with open(temporary, "wb") as file:
                file.writelines(_line(path.hex(), value.hex()) for path, value in self._known.items())
            os.replace(temporary, self._file)
            self._lines = len(self._known)
        with suppress(OSError):  # which a read-only disk gives for a file that is not there, too
            temporary.unlink(missing_ok=True)

    def _look_up(self, path: Path, state: str) -> str | None:
        value = self._known.get(bytes.fromhex(_path_digest(path)), b"").hex()
        return value[_STATE:] if value[:_STATE] == state and value else None


def _path_digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:_PATH]


def _line(name: str, value: str) -> bytes:
    """Return the line of a path: its digest, state and content, and a check sum."""
    text = f"{name} {value[:_STATE]} {value[_STATE:]}"
    return f"{text} {hashlib.sha256(text.encode()).hexdigest()[:_CHECK]}\n".encode()
