"""Files of `torch.save` that show every flipped bit, and looks at strangers' before torch reads them.

Such a file is a zip archive, of which torch checks no checksum. A sealed one has a comment at its end (an ordinary part
of a zip file, which torch and others pass over) with the SHA-256 of all that comes before it.
"""

from __future__ import annotations

import _compat_pickle
import hashlib
import os
import pickletools
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

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


INERT = ("argparse", "pathlib", "datetime", "collections", "types", "typing", "enum", "decimal", "fractions", "uuid",
         "numpy", "omegaconf", "hydra", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities",
         "mmengine", "mmcv", "mmaction", "yacs", "fvcore", "iopath", "slowfast", "pytorchvideo", "torchmetrics", "timm",
         "addict", "easydict", "munch", "box", "ml_collections", "transformers", "accelerate", "functools",
         "torch.optim", "torch.nn.modules.loss", "__main__")
"""Packages and modules whose objects stand beside weights: settings, paths, times, numbers, optimisers. They are read
as `Nothing`."""
INERT_BUILTINS = ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "long", "object", "range", "slice",
                  "str", "tuple", "type", "unicode", "xrange")
COUNTER = "collections Counter"
"""Torch takes it as it is, and the milestones of a learning rate's schedule are one. It copies what it is called with,
so that each call may have a dictionary of its own only: else a few bytes would copy all that a file holds."""
ENCODE, MOST_ENCODED = "_codecs encode", 64_000_000
"""How a number of NumPy's holds its bytes, which torch takes as it is; and letters that all calls together may take."""
DICTIONARIES = ("AttributeDict", "AttrDict", "Box", "CfgNode", "ConfigDict", "DefaultMunch", "Dict", "DotDict",
                "EasyDict", "Munch", "OrderedDict", "defaultdict")
"""Classes of which pickles fill in entries, as into a dictionary."""


class Damaged(ValueError):
    """A file that is not what was written, or would take more than it holds; its text says what is wrong."""


class Calls(Damaged):
    """A file that calls what makes no tensor: `called`."""

    def __init__(self, called: str) -> None:
        self.called = called
        super().__init__(f"it calls {called}, which a file of weights does not")


class Nothing:
    """What becomes of an object beside the weights: it takes anything, keeps nothing, and runs nothing of its class."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        """Takes anything."""

    def __setstate__(self, state: Any) -> None:
        """Takes anything."""


class _NothingListed:
    """The same where a pickle appends to it, which torch allows for lists only."""

    def __new__(cls, *args: Any) -> list:
        return []


class _NothingFilled:
    """The same where a pickle fills in entries, which torch allows for three classes only."""

    def __new__(cls, *args: Any) -> Counter:
        return Counter()


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


def load_tensors(file: BinaryIO) -> Any:
    """What a file of `torch.save` holds, its tensors on the CPU, checked as by `check`. Objects of usual classes beside
    them become `Nothing`; none of their code is run, nor imported. Raises as `check` and `torch.load` do."""
    beside: set[str] = set()
    check(file, beside)
    with torch.serialization.safe_globals([(_nothing_for(name), name) for name in sorted(beside)]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _nothing_for(name: str) -> type:
    last = name.rpartition(".")[2]
    return _NothingListed if last == "deque" else _NothingFilled if last in DICTIONARIES else Nothing


def check(file: BinaryIO, beside: set[str] | None = None) -> bool:
    """Looks at a file of `torch.save` before torch does; whether it is sealed. `beside` takes the classes of objects
    that `load_tensors` reads as nothing; without it they are refused.

    Raises `Damaged` for one that is not as it was written (by its seal, or the checksums of a zip archive without one),
    that would grow when it is read, or calls what makes no tensor. Takes no memory to speak of.
    """
    size = file.seek(0, os.SEEK_END)
    is_sealed = _check_seal(file, size)
    file.seek(0)
    with _parsing():
        if file.read(len(ZIP)) == ZIP:
            _check_zip(file, size, is_sealed, beside)
        elif size:
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                _check_calls(file, beside)
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


def _check_zip(file: BinaryIO, size: int, is_sealed: bool, beside: set[str] | None) -> None:
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
                    _check_calls(pickle, beside)


def _check_calls(pickle: Any, beside: set[str] | None) -> None:
    encodes, calls, longest = False, 0, 0
    is_counter, counters = False, set()  # whether the last entry of the stack is it; where it is kept to be used again
    for operation, called, _ in pickletools.genops(pickle):
        if operation.name in ("BINPUT", "LONG_BINPUT"):
            if is_counter:
                counters.add(called)
            continue
        if is_counter and operation.name != "EMPTY_DICT":
            raise Calls(COUNTER.replace(" ", "."))
        is_counter = (operation.name == "GLOBAL" and called == COUNTER) or (
            operation.name in ("BINGET", "LONG_BINGET") and called in counters)
        if is_counter:
            continue
        if operation.name == "GLOBAL" and called not in ALLOWED and not (
                called.startswith("torch ") and (called.endswith("Storage") or _is_dtype(called[len("torch "):]))):
            if beside is None or not (called == ENCODE or _is_inert(called)):
                raise Calls(called[:100].replace(" ", "."))
            if called == ENCODE:
                encodes = True
            else:
                beside.add(_as_torch_reads(called))
        elif operation.name == "REDUCE":
            calls += 1
        elif isinstance(called, str):
            longest = max(longest, len(called))
    if encodes and calls * longest > MOST_ENCODED:
        raise Calls(ENCODE.replace(" ", "."))


def _is_inert(called: str) -> bool:
    module, _, name = called.partition(" ")
    if module in ("__builtin__", "builtins"):
        return name in INERT_BUILTINS
    parts = module.split(".")
    return any(".".join(parts[:count]) in INERT for count in range(1, len(parts) + 1))


def _as_torch_reads(called: str) -> str:
    """The path of what a pickle calls, by the names of Python 3."""
    module, _, name = called.partition(" ")
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    else:
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)
