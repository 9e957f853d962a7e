"""Files of `torch.save` that show every flipped bit, and looks at strangers' before torch reads them.

Such a file is a zip archive, of which torch checks no checksum. A sealed one has a comment at its end (an ordinary part
of a zip file, which torch and others pass over) with the SHA-256 of all that comes before it.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

SEAL = b"x3d-expand sha256 "
SEAL_BYTES = len(SEAL) + 64
IS_SEALED = "sealed"
"""The entry of a sealed file's content that says so: without its seal, it is damaged."""
END_OF_ZIP, ZIP = b"PK\x05\x06", b"PK\x03\x04"
CHUNK = 1 << 20
LEGACY_PICKLES = 5
"""Before zip, torch wrote as many pickles in a row, and then the numbers."""
ALLOWED = ("collections OrderedDict", "torch Size", "torch device", "torch.serialization _get_layout",
           "__builtin__ set", "builtins set", "__builtin__ complex", "builtins complex",
           "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
           "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage")
"""What a file may call to make its tensors, with storages and kinds of numbers. Torch allows more, of which some make
gigabytes of a few bytes (`bytearray`, `_codecs.encode`)."""


class Damaged(ValueError):
    """A file that is not what was written, or would take more than it holds; its text says what is wrong."""


class Calls(Damaged):
    """A file that calls what makes no tensor."""


def save_sealed(state: Mapping[str, Any], path: Path) -> None:
    """Writes `state` to `path`, sealed, and flushes it to the disk. Raises `OSError` where the disk refuses."""
    with open(path, "wb") as file:
        sealing = _Sealing(file)
        try:
            torch.save({**state, IS_SEALED: True}, sealing)
        except Exception as error:
            if sealing.error is not None:  # torch tells of it in words of its own
                raise sealing.error from error
            raise
        sealing.end()
        file.flush()
        os.fsync(file.fileno())


class _Sealing:
    """What torch writes into: passes it on to `file` and takes its digest. The last two bytes of a zip file are the
    length of its comment; they are written anew."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._last = file, hashlib.sha256(), b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            self.error = error
            raise
        if len(view) >= 2:
            self._digest.update(self._last)
            self._digest.update(view[:-2])
            self._last = bytes(view[-2:])
        else:
            self._last += bytes(view)
            self._digest.update(self._last[:-2])
            self._last = self._last[-2:]
        return len(view)

    def flush(self) -> None:
        """Torch asks for it; `save_sealed` does it."""

    def end(self) -> None:
        length = SEAL_BYTES.to_bytes(2, "little")
        self._digest.update(length)
        self._file.seek(-2, os.SEEK_END)
        self._file.write(length + SEAL + self._digest.hexdigest().encode())


def check(file: BinaryIO) -> bool:
    """Looks at a file of `torch.save` before torch does; whether it is sealed.

    Raises `Damaged` for one that is not as it was written (by its seal, or the checksums of a zip archive without one),
    that would grow when it is read, or calls what makes no tensor. Takes no memory to speak of.
    """
    size = file.seek(0, os.SEEK_END)
    is_sealed = _check_seal(file, size)
    file.seek(0)
    with _parsing():
        if file.read(len(ZIP)) == ZIP:
            _check_zip(file, size, is_sealed)
        elif size:
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                _check_calls(file)
    file.seek(0)
    return is_sealed


@contextmanager
def _parsing() -> Iterator[None]:
    try:
        yield
    except Damaged:
        raise
    except Exception as error:  # damaged bytes can make a parser fail in any way
        raise Damaged(f"it is no whole file of torch.save ({type(error).__name__})") from error


def _check_seal(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - SEAL_BYTES))
    seal = file.read()
    if len(seal) < SEAL_BYTES or not seal.startswith(SEAL):
        return False
    digest, left = hashlib.sha256(), size - SEAL_BYTES
    file.seek(0)
    while left and (part := file.read(min(CHUNK, left))):
        digest.update(part)
        left -= len(part)
    if digest.hexdigest().encode() != seal[len(SEAL):]:
        raise Damaged("its digest is another")
    return True


def _check_zip(file: BinaryIO, size: int, is_sealed: bool) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(
                entry.file_size for entry in entries) > size:
            raise Damaged("it grows when it is read")
        if not is_sealed and (entry := archive.testzip()) is not None:
            raise Damaged(f"the checksum of its entry {entry[:100]!r} is another")
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):  # torch looks for it in either case
                with archive.open(entry) as pickle:
                    _check_calls(pickle)


def _check_calls(pickle: Any) -> None:
    for operation, called, _ in pickletools.genops(pickle):
        if operation.name == "GLOBAL" and called not in ALLOWED and not (
                called.startswith("torch ") and (called.endswith("Storage") or _is_dtype(called[len("torch "):]))):
            raise Calls(f"it calls {called[:100].replace(' ', '.')}, which a file of weights does not")


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)
