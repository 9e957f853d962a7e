"""Sealed files of `torch.save`, in which every flipped bit shows, and the check of untrusted ones before torch reads
them.

A file of torch.save is a zip archive, whose checksums torch does not check. A sealed one has a comment at its end (an
ordinary part of a zip file, which torch and others ignore) with the SHA-256 of everything before it.
"""

from __future__ import annotations

import _compat_pickle
import hashlib
import os
import pickletools
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch

SEAL = b"x3d-expand sha256 "
SEAL_BYTES = len(SEAL) + 64
IS_SEALED = "sealed"
"""The entry that marks the content of a sealed file: without its seal, such a file is damaged."""
END_OF_ZIP, ZIP = b"PK\x05\x06", b"PK\x03\x04"
CHUNK = 1 << 20
LEGACY_PICKLES = 5
"""The number of pickles, before the raw numbers, in a file of torch before it used zip."""
ALLOWED = ("collections OrderedDict", "torch Size", "torch device", "torch.serialization _get_layout",
           "__builtin__ set", "builtins set", "__builtin__ complex", "builtins complex",
           "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
           "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage")
"""The calls by which a file may make its tensors, beside storages and dtypes. Torch allows more; some of them make
gigabytes from a few bytes (`bytearray`, `_codecs.encode`)."""
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
"""The call by which a number of NumPy holds its bytes, which torch runs; and the most letters of all calls together."""
DICTIONARIES = ("AttributeDict", "AttrDict", "Box", "CfgNode", "ConfigDict", "DefaultMunch", "Dict", "DotDict",
                "EasyDict", "Munch", "OrderedDict", "defaultdict")
"""Classes into which pickles fill entries, as into a dictionary."""


class Damaged(ValueError):
    """A file that is not as it was written, or would take more memory than it holds; the text is the reason."""


class Calls(Damaged):
    """A file that calls a function, `called`, that makes no tensor."""

    def __init__(self, called: str) -> None:
        self.called = called
        super().__init__(f"it calls {called}, which a file of weights does not")


class Nothing:
    """The replacement of an object beside the weights: it accepts anything, keeps nothing, and runs nothing of its
    class."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        """Accept anything."""

    def __setstate__(self, state: Any) -> None:
        """Accept anything."""


class _NothingAsList:
    """The same for an object to which a pickle appends, which torch allows for lists only."""

    def __new__(cls, *args: Any) -> list:  # type: ignore[misc]  # on purpose another type
        return []


class _NothingAsDict:
    """The same for an object into which a pickle fills entries, which torch allows for three classes only."""

    def __new__(cls, *args: Any) -> Counter:  # type: ignore[misc]  # on purpose another type
        return Counter()


def save_sealed(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` to `path`, sealed, and flush it to the disk. Raises `OSError` if the disk refuses."""
    with open(path, "wb") as file:
        sealing = _SealingFile(file)
        try:
            torch.save({**state, IS_SEALED: True}, sealing)  # type: ignore[arg-type]  # it only writes and flushes
        except Exception as error:
            if sealing.error is not None:  # torch raises an error of its own instead
                raise sealing.error from error
            raise
        sealing.end()
        file.flush()
        os.fsync(file.fileno())


class _SealingFile:
    """The file object that torch writes to: it writes to `file` and computes the digest. The last two bytes of a zip
    file are the length of its comment; they are written anew."""

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
        """Do nothing: torch calls this, but `save_sealed` flushes."""

    def end(self) -> None:
        length = SEAL_BYTES.to_bytes(2, "little")
        self._digest.update(length)
        self._file.seek(-2, os.SEEK_END)
        self._file.write(length + SEAL + self._digest.hexdigest().encode())


def load_tensors(file: BinaryIO) -> Any:
    """Return the content of a file of `torch.save`, its tensors on the CPU, after `check`. Objects of usual classes
    beside them become `Nothing`; their code is neither run nor imported. Raises as `check` and `torch.load` do."""
    beside: set[str] = set()
    check(file, beside)
    special = {"deque": _NothingAsList, **dict.fromkeys(DICTIONARIES, _NothingAsDict)}
    with torch.serialization.safe_globals([(special.get(name.rpartition(".")[2], Nothing), name)
                                           for name in sorted(beside)]):
        return torch.load(file, map_location="cpu", weights_only=True)


def check(file: BinaryIO, beside: set[str] | None = None) -> bool:
    """Check a file of `torch.save` before torch reads it. Returns True if it is sealed. `beside` receives the classes
    of objects that `load_tensors` reads as nothing; without `beside` they are refused.

    Raises `Damaged` for a file that is not as it was written (by its seal, or the checksums of a zip archive without
    one), that would grow when it is read, or that calls a function that makes no tensor. Takes little memory.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - SEAL_BYTES))
    seal = file.read()
    if is_sealed := len(seal) == SEAL_BYTES and seal.startswith(SEAL):
        digest, left = hashlib.sha256(), size - SEAL_BYTES
        file.seek(0)
        while left and (part := file.read(min(CHUNK, left))):
            digest.update(part)
            left -= len(part)
        if digest.hexdigest().encode() != seal[len(SEAL):]:
            raise Damaged("its digest does not match")
    file.seek(0)
    try:
        if file.read(len(ZIP)) == ZIP:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(
                        entry.file_size for entry in entries) > size:
                    raise Damaged("it grows when it is read")
                if not is_sealed and (damaged := archive.testzip()) is not None:
                    raise Damaged(f"the checksum of its entry {damaged[:100]!r} does not match")
                for entry in entries:
                    if entry.filename.lower().endswith("data.pkl"):  # torch looks for it in either case
                        with archive.open(entry) as pickle:
                            _check_calls(pickle, beside)
        elif size:
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                _check_calls(file, beside)
    except Damaged:
        raise
    except Exception as error:  # damaged bytes can make a parser fail in any way
        raise Damaged(f"it is no whole file of torch.save ({type(error).__name__})") from error
    file.seek(0)
    return is_sealed


def _check_calls(pickle: Any, beside: set[str] | None) -> None:
    """Raise `Calls` if a pickle calls a function that is not allowed; add the classes of inert objects to `beside`."""
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
        if operation.name == "GLOBAL" and isinstance(called, str) and not _makes_tensors(called):
            if beside is None or not (called == ENCODE or _is_inert(called)):
                raise Calls(called[:100].replace(" ", "."))
            if called == ENCODE:
                encodes = True
            else:
                module, _, name = called.partition(" ")
                module, name = _compat_pickle.NAME_MAPPING.get((module, name)) or (
                    _compat_pickle.IMPORT_MAPPING.get(module, module), name)
                beside.add(f"{module}.{name}")  # by the names of Python 3, as torch looks it up
        elif operation.name == "REDUCE":
            calls += 1
        elif isinstance(called, str):
            longest = max(longest, len(called))
    if encodes and calls * longest > MOST_ENCODED:
        raise Calls(ENCODE.replace(" ", "."))


def _makes_tensors(called: str) -> bool:
    """Return True for the functions, storages and dtypes of which a file makes its tensors."""
    module, _, name = called.partition(" ")
    return called in ALLOWED or module == "torch" and (
        name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype))


def _is_inert(called: str) -> bool:
    """Return True for the class of an object that is read as `Nothing`."""
    module, _, name = called.partition(" ")
    if module in ("__builtin__", "builtins"):
        return name in INERT_BUILTINS
    parts = module.split(".")
    return any(".".join(parts[:count]) in INERT for count in range(1, len(parts) + 1))
