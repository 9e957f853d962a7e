"""Reading files of weights as untrusted input: nothing in them is run, and nothing is built from them that is larger
than they are (docs/decisions/005-public-weights.md)."""

from __future__ import annotations

import pickle
import re
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from expand.errors import UsageError
from expand.model import archive
from expand.rundir.files import from_json
from expand.space.network import MAX_BYTES, Network
from expand.untrusted_input import file_type

ANEW = "copy it anew, or give a checkpoint of x3d-expand, SlowFast, PyTorchVideo or MMAction2"
NEEDED = "a checkpoint of x3d-expand, SlowFast, PyTorchVideo or MMAction2 is needed"
ALONE = ("where you trust it, load it with the code that wrote it and save its weights alone: "
         "torch.save(model.state_dict(), file)")
IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "mp_rank_00_model_states.pt",
             "global_step*/mp_rank_00_model_states.pt")
"""The names of the file of weights in a folder that Hugging Face's libraries or DeepSpeed write."""
WHOLE = ("torch.nn.", "torch.jit.", "torchvision.models", "torch.fx.")
"""Modules of classes that a pickled network consists of."""
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


def read_content(path: Path) -> Any:
    """Return the content of a file of `torch.save` or safetensors, its tensors on the CPU. Safetensors become a
    dictionary of the tensors under "model" and the description, if there is one, under "network".

    Raises `UsageError` for any other file, and for one that is damaged or would run code.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = next((file for name in IN_FOLDER for file in sorted(path.glob(name)) if file.is_file()), None)
            raise UsageError("is a folder, not a file of weights", where=str(path),
                             fix=f"give the file in it: {inside}" if inside else NEEDED)
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            raise UsageError(f"is {file_type(status.st_mode)}, not a file", where=str(path))
        with open(path, "rb") as file:
            start = file.read(9)
            if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= status.st_size:
                with safetensors.safe_open(path, framework="pt") as tensors:
                    weights = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
                    text = (tensors.metadata() or {}).get("network")
                if text is None:
                    return {"model": weights}
                if len(text) > MAX_BYTES:
                    raise UsageError(f"has a description of more than {MAX_BYTES} bytes", where=str(path))
                return {"model": weights, "network": from_json(text.encode())}
            if (kind := _foreign_kind(file, path)) is not None:
                raise UsageError(kind[0], where=str(path), fix=kind[1])
            return archive.load_tensors(file)
    except UsageError:
        raise
    except archive.Calls as error:
        raise _could_run_code(path, error.called) from error
    except archive.Damaged as error:
        raise UsageError(f"is damaged, or is no checkpoint: {error}", where=str(path), fix=ANEW) from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except Exception as error:  # a damaged or hostile file can make a parser fail in any way
        refusal = str(error) if isinstance(error, pickle.UnpicklingError) else ""
        if "GLOBAL" in refusal:
            raise _could_run_code(path, refusal.partition("GLOBAL ")[2].partition(" ")[0]) from error
        if "operand" in refusal:
            raise UsageError("is pickled in a way that torch reads only together with code (another pickle_protocol "
                             "than torch.save's own); it was not loaded", where=str(path), fix=ALONE) from error
        raise UsageError(f"is no checkpoint, or is damaged ({type(error).__name__})", where=str(path),
                         fix=ANEW) from error


def _could_run_code(path: Path, called: str) -> UsageError:
    what = "a whole pickled network" if called.startswith(WHOLE) else "Python objects besides weights"
    return UsageError(f"holds {what} ({called or 'not named'}), which could run code; it was not loaded",
                      where=str(path), fix=ALONE)


def _foreign_kind(file: BinaryIO, path: Path) -> tuple[str, str] | None:
    """Return the kind of a file that is no checkpoint of `torch.save`, and the advice; None for any other file. At most
    its start and its list of records are read."""
    file.seek(0)
    start = file.read(START_BYTES)
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
    if not start.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(file) as records:
            names = records.namelist()
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


# --- torch.export's archives ---

WEIGHTS = "data/weights/"
TABLE = f"{WEIGHTS}model_weights_config.json"
MAX_TABLE_BYTES = 50_000_000
DTYPES = {7: torch.float32, 5: torch.int64}
"""The types of a network's weights by the archive's own numbers (`ScalarType` in torch/_export/serde/schema.py)."""


def read_torch_export(path: str | Path) -> tuple[Network, dict[str, Tensor]]:
    """Return the network's description and its weights, under the names of `X3D`'s state dict, from a file that
    `expand.exports` wrote as `torch-export`. Raises `UsageError` for any other file.

    `torch.export.load` unpickles constants and sample inputs and compiles guards, so it is for trusted files only. The
    archive itself is a zip file without compression: a JSON table of the weights, and each weight's raw bytes.
    """
    path, state = Path(path), {}
    try:
        with zipfile.ZipFile(path) as records:
            # compressed or overlapping records could take more memory than the file's size shows
            if sum(record.file_size for record in records.infolist()) > path.stat().st_size:
                raise ValueError("grows when it is read")
            root = records.namelist()[0].split("/")[0]
            described, table = f"{root}/extra/network.json", f"{root}/{TABLE}"
            for name, most in ((described, MAX_BYTES), (table, MAX_TABLE_BYTES)):
                if records.getinfo(name).file_size > most:
                    raise ValueError(f"{name} is larger than {most} bytes")
            content = from_json(records.read(described))
            for name, entry in from_json(records.read(table))["config"].items():
                if entry["use_pickle"]:
                    raise ValueError("holds a pickled weight")
                meta = entry["tensor_meta"]
                sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
                raw = torch.frombuffer(bytearray(records.read(f"{root}/{WEIGHTS}{entry['path_name']}")),
                                       dtype=DTYPES[meta["dtype"]])
                # memory outside the record cannot be reached: this checks the bounds
                state[name] = raw.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
        if sum(weight.numel() * weight.element_size() for weight in state.values()) > path.stat().st_size:
            raise ValueError("claims more weights than it holds")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except Exception as error:  # a damaged or hostile archive can make its parsers fail in any way
        raise UsageError(f"is no network that x3d-expand exported, or is damaged ({type(error).__name__}: {error})",
                         where=str(path), fix="write it anew: x3d-expand export RUN --format torch-export") from error
    return Network.from_dict(content, where=str(path)), state
