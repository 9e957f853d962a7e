"""Recognising files that are no checkpoint of `torch.save`, by their first bytes or by the content of a zip archive.

This only serves error messages with advice: nothing in a file is run, and at most its start is read.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import BinaryIO

from expand.errors import UsageError

START_BYTES = 1024
AGAIN = "download or copy it again, and compare its size with the one that is published"
OF_TORCH = "where you have its network in PyTorch, save its weights alone: torch.save(model.state_dict(), FILE)"
OF_SCRIPT = ("where you trust it, save its weights alone: "
             "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW_FILE)")
OF_PROGRAM = ("where x3d-expand wrote it, give it a name that ends in .pt2; else, where you trust it, save its weights "
              "alone: torch.save(torch.export.load(FILE).state_dict, NEW_FILE)")
IN_ONE_FILE = ("load them with the library that wrote them, and save them in one file: torch.save(model.state_dict(), "
               "FILE)")
WEB_PAGE = ("is a web page in place of a checkpoint: the server asked for a login or a click, or answered with an "
            "error")
DIRECTLY = ("download it in a browser, or by the link to the file itself (https://huggingface.co/.../resolve/..., "
            "https://github.com/.../raw/...)")
UNPACK = "unpack it, and give the file of weights in it"
KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "is a pointer of Git LFS in place of the file, which was not downloaded",
     "fetch it with: git lfs pull"),
    (0, b"\x93NUMPY", "is an array of NumPy, which has no names of weights", OF_TORCH),
    (0, b"\x89HDF\r\n\x1a\n", "is HDF5, as Keras writes it", OF_TORCH),
    (4, b"TFL3", "is a model of TensorFlow Lite", OF_TORCH),
    (0, b"GGUF", "is GGUF, which no video network is kept in", OF_TORCH),
    (0, b"ptrt", "is an engine of TensorRT, whose weights cannot be read back", OF_TORCH),
    (0, b"\x1f\x8b", "is compressed with gzip", UNPACK),
    (0, b"BZh", "is compressed with bzip2", UNPACK),
    (0, b"\xfd7zXZ\x00", "is compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "is an archive of 7-Zip", UNPACK),
    (0, b"Rar!", "is an archive of RAR", UNPACK),
    (4, b"ftyp", "is a video", "give a file of weights"),
    (0, b"\x1aE\xdf\xa3", "is a video", "give a file of weights"),
    (0, b"\x89PNG", "is a picture", "give a file of weights"),
    (0, b"\xff\xd8\xff", "is a picture", "give a file of weights"),
    (0, b"%PDF", "is a PDF document", "give a file of weights"),
)
"""Offset and bytes of a kind of file, its description, and the advice."""


def check_kind(file: BinaryIO, path: Path) -> None:
    """Raise `UsageError` if the open `file`, at `path`, is of a kind that is no checkpoint."""
    file.seek(0)
    start = file.read(START_BYTES)
    found = _kind_by_bytes(start, path) or (_kind_of_zip(file) if start.startswith(b"PK\x03\x04") else None)
    file.seek(0)
    if found:
        raise UsageError(found[0], where=str(path), fix=found[1])


def _kind_by_bytes(start: bytes, path: Path) -> tuple[str, str] | None:
    if not start:
        return "is empty, so it is damaged: a download or a copy of it failed", AGAIN
    if not any(start):
        return "begins with zeros alone, so it is damaged: a download or a copy of it failed", AGAIN
    for offset, magic, what, fix in KINDS:
        if start[offset:offset + len(magic)] == magic:
            return what, fix
    if start[257:262] == b"ustar":
        return "is a tar archive, as torch wrote them before 2017, or one around a file of weights", UNPACK
    if path.suffix.lower() == ".onnx" or (start[:1] == b"\x08" and b"pytorch" in start[:64]):
        return "is ONNX, which holds no weights under the names that they were trained with", OF_TORCH
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return WEB_PAGE, DIRECTLY
    if re.match(rb"[45]\d\d:? +[a-z]|(entry |page )?not found\b", text):
        return "is text in place of a checkpoint: a server's answer that the file was not found or not given", DIRECTLY
    if text.startswith((b"<?xml", b"<error", b"<net")):
        return "is XML in place of a checkpoint: a server's error, or a network's layers without weights", AGAIN
    if text.startswith((b"{", b"[")):
        if b"weight_map" in text:
            return "is an index of weights that lie in several files beside it", IN_ONE_FILE
        return "is text (JSON) in place of a checkpoint: a server's answer, or a configuration", AGAIN
    return None


def _kind_of_zip(file: BinaryIO) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is damaged: its end is missing, or is not the one that was written (a download that stopped?)", AGAIN
    inner = [name.split("/", 1)[-1] for name in names]
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "is TorchScript (torch.jit.save), which holds code besides weights, so it was not loaded", OF_SCRIPT
    if "serialized_exported_program.json" in names or "archive_format" in inner or any(
            name.startswith(("data/weights/", "data/aotinductor/")) for name in inner):
        return "is an exported program of PyTorch (.pt2)", OF_PROGRAM
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy's arrays (.npz)", OF_TORCH
    if "model.weights.h5" in names:
        return "is a model of Keras", OF_TORCH
    if not any(name.lower().endswith("data.pkl") for name in names):
        return "is a zip archive that torch.save did not write", UNPACK
    return None
